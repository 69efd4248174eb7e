//! The long-poll machine: [`follow`] yields what happens to a key or a tree, in etcd's own words.
//! The store's updates and the client's watches are projections of it.
//!
//! etcd's `stream=true` loses events without a word, so every event is a request of its own: a
//! GET that is answered when something happens.
//!
//! ```text
//!             headers                        an event, or the poll broke
//! Connecting ─────────▶ Polling ──────────────────────────────────┐
//!     ▲                  │   ▲                                    │
//!     │      quiet for a │   │ the new poll is open               │
//!     │           period ▼   │                                    │
//!     │                 Renewing ── history cleared ──▶ Overlapping
//!     │                  │              │  quiet: the new poll    │
//!     └──────────────────┴──────────────┴─────────────────────────┘
//!       the old poll spoke: its event first, then from its index + 1
//! ```
//!
//! **No event is lost or doubled.** `next` is the first index not accounted for. A poll with
//! `waitIndex=next` is answered from history or waits, decided under one lock of the store; after
//! an event at `m`, `next` is `m + 1`. What is older than the last event is dropped.
//!
//! **An idle poll must not grow old**: etcd keeps 1,000 events of the whole store, and refreshes
//! count. So a poll that was quiet for a period of at least [`SETTLE`], on a connection that is
//! still up, is taken to have found nothing up to the index in its own headers: an event that it
//! had found would have come right behind them on the same connection. (When the server does not
//! answer the watchdog either, nothing is taken for granted.) `next` moves there, and the next poll
//! is opened before the old one is dropped. If more than 1,000 events went by within one period,
//! that is refused (401). Then a poll from now on is opened on the same server while the old one is
//! kept: the old one sees all that came before, the new one all that comes after. Only when the old
//! one stays quiet for [`SETTLE`] longer is it dropped.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::Method;

use super::driver::{Driver, Raft, Reply, etcd_index, raft};
use super::error::{Access, refused};
use super::request::Params;
use super::wire::Body;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{self, Index, Key};
use crate::runtime::Instant;
use crate::store::Freshness;
use crate::transport::{Endpoint, Failure, Opened};

/// After how long an event that the server has already sent has certainly come.
const SETTLE: Duration = Duration::from_secs(1);

/// What is followed.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) key: Key,
    /// With everything below it.
    pub(super) tree: bool,
    /// The first index that counts; `None` for from now on.
    pub(super) from: Option<Index>,
    /// How long to go on without reaching any server; `None` for ever.
    pub(super) patience: Option<Duration>,
}

/// What is reported.
#[derive(Debug)]
pub(super) enum Report {
    /// From here on nothing is missed. The first report.
    Open(Index),
    /// Something happened at this index. The reply's own index is that of the poll's headers.
    Event(Index, Box<Reply>),
    /// Nothing happened up to this index.
    Progress(Index),
}

/// Follows `target` until an error.
pub(super) fn follow(driver: Arc<Driver>, target: Target) -> BoxStream<'static, Result<Report>> {
    let machine = Machine {
        next: target.from,
        last: None,
        announced: false,
        trouble: None,
        distrusted: 0,
        driver,
        target,
    };
    let start = Some((machine, State::Connecting));
    stream::unfold(start, |running| async move {
        let (mut machine, mut state) = running?;
        loop {
            let (report, after) = machine.step(state).await;
            state = after;
            match report {
                Some(Ok(report)) => return Some((Ok(report), Some((machine, state)))),
                Some(Err(error)) => return Some((Err(error), None)),
                None => {}
            }
        }
    })
    .boxed()
}

struct Machine {
    driver: Arc<Driver>,
    target: Target,
    /// The first index not accounted for; `None` before the first poll of a watch from now on.
    next: Option<Index>,
    /// The last event.
    last: Option<Index>,
    /// Whether the stream has begun.
    announced: bool,
    /// Since when nothing works.
    trouble: Option<Trouble>,
    /// How many servers TLS has found no trust in, one after the other.
    distrusted: usize,
}

enum State {
    /// No poll is open.
    Connecting,
    /// One is, and is renewed at this time.
    Polling(Poll, Instant),
    /// One is, and its successor is being opened.
    Renewing(Poll),
    /// Two are, because the history between them is gone.
    Overlapping {
        old: Poll,
        new: Poll,
        until: Instant,
    },
}

/// An open long poll: it will report the first change at or after its index that its key has.
struct Poll {
    opened: Box<Opened>,
    /// The server's index when it was opened.
    index: Index,
    /// Where raft was then.
    raft: Raft,
    /// When its headers came.
    since: Instant,
}

struct Trouble {
    since: Instant,
    pauses: Box<dyn Iterator<Item = Duration> + Send + Sync>,
}

type Step = (Option<Result<Report>>, State);

impl Machine {
    async fn step(&mut self, state: State) -> Step {
        match state {
            State::Connecting => self.connect().await,
            State::Polling(poll, renew_at) => self.poll(poll, renew_at).await,
            State::Renewing(poll) => self.renew(poll).await,
            State::Overlapping { old, new, until } => self.overlap(old, new, until).await,
        }
    }

