//! HTTP/2 to each endpoint: one connection, shared by all requests and streams, made when it is
//! needed and made anew when it has broken or was given up.
//!
//! Here "was it sent?" is easily answered: without a connection it was not, and hyper hands back a
//! request that it never began to write.
//!
//! Whoever waits for a connection can carry on the making of it, and nobody holds a lock meanwhile:
//! one who began it and is not polled any more must not keep the others waiting.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use http::{Request, Response, Uri};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use tower_service::Service;

use super::connect::{Connector, Dialer, Speaks, connector};
use super::dial::Dial;
use super::distrust::Moment;
use super::endpoint::Endpoint;
use super::executor::Tasks;
use super::failure::{Broken, Failure};
use super::mistaken::{self, Known};
use super::overheard::{Overheard, Words};
use super::tls::Tls;
use crate::error::Result;
use crate::runtime::{Clock, Instant, Runtime};

/// What is said of a server that does not speak HTTP/2.
const STRANGER: &str = "the answer is not HTTP/2: is this an etcd v3 endpoint?";

/// The connections.
pub(crate) struct Channels<B> {
    slots: Mutex<BTreeMap<Arc<str>, Arc<Slot<B>>>>,
    maker: Arc<Maker>,
}

/// What it takes to make one.
struct Maker {
    connector: Connector,
    tasks: Tasks,
    /// Whether TLS has a certificate to show.
    identity: bool,
    known: Known,
    clock: Clock,
}

/// The connection to one endpoint.
struct Slot<B>(Mutex<State<B>>);

struct State<B> {
    open: Option<Channel<B>>,
    /// One that is being made, as long as somebody waits for it.
    making: Option<WeakShared<Making<B>>>,
}

type Making<B> = BoxFuture<'static, Result<Channel<B>, Arc<Failure>>>;

/// An open connection. Clones share it; with the last of them and of its streams it is closed.
pub(crate) struct Channel<B> {
    sender: SendRequest<B>,
    /// What TLS said when it ended; also tells it from those before and after it.
    words: Words,
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) struct SendError {
    never_sent: bool,
    error: hyper::Error,
}

impl<B> Channels<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    pub(crate) fn new(dialer: Arc<dyn Dial>, tls: Option<&Tls>, runtime: &Runtime) -> Result<Self> {
        let thread = runtime.own_thread().cloned();
        let dialer = Dialer::new(dialer, thread.clone());
        Ok(Self {
            slots: Mutex::default(),
            maker: Arc::new(Maker {
                connector: connector(dialer, tls, Speaks::Http2)?,
                tasks: Tasks::on(thread),
                identity: tls.is_some_and(|it| it.identity.is_some()),
                known: Known::default(),
                clock: runtime.clock.clone(),
            }),
        })
    }

    /// The connection to this endpoint, made now if there is none. Who asks meanwhile waits for
    /// the same one.
    ///
    /// # Cancel safety
    /// Dropping the future closes a connection that is being made.
    pub(crate) async fn open(
        &self,
        endpoint: &Endpoint,
        until: Instant,
    ) -> Result<Channel<B>, Failure> {
        let began = self.maker.clock.now();
        let making = match self
            .slot(endpoint)
            .open_or_making(&self.maker, endpoint, until)
        {
            Ok(channel) => return Ok(channel),
            Err(making) => making,
        };
        tokio::select! {
            biased;
            made = making => made.map_err(|failure| failure.shared()),
            () = self.maker.clock.sleep_until(until) => {
                let took = self.maker.clock.now().since(began).as_millis();
                Err(Failure::new(false, format!("no connection within {took} ms")))
            }
        }
    }

    /// Gives up a connection: the next request gets another. What runs on this one runs on.
    pub(crate) fn give_up(&self, endpoint: &Endpoint, channel: &Channel<B>) {
        let slot = self.slot(endpoint);
        slot.lock().open.take_if(|it| it.is(channel));
    }

    /// Notes that a server has answered properly.
    pub(crate) fn answered(&self, endpoint: &Endpoint) {
        self.maker.known.add(endpoint);
    }

    /// What an error of a request or of a stream on an open connection tells. A server that has
    /// never answered is asked whether it speaks the other protocol: it would just hang up.
    pub(crate) async fn explain(
        &self,
        endpoint: &Endpoint,
        channel: &Channel<B>,
        error: Box<dyn StdError + Send + Sync>,
        until: Instant,
    ) -> Failure {
        let never_sent = find::<SendError>(&*error).is_some_and(|it| it.never_sent);
        let mut failure = Failure::of(error, self.maker.broken(Moment::Connected, never_sent));
        if let Some(words) = channel.words.get() {
            failure.distrusts(words.clone());
        } else if !failure.hopeless && !self.maker.known.has(endpoint) {
            let look = mistaken::look_closer(self.maker.connector.clone(), endpoint);
            tokio::select! {
                biased;
                found = look => failure.amend(found),
                () = self.maker.clock.sleep_until(until) => {}
            }
        }
        failure
    }

    fn slot(&self, endpoint: &Endpoint) -> Arc<Slot<B>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(endpoint.origin.clone()).or_default().clone()
    }
}

