//! A proxy in front of one etcd that knows its calls: each message of a client is a call by name,
//! and each can go wrong as told.
//!
//! HTTP/2 ends here on both sides; one connection of a client has one connection to the server. A
//! message on a stream is a call like any other: `LeaseKeepAlive`, and `WatchCreate`, `WatchCancel`
//! and `WatchProgress`.
#![allow(dead_code)] // each test crate uses a part

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use tenure::runtime::{Clock, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server never hears of it, and what came before and comes after on its stream goes on.
    Ignored,
    /// The server never hears of it.
    LoseRequest(Client),
    /// The server did it, and its answer is thrown away.
    LoseReply(Client),
    /// The client is told that it failed, and the server hears of it so much later.
    Late(Duration),
    /// It reaches the server so much later.
    Delay(Duration),
    /// Its answer comes so much later.
    Slow(Duration),
    /// The server did it, and the client is told that there was no space for it.
    DoneWithoutSpace,
    /// The server never hears of it, and the client is told that there was no space for it.
    NoSpace,
}

/// What the client sees of a call that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Nothing, until it gives up.
    Hangs,
    /// Its stream is reset.
    IsReset,
}

/// In etcd's words.
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

/// A proxy on a loopback port. Dropping it closes everything but what is late.
pub(crate) struct Grpc {
    addr: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// Changes the bytes of an answer of the call with this name.
type Rewrite = Box<dyn Fn(&str, &[u8]) -> Option<Vec<u8>> + Send + Sync>;

struct Shared {
    plan: Mutex<Plan>,
    rewrite: Mutex<Option<Rewrite>>,
    /// How many calls have not reached the server yet that will.
    late: watch::Sender<usize>,
}

#[derive(Default)]
struct Plan {
    all: u64,
    calls: BTreeMap<String, u64>,
    faults: Vec<(Which, Fault)>,
    hits: Vec<String>,
    log: Vec<(String, Instant)>,
}

/// Which call: the n-th of all, or of those with this name; counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Which {
    name: Option<String>,
    n: u64,
}

impl Which {
    pub(crate) fn of_all(n: u64) -> Self {
        Self { name: None, n }
    }

    pub(crate) fn of(name: &str, n: u64) -> Self {
        let name = Some(name.to_owned());
        Self { name, n }
    }
}

impl Grpc {
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            plan: Mutex::default(),
            rewrite: Mutex::default(),
            late: watch::Sender::new(0),
        });
        let task = tokio::spawn(accept(listener, port, shared.clone())).abort_handle();
        Self { addr, shared, task }
    }

    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Lets this go wrong with that call, counted from now.
    pub(crate) fn inject(&self, mut which: Which, fault: Fault) {
        let mut plan = self.shared.plan.lock().unwrap();
        which.n += match &which.name {
            None => plan.all,
            Some(name) => plan.calls.get(name).copied().unwrap_or(0),
        };
        plan.faults.push((which, fault));
    }

    /// Lets answers be other than the server's: what gives `None` is passed on as it is.
    pub(crate) fn rewrite(
        &self,
        rewrite: impl Fn(&str, &[u8]) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) {
        *self.shared.rewrite.lock().unwrap() = Some(Box::new(rewrite));
    }

    /// When the calls of this name came.
    pub(crate) fn times(&self, name: &str) -> Vec<Instant> {
        let plan = self.shared.plan.lock().unwrap();
        let log = plan.log.iter().filter(|(it, _)| it == name);
        log.map(|(_, at)| *at).collect()
    }

    /// How many calls there were, by name.
    pub(crate) fn calls(&self) -> BTreeMap<String, u64> {
        self.shared.plan.lock().unwrap().calls.clone()
    }

    /// How many calls there were.
    pub(crate) fn all_calls(&self) -> u64 {
        self.shared.plan.lock().unwrap().all
    }

    /// The names of the calls that something went wrong with.
    pub(crate) fn hits(&self) -> Vec<String> {
        self.shared.plan.lock().unwrap().hits.clone()
    }

    /// Returns once the server has heard of everything that it will hear of.
    pub(crate) async fn quiesce(&self) {
        let mut late = self.shared.late.subscribe();
        late.wait_for(|late| *late == 0).await.unwrap();
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// Counts a call; what is to go wrong with it.
    fn hit(&self, name: &str) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap();
        plan.log.push((name.to_owned(), Clock::boot().now()));
        plan.all += 1;
        let all = plan.all;
        let own = plan.calls.entry(name.to_owned()).or_default();
        *own += 1;
        let own = *own;
        let fits = |which: &Which| match &which.name {
            None => which.n == all,
            Some(it) => it == name && which.n == own,
        };
        let at = plan.faults.iter().position(|(which, _)| fits(which))?;
        plan.hits.push(name.to_owned());
        Some(plan.faults.remove(at).1)
    }
}

