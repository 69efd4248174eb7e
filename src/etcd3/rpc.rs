//! One call: sent to one server after the other until somebody answers, the time is up, or it may
//! have been sent and must not be again. And one stream, to one server.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream};
use http::uri::PathAndQuery;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use super::auth::Auth;
use super::error::{Judged, Next, judge};
use super::link::{dressed, grpc};
use super::proto::{Headed, ResponseHeader, Rpc};
use super::read::gone_back;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Index;
use crate::runtime::{Instant, Runtime};
use crate::transport::{
    Attempts, Channel, Channels, Discovery, Endpoint, Endpoints, Failure, Hope, Latency, Limits,
    Repeat, Who, ambiguous, hedged, pauses,
};

pub(super) type Token = MetadataValue<Ascii>;

/// The way to the servers: what every request needs, and what the answers have told.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) endpoints: Endpoints,
    pub(super) channels: Channels<Body>,
    pub(super) latency: Latency,
    pub(super) runtime: Runtime,
    pub(super) timeout: Duration,
    pub(super) auth: Auth,
    /// The cluster that the first answer came from.
    pub(super) cluster: OnceLock<u64>,
    /// The latest index that an answer named.
    pub(super) seen: AtomicU64,
    /// How far the store had come when it went back; 0 if it never has.
    pub(super) lost: AtomicU64,
    /// Whether, and when, the members' own addresses are asked for.
    pub(super) discovery: Option<Discovery>,
}

/// How a request is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) repeat: Repeat,
    /// Only a server that has a leader may answer.
    pub(super) led: bool,
    /// Whether a second server is asked too when the first takes long.
    pub(super) hedge: bool,
}

impl Ask {
    /// A read that any server may answer from what it knows.
    pub(super) const LOCAL: Self = Self {
        repeat: Repeat::Harmless,
        led: false,
        hedge: true,
    };
    /// A linearizable read.
    pub(super) const READ: Self = Self {
        repeat: Repeat::Harmless,
        led: true,
        hedge: true,
    };
    /// A write that can be repeated.
    pub(super) const HARMLESS: Self = Self {
        repeat: Repeat::Harmless,
        led: true,
        hedge: false,
    };
    /// A write.
    pub(super) const ONCE: Self = Self {
        repeat: Repeat::NeverSent,
        led: true,
        hedge: false,
    };
}

/// A success.
#[derive(Debug)]
pub(super) struct Reply<R> {
    /// The store's index when it answered.
    pub(super) index: Index,
    pub(super) body: R,
    pub(super) server: Arc<str>,
}

impl<R> Reply<R> {
    /// The error for an answer that breaks the protocol.
    pub(super) fn broken(&self, text: &'static str) -> Error {
        Error::new(ErrorKind::Protocol, text).on(&*self.server)
    }
}

/// Why one attempt brought nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nobody answered.
    Failure(Failure),
    /// The server answered this.
    Refused(Box<Judged>),
}

impl Trouble {
    /// The error that ends whatever this was a part of.
    pub(super) fn into_error(self, server: &str) -> Error {
        match self {
            Self::Refused(judged) => judged.error.on(server),
            Self::Failure(failure) => {
                let kind = if failure.untrusted {
                    ErrorKind::Untrusted
                } else if failure.hopeless {
                    ErrorKind::Protocol
                } else if failure.maybe_sent {
                    ErrorKind::Unavailable
                } else {
                    ErrorKind::Unreachable
                };
                let error = Error::new(kind, failure.reason).on(server);
                match failure.cause {
                    Some(cause) => error.caused_by(cause),
                    None => error,
                }
            }
        }
    }
}

impl Wire {
    /// When an operation that begins now must have ended.
    pub(super) fn deadline(&self) -> Instant {
        self.runtime.clock.now() + self.timeout
    }