impl<B> Slot<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    /// The connection, or the one that is being made: begun now if there is none.
    fn open_or_making(
        self: &Arc<Self>,
        maker: &Arc<Maker>,
        endpoint: &Endpoint,
        until: Instant,
    ) -> Result<Channel<B>, Shared<Making<B>>> {
        let mut state = self.lock();
        if let Some(channel) = state.open.as_ref().filter(|it| !it.sender.is_closed()) {
            return Ok(channel.clone());
        }
        let under_way = state.making.as_ref().and_then(WeakShared::upgrade);
        // One that has failed is there until all who waited have been told.
        if let Some(making) = under_way.filter(|it| it.peek().is_none()) {
            return Err(making);
        }
        let (slot, maker, endpoint) = (self.clone(), maker.clone(), endpoint.clone());
        let making = async move {
            let channel = maker.make(&endpoint, until).await.map_err(Arc::new)?;
            slot.lock().open = Some(channel.clone());
            Ok(channel)
        };
        let making = making.boxed().shared();
        state.making = making.downgrade();
        Err(making)
    }
}

impl<B> Slot<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Default for Slot<B> {
    fn default() -> Self {
        Self(Mutex::new(State {
            open: None,
            making: None,
        }))
    }
}

impl Maker {
    /// Makes a connection, for as long as who asked for it first would wait.
    async fn make<B>(&self, endpoint: &Endpoint, until: Instant) -> Result<Channel<B>, Failure>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let began = self.clock.now();
        let connecting = async {
            let mut failure = match self.connect(endpoint).await {
                Ok(channel) => return Ok(channel),
                Err(failure) => failure,
            };
            if failure.hung_up && !self.known.has(endpoint) {
                let look = mistaken::look_closer(self.connector.clone(), endpoint);
                failure.amend(look.await);
            }
            Err(failure)
        };
        tokio::select! {
            biased;
            made = connecting => made,
            () = self.clock.sleep_until(until) => {
                let took = self.clock.now().since(began).as_millis();
                Err(Failure::new(false, format!("no connection within {took} ms")))
            }
        }
    }

    #[allow(clippy::useless_conversion)] // without TLS the connector's error is another
    async fn connect<B>(&self, endpoint: &Endpoint) -> Result<Channel<B>, Failure>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let broken = self.broken(Moment::Handshake, true);
        let uri = Uri::builder()
            .scheme(endpoint.scheme.clone())
            .authority(endpoint.authority.clone())
            .path_and_query("/")
            .build()
            .map_err(|error| Failure::of(error.into(), broken))?;
        let io = self.connector.clone().call(uri).await;
        let io = io.map_err(|error| Failure::of(error.into(), broken))?;
        let words = Words::default();
        let io = Overheard::new(io, words.clone(), self.identity);
        let (sender, connection) = Builder::new(self.tasks.clone())
            .handshake(io)
            .await
            .map_err(|error| Failure::of(error.into(), broken))?;
        // Whoever waits for an answer is told by that.
        hyper::rt::Executor::execute(&self.tasks, async move { drop(connection.await) });
        Ok(Channel { sender, words })
    }

    fn broken(&self, moment: Moment, never_sent: bool) -> Broken {
        Broken {
            moment,
            identity: self.identity,
            never_sent,
            stranger: STRANGER,
        }
    }
}

impl<B> Channel<B>
where
    B: Body + Send + Unpin + 'static,
{
    /// Sends a request and reads the head of the answer.
    pub(crate) async fn send(
        mut self,
        request: Request<B>,
    ) -> Result<Response<Incoming>, SendError> {
        let answer = self.sender.try_send_request(request).await;
        answer.map_err(|mut error| SendError {
            never_sent: error.take_message().is_some(),
            error: error.into_error(),
        })
    }
}

impl<B> Channel<B> {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.words, &other.words)
    }
}

impl<B> Clone for Channel<B> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            words: self.words.clone(),
        }
    }
}

impl<B> fmt::Debug for Channel<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for Channels<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request got no answer")
    }
}

impl StdError for SendError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

/// The first error of this type in the chain.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
