//! A proxy in front of one HTTP/1.1 server, on which things go wrong as told.
//!
//! Requests are read whole, replies are passed on piece by piece as they come, so long polls
//! work. Each client connection has one connection to the server. Faults are given in advance,
//! by method and path; each hits one request.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

/// A proxy on a loopback port. Dropping it closes the port and all connections.
pub(crate) struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    listening: watch::Receiver<bool>,
    task: AbortHandle,
}

/// What the client sees of a request whose reply is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Nothing, until it gives up.
    Hangs,
    /// Its connection closes.
    IsClosed,
}

/// What goes wrong with one request.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The server did it, and its reply is thrown away.
    LoseReply(Client),
    /// The server never hears of it.
    LoseRequest(Client),
    /// It reaches the server so much later.
    Delay(Duration),
    /// The proxy answers with this status and an empty body; the server never hears of it.
    Answer(u16),
    /// It is kept for [`Held::deliver`]; the client hears nothing.
    Hold(oneshot::Sender<Request>),
}

/// Which requests a fault is meant for: by default the next one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Match {
    method: Option<String>,
    path: Option<String>,
    skip: u64,
}

/// A request as it went by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) body: String,
    raw: Vec<u8>,
}

/// A request that was, or will be, held back.
pub(crate) struct Held {
    upstream: SocketAddr,
    waiting: Option<oneshot::Receiver<Request>>,
    request: Option<Request>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    /// Connections are closed and refused.
    Cut,
    /// Connections stay and are accepted, and nothing passes.
    Silent,
}

struct Shared {
    upstream: SocketAddr,
    faults: Mutex<VecDeque<(Match, Fault)>>,
    log: Mutex<Vec<Request>>,
    link: watch::Sender<Link>,
}

impl Match {
    pub(crate) fn any() -> Self {
        Self::default()
    }

    /// Requests with this method.
    pub(crate) fn method(method: &str) -> Self {
        Self::any().and_method(method)
    }

    /// Requests whose path or query contains this.
    pub(crate) fn path(part: &str) -> Self {
        Self::any().and_path(part)
    }

    pub(crate) fn and_method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    pub(crate) fn and_path(mut self, part: &str) -> Self {
        self.path = Some(part.to_owned());
        self
    }

    /// Not the next of these requests, but the `n`-th, counted from 1.
    pub(crate) fn nth(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self
    }

    fn fits(&self, request: &Request) -> bool {
        let method = self.method.as_ref();
        let path = self.path.as_ref();
        method.is_none_or(|method| *method == request.method)
            && path.is_none_or(|part| request.path.contains(part.as_str()))
    }
}

