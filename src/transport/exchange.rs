//! One request to one server, and the question that decides everything after a failure: was it
//! sent?

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::TokioTimer;

use super::connect::{Connector, Dialer, Speaks, connector};
use super::dial::Dial;
use super::distrust::Moment;
use super::endpoint::Endpoint;
use super::executor::Tasks;
use super::failure::{self, Broken, Failure};
use super::latency::Limits;
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
        let dialer = Dialer::new(dialer, thread.clone());
        let connector = connector(dialer, tls, Speaks::Http1)?;
        // hyper's own retry stays on: it only repeats what provably was never written.
        let client = Client::builder(Tasks::on(thread))
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
                let moment = if error.is_connect() || !connected {
                    Moment::Handshake
                } else {
                    Moment::Connected
                };
                // What hyper calls canceled it never began to write.
                let hyper = failure::innermost_hyper(&error);
                let broken = Broken {
                    moment,
                    identity: self.identity,
                    never_sent: hyper.is_some_and(hyper::Error::is_canceled),
                    stranger: "the answer is not HTTP: is this an etcd v2 endpoint?",
                };
                let mut failure = Failure::of(error.into(), broken);
                if failure.hung_up && !self.known.has(endpoint) {
                    let look = mistaken::look_closer(self.connector.clone(), endpoint);
                    tokio::select! {
                        biased;
                        found = look => failure.amend(found),
                        () = self.clock.sleep_until(limits.answer) => {}
                    }
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
                    // It will not be smaller the next time.
                    return Err(Failure {
                        hopeless: true,
                        ..Failure::new(true, reason)
                    });
                }
                self.read.extend_from_slice(data);
            }
        }
        Ok(self.read.split().freeze())
    }
}
