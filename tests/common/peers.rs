//! What lies between the members of a cluster: gates through which they talk to each other, and
//! which can cut one of them off while its clients still reach it.
//!
//! etcd names the sender in each of its peers' requests (`X-Server-From`), and a connection
//! belongs to one sender, so the first request of a connection says whom to cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The gates of one cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The number and the id of the member that is cut off.
    cut: Option<(usize, String)>,
    links: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    to: usize,
    from: Option<String>,
    ends: [TcpStream; 2],
}

impl Peers {
    /// A gate in front of the port on which this member listens for its peers: the port to
    /// advertise instead. It is there as long as the process.
    pub(crate) fn gate(&self, to: usize, port: u16) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let gate = listener.local_addr().expect("an address").port();
        let peers = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let peers = peers.clone();
                // An end is all that an error means here.
                thread::spawn(move || peers.pass(to, port, stream));
            }
        });
        gate
    }

    /// Cuts one member off from the others. Its id is the one in `/v2/stats/self`.
    pub(crate) fn cut(&self, member: usize, id: &str) {
        let mut state = self.0.lock().unwrap();
        state.cut = Some((member, id.to_owned()));
        let State { cut, links } = &mut *state;
        links.retain(|link| {
            let closed = is_cut(cut.as_ref(), link.to, link.from.as_deref());
            if closed {
                for end in &link.ends {
                    let _ = end.shutdown(Shutdown::Both);
                }
            }
            !closed
        });
    }

    /// Lets all talk to each other again.
    pub(crate) fn heal(&self) {
        self.0.lock().unwrap().cut = None;
    }

    fn pass(&self, to: usize, port: u16, mut client: TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.windows(4).any(|it| it == b"\r\n\r\n") {
            let mut some = [0; 4_096];
            let read = client.read(&mut some).ok().filter(|it| *it > 0)?;
            head.extend_from_slice(&some[..read]);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let from = text
            .lines()
            .find_map(|it| it.strip_prefix("X-Server-From: "));
        let from = from.map(|it| it.trim().to_owned());
        let mut server = TcpStream::connect(("127.0.0.1", port)).ok()?;
        {
            let mut state = self.0.lock().unwrap();
            if is_cut(state.cut.as_ref(), to, from.as_deref()) {
                return None;
            }
            let ends = [client.try_clone().ok()?, server.try_clone().ok()?];
            state.links.push(Link { to, from, ends });
        }
        server.write_all(&head).ok()?;
        let (mut back, mut there) = (server.try_clone().ok()?, client.try_clone().ok()?);
        thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut there);
            let _ = there.shutdown(Shutdown::Both);
        });
        let _ = std::io::copy(&mut client, &mut server);
        let _ = server.shutdown(Shutdown::Both);
        Some(())
    }
}

/// Whether a connection is one that the cut goes through. Of one whose sender is unknown it is
/// assumed.
fn is_cut(cut: Option<&(usize, String)>, to: usize, from: Option<&str>) -> bool {
    cut.is_some_and(|(member, id)| to == *member || from.is_none_or(|from| from == id))
}
