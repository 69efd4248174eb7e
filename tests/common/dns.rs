//! A name server on a loopback port that answers by a script: SRV records, refusals or silence.
#![allow(dead_code, unreachable_pub)] // each test crate uses a part

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// What to answer when asked for a name.
#[derive(Clone, Debug)]
pub enum Tell {
    /// These records: priority, weight, port, target.
    Records(Vec<(u16, u16, u16, &'static str)>),
    /// This response code, without records: 0 is "no such record", 2 SERVFAIL, 3 NXDOMAIN, 5
    /// REFUSED.
    Code(u8),
    /// Something that is no DNS.
    Garbage,
    /// Nothing.
    Silence,
}

/// A name server. Dropping it closes it.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Dns {
    /// Answers by `script`, in which names have no dot at the end; NXDOMAIN for the others.
    pub async fn new(script: impl IntoIterator<Item = (&str, Tell)>) -> Self {
        let script: BTreeMap<String, Tell> = script
            .into_iter()
            .map(|(name, tell)| (name.to_owned(), tell))
            .collect();
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        let task = tokio::spawn(async move {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let Some((name, end)) = question(&packet[..length]) else {
                    continue;
                };
                log.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(name.clone());
                let tell = script.get(&name).unwrap_or(&Tell::Code(3));
                if let Some(answer) = answer(&packet[..end], tell) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self {
            address,
            asked,
            task: task.abort_handle(),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The names so far, each once, in the order in which they were first asked for.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = Vec::new();
        for name in asked.iter() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The name that is asked for, and where the question ends.
fn question(packet: &[u8]) -> Option<(String, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = packet.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).into_owned());
        at += length;
    }
    // The type and the class.
    (packet.len() >= at + 4).then(|| (labels.join("."), at + 4))
}

fn answer(question: &[u8], tell: &Tell) -> Option<Vec<u8>> {
    let (code, records) = match tell {
        Tell::Records(records) => (0, records.as_slice()),
        Tell::Code(code) => (*code, [].as_slice()),
        Tell::Garbage => {
            // Its own id, so that it is not taken for somebody else's.
            let mut garbage = question[..2].to_vec();
            garbage.extend_from_slice(&[0x81, 0x80, 0, 9, 0, 9, 0xff, 0xff]);
            return Some(garbage);
        }
        Tell::Silence => return None,
    };
    let mut answer = question.to_vec();
    // An answer, recursion available; one question, so many answers, nothing else.
    answer[2] = 0x81;
    answer[3] = 0x80 | code;
    answer[4..6].copy_from_slice(&1u16.to_be_bytes());
    answer[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
    answer[8..12].fill(0);
    for (priority, weight, port, target) in records {
        let mut data = Vec::new();
        for number in [priority, weight, port] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        for label in target.split('.').filter(|it| !it.is_empty()) {
            data.push(label.len() as u8);
            data.extend_from_slice(label.as_bytes());
        }
        data.push(0);
        // The name of the question; SRV, IN; 60 s.
        answer.extend_from_slice(&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60]);
        answer.extend_from_slice(&(data.len() as u16).to_be_bytes());
        answer.extend_from_slice(&data);
    }
    Some(answer)
}