    /// Sends a request until somebody answers, `deadline` passes, or it may have been sent and must
    /// not be again.
    ///
    /// # Errors
    /// `Unreachable`: never sent. `Untrusted`: the same, because TLS found no trust on any server.
    /// `Ambiguous`: may have been sent, and must not be again. `Unavailable`: no server could do it,
    /// and none has. `Timeout`, `Protocol`: a harmless request that nobody answered (properly). What
    /// a server refuses it with.
    pub(super) async fn call<Q: Rpc>(
        self: &Arc<Self>,
        request: &Q,
        ask: Ask,
        deadline: Instant,
    ) -> Result<Reply<Q::Reply>> {
        self.refresh_members(deadline).await;
        let attempt = |endpoint: Arc<Endpoint>, limits| {
            async move { self.attempt(request, &endpoint, ask.led, limits).await }.boxed()
        };
        self.rounds(Q::PATH, ask, deadline, attempt).await
    }

    /// The same for any kind of attempt.
    pub(super) async fn rounds<'a, R: Headed>(
        &self,
        path: &'static str,
        ask: Ask,
        deadline: Instant,
        attempt: impl Fn(Arc<Endpoint>, Limits) -> BoxFuture<'a, Result<R, Trouble>> + Send,
    ) -> Result<Reply<R>> {
        let clock = &self.runtime.clock;
        let repeat = ask.repeat;
        let mut log = Attempts::default();
        let mut pauses = pauses(&self.runtime.entropy);
        let mut new_tokens = 0;
        let began = clock.now();
        let whole = self.timeout.max(deadline.since(began));
        for rounds in 0.. {
            let mut round: VecDeque<_> = self.endpoints.order(clock.now()).into();
            let servers = round.len();
            while let Some(mut endpoint) = round.pop_front() {
                let started = clock.now();
                let share = (whole, rounds, round.len());
                let limits = self.latency.limits(repeat, started, deadline, share);
                let hope = Hope::new((&self.endpoints, &self.latency, clock), &endpoint, started);
                let first = attempt(endpoint.clone(), limits);
                let patience = self.latency.hedge_after().filter(|_| ask.hedge);
                let (who, outcome) = match (patience, round.front()) {
                    (Some(patience), Some(second)) => {
                        let second = attempt(second.clone(), limits);
                        hedged(first, clock.sleep(patience), second, is_answer).await
                    }
                    _ => (Who::First, first.await),
                };
                hope.over();
                let now = clock.now();
                if let (Who::Second, Some(second)) = (who, round.front()) {
                    self.endpoints.failed(&endpoint, now);
                    endpoint = second.clone();
                    round.pop_front();
                }
                self.trace(path, &endpoint.origin, &outcome, now.since(started));
                match outcome {
                    Ok(reply) => {
                        self.endpoints.answered(&endpoint);
                        self.latency.record(now.since(started));
                        return self.understood(reply, &endpoint);
                    }
                    Err(Trouble::Refused(judged)) => {
                        let Judged { error, next } = *judged;
                        let error = error.on(&*endpoint.origin);
                        match next {
                            Next::Final => return Err(self.auth.named(error)),
                            Next::NewToken if new_tokens < 2 && self.auth.is_asked_for() => {
                                new_tokens += 1;
                                round.push_front(endpoint);
                            }
                            Next::NewToken => return Err(error),
                            Next::Unknown if repeat == Repeat::NeverSent => {
                                self.endpoints.failed(&endpoint, now);
                                let note = "it may have been done all the same";
                                return Err(error.into_kind(ErrorKind::Ambiguous, note));
                            }
                            Next::Elsewhere | Next::Unknown => {
                                self.endpoints.failed(&endpoint, now);
                                let reason = error.detail().to_owned();
                                log.answered(&endpoint.origin, reason, error);
                            }
                        }
                    }
                    Err(Trouble::Failure(failure)) => {
                        self.endpoints.failed(&endpoint, now);
                        if failure.maybe_sent && repeat == Repeat::NeverSent {
                            return Err(ambiguous(failure, &endpoint.origin));
                        }
                        log.failed(&endpoint.origin, failure);
                    }
                }
                if clock.has_passed(deadline) {
                    return give_up(log, clock.now().since(began));
                }
            }
            if log.waiting_is_vain(servers) {
                break;
            }
            let pause = pauses.next().unwrap_or(Duration::from_secs(1));
            clock.sleep_until(deadline.min(clock.now() + pause)).await;
            if clock.has_passed(deadline) {
                break;
            }
        }
        give_up(log, clock.now().since(began))
    }

    /// Sends a request to one endpoint, once, with a token if the server wants one.
    pub(super) async fn attempt<Q: Rpc>(
        self: &Arc<Self>,
        request: &Q,
        endpoint: &Arc<Endpoint>,
        led: bool,
        limits: Limits,
    ) -> Result<Q::Reply, Trouble> {
        let token = self.token(endpoint, limits).await?;
        let outcome = self
            .bare(request, endpoint, led, token.clone(), limits)
            .await;
        if let Err(Trouble::Refused(judged)) = &outcome
            && judged.next == Next::NewToken
        {
            self.auth.forget(token.as_ref());
        }
        outcome
    }

    /// The same with this token, or none.
    pub(super) async fn bare<Q: Rpc>(
        &self,
        request: &Q,
        endpoint: &Arc<Endpoint>,
        led: bool,
        token: Option<Token>,
        limits: Limits,
    ) -> Result<Q::Reply, Trouble> {
        let clock = &self.runtime.clock;
        let channel = self.channels.open(endpoint, limits.connect).await;
        let channel = channel.map_err(Trouble::Failure)?;
        let sent = clock.now();
        let mut grpc = grpc(&channel, endpoint);
        let request = dressed(request.clone(), led, token);
        let calling = grpc.unary(
            request,
            PathAndQuery::from_static(Q::PATH),
            ProstCodec::default(),
        );
        tokio::select! {
            biased;
            outcome = calling => match outcome {
                Ok(answer) => {
                    self.channels.answered(endpoint);
                    Ok(answer.into_inner())
                }
                Err(status) => {
                    Err(self.trouble(status, endpoint, &channel, limits.answer).await)
                }
            },
            () = clock.sleep_until(limits.answer) => {
                // The connection may be dead without anybody having said so.
                self.channels.give_up(endpoint, &channel);
                let took = clock.now().since(sent).as_millis();
                Err(Trouble::Failure(Failure::new(true, format!("no answer within {took} ms"))))
            }
        }
    }

    /// Opens a stream to one endpoint: what is in `requests` goes there, what is returned comes
    /// from there.
    pub(super) async fn stream<Q, R>(
        self: &Arc<Self>,
        path: &'static str,
        requests: impl Stream<Item = Q> + Send + 'static,
        endpoint: &Arc<Endpoint>,
    ) -> Result<(Streaming<R>, Channel<Body>), Trouble>
    where
        Q: prost::Message + Default + 'static,
        R: prost::Message + Default + 'static,
    {
        let clock = &self.runtime.clock;
        let limits = self.stream_limits();
        let token = self.token(endpoint, limits).await?;
        let channel = self.channels.open(endpoint, limits.connect).await;
        let channel = channel.map_err(Trouble::Failure)?;
        let mut grpc = grpc(&channel, endpoint);
        let request = dressed(requests, true, token.clone());
        let path = PathAndQuery::from_static(path);
        let opening = grpc.streaming(request, path, ProstCodec::<Q, R>::default());
        let outcome = tokio::select! {
            biased;
            outcome = opening => outcome,
            () = clock.sleep_until(limits.answer) => {
                self.channels.give_up(endpoint, &channel);
                let reason = "the stream was not answered".to_owned();
                return Err(Trouble::Failure(Failure::new(true, reason)));
            }
        };
        match outcome {
            Ok(answers) => {
                self.channels.answered(endpoint);
                Ok((answers.into_inner(), channel))
            }
            Err(status) => {
                let trouble = self
                    .trouble(status, endpoint, &channel, limits.answer)
                    .await;
                if let Trouble::Refused(judged) = &trouble
                    && judged.next == Next::NewToken
                {
                    self.auth.forget(token.as_ref());
                }
                Err(trouble)
            }
        }
    }

    /// What a status tells: tonic makes one of its own when nobody answered.
    pub(super) async fn trouble(
        &self,
        status: Status,
        endpoint: &Endpoint,
        channel: &Channel<Body>,
        until: Instant,
    ) -> Trouble {
        if status.source().is_none() {
            return Trouble::Refused(Box::new(judge(&status)));
        }
        let error = Box::new(status);
        let failure = self.channels.explain(endpoint, channel, error, until);
        Trouble::Failure(failure.await)
    }

    /// Starts a task that ends with its handle: on the runtime's own thread if it has one, so that
    /// renewals go on while the caller's is blocked.
    pub(super) fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(match self.runtime.own_thread() {
            Some(thread) => thread.spawn(task),
            None => tokio::spawn(task),
        })
    }

    /// Compares the cluster, and learns that the store has come to the revision named.
    pub(super) fn learn(&self, header: &ResponseHeader) -> Result<()> {
        self.check_cluster(header)?;
        if let Some(index) = index(header.revision) {
            self.seen.fetch_max(index.get(), Ordering::AcqRel);
        }
        Ok(())
    }

    /// The latest index that an answer named.
    pub(super) fn seen(&self) -> Option<Index> {
        Index::new(self.seen.load(Ordering::Acquire))
    }

    /// The store has gone back: it is at this index now.
    pub(super) fn gone_back(&self, to: Index) {
        let lost = self.seen.swap(to.get(), Ordering::AcqRel);
        self.lost.fetch_max(lost, Ordering::AcqRel);
    }

    /// The error for whoever goes on after an index that the store had before it went back.
    pub(super) fn check_history(&self, next: Option<Index>) -> Result<()> {
        let known = next.and_then(|it| Index::new(it.get() - 1));
        match (known, self.seen()) {
            (Some(known), Some(seen))
                if known > seen && known.get() <= self.lost.load(Ordering::Acquire) =>
            {
                Err(gone_back(known, seen))
            }
            _ => Ok(()),
        }
    }

    /// What a stream, or one of its answers, may take.
    pub(super) fn stream_limits(&self) -> Limits {
        let until = self.runtime.clock.now() + self.latency.attempt(self.timeout, 0);
        Limits {
            connect: until,
            answer: until,
        }
    }

    fn understood<R: Headed>(&self, body: R, endpoint: &Endpoint) -> Result<Reply<R>> {
        let place = |error: Error| error.on(&*endpoint.origin);
        let told = body.header().and_then(|it| Some((it, index(it.revision)?)));
        let Some((header, index)) = told else {
            let text = "the answer names no revision: is this an etcd v3 endpoint?";
            return Err(place(Error::new(ErrorKind::Protocol, text)));
        };
        self.check_cluster(header).map_err(place)?;
        self.seen.fetch_max(index.get(), Ordering::AcqRel);
        Ok(Reply {
            index,
            body,
            server: endpoint.origin.clone(),
        })
    }

    fn trace<R>(&self, path: &str, server: &str, outcome: &Result<R, Trouble>, took: Duration) {
        match outcome {
            Ok(_) => {
                tracing::trace!(target: "tenure::transport", path, server, ?took, "answered");
            }
            Err(Trouble::Refused(judged)) => {
                tracing::trace!(target: "tenure::transport", path, server, error = %judged.error, ?took, "answered");
            }
            Err(Trouble::Failure(failure)) => {
                tracing::debug!(target: "tenure::transport", path, server, reason = failure.reason, maybe_sent = failure.maybe_sent, ?took, "no answer");
            }
        }
    }
}

/// A revision as an index.
pub(super) fn index(revision: i64) -> Option<Index> {
    Index::new(u64::try_from(revision).ok()?)
}

/// Whether another server would not say better.
fn is_answer<R>(outcome: &Result<R, Trouble>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(Trouble::Refused(judged)) => matches!(judged.next, Next::Final | Next::NewToken),
        Err(Trouble::Failure(_)) => false,
    }
}

/// What there is to say when time is up.
fn give_up<R>(log: Attempts<Error>, waited: Duration) -> Result<R> {
    Err(log.give_up(waited).unwrap_or_else(|error| error))
}