    async fn connect(&mut self) -> Step {
        let endpoint = self.driver.transport.endpoints().current();
        match self.open(self.next, &endpoint).await {
            Ok(poll) => {
                self.settled();
                let index = poll.index;
                self.next.get_or_insert(index.next());
                let first = !std::mem::replace(&mut self.announced, true);
                let update = first.then_some(Ok(Report::Open(index)));
                (update, self.polling(poll))
            }
            Err(error) => self.stumble(error).await,
        }
    }

    async fn poll(&mut self, mut poll: Poll, renew_at: Instant) -> Step {
        let clock = self.driver.runtime.clock.clone();
        let endpoint = poll.opened.endpoint.clone();
        // Whether the connection can be taken to be up.
        let due = async {
            tokio::select! {
                biased;
                () = clock.sleep_until(renew_at) => true,
                answers = self.driver.cut_off(&endpoint) => answers,
            }
        };
        tokio::select! {
            biased;
            body = poll.opened.end() => self.ended(&poll, body).await,
            up = due => {
                let settled = up && clock.has_passed(poll.since + SETTLE);
                let progress = if settled { self.quiet_up_to(poll.index) } else { None };
                (progress, State::Renewing(poll))
            }
        }
    }

    async fn renew(&mut self, mut old: Poll) -> Step {
        let endpoint = old.opened.endpoint.clone();
        let opened = tokio::select! {
            biased;
            body = old.opened.end() => return self.ended(&old, body).await,
            opened = self.successor(&endpoint) => opened,
        };
        let clock = self.driver.runtime.clock.clone();
        match opened {
            Ok(Successor::Seamless(new)) => {
                self.settled();
                (None, self.polling(new))
            }
            Ok(Successor::FromNow(new)) => {
                let until = clock.now() + SETTLE;
                (None, State::Overlapping { old, new, until })
            }
            // The old one is still open, and may speak while this is tried again.
            Err(error) => match self.endure(error) {
                Ok(pause) => (None, State::Polling(old, clock.now() + pause)),
                Err(error) => (Some(Err(error)), State::Connecting),
            },
        }
    }

    async fn overlap(&mut self, mut old: Poll, new: Poll, until: Instant) -> Step {
        let clock = self.driver.runtime.clock.clone();
        tokio::select! {
            biased;
            // Its event comes before whatever the new one has.
            body = old.opened.end() => self.ended(&old, body).await,
            () = clock.sleep_until(until) => {
                // The new poll was opened after its index; nothing is open before that.
                let progress = self.quiet_up_to(new.index);
                (progress, self.polling(new))
            }
        }
    }

    /// A poll has come to its end: with an event, or broken.
    async fn ended(&mut self, poll: &Poll, body: Result<Bytes, Failure>) -> Step {
        let event = match body {
            Ok(body) => parse(&body),
            Err(failure) => Err(broken(failure)),
        };
        match event {
            Ok((index, body)) => {
                self.settled();
                if self.last.is_some_and(|last| index <= last) {
                    // With a pause, lest a server that goes on so be asked without end.
                    let text = "an event that was told before came again";
                    return self.stumble(Error::new(ErrorKind::Unavailable, text)).await;
                }
                self.last = Some(index);
                self.next = Some(index.next());
                let report = self.concerns(&body).then(|| poll.event(index, body));
                (report.map(Ok), State::Connecting)
            }
            Err(error) => self.stumble(error).await,
        }
    }

    /// Waits a little before the next attempt, or gives up.
    async fn stumble(&mut self, error: Error) -> Step {
        match self.endure(error) {
            Ok(pause) => {
                self.driver.runtime.clock.sleep(pause).await;
                (None, State::Connecting)
            }
            Err(error) => (Some(Err(error)), State::Connecting),
        }
    }

    /// Something works again.
    fn settled(&mut self) {
        self.trouble = None;
        self.distrusted = 0;
    }

    /// For how long to wait after this error; or the error, if it cannot pass or trouble has
    /// lasted for too long.
    fn endure(&mut self, error: Error) -> Result<Duration> {
        let error = error.during("watch").at(&self.target.key);
        let driver = &self.driver;
        if error.kind() == ErrorKind::Untrusted {
            // Among good servers it just gives way to the next.
            self.distrusted += 1;
            if self.distrusted < driver.transport.endpoints().len() {
                return Ok(Duration::ZERO);
            }
        }
        if !error.is_transient() {
            return Err(error);
        }
        self.distrusted = 0;
        let now = driver.runtime.clock.now();
        let trouble = self.trouble.get_or_insert_with(|| Trouble {
            since: now,
            pauses: Box::new(driver.transport.pauses()),
        });
        let left = match self.target.patience {
            Some(patience) => (trouble.since + patience).since(now),
            None => Duration::MAX,
        };
        if left.is_zero() {
            return Err(error);
        }
        tracing::debug!(target: "tenure::etcd2", key = %self.target.key, %error, "watch interrupted");
        let pause = trouble.pauses.next().unwrap_or(Duration::from_secs(1));
        Ok(pause.min(left))
    }

    fn polling(&self, poll: Poll) -> State {
        let renew_at = self.driver.runtime.clock.now() + self.driver.poll_period;
        State::Polling(poll, renew_at)
    }

