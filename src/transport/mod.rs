//! HTTP to a few equal servers: which one to ask, for how long, and what may be asked again.
//!
//! Knows endpoints, failover, TLS and timeouts; knows nothing of keys. The rule everything rests
//! on: a request that was never sent may go to the next server; one that may have been sent may
//! only be repeated by whoever knows that repeating it is harmless.
//!
//! Public are the options of [`Tls`], and the seam for other networks: [`Dial`], and [`Tcp`], the
//! default.

mod connect;
mod dial;
mod distrust;
mod endpoint;
mod exchange;
mod last_words;
mod latency;
mod mistaken;
mod tls;
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
mod trust;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::{HeaderValue, Method};

pub use dial::{Dial, Io, Tcp};
pub(crate) use endpoint::{Credentials, Endpoint, Endpoints};
use exchange::Exchange;
pub(crate) use exchange::{Answer, Call, Failure, Opened, Payload};
use latency::Latency;
pub use tls::Tls;

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{Instant, Runtime};

/// What a [`Transport`] is made of.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) endpoints: Endpoints,
    pub(crate) dialer: Arc<dyn Dial>,
    pub(crate) tls: Tls,
    pub(crate) authorization: Option<HeaderValue>,
    /// Whether a server that fails gives way to the next.
    pub(crate) failover: bool,
    /// Whether redirects are followed.
    pub(crate) redirect: bool,
    /// Whether the servers that the cluster advertises are asked too.
    pub(crate) discover: bool,
    pub(crate) timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_idle: usize,
    pub(crate) runtime: Runtime,
}

/// Sends requests to the endpoints.
#[derive(Debug)]
pub(crate) struct Transport {
    endpoints: Endpoints,
    exchange: Exchange,
    latency: Latency,
    timeout: Duration,
    runtime: Runtime,
}

/// Whether a request may be sent again after it may have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or repeating it provably changes nothing more.
    Harmless,
    /// Only if it was never sent.
    NeverSent,
}

impl Transport {
    pub(crate) fn new(config: Config) -> Result<Self> {
        if config.tls.is_set() && !config.endpoints.any_https() {
            let detail = "TLS options are given, but no endpoint begins with https://";
            return Err(Error::new(ErrorKind::InvalidOptions, detail));
        }
        let exchange = Exchange::new(
            config.dialer,
            config.endpoints.any_https().then_some(&config.tls),
            config.authorization,
            &config.runtime,
            (config.idle_timeout, config.max_idle),
        )?;
        Ok(Self {
            endpoints: config.endpoints,
            exchange,
            latency: Latency::default(),
            timeout: config.timeout,
            runtime: config.runtime,
        })
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// When an operation that begins now must have ended.
    pub(crate) fn deadline(&self) -> Instant {
        self.runtime.clock.now() + self.timeout
    }

    /// Delays between rounds: 20 ms doubling to 1 s, each cut at random to between half and all.
    pub(crate) fn pauses(&self) -> impl Iterator<Item = Duration> + Send + Sync + use<> {
        let entropy = self.runtime.entropy.clone();
        // backon adds its own jitter after its cap; ours stays below it.
        ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(20))
            .with_factor(2.0)
            .with_max_delay(Duration::from_secs(1))
            .without_max_times()
            .build()
            .map(move |delay| entropy.jitter(delay))
    }

