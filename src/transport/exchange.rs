//! One request to one server, and the question that decides everything after a failure: was it
//! sent?

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::TokioTimer;
use tokio::runtime::Handle;

use super::connect::{Connector, Dialer, connector};
use super::dial::Dial;
use super::distrust::{self, Moment};
use super::endpoint::Endpoint;
use super::mistaken::{self, Known};
use super::tls::Tls;
use crate::error::Result;
use crate::runtime::{Clock, Instant, Runtime};

/// The largest body that is read.
const BODY_LIMIT: usize = 64 << 20;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Path and query, already escaped.
    pub(crate) target: String,
    pub(crate) payload: Option<Payload>,
}

/// What is sent along, already encoded.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    Form(Bytes),
    Json(Bytes),
}

/// Whether a request shows the user's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    User,
    Nobody,
}

/// Until when one attempt may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Until when there must be a connection.
    pub(super) connect: Instant,
    /// Until when there must be an answer; not before `connect`.
    pub(super) answer: Instant,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Who answered.
    pub(crate) server: Arc<str>,
    /// Between which instants the request was under way.
    pub(crate) span: (Instant, Instant),
    /// Why a redirect was not followed, if this answer is one.
    pub(crate) astray: Option<String>,
}

/// An answer whose body is still to come. Dropping it closes the connection, and with that ends
/// the wait at the server.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Who answered: after a redirect another one than the endpoint.
    pub(crate) server: Arc<str>,
    /// Who was asked.
    pub(crate) endpoint: Arc<Endpoint>,
    /// Between which instants the request was under way and the head of its answer came.
    pub(super) span: (Instant, Instant),
    /// Why a redirect was not followed, if this answer is one.
    pub(super) astray: Option<String>,
    body: Incoming,
    read: BytesMut,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Whether the server may have seen the request. If not, nothing can have happened.
    pub(crate) maybe_sent: bool,
    /// Whether something answered that does not speak HTTP.
    pub(crate) not_http: bool,
    /// Whether TLS found no trust. Then nothing was sent.
    pub(crate) untrusted: bool,
    /// Whether the server closed the connection without a word.
    pub(super) hung_up: bool,
    pub(crate) reason: String,
    pub(crate) cause: Option<Box<dyn StdError + Send + Sync>>,
}