async fn accept(listener: TcpListener, port: u16, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let _ = client.set_nodelay(true);
        connections.spawn(connection(client, port, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(client: TcpStream, port: u16, shared: Arc<Shared>) -> Option<()> {
    let server = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let _ = server.set_nodelay(true);
    let (upstream, server) = h2::client::handshake(server).await.ok()?;
    // It lives as long as there is something to send on it: what is late outlives the client.
    let (ended, mut is_ended) = mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let _ = server.await;
        drop(ended);
    });
    let mut client = h2::server::handshake(client).await.ok()?;
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = is_ended.recv() => return None,
            request = client.accept() => {
                let (request, respond) = request?.ok()?;
                let upstream = upstream.clone();
                let call = Call::new(request, respond, upstream, shared.clone());
                calls.spawn(call.run());
                while calls.try_join_next().is_some() {}
            }
        }
    }
}

/// A call with one message, or a stream of them.
struct Call {
    path: String,
    head: Request<()>,
    asks: Messages,
    asking: bool,
    respond: SendResponse<Bytes>,
    upstream: SendRequest<Bytes>,
    up: Option<SendStream<Bytes>>,
    down: Down,
    to_client: Option<SendStream<Bytes>>,
    /// What goes wrong with the next answer.
    reply: Option<Fault>,
    shared: Arc<Shared>,
}

enum Down {
    Nothing,
    Head(ResponseFuture),
    Body(Messages),
}

/// What the server says.
enum Said {
    Head(Response<()>, Messages),
    Message(Bytes),
    End(Option<http::HeaderMap>),
    Broken(Reason),
}

impl Call {
    fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        upstream: SendRequest<Bytes>,
        shared: Arc<Shared>,
    ) -> Self {
        let (parts, body) = request.into_parts();
        Self {
            path: parts.uri.path().to_owned(),
            head: Request::from_parts(parts, ()),
            asks: Messages::new(body),
            asking: true,
            respond,
            upstream,
            up: None,
            down: Down::Nothing,
            to_client: None,
            reply: None,
            shared,
        }
    }

    async fn run(mut self) -> Option<()> {
        loop {
            let (respond, to_client) = (&mut self.respond, &mut self.to_client);
            let given_up = poll_fn(|cx| match to_client {
                Some(stream) => stream.poll_reset(cx).map(drop),
                None => respond.poll_reset(cx).map(drop),
            });
            tokio::select! {
                biased;
                // Dropped, the server's stream is reset too.
                () = given_up => return None,
                ask = self.asks.next(), if self.asking => match ask {
                    Some(Ok(ask)) => self = self.ask(ask).await?,
                    Some(Err(_)) => return None,
                    None => {
                        self.asking = false;
                        if let Some(up) = &mut self.up {
                            up.send_data(Bytes::new(), true).ok()?;
                        }
                    }
                },
                said = self.down.next() => self.said(said).await?,
            }
        }
    }

    fn name(&self, message: &[u8]) -> String {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let part = match (name, message.get(5)) {
            ("Watch", Some(0x0a)) => "Create",
            ("Watch", Some(0x12)) => "Cancel",
            ("Watch", Some(0x1a)) => "Progress",
            _ => "",
        };
        format!("{name}{part}")
    }

    /// `None` when nothing more is to be done for this call.
    async fn ask(mut self, message: Bytes) -> Option<Self> {
        match self.shared.hit(&self.name(&message)) {
            None => {}
            Some(Fault::Ignored) => return Some(self),
            Some(Fault::LoseRequest(client)) => return self.silent(client).await,
            Some(Fault::NoSpace) => {
                self.refuse("8", NO_SPACE);
                return None;
            }
            Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::Late(delay)) => {
                self.late(message, delay);
                return None;
            }
            Some(fault) => self.reply = Some(fault),
        }
        self.forward(message).await?;
        Some(self)
    }

    async fn forward(&mut self, message: Bytes) -> Option<()> {
        if self.up.is_none() {
            let mut upstream = self.upstream.clone().ready().await.ok()?;
            let (answer, up) = upstream.send_request(self.head.clone(), false).ok()?;
            self.up = Some(up);
            self.down = Down::Head(answer);
        }
        self.up.as_mut()?.send_data(message, false).ok()
    }

    /// Says that it failed, and does it later, whatever the client does meanwhile.
    fn late(mut self, message: Bytes, delay: Duration) {
        if self.to_client.is_some() {
            self.reset();
        } else {
            self.refuse("14", "etcdserver: request timed out");
        }
        self.shared.late.send_modify(|late| *late += 1);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let done = async {
                self.forward(message).await?;
                self.up.as_mut()?.send_data(Bytes::new(), true).ok()?;
                loop {
                    match self.down.next().await {
                        Said::Head(_, messages) => self.down = Down::Body(messages),
                        Said::Message(_) => {}
                        Said::End(_) | Said::Broken(_) => return Some(()),
                    }
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(5), done).await;
            self.shared.late.send_modify(|late| *late -= 1);
        });
    }

    fn refuse(&mut self, status: &str, message: &str) {
        let refusal = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", status)
            .header("grpc-message", message)
            .body(())
            .unwrap();
        let _ = self.respond.send_response(refusal, true);
    }

    /// Nothing more comes.
    async fn silent(mut self, client: Client) -> Option<Self> {
        match client {
            Client::IsReset => self.reset(),
            Client::Hangs => {
                let (respond, to_client) = (&mut self.respond, &mut self.to_client);
                let _ = poll_fn(|cx| match to_client {
                    Some(stream) => stream.poll_reset(cx),
                    None => respond.poll_reset(cx),
                })
                .await;
            }
        }
        None
    }

    fn reset(&mut self) {
        match &mut self.to_client {
            Some(stream) => stream.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    async fn said(&mut self, said: Said) -> Option<()> {
        match self.reply.take() {
            Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::DoneWithoutSpace) => {
                self.refuse("8", NO_SPACE);
                return None;
            }
            Some(Fault::LoseReply(Client::IsReset)) => {
                self.reset();
                return None;
            }
            Some(Fault::LoseReply(Client::Hangs)) => {
                self.hang().await;
                return None;
            }
            _ => {}
        }
        match said {
            Said::Head(head, messages) => {
                let over = messages.is_over();
                self.to_client = Some(self.respond.send_response(head, over).ok()?);
                if over {
                    return None;
                }
                self.down = Down::Body(messages);
            }
            Said::Message(message) => {
                let message = self.rewritten(message);
                self.to_client.as_mut()?.send_data(message, false).ok()?;
            }
            Said::End(trailers) => {
                let to_client = self.to_client.as_mut()?;
                match trailers {
                    Some(trailers) => to_client.send_trailers(trailers).ok()?,
                    None => to_client.send_data(Bytes::new(), true).ok()?,
                }
                return None;
            }
            Said::Broken(reason) => {
                match &mut self.to_client {
                    Some(stream) => stream.send_reset(reason),
                    None => self.respond.send_reset(reason),
                }
                return None;
            }
        }
        Some(())
    }

    /// The client hears nothing more; what it asks still reaches the server.
    async fn hang(&mut self) {
        loop {
            let (respond, to_client) = (&mut self.respond, &mut self.to_client);
            let given_up = poll_fn(|cx| match to_client {
                Some(stream) => stream.poll_reset(cx).map(drop),
                None => respond.poll_reset(cx).map(drop),
            });
            tokio::select! {
                biased;
                () = given_up => return,
                ask = self.asks.next(), if self.asking => match ask {
                    Some(Ok(ask)) => {
                        self.shared.hit(&self.name(&ask));
                        let _ = self.forward(ask).await;
                    }
                    Some(Err(_)) | None => self.asking = false,
                },
                said = self.down.next() => match said {
                    Said::Head(_, messages) => self.down = Down::Body(messages),
                    Said::Message(_) => {}
                    Said::End(_) | Said::Broken(_) => self.down = Down::Nothing,
                },
            }
        }
    }

    fn rewritten(&self, message: Bytes) -> Bytes {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let rewrite = self.shared.rewrite.lock().unwrap();
        let other = rewrite.as_ref().and_then(|it| it(name, &message[5..]));
        match other {
            None => message,
            Some(other) => {
                let mut framed = BytesMut::new();
                framed.put_u8(0);
                framed.put_u32(u32::try_from(other.len()).unwrap());
                framed.put_slice(&other);
                framed.freeze()
            }
        }
    }
}

