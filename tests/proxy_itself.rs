//! The fault proxy does what its tests rely on. The server behind it is a few lines: it counts
//! what it was asked for and answers with it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[allow(dead_code)] // each test crate uses a part
#[path = "common/proxy.rs"]
mod proxy;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proxy::{Client, Fault, Match, Proxy};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Long enough for anything on loopback that is going to happen.
const SOON: Duration = Duration::from_secs(10);
/// Long enough to show that nothing does.
const A_MOMENT: Duration = Duration::from_millis(50);

/// A server that answers `<method> <path> <body>`; below `/poll` in two chunks, the second when
/// told.
struct Server {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    finish_poll: Arc<Notify>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let finish_poll = Arc::new(Notify::new());
        let (log, finish) = (seen.clone(), finish_poll.clone());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, log.clone(), finish.clone()));
            }
        });
        Self {
            addr,
            seen,
            finish_poll,
            _tasks: tasks,
        }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(stream: TcpStream, log: Arc<Mutex<Vec<String>>>, finish: Arc<Notify>) {
    let mut stream = BufReader::new(stream);
    while let Some((first, body)) = read_message(&mut stream).await {
        let line = first.trim_end_matches(" HTTP/1.1").to_owned();
        log.lock().unwrap().push(line.clone());
        if line.contains("/poll") {
            let first = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";
            stream.write_all(first.as_bytes()).await.unwrap();
            finish.notified().await;
            stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
        } else {
            let text = format!("{line} {body}");
            let reply = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    }
}

/// The first line and the body of a message with a length; `None` at the end.
async fn read_message(stream: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let (mut first, mut length) = (String::new(), 0);
    if stream.read_line(&mut first).await.ok()? == 0 {
        return None;
    }
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((
        first.trim_end().to_owned(),
        String::from_utf8(body).unwrap(),
    ))
}

/// A client connection.
struct Caller(BufReader<TcpStream>);

impl Caller {
    async fn new(proxy: &Proxy) -> Self {
        Self(BufReader::new(
            TcpStream::connect(proxy.addr()).await.unwrap(),
        ))
    }

    async fn send(&mut self, method: &str, path: &str, body: &str) {
        let length = body.len();
        let text = format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// The body of the next reply; `None` if the connection closes instead.
    async fn reply(&mut self) -> Option<String> {
        let reply = timeout(SOON, read_message(&mut self.0)).await;
        let (_, body) = reply.expect("a reply or the end")?;
        Some(body)
    }

    async fn hears_nothing(&mut self) -> bool {
        timeout(A_MOMENT, self.0.fill_buf()).await.is_err()
    }

    async fn read_until(&mut self, end: &str) {
        let mut text = String::new();
        while !text.ends_with(end) {
            let byte = timeout(SOON, self.0.read_u8()).await.unwrap().unwrap();
            text.push(char::from(byte));
        }
    }
}

async fn set_up() -> (Server, Proxy, Caller) {
    let server = Server::start().await;
    let proxy = Proxy::start(server.addr).await.unwrap();
    let caller = Caller::new(&proxy).await;
    (server, proxy, caller)
}

#[tokio::test]
async fn requests_and_replies_pass_and_are_logged() {
    let (server, proxy, mut caller) = set_up().await;
    for (method, path, body) in [("PUT", "/a?x=1", "value=1"), ("GET", "/a", "")] {
        caller.send(method, path, body).await;
        assert_eq!(
            caller.reply().await.unwrap(),
            format!("{method} {path} {body}")
        );
    }
    assert_eq!(server.seen(), ["PUT /a?x=1", "GET /a"]);
    let log = proxy.log();
    let first = log.first().unwrap();
    assert_eq!(
        (&*first.method, &*first.path, &*first.body),
        ("PUT", "/a?x=1", "value=1")
    );
    assert_eq!(proxy.count(&Match::path("/a")), 2);
    assert_eq!(proxy.count(&Match::method("PUT").and_path("/a")), 1);
    assert!(proxy.url().starts_with("http://127.0.0.1:"));
}

#[tokio::test]
async fn a_long_poll_is_passed_on_piece_by_piece() {
    let (server, _proxy, mut caller) = set_up().await;
    caller.send("GET", "/poll", "").await;
    caller.read_until("3\r\none\r\n").await;
    server.finish_poll.notify_one();
    caller.read_until("0\r\n\r\n").await;
    // The connection is still good.
    caller.send("GET", "/b", "").await;
    assert_eq!(caller.reply().await.unwrap(), "GET /b ");
}

#[tokio::test]
async fn a_lost_reply_was_done_and_a_lost_request_was_not() {
    for then in [Client::Hangs, Client::IsClosed] {
        let (server, proxy, mut caller) = set_up().await;
        proxy.inject(Match::method("PUT"), Fault::LoseReply(then));
        proxy.inject(Match::method("POST"), Fault::LoseRequest(then));
        caller.send("PUT", "/a", "").await;
        match then {
            Client::Hangs => assert!(caller.hears_nothing().await),
            Client::IsClosed => assert_eq!(caller.reply().await, None),
        }
        let mut caller = Caller::new(&proxy).await;
        caller.send("POST", "/a", "").await;
        match then {
            Client::Hangs => assert!(caller.hears_nothing().await),
            Client::IsClosed => assert_eq!(caller.reply().await, None),
        }
        assert_eq!(server.seen(), ["PUT /a"], "{then:?}");
        assert_eq!(proxy.pending_faults(), 0);
    }
}

#[tokio::test]
async fn only_the_nth_request_that_fits_is_hit() {
    let (server, proxy, mut caller) = set_up().await;
    proxy.inject(
        Match::method("PUT").and_path("/a").nth(2),
        Fault::Answer(503),
    );
    for path in ["/a", "/b", "/a", "/a"] {
        caller.send("PUT", path, "").await;
        caller.reply().await.unwrap();
    }
    assert_eq!(server.seen(), ["PUT /a", "PUT /b", "PUT /a"]);
    assert_eq!(proxy.count(&Match::method("PUT")), 4);
}

#[tokio::test]
async fn a_held_request_arrives_when_told_even_after_its_client_is_gone() {
    let (server, proxy, mut caller) = set_up().await;
    let mut held = proxy.hold(Match::method("POST"));
    caller.send("POST", "/queue", "late").await;
    assert_eq!(held.arrived().await.body, "late");
    assert!(caller.hears_nothing().await);
    drop(caller);
    let mut retry = Caller::new(&proxy).await;
    retry.send("GET", "/queue", "").await;
    retry.reply().await.unwrap();
    assert_eq!(held.deliver().await, 200);
    assert_eq!(server.seen(), ["GET /queue", "POST /queue"]);
}

#[tokio::test]
async fn a_delayed_request_is_answered_later() {
    let (server, proxy, mut caller) = set_up().await;
    proxy.inject(Match::any(), Fault::Delay(2 * A_MOMENT));
    caller.send("GET", "/a", "").await;
    assert!(caller.hears_nothing().await);
    assert!(server.seen().is_empty());
    assert_eq!(caller.reply().await.unwrap(), "GET /a ");
}

#[tokio::test]
async fn a_cut_closes_and_refuses_until_it_heals() {
    let (_server, proxy, mut caller) = set_up().await;
    caller.send("GET", "/poll", "").await;
    caller.read_until("one\r\n").await;
    proxy.cut().await;
    assert_eq!(caller.reply().await, None);
    assert!(TcpStream::connect(proxy.addr()).await.is_err());
    proxy.heal().await;
    let mut caller = Caller::new(&proxy).await;
    caller.send("GET", "/a", "").await;
    assert_eq!(caller.reply().await.unwrap(), "GET /a ");
}

#[tokio::test]
async fn silence_keeps_connections_and_passes_nothing() {
    let (server, proxy, mut caller) = set_up().await;
    caller.send("GET", "/poll", "").await;
    caller.read_until("one\r\n").await;
    proxy.silence().await;
    server.finish_poll.notify_one();
    assert!(caller.hears_nothing().await);
    let mut other = Caller::new(&proxy).await;
    other.send("PUT", "/a", "").await;
    assert!(other.hears_nothing().await);
    assert_eq!(server.seen(), ["GET /poll"]);
    proxy.heal().await;
    caller.read_until("0\r\n\r\n").await;
    assert_eq!(other.reply().await.unwrap(), "PUT /a ");
}