impl Proxy {
    /// Starts a proxy in front of the server at `upstream`.
    pub(crate) async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            faults: Mutex::default(),
            log: Mutex::default(),
            link: watch::Sender::new(Link::Up),
        });
        let (tell, listening) = watch::channel(true);
        let task = tokio::spawn(accept(addr, listener, shared.clone(), tell)).abort_handle();
        Ok(Self {
            addr,
            shared,
            listening,
            task,
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What a client connects to.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Lets this go wrong with one request. Of several faults that fit, the one given first.
    pub(crate) fn inject(&self, requests: Match, fault: Fault) {
        let mut faults = self.shared.faults.lock().unwrap();
        faults.push_back((requests, fault));
    }

    /// Holds one request back until [`Held::deliver`].
    pub(crate) fn hold(&self, requests: Match) -> Held {
        let (sender, receiver) = oneshot::channel();
        self.inject(requests, Fault::Hold(sender));
        Held {
            upstream: self.shared.upstream,
            waiting: Some(receiver),
            request: None,
        }
    }

    /// Closes all connections and refuses new ones.
    pub(crate) async fn cut(&self) {
        self.set(Link::Cut).await;
    }

    /// Lets nothing through in either direction; connections stay.
    pub(crate) async fn silence(&self) {
        self.set(Link::Silent).await;
    }

    /// Lets everything through again. Faults not yet used stay.
    pub(crate) async fn heal(&self) {
        self.set(Link::Up).await;
    }

    async fn set(&self, link: Link) {
        self.shared.link.send_replace(link);
        let mut listening = self.listening.clone();
        let done = listening.wait_for(|listening| *listening == (link != Link::Cut));
        done.await
            .expect("the proxy runs as long as this value lives");
    }

    /// All requests so far, in the order in which they came.
    pub(crate) fn log(&self) -> Vec<Request> {
        self.shared.log.lock().unwrap().clone()
    }

    /// How many requests so far fit.
    pub(crate) fn count(&self, requests: &Match) -> usize {
        let log = self.shared.log.lock().unwrap();
        log.iter().filter(|request| requests.fits(request)).count()
    }

    /// How many faults have not hit a request yet: 0 shows that a test did what it meant to.
    pub(crate) fn pending_faults(&self) -> usize {
        self.shared.faults.lock().unwrap().len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Held {
    /// Waits until the request has come and is held.
    pub(crate) async fn arrived(&mut self) -> Request {
        if let Some(waiting) = self.waiting.take() {
            self.request = waiting.await.ok();
        }
        self.request.clone().expect("the proxy lives")
    }

    /// Sends the request to the server now and returns the status of its reply, which nobody
    /// else sees. Each call sends it again.
    pub(crate) async fn deliver(&mut self) -> u16 {
        let request = self.arrived().await;
        let mut server = connect(self.upstream).await.expect("server is up");
        exchange(&mut server, &request, &mut tokio::io::sink())
            .await
            .expect("the server answers")
    }
}

/// Accepts connections; owns their tasks, so that all end with it.
async fn accept(
    addr: SocketAddr,
    listener: TcpListener,
    shared: Arc<Shared>,
    tell: watch::Sender<bool>,
) {
    let mut link = shared.link.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        let cut = *link.borrow_and_update() == Link::Cut;
        if cut {
            listener = None;
            connections.shutdown().await;
        } else if listener.is_none() {
            listener = Some(
                TcpListener::bind(addr)
                    .await
                    .expect("the port is still ours"),
            );
        }
        tell.send_replace(!cut);
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = link.changed() => if changed.is_err() { return },
            _ = connections.join_next(), if !connections.is_empty() => {}
            Ok((client, _)) = accepted => {
                // An error only says that one of the two sides closed.
                connections.spawn(serve(client, shared.clone()));
            }
        }
    }
}

/// Serves one client connection until either side closes it.
async fn serve(client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (read, mut write) = client.into_split();
    let mut read = BufReader::new(read);
    let mut server: Option<BufStream<TcpStream>> = None;
    while let Some(request) = Request::read(&mut read).await? {
        shared.audible().await;
        match shared.fault_for(&request) {
            None => {}
            Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::Answer(status)) => {
                let reply = format!("HTTP/1.1 {status} Injected\r\nContent-Length: 0\r\n\r\n");
                write.write_all(reply.as_bytes()).await?;
                continue;
            }
            Some(Fault::LoseRequest(then)) => return lose(then, &mut read).await,
            Some(Fault::LoseReply(then)) => {
                let mut fresh = connect(shared.upstream).await?;
                exchange(&mut fresh, &request, &mut tokio::io::sink()).await?;
                return lose(then, &mut read).await;
            }
            Some(Fault::Hold(keeper)) => {
                // Only fails if the test is no longer interested.
                drop(keeper.send(request));
                return lose(Client::Hangs, &mut read).await;
            }
        }
        let server = match &mut server {
            Some(server) => server,
            None => server.insert(connect(shared.upstream).await?),
        };
        let mut reply = Audible {
            shared: &shared,
            write: &mut write,
        };
        tokio::select! {
            biased;
            status = exchange(server, &request, &mut reply) => status?,
            // A client that goes away takes its long poll with it. One that only talks on
            // (nobody does in HTTP/1.1) is served in turn.
            true = gone(&mut read) => return Ok(()),
        };
    }
    Ok(())
}

/// Whether the client closed its side.
async fn gone(read: &mut (impl AsyncBufRead + Unpin)) -> bool {
    !matches!(read.fill_buf().await, Ok(bytes) if !bytes.is_empty())
}