impl Down {
    async fn next(&mut self) -> Said {
        let broken = |error: h2::Error| Said::Broken(error.reason().unwrap_or(Reason::CANCEL));
        match self {
            Self::Nothing => std::future::pending().await,
            Self::Head(answer) => {
                let answer = answer.await;
                // It must not be asked again.
                *self = Self::Nothing;
                match answer {
                    Ok(answer) => {
                        let (parts, body) = answer.into_parts();
                        Said::Head(Response::from_parts(parts, ()), Messages::new(body))
                    }
                    Err(error) => broken(error),
                }
            }
            Self::Body(messages) => match messages.next().await {
                Some(Ok(message)) => Said::Message(message),
                Some(Err(error)) => broken(error),
                None => match messages.body.trailers().await {
                    Ok(trailers) => Said::End(trailers),
                    Err(error) => broken(error),
                },
            },
        }
    }
}

/// The messages of a body, each with its five bytes before it.
struct Messages {
    body: RecvStream,
    buffer: BytesMut,
}

impl Messages {
    fn new(body: RecvStream) -> Self {
        let buffer = BytesMut::new();
        Self { body, buffer }
    }

    fn is_over(&self) -> bool {
        self.buffer.is_empty() && self.body.is_end_stream()
    }

    /// Cancel safe: what was read is kept.
    async fn next(&mut self) -> Option<Result<Bytes, h2::Error>> {
        loop {
            if let Some(mut head) = self.buffer.get(..5) {
                head.advance(1);
                let length = 5 + head.get_u32() as usize;
                if self.buffer.len() >= length {
                    return Some(Ok(self.buffer.split_to(length).freeze()));
                }
            }
            match self.body.data().await? {
                Ok(data) => {
                    let _ = self.body.flow_control().release_capacity(data.len());
                    self.buffer.put(data);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