    /// Sends the request until somebody answers, `deadline` passes, or it may have been sent and
    /// must not be again. Begins with the endpoint `skip` places after the current one.
    ///
    /// A 5xx answer to a harmless request is asked again elsewhere; the last one is returned when
    /// time is up.
    ///
    /// # Errors
    /// `Unreachable`: never sent. `Untrusted`: the same, because TLS found no trust on any server;
    /// told at once. `Ambiguous`: may have been sent, and must not be again. `Timeout`, `Protocol`: a harmless request that nobody answered (properly).
    pub(crate) async fn call(
        &self,
        call: &Call,
        repeat: Repeat,
        skip: usize,
        deadline: Instant,
    ) -> Result<Answer> {
        let mut log = Attempts::default();
        let mut pauses = self.pauses();
        let mut number = self.endpoints.current() + skip;
        let mut round = 0;
        loop {
            let started = self.runtime.clock.now();
            let until = deadline.min(started + self.latency.attempt(self.timeout));
            let (asked, outcome) = self.ask(call, number, until).await;
            let endpoint = self.endpoints.at(asked);
            let took = self.runtime.clock.now().since(started);
            self.trace(call, &endpoint.origin, &outcome, took);
            if asked != number {
                self.endpoints.leave(number);
                number = asked;
            }
            match outcome {
                Ok(answer) if repeat == Repeat::Harmless && answer.status.is_server_error() => {
                    log.answered(answer);
                }
                Ok(answer) => {
                    if answer.status.is_server_error() {
                        self.endpoints.leave(number);
                    } else {
                        self.latency.record(took);
                    }
                    return Ok(answer);
                }
                Err(failure) if failure.maybe_sent && repeat == Repeat::NeverSent => {
                    self.endpoints.leave(number);
                    return Err(ambiguous(failure, &endpoint.origin));
                }
                Err(failure) => log.failed(&endpoint.origin, failure),
            }
            self.endpoints.leave(number);
            number += 1;
            round += 1;
            if round % self.endpoints.len() == 0 {
                if log.waiting_is_vain(self.endpoints.len()) {
                    return log.give_up(self.timeout);
                }
                let pause = pauses.next().unwrap_or(Duration::from_secs(1));
                self.runtime
                    .clock
                    .sleep_until(deadline.min(self.runtime.clock.now() + pause))
                    .await;
            }
            if self.runtime.clock.has_passed(deadline) {
                return log.give_up(self.timeout);
            }
        }
    }

    /// Sends a harmless request to one server, once.
    ///
    /// # Errors
    /// `Unreachable`, `Timeout`, `Protocol`.
    pub(crate) async fn call_one(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        deadline: Instant,
    ) -> Result<Answer> {
        let started = self.runtime.clock.now();
        let until = deadline.min(started + self.latency.attempt(self.timeout));
        let outcome = self.exchange.whole(call, (0, endpoint), until).await;
        let took = self.runtime.clock.now().since(started);
        self.trace(call, &endpoint.origin, &outcome, took);
        outcome.or_else(|failure| {
            let mut log = Attempts::default();
            log.failed(&endpoint.origin, failure);
            log.give_up(self.timeout)
        })
    }

    /// One attempt. A read that takes longer than is normal is asked of the next endpoint too, and
    /// whoever answers properly first counts. Says who that was.
    async fn ask(
        &self,
        call: &Call,
        number: usize,
        until: Instant,
    ) -> (usize, Result<Answer, Failure>) {
        let (first, second) = (number, number + 1);
        let mut answer = pin!(self.attempt(call, first, until));
        let Some(patience) = self.hedge_after(call) else {
            return (first, answer.await);
        };
        tokio::select! {
            biased;
            outcome = &mut answer => return (first, outcome),
            () = self.runtime.clock.sleep(patience) => {}
        }
        let mut hedge = pin!(self.attempt(call, second, until));
        tokio::select! {
            biased;
            outcome = &mut answer => match outcome {
                Ok(answer) if !answer.status.is_server_error() => (first, Ok(answer)),
                _ => (second, hedge.await),
            },
            outcome = &mut hedge => match outcome {
                Ok(answer) if !answer.status.is_server_error() => (second, Ok(answer)),
                _ => (first, answer.await),
            },
        }
    }

    async fn attempt(&self, call: &Call, number: usize, until: Instant) -> Result<Answer, Failure> {
        let endpoint = self.endpoints.at(number);
        self.exchange.whole(call, (number, endpoint), until).await
    }

    /// After how long a second server is asked: twice what 99 of 100 answers take. Only for reads,
    /// and once it is known what is normal.
    fn hedge_after(&self, call: &Call) -> Option<Duration> {
        let normal = self.latency.p99();
        let hedges = call.method == Method::GET && self.endpoints.len() > 1 && !normal.is_zero();
        hedges.then(|| (normal * 2).max(Duration::from_millis(20)))
    }

