//! A server that answers as a script says, for what no real one does on demand.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum Say {
    /// Send these bytes and close the connection.
    Raw(String),
    /// Send these bytes, then these once the number of requests has reached this, and close.
    Later(String, usize, String),
    /// Never answer.
    Nothing,
    /// Close the connection.
    Close,
}

/// A fake server on a loopback port. Dropping it closes everything.
#[derive(Debug)]
pub struct Fake {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Fake {
    /// Answers by `script`, which gets the request (its head and its body) and its number,
    /// counted from 0.
    pub async fn new(script: impl Fn(usize, &str) -> Say + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, script) = (requests.clone(), Arc::new(script));
        let (count, counted) = watch::channel(0);
        let count = Arc::new(count);
        let task = tokio::spawn(async move {
            // Dropped with this task, and the connections with it.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, script) = (log.clone(), script.clone());
                let (count, mut counted) = (count.clone(), counted.clone());
                connections.spawn(async move {
                    let mut stream = stream;
                    let Some(request) = read_request(&mut stream).await else {
                        return;
                    };
                    let number = {
                        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                        log.push(request.clone());
                        count.send_replace(log.len());
                        log.len() - 1
                    };
                    match script(number, &request) {
                        Say::Raw(bytes) => {
                            let _ = stream.write_all(bytes.as_bytes()).await;
                            let _ = stream.shutdown().await;
                        }
                        Say::Later(now, requests, later) => {
                            let _ = stream.write_all(now.as_bytes()).await;
                            let _ = counted.wait_for(|it| *it >= requests).await;
                            let _ = stream.write_all(later.as_bytes()).await;
                            let _ = stream.shutdown().await;
                        }
                        Say::Nothing => {
                            // Until the client gives up.
                            let _ = stream.read(&mut [0]).await;
                        }
                        Say::Close => {}
                    }
                });
            }
        });
        Self {
            port,
            requests,
            task: task.abort_handle(),
        }
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The requests so far, in the order of their arrival.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first lines of the requests so far, without the protocol.
    pub fn lines(&self) -> Vec<String> {
        let requests = self.requests();
        let lines = requests.iter().filter_map(|it| it.lines().next());
        lines.map(|it| it.replace(" HTTP/1.1", "")).collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer of the keys API with this status, index and body.
pub fn answer(status: u16, index: u64, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nX-Etcd-Cluster-Id: c1\r\n\
         X-Etcd-Index: {index}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An answer that says that what was asked for is elsewhere.
pub fn redirect(status: u16, location: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nLocation: {location}\r\nConnection: close\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

/// An answer in plain text, without an index, as `/v2/machines` and `/version` have.
pub fn plain(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: text/plain\r\n{headers}Connection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The head of a long poll's answer.
pub fn poll_head(index: u64) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: c1\r\nX-Etcd-Index: {index}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
}

/// A body in one chunk, and the end.
pub fn chunks(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

/// A node as the keys API writes it, with what was done to it.
pub fn node(action: &str, key: &str, value: &str, index: u64) -> String {
    format!(
        r#"{{"action":"{action}","node":{{"key":"{key}","value":"{value}","modifiedIndex":{index},"createdIndex":1}}}}"#
    )
}

/// A refusal of the keys API.
pub fn refusal(code: u16, index: u64) -> String {
    format!(r#"{{"errorCode":{code},"message":"Refused","cause":"c","index":{index}}}"#)
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .filter_map(|line| {
                line.to_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            })
            .next()
            .unwrap_or(0);
        if body.len() >= length {
            return Some(text.into_owned());
        }
    }
}