/// Where connections are served: on the runtime's own thread if it has one, else where the
/// request is made. Each ends with its connection, and the pool closes what is idle.
#[derive(Clone)]
struct Tasks(Option<Handle>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        match &self.0 {
            Some(thread) => drop(thread.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }
}

/// Pooled connections to all endpoints.
pub(super) struct Exchange {
    client: Client<Connector, Full<Bytes>>,
    authorization: Option<HeaderValue>,
    /// Whether TLS has a certificate to show.
    identity: bool,
    connector: Connector,
    known: Known,
    clock: Clock,
}

impl Exchange {
    pub(super) fn new(
        dialer: Arc<dyn Dial>,
        tls: Option<&Tls>,
        authorization: Option<HeaderValue>,
        runtime: &Runtime,
        idle: (Duration, usize),
    ) -> Result<Self> {
        let thread = runtime.own_thread().cloned();
        let connector = connector(Dialer::new(dialer, thread.clone()), tls)?;
        // hyper's own retry stays on: it only repeats what provably was never written.
        let client = Client::builder(Tasks(thread))
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(idle.0)
            .pool_max_idle_per_host(idle.1)
            .build(connector.clone());
        Ok(Self {
            client,
            authorization,
            identity: tls.is_some_and(|it| it.identity.is_some()),
            connector,
            known: Known::default(),
            clock: runtime.clock.clone(),
        })
    }

    /// Sends the request and reads the head of the answer.
    pub(super) async fn open(
        &self,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        who: As,
        limits: Limits,
    ) -> Result<Opened, Failure> {
        let mut request = self.request(call, endpoint, who)?;
        let connection = capture_connection(&mut request);
        let sent = self.clock.now();
        let late = async {
            self.clock.sleep_until(limits.connect).await;
            if connection.connection_metadata().is_some() {
                self.clock.sleep_until(limits.answer).await;
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = self.client.request(request) => outcome,
            () = late => {
                // Without a connection not a byte can have left, and dropping the request makes
                // sure that none will.
                let maybe_sent = connection.connection_metadata().is_some();
                let took = self.clock.now().since(sent);
                let what = if maybe_sent { "answer" } else { "connection" };
                return Err(Failure::new(maybe_sent, format!("no {what} within {} ms", took.as_millis())));
            }
        };
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                let connected = connection.connection_metadata().is_some();
                let mut failure = Failure::of(error, connected, self.identity);
                if failure.hung_up && !self.known.has(endpoint) {
                    let until = limits.answer;
                    self.look_closer(&mut failure, endpoint, until).await;
                }
                return Err(failure);
            }
        };
        self.known.add(endpoint);
        let (head, body) = answer.into_parts();
        Ok(Opened {
            status: head.status,
            headers: head.headers,
            server: endpoint.origin.clone(),
            endpoint: endpoint.clone(),
            span: (sent, self.clock.now()),
            astray: None,
            body,
            read: BytesMut::new(),
        })
    }

    /// Reads the rest of an answer, until `until` at the latest.
    pub(super) async fn whole(&self, opened: Opened, until: Instant) -> Result<Answer, Failure> {
        let mut opened = opened;
        let body = tokio::select! {
            biased;
            body = opened.end() => body?,
            () = self.clock.sleep_until(until) => {
                return Err(Failure::new(true, "the answer stopped half-way".into()));
            }
        };
        let Opened {
            status,
            headers,
            server,
            span,
            astray,
            ..
        } = opened;
        Ok(Answer {
            status,
            headers,
            body,
            server,
            span,
            astray,
        })
    }

    /// Finds out whether a server hung up because it speaks the other protocol.
    async fn look_closer(&self, failure: &mut Failure, endpoint: &Endpoint, until: Instant) {
        let mistaken = tokio::select! {
            biased;
            mistaken = mistaken::speaks_the_other(self.connector.clone(), endpoint) => mistaken,
            () = self.clock.sleep_until(until) => false,
        };
        if !mistaken {
            return;
        }
        failure.reason = if endpoint.scheme == Scheme::HTTPS {
            failure.untrusted = true;
            "the server does not speak TLS but plain HTTP: is this an http:// endpoint?".into()
        } else {
            failure.not_http = true;
            "the server speaks TLS: is this an https:// endpoint?".into()
        };
    }

    fn request(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        who: As,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let failed = |error: http::Error| Failure {
            cause: Some(error.into()),
            ..Failure::new(false, "the request cannot be built".into())
        };
        let uri = Uri::builder()
            .scheme(endpoint.scheme.clone())
            .authority(endpoint.authority.clone())
            .path_and_query(call.target.as_str())
            .build()
            .map_err(failed)?;
        let mut request = Request::builder().method(call.method.clone()).uri(uri);
        if let Some(authorization) = &self.authorization
            && who == As::User
        {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let (kind, body) = match &call.payload {
            None => (None, Bytes::new()),
            Some(Payload::Form(body)) => (Some("application/x-www-form-urlencoded"), body.clone()),
            Some(Payload::Json(body)) => (Some("application/json"), body.clone()),
        };
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        request.body(Full::new(body)).map_err(failed)
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

impl Opened {
    /// The rest of the body, once it has come to its proper end. A body that is cut short is an
    /// error.
    ///
    /// Cancel safe: what was read stays read.
    pub(crate) async fn end(&mut self) -> Result<Bytes, Failure> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| Failure {
                cause: Some(error.into()),
                ..Failure::new(true, "the answer was cut short".into())
            })?;
            if let Some(data) = frame.data_ref() {
                if self.read.len() + data.len() > BODY_LIMIT {
                    let reason = "the answer is larger than 64 MiB".into();
                    return Err(Failure::new(true, reason));
                }
                self.read.extend_from_slice(data);
            }
        }
        Ok(self.read.split().freeze())
    }
}

impl Failure {
    pub(super) fn new(maybe_sent: bool, reason: String) -> Self {
        Self {
            maybe_sent,
            not_http: false,
            untrusted: false,
            hung_up: false,
            reason,
            cause: None,
        }
    }

    fn of(error: hyper_util::client::legacy::Error, connected: bool, identity: bool) -> Self {
        let moment = if error.is_connect() || !connected {
            Moment::Handshake
        } else {
            Moment::Connected
        };
        let distrust = distrust::words(&error, moment, identity);
        let hyper = innermost_hyper(&error);
        // What hyper calls canceled it never began to write.
        let maybe_sent = moment == Moment::Connected
            && distrust.is_none()
            && !hyper.is_some_and(hyper::Error::is_canceled);
        let not_http = hyper.is_some_and(hyper::Error::is_parse);
        let untrusted = distrust.is_some();
        let reason = if let Some(words) = distrust {
            words
        } else if not_http {
            "the answer is not HTTP: is this an etcd v2 endpoint?".to_owned()
        } else {
            let what = if maybe_sent {
                "no answer"
            } else {
                "no connection"
            };
            format!("{what} ({})", root_cause(&error))
        };
        Self {
            maybe_sent,
            not_http,
            untrusted,
            hung_up: hung_up(&error) || hyper.is_some_and(hyper::Error::is_incomplete_message),
            reason,
            cause: Some(error.into()),
        }
    }
}

/// hyper's own error inside the pool's.
fn innermost_hyper<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a hyper::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        next = error.source();
    }
    None
}

/// Whether the connection ended before it stood.
fn hung_up(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let Some(io) = error.downcast_ref::<io::Error>() else {
            next = error.source();
            continue;
        };
        if matches!(
            io.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ) {
            return true;
        }
        // Its source is not what it wraps but the source of that.
        next = io.get_ref().map(|it| it as _);
    }
    false
}

/// The last link of the chain: `Connection refused` rather than `client error (Connect)`.
fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