async fn lose(then: Client, read: &mut (impl AsyncBufRead + Unpin)) -> io::Result<()> {
    if then == Client::Hangs {
        tokio::io::copy_buf(read, &mut tokio::io::sink()).await?;
    }
    Ok(())
}

impl Shared {
    fn fault_for(&self, request: &Request) -> Option<Fault> {
        self.log.lock().unwrap().push(request.clone());
        let mut faults = self.faults.lock().unwrap();
        let mut hit = None;
        for (at, (requests, _)) in faults.iter_mut().enumerate() {
            if !requests.fits(request) {
            } else if requests.skip > 0 {
                requests.skip -= 1;
            } else {
                hit = hit.or(Some(at));
            }
        }
        faults.remove(hit?).map(|(_, fault)| fault)
    }

    /// Returns when the link is not silent.
    async fn audible(&self) {
        let mut link = self.link.subscribe();
        // Fails only when the proxy is gone, and this task with it.
        drop(link.wait_for(|link| *link != Link::Silent).await);
    }
}

impl Request {
    /// Reads a request with its body; `None` when the client closed.
    async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Self>> {
        let Some(mut raw) = head(from).await? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&raw).into_owned();
        let mut first = text.split(' ');
        let (method, path) = (first.next(), first.next());
        let start = raw.len();
        if let Some(expected) = header(&text, "content-length") {
            raw.resize(start + expected.parse().unwrap_or(0), 0);
            from.read_exact(&mut raw[start..]).await?;
        }
        assert!(
            header(&text, "transfer-encoding").is_none(),
            "chunked requests are not spoken here: {text}"
        );
        Ok(Some(Self {
            method: method.unwrap_or_default().to_owned(),
            path: path.unwrap_or_default().to_owned(),
            body: String::from_utf8_lossy(&raw[start..]).into_owned(),
            raw,
        }))
    }
}

/// Where a reply goes: piece by piece, and nowhere while the link is silent.
trait Sink {
    async fn put(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl Sink for tokio::io::Sink {
    async fn put(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

struct Audible<'a> {
    shared: &'a Shared,
    write: &'a mut tokio::net::tcp::OwnedWriteHalf,
}

impl Sink for Audible<'_> {
    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.shared.audible().await;
        self.write.write_all(bytes).await
    }
}

async fn connect(upstream: SocketAddr) -> io::Result<BufStream<TcpStream>> {
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    Ok(BufStream::new(stream))
}

/// Sends a request and passes on the reply as it comes. Returns the status.
async fn exchange(
    server: &mut BufStream<TcpStream>,
    request: &Request,
    reply: &mut impl Sink,
) -> io::Result<u16> {
    server.write_all(&request.raw).await?;
    server.flush().await?;
    let raw = head(server).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let text = String::from_utf8_lossy(&raw).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    reply.put(&raw).await?;
    if request.method == "HEAD" || status == 204 || status == 304 {
        return Ok(status);
    }
    if let Some(length) = header(&text, "content-length") {
        let length = length.parse().map_err(io::Error::other)?;
        pass(server, length, reply).await?;
    } else if header(&text, "transfer-encoding").is_some() {
        loop {
            let mut line = Vec::new();
            server.read_until(b'\n', &mut line).await?;
            let digits = String::from_utf8_lossy(&line);
            let digits = digits.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
            reply.put(&line).await?;
            // The bytes and the line end after them; after the last chunk only the latter.
            pass(server, size + 2, reply).await?;
            if size == 0 {
                break;
            }
        }
    }
    Ok(status)
}

/// Passes on exactly so many bytes, as they come.
async fn pass(
    from: &mut (impl AsyncBufRead + Unpin),
    mut left: u64,
    to: &mut impl Sink,
) -> io::Result<()> {
    while left > 0 {
        let bytes = from.fill_buf().await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let some = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        to.put(&bytes[..some]).await?;
        from.consume(some);
        left -= some as u64;
    }
    Ok(())
}

/// Reads up to and including the empty line; `None` at the end of the stream.
async fn head(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut raw = Vec::new();
    while !raw.ends_with(b"\r\n\r\n") {
        if from.read_until(b'\n', &mut raw).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(raw))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