    /// Sends a request whose answer's body may take for ever, to one endpoint, once.
    pub(crate) async fn open(&self, call: &Call, number: usize) -> Result<Opened, Failure> {
        let started = self.runtime.clock.now();
        let until = started + self.latency.attempt(self.timeout);
        let endpoint = self.endpoints.at(number);
        let opened = self.exchange.open(call, (number, endpoint), until).await;
        let took = self.runtime.clock.now().since(started);
        let (server, path) = (&*endpoint.origin, &*call.target);
        match &opened {
            Ok(it) => {
                tracing::trace!(target: "tenure::transport", server, path, status = it.status.as_u16(), ?took, "poll open");
            }
            Err(failure) => {
                self.endpoints.leave(number);
                tracing::debug!(target: "tenure::transport", server, path, reason = failure.reason, ?took, "poll failed");
            }
        }
        opened
    }

    /// Reads the rest of an answer that is expected at once.
    pub(crate) async fn rest(&self, opened: &mut Opened) -> Result<Bytes, Failure> {
        let limit = self.latency.attempt(self.timeout);
        tokio::select! {
            biased;
            body = opened.end() => body,
            () = self.runtime.clock.sleep(limit) => {
                Err(Failure::new(true, "the answer stopped half-way".into()))
            }
        }
    }

    fn trace(&self, call: &Call, server: &str, outcome: &Result<Answer, Failure>, took: Duration) {
        // Without the query: a condition there holds a value.
        let path = call.target.split('?').next().unwrap_or_default();
        let method = call.method.as_str();
        match outcome {
            Ok(answer) => {
                tracing::trace!(target: "tenure::transport", method, path, server, status = answer.status.as_u16(), ?took, "answered");
            }
            Err(failure) => {
                tracing::debug!(target: "tenure::transport", method, path, server, reason = failure.reason, maybe_sent = failure.maybe_sent, ?took, "no answer");
            }
        }
    }
}

/// What became of the attempts of one call, for the error at the end.
#[derive(Default)]
struct Attempts {
    /// What became of the last attempt on each server, in the order of their names.
    last: BTreeMap<Arc<str>, Attempt>,
    last_answer: Option<Answer>,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    any_sent: bool,
}

/// What became of one attempt.
struct Attempt {
    reason: String,
    not_http: bool,
    untrusted: bool,
}

impl Attempts {
    fn answered(&mut self, answer: Answer) {
        self.any_sent = true;
        let attempt = Attempt {
            reason: format!("HTTP {}", answer.status.as_u16()),
            not_http: false,
            untrusted: false,
        };
        self.last.insert(answer.server.clone(), attempt);
        self.last_answer = Some(answer);
    }

    fn failed(&mut self, server: &Arc<str>, failure: Failure) {
        self.any_sent |= failure.maybe_sent;
        let attempt = Attempt {
            reason: failure.reason,
            not_http: failure.not_http,
            untrusted: failure.untrusted,
        };
        self.last.insert(server.clone(), attempt);
        self.cause = failure.cause;
    }

    /// Whether every server is of the wrong kind, or not to be trusted: waiting changes neither.
    fn waiting_is_vain(&self, servers: usize) -> bool {
        self.last_answer.is_none()
            && self.last.len() >= servers
            && self.last.values().all(|it| it.not_http || it.untrusted)
    }

    fn give_up(self, whole: Duration) -> Result<Answer> {
        if let Some(answer) = self.last_answer {
            return Ok(answer);
        }
        let reasons: Vec<String> = self
            .last
            .iter()
            .map(|(server, attempt)| format!("{server}: {}", attempt.reason))
            .collect();
        let reasons = reasons.join("; ");
        let (kind, text) = if !self.any_sent && self.last.values().all(|it| it.untrusted) {
            (ErrorKind::Untrusted, reasons)
        } else if !self.any_sent {
            let text = format!("no server could be reached within {whole:?} ({reasons})");
            (ErrorKind::Unreachable, text)
        } else if self.last.values().any(|it| it.not_http) {
            (ErrorKind::Protocol, reasons)
        } else {
            let text = format!("no answer within {whole:?} ({reasons})");
            (ErrorKind::Timeout, text)
        };
        let error = Error::new(kind, text);
        Err(match self.cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        })
    }
}

/// The error for a request that may have been sent.
fn ambiguous(failure: Failure, server: &str) -> Error {
    let error = Error::new(ErrorKind::Ambiguous, failure.reason).on(server);
    match failure.cause {
        Some(cause) => error.caused_by(cause),
        None => error,
    }
}