    /// Nothing happened up to `index`.
    fn quiet_up_to(&mut self, index: Index) -> Option<Result<Report>> {
        if self.next.is_some_and(|next| index < next) {
            return None;
        }
        self.next = Some(index.next());
        Some(Ok(Report::Progress(index)))
    }

    /// Whether an event belongs into this watch. History answers by the prefix of the text, and
    /// with hidden keys; the directory above a key may go with it.
    fn concerns(&self, body: &Body) -> bool {
        let (watched, path) = (self.target.key.as_str(), body.node.path());
        if watched == path || body.action.removes() && key::below(watched, path).is_some() {
            return true;
        }
        self.target.tree && key::below(path, watched).is_some_and(|rest| !key::is_hidden(rest))
    }

    /// Opens the poll that follows one on this endpoint.
    async fn successor(&self, old: &Arc<Endpoint>) -> Result<Successor> {
        // A watch on a server that is cut off never fails and never speaks.
        let endpoint = self.driver.connected(old).await;
        match self.open(self.next, &endpoint).await {
            Ok(poll) => Ok(Successor::Seamless(poll)),
            // What the old one has not seen only its own server can tell from what has not been.
            Err(error) if error.kind() == ErrorKind::HistoryLost && endpoint == *old => {
                let poll = self.open(None, &endpoint).await?;
                if self.next.is_some_and(|next| poll.index < next) {
                    return Err(error);
                }
                Ok(Successor::FromNow(poll))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a poll from an index, or from now.
    async fn open(&self, from: Option<Index>, endpoint: &Arc<Endpoint>) -> Result<Poll> {
        let driver = &self.driver;
        driver.refresh_members(driver.deadline()).await;
        let mut params = Params::new().flag("wait");
        if self.target.tree {
            params = params.flag("recursive");
        }
        if let Some(from) = from {
            params = params.number("waitIndex", from.get());
        }
        let call = self.driver.query(Method::GET, &self.target.key, &params)?;
        let mut opened = driver
            .transport
            .open(&call, endpoint)
            .await
            .map_err(broken)?;
        let server = opened.server.clone();
        driver
            .check_cluster(&opened.headers)
            .map_err(|it| it.on(&*server))?;
        if !opened.status.is_success() {
            let rest = driver.transport.rest(&mut opened);
            let body = rest.await.map_err(broken)?;
            let error = refused(opened.status, &body, Access::Read).on(&*server);
            return Err(driver.explained(error, driver.deadline()).await);
        }
        let Some(index) = etcd_index(&opened.headers) else {
            let text = "the answer has no X-Etcd-Index: is this an etcd v2 endpoint?";
            return Err(Error::new(ErrorKind::Protocol, text).on(&*server));
        };
        if let Some(from) = from
            && index.next() < from
        {
            self.check_not_restored(from).await?;
        }
        let raft = raft(&opened.headers);
        let since = driver.runtime.clock.now();
        Ok(Poll {
            opened: Box::new(opened),
            index,
            raft,
            since,
        })
    }

    /// A server that is behind what has been seen either lags, and will catch up, or has been
    /// restored from a backup: a quorum tells.
    async fn check_not_restored(&self, from: Index) -> Result<()> {
        let found = self
            .driver
            .fetch(
                &self.target.key,
                Freshness::Linearizable,
                self.driver.deadline(),
            )
            .await?;
        if found.index().next() >= from {
            return Ok(());
        }
        let text = format!(
            "the server's index is {}, below {from}: restored from a backup?",
            found.index()
        );
        Err(Error::new(ErrorKind::HistoryLost, text).seen_at(found.index()))
    }
}

enum Successor {
    /// It continues where the old one is: the old one can be dropped.
    Seamless(Poll),
    /// It begins now: the old one still covers what came before.
    FromNow(Poll),
}

impl Poll {
    fn event(&self, index: Index, body: Body) -> Report {
        let reply = Reply {
            index: self.index,
            body,
            raft: self.raft,
            server: self.opened.server.clone(),
        };
        Report::Event(index, Box::new(reply))
    }
}

fn parse(body: &[u8]) -> Result<(Index, Body)> {
    if body.trim_ascii().is_empty() {
        let text = "the server ended the wait without an event";
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    let body: Body = serde_json::from_slice(body)
        .map_err(|cause| super::error::unreadable(body, Access::Read, cause))?;
    let index = Index::new(body.node.modified_index)
        .ok_or_else(|| Error::new(ErrorKind::Protocol, "an event without an index"))?;
    Ok((index, body))
}

pub(super) fn broken(failure: Failure) -> Error {
    let kind = match failure {
        Failure {
            untrusted: true, ..
        } => ErrorKind::Untrusted,
        Failure { hopeless: true, .. } => ErrorKind::Protocol,
        Failure {
            maybe_sent: false, ..
        } => ErrorKind::Unreachable,
        Failure { .. } => ErrorKind::Unavailable,
    };
    let error = Error::new(kind, failure.reason);
    match failure.cause {
        Some(cause) => error.caused_by(cause),
        None => error,
    }
}
