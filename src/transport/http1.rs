//! Requests and whole answers by HTTP/1.1: which server is asked, for how long, and what may be
//! asked again.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};

use super::attempts::Attempts;
use super::date::http_date;
use super::dial::Dial;
use super::endpoint::Endpoint;
use super::endpoints::Endpoints;
use super::exchange::{Answer, As, Call, Exchange, Opened};
use super::failure::Failure;
use super::hedge::{Who, hedged};
use super::hope::Hope;
use super::latency::{Latency, Limits};
use super::redirect::{self, Trail};
use super::skew::Clocks;
use super::tls::Tls;
use super::{Repeat, ambiguous, pauses};
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
    clocks: Clocks,
    redirect: bool,
    timeout: Duration,
    runtime: Runtime,
}

impl Transport {
    pub(crate) fn new(config: Config) -> Result<Self> {
        if config.tls.is_set() && !config.endpoints.any_https() {
            let detail = "TLS options are given, but no endpoint begins with https://";
            return Err(Error::new(ErrorKind::InvalidOptions, detail));
        }
        let endpoints = if config.failover {
            config.endpoints
        } else {
            config.endpoints.only_first()
        };
        let exchange = Exchange::new(
            config.dialer,
            endpoints.any_https().then_some(&config.tls),
            config.authorization,
            &config.runtime,
            (config.idle_timeout, config.max_idle),
        )?;
        Ok(Self {
            endpoints,
            exchange,
            latency: Latency::default(),
            clocks: Clocks::default(),
            redirect: config.redirect,
            timeout: config.timeout,
            runtime: config.runtime,
        })
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// What the answers tell of the servers' clocks.
    pub(crate) fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// When an operation that begins now must have ended.
    pub(crate) fn deadline(&self) -> Instant {
        self.runtime.clock.now() + self.timeout
    }

    /// When one attempt that begins now must have ended.
    pub(crate) fn attempt_deadline(&self) -> Instant {
        self.runtime.clock.now() + self.latency.attempt(self.timeout, 0)
    }

    /// What hardly any answer takes longer than.
    pub(crate) fn usual(&self) -> Duration {
        self.latency.p99()
    }

    /// Delays between rounds: see [`pauses`].
    pub(crate) fn pauses(&self) -> impl Iterator<Item = Duration> + Send + Sync + use<> {
        pauses(&self.runtime.entropy)
    }

    /// Sends the request until somebody answers, `deadline` passes, or it may have been sent and
    /// must not be again. Begins with the endpoint `skip` places after the current one.
    ///
    /// A 5xx answer to a harmless request is asked again elsewhere; the last one is returned when
    /// time is up.
    ///
    /// # Errors
    /// `Unreachable`: never sent. `Untrusted`: the same, because TLS found no trust on any server;
    /// told at once. `Ambiguous`: may have been sent, and must not be again. `Timeout`,
    /// `Protocol`: a harmless request that nobody answered (properly). `Protocol` too: a redirect
    /// that is not followed.
    pub(crate) async fn call(
        &self,
        call: &Call,
        repeat: Repeat,
        skip: usize,
        deadline: Instant,
    ) -> Result<Answer> {
        let clock = &self.runtime.clock;
        let mut log = Attempts::default();
        let mut pauses = self.pauses();
        let mut skip = skip;
        let began = clock.now();
        // A call may have been given more time than is usual.
        let whole = self.timeout.max(deadline.since(began));
        let waited = || clock.now().since(began);
        for rounds in 0.. {
            let mut round: VecDeque<_> = self.endpoints.order(clock.now()).into();
            let servers = round.len();
            round.rotate_left(std::mem::take(&mut skip) % servers.max(1));
            while let Some(mut endpoint) = round.pop_front() {
                let started = clock.now();
                let share = (whole, rounds, round.len());
                let limits = self.latency.limits(repeat, started, deadline, share);
                let hope = Hope::new((&self.endpoints, &self.latency, clock), &endpoint, started);
                let (who, outcome) = self.ask(call, (&endpoint, round.front()), limits).await;
                hope.over();
                let now = clock.now();
                if let (Who::Second, Some(second)) = (who, round.front()) {
                    self.endpoints.failed(&endpoint, now);
                    endpoint = second.clone();
                    round.pop_front();
                }
                let took = now.since(started);
                self.trace(call, &endpoint.origin, &outcome, took);
                match outcome {
                    Ok(answer) if answer.status.is_server_error() => {
                        self.endpoints.failed(&endpoint, now);
                        if repeat == Repeat::NeverSent {
                            return Ok(answer);
                        }
                        let reason = format!("HTTP {}", answer.status.as_u16());
                        log.answered(&answer.server.clone(), reason, answer);
                    }
                    Ok(answer) => {
                        self.endpoints.answered(&endpoint);
                        self.latency.record(took);
                        return match answer.astray {
                            None => Ok(answer),
                            Some(why) => Err(astray(why, &answer.server)),
                        };
                    }
                    Err(failure) => {
                        self.endpoints.failed(&endpoint, now);
                        if failure.maybe_sent && repeat == Repeat::NeverSent {
                            return Err(ambiguous(failure, &endpoint.origin));
                        }
                        log.failed(&endpoint.origin, failure);
                    }
                }
                if clock.has_passed(deadline) {
                    return log.give_up(waited());
                }
            }
            if log.waiting_is_vain(servers) {
                return log.give_up(waited());
            }
            let pause = pauses.next().unwrap_or(Duration::from_secs(1));
            clock.sleep_until(deadline.min(clock.now() + pause)).await;
            if clock.has_passed(deadline) {
                break;
            }
        }
        log.give_up(waited())
    }

    /// One attempt. A read that takes longer than is normal is asked of the second endpoint too,
    /// and whoever answers properly first counts. Says who that was.
    async fn ask(
        &self,
        call: &Call,
        (first, second): (&Arc<Endpoint>, Option<&Arc<Endpoint>>),
        limits: Limits,
    ) -> (Who, Result<Answer, Failure>) {
        let attempt = |endpoint| self.attempt(call, endpoint, As::User, limits);
        let patience = self.latency.hedge_after();
        let (Some(patience), Some(second)) =
            (patience.filter(|_| call.method == Method::GET), second)
        else {
            return (Who::First, attempt(first).await);
        };
        let is_good = |outcome: &Result<Answer, Failure>| matches!(outcome, Ok(answer) if !answer.status.is_server_error());
        let pause = self.runtime.clock.sleep(patience);
        hedged(attempt(first), pause, attempt(second), is_good).await
    }

    /// Sends a request to one endpoint, once, and reads the whole answer. What becomes of it says
    /// nothing about who is asked next.
    pub(crate) async fn once(
        &self,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        who: As,
        until: Instant,
    ) -> Result<Answer, Failure> {
        let limits = Limits {
            connect: until,
            answer: until,
        };
        self.attempt(call, endpoint, who, limits).await
    }

    async fn attempt(
        &self,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        who: As,
        limits: Limits,
    ) -> Result<Answer, Failure> {
        let opened = self.follow(call, endpoint, who, limits).await?;
        self.exchange.whole(opened, limits.answer).await
    }

    /// Sends the request to the endpoint, and to where it is redirected.
    async fn follow(
        &self,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        who: As,
        limits: Limits,
    ) -> Result<Opened, Failure> {
        let mut opened = self.exchange.open(call, endpoint, who, limits).await?;
        self.note_date(&opened);
        let mut trail = Trail::new(self.redirect);
        let (mut at, mut target) = (endpoint.clone(), Cow::Borrowed(call.target.as_str()));
        while redirect::is_redirect(opened.status) {
            let place = (&*at, &*target);
            let (next, path) = match trail.next(place, opened.status, &opened.headers) {
                Ok(next) => next,
                Err(why) => {
                    opened.astray = Some(why);
                    break;
                }
            };
            let known = self.endpoints.known(&next);
            // Credentials are for the servers that they were given for.
            let who = if known.is_some() { who } else { As::Nobody };
            (at, target) = (known.unwrap_or_else(|| Arc::new(next)), Cow::Owned(path));
            let call = Call {
                target: target.clone().into_owned(),
                ..call.clone()
            };
            let limits = Limits {
                connect: limits.answer,
                ..limits
            };
            let following = self.exchange.open(&call, &at, who, limits).await;
            opened = following.map_err(|failure| Failure {
                reason: format!("redirected to {}: {}", at.origin, failure.reason),
                ..failure
            })?;
            self.note_date(&opened);
            opened.endpoint = endpoint.clone();
        }
        Ok(opened)
    }

    /// Remembers what an answer's `Date` tells of the server's clock.
    fn note_date(&self, opened: &Opened) {
        // With an age it comes from a cache on the way; a failure may be told by a proxy, whose
        // clock stamps nothing.
        let fresh = opened.headers.get(header::AGE).is_none() && !opened.status.is_server_error();
        let date = opened.headers.get(header::DATE).filter(|_| fresh);
        if let Some(date) = date.and_then(|it| http_date(it.to_str().ok()?)) {
            let second = Duration::from_secs(1);
            self.clocks.told(&opened.server, date, second, opened.span);
        }
    }

    /// Sends a request whose answer's body may take for ever, to one endpoint, once.
    pub(crate) async fn open(
        &self,
        call: &Call,
        endpoint: &Arc<Endpoint>,
    ) -> Result<Opened, Failure> {
        let clock = &self.runtime.clock;
        let started = clock.now();
        let until = self.attempt_deadline();
        let limits = Limits {
            connect: until,
            answer: until,
        };
        let opened = self.follow(call, endpoint, As::User, limits).await;
        let opened = opened.and_then(|opened| match opened.astray {
            None => Ok(opened),
            Some(why) => Err(Failure {
                hopeless: true,
                ..Failure::new(true, why)
            }),
        });
        let took = clock.now().since(started);
        let (server, path) = (&*endpoint.origin, &*call.target);
        match &opened {
            Ok(it) => {
                if it.status.is_server_error() {
                    self.endpoints.failed(endpoint, clock.now());
                }
                tracing::trace!(target: "tenure::transport", server, path, status = it.status.as_u16(), ?took, "poll open");
            }
            Err(failure) => {
                self.endpoints.failed(endpoint, clock.now());
                tracing::debug!(target: "tenure::transport", server, path, reason = failure.reason, ?took, "poll failed");
            }
        }
        opened
    }

    /// Reads the rest of an answer that is expected at once.
    pub(crate) async fn rest(&self, opened: &mut Opened) -> Result<Bytes, Failure> {
        let limit = self.latency.attempt(self.timeout, 0);
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

/// The error for a redirect that is not followed. Who redirects has not done it.
fn astray(why: String, server: &str) -> Error {
    Error::new(ErrorKind::Protocol, why).on(server)
}
