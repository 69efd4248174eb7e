//! HTTP/2 to each endpoint: one connection, shared by all requests and streams, made when it is
//! needed and made anew when it has broken or was given up.
//!
//! Here "was it sent?" is easily answered: without a connection it was not, and hyper hands back a
//! request that it never began to write.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

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
    connector: Connector,
    tasks: Tasks,
    /// Whether TLS has a certificate to show.
    identity: bool,
    known: Known,
    clock: Clock,
}

/// The connection to one endpoint; locked while it is being made.
type Slot<B> = tokio::sync::Mutex<Option<Channel<B>>>;

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
            connector: connector(dialer, tls, Speaks::Http2)?,
            tasks: Tasks::on(thread),
            identity: tls.is_some_and(|it| it.identity.is_some()),
            known: Known::default(),
            clock: runtime.clock.clone(),
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
        let began = self.clock.now();
        let slot = self.slot(endpoint);
        let opening = async {
            let mut slot = slot.lock().await;
            if let Some(channel) = slot.as_ref().filter(|it| !it.sender.is_closed()) {
                return Ok(channel.clone());
            }
            let channel = match self.connect(endpoint).await {
                Ok(channel) => channel,
                Err(mut failure) => {
                    if failure.hung_up && !self.known.has(endpoint) {
                        let look = mistaken::look_closer(self.connector.clone(), endpoint);
                        failure.amend(look.await);
                    }
                    return Err(failure);
                }
            };
            *slot = Some(channel.clone());
            Ok(channel)
        };
        tokio::select! {
            biased;
            channel = opening => channel,
            () = self.clock.sleep_until(until) => {
                let took = self.clock.now().since(began).as_millis();
                Err(Failure::new(false, format!("no connection within {took} ms")))
            }
        }
    }

    /// Gives up a connection: the next request gets another. What runs on this one runs on.
    pub(crate) fn give_up(&self, endpoint: &Endpoint, channel: &Channel<B>) {
        // Somebody who holds the lock is making another one already.
        if let Ok(mut slot) = self.slot(endpoint).try_lock()
            && slot.as_ref().is_some_and(|it| it.is(channel))
        {
            *slot = None;
        }
    }

    /// Notes that a server has answered properly.
    pub(crate) fn answered(&self, endpoint: &Endpoint) {
        self.known.add(endpoint);
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
        let mut failure = Failure::of(error, self.broken(Moment::Connected, never_sent));
        if let Some(words) = channel.words.get() {
            failure.distrusts(words.clone());
        } else if !failure.hopeless && !self.known.has(endpoint) {
            let look = mistaken::look_closer(self.connector.clone(), endpoint);
            tokio::select! {
                biased;
                found = look => failure.amend(found),
                () = self.clock.sleep_until(until) => {}
            }
        }
        failure
    }

    #[allow(clippy::useless_conversion)] // without TLS the connector's error is another
    async fn connect(&self, endpoint: &Endpoint) -> Result<Channel<B>, Failure> {
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

    fn slot(&self, endpoint: &Endpoint) -> Arc<Slot<B>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(endpoint.origin.clone()).or_default().clone()
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
