//! The task of the watches: keeps a stream, asks for the watches on it, tells what comes.
//!
//! ```text
//!             first watch            answered
//! Idle ──────────────────▶ Opening ──────────▶ Streaming
//!   ▲                        ▲  │ refused           │ ended, silent, or without a leader
//!   │ no watch is left       │  ▼                   │
//!   └────────────────────── Pausing ◀───────────────┘   on the next server; after `watch_patience`
//!                                                       without any, all watches end with the error
//! ```
//!
//! A server that is cut off from the others ends the stream by itself (it is asked to want a
//! leader); one that hangs says nothing. So it is asked for a sign of life: when the stream begins,
//! after a silence, and when calls have left that server for another. The answer has the time of one
//! attempt.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::body::Body;

use super::asks::{Asked, Asks};
use super::driver::bytes;
use super::error::Next;
use super::hub::{Order, Seat};
use super::proto::{RangeRequest, WATCH, WatchRequest, WatchResponse};
use super::read::gone_back;
use super::rpc::{Ask, Trouble, Wire, index};
use super::txn::number;
use super::watch::Heard;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::runtime::Instant;
use crate::transport::{Channel, Endpoint, pauses};

/// How many keys are looked for at once.
const MOST_LOOKS: usize = 32;

/// The task of the watches.
pub(super) struct Run {
    wire: Arc<Wire>,
    patience: Duration,
    watchdog_period: Duration,
    orders: mpsc::UnboundedReceiver<Order>,
    /// By their numbers. Numbers rise, which leaves a tree half full: so it has pointers only.
    seats: BTreeMap<i64, Box<Seat>>,
    /// Since when nothing works.
    trouble: Option<Since>,
    /// What is being looked for: see [`Following`].
    looks: FuturesUnordered<BoxFuture<'static, Found>>,
    /// What is to be looked for after that.
    later: VecDeque<(i64, Index)>,
    /// How far the store has come, while that is in doubt.
    progress: Option<Progress>,
    /// How many servers TLS has found no trust in, or are none, one after the other.
    distrusted: usize,
}

struct Since {
    since: Instant,
    pauses: Box<dyn Iterator<Item = Duration> + Send + Sync>,
}

/// A watch, the index at which its key was looked at, and when it was created, if that can be told.
type Found = (i64, Index, Option<Index>);

/// The index that was seen in the store, and the read that tells at which it is now.
type Progress = (Index, BoxFuture<'static, Index>);

/// Why a stream is left.
enum Left {
    /// The last watch is gone.
    Idle,
    /// The store is gone.
    Done,
    Trouble(Error),
    /// Nobody will serve these watches.
    Over(Error),
}

/// What an error of a stream means for all its watches.
fn left(trouble: Trouble, endpoint: &Endpoint) -> Left {
    let over = matches!(&trouble, Trouble::Refused(judged) if judged.next == Next::Final);
    let error = trouble.into_error(&endpoint.origin);
    if over && error.kind() != ErrorKind::Protocol {
        Left::Over(error)
    } else {
        Left::Trouble(error)
    }
}

impl Run {
    pub(super) fn new(
        wire: Arc<Wire>,
        patience: Duration,
        watchdog_period: Duration,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Self {
        Self {
            wire,
            patience,
            watchdog_period,
            orders,
            seats: BTreeMap::new(),
            trouble: None,
            looks: FuturesUnordered::new(),
            later: VecDeque::new(),
            progress: None,
            distrusted: 0,
        }
    }

    /// Runs until the store is gone.
    pub(super) async fn drive(mut self) {
        loop {
            while self.seats.is_empty() {
                match self.orders.recv().await {
                    Some(order) => self.order(order, None),
                    None => return,
                }
            }
            let endpoint = self.wire.endpoints.current();
            match self.stream(&endpoint).await {
                Left::Idle => self.settled(),
                Left::Done => return,
                Left::Over(error) => self.end_all(&error),
                Left::Trouble(error) => {
                    let now = self.wire.runtime.clock.now();
                    self.wire.endpoints.failed(&endpoint, now);
                    match self.endure(&error) {
                        Some(pause) => self.wire.runtime.clock.sleep(pause).await,
                        None => self.end_all(&error),
                    }
                }
            }
        }
    }

    /// Opens a stream to this endpoint and tells what comes on it, until it is of no use any more.
    async fn stream(&mut self, endpoint: &Arc<Endpoint>) -> Left {
        let (sender, mut requests) = mpsc::unbounded_channel();
        let mut asks = Asks::new(sender);
        let seen = self.wire.seen();
        for (id, seat) in &mut self.seats {
            // Another stream was.
            seat.asked.now = false;
            asks.create(*id, seat, seen);
        }
        let requests = stream::poll_fn(move |cx| requests.poll_recv(cx));
        // A server answers when it has something to say, and there may be no watch to open.
        asks.sign_of_life();
        let wire = self.wire.clone();
        let opening = wire.stream::<WatchRequest, WatchResponse>(WATCH, requests, endpoint);
        let (answers, channel) = match opening.await {
            Ok(opened) => opened,
            Err(trouble) => return left(trouble, endpoint),
        };
        let left = self
            .listen(answers, &mut asks, (endpoint, &channel), seen)
            .await;
        // Nobody polls them any more, and the next stream is asked for everything anew.
        self.looks.clear();
        self.later.clear();
        self.progress = None;
        if matches!(left, Left::Trouble(_)) {
            // The connection may be dead without anybody having said so.
            wire.channels.give_up(endpoint, &channel);
        }
        left
    }

    async fn listen(
        &mut self,
        mut answers: Streaming<WatchResponse>,
        asks: &mut Asks,
        (endpoint, channel): (&Arc<Endpoint>, &Channel<Body>),
        mut seen: Option<Index>,
    ) -> Left {
        let wire = self.wire.clone();
        let clock = &wire.runtime.clock;
        // Whether a sign of life was asked for, and until when something must come. A new stream was
        // asked for one: a server that has accepted it and says nothing is not waited for twice.
        let (mut asked, mut until) = (true, wire.stream_limits().answer);
        let mut moved = wire.endpoints.moved();
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(order) => self.order(order, Some(asks)),
                    None => return Left::Done,
                },
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        (asked, until) = (false, clock.now() + self.watchdog_period);
                        self.settled();
                        let place = |error: Error| error.on(&*endpoint.origin);
                        if let Some(header) = &answer.header
                            && let Err(error) = wire.learn(header)
                        {
                            return Left::Trouble(place(error));
                        }
                        if let Some(seen) = seen.take() {
                            self.compare(seen, &answer);
                        }
                        if let Err(error) = self.answer(answer, asks) {
                            return Left::Trouble(place(error));
                        }
                    }
                    Ok(None) => {
                        let text = "the server ended the stream of watches";
                        let error = Error::new(ErrorKind::Unavailable, text);
                        return Left::Trouble(error.on(&*endpoint.origin));
                    }
                    Err(status) => {
                        let until = wire.stream_limits().answer;
                        let trouble = wire.trouble(status, endpoint, channel, until).await;
                        if let Trouble::Refused(judged) = &trouble
                            && judged.next == Next::NewToken
                        {
                            wire.auth.forget_any();
                        }
                        return left(trouble, endpoint);
                    }
                },
                (seen, now) = come_to(&mut self.progress) => {
                    self.progress = None;
                    if now < seen {
                        self.wire.gone_back(now);
                        return Left::Over(gone_back(seen, now).on(&*endpoint.origin));
                    }
                }
                Some((id, at, created)) = self.looks.next() => self.looked(id, at, created, asks),
                // Calls have left this server, so it may not be there for the watches either.
                Ok(()) = moved.changed(), if !asked => {
                    if wire.endpoints.current() != *endpoint {
                        asks.sign_of_life();
                        (asked, until) = (true, wire.stream_limits().answer);
                    }
                }
                () = clock.sleep_until(until) => {
                    if asked {
                        let text = "the server of the watches gives no sign of life";
                        let error = Error::new(ErrorKind::Unavailable, text);
                        return Left::Trouble(error.on(&*endpoint.origin));
                    }
                    asks.sign_of_life();
                    (asked, until) = (true, wire.stream_limits().answer);
                }
            }
            if self.seats.is_empty() {
                return Left::Idle;
            }
        }
    }

    fn order(&mut self, order: Order, asks: Option<&mut Asks>) {
        let (id, seat) = match order {
            Order::Open(id, seat) => {
                // No two have one name.
                (id, self.seats.entry(id).or_insert(seat))
            }
            Order::Resume(id) => {
                let Some(seat) = self.seats.get_mut(&id) else {
                    return;
                };
                seat.following.resume();
                (id, seat)
            }
            Order::Close(id) => {
                if let (Some(mut seat), Some(asks)) = (self.seats.remove(&id), asks) {
                    asks.cancel(id, &mut seat);
                }
                return;
            }
        };
        // Without a stream the next one is asked for it.
        if let Some(asks) = asks {
            asks.create(id, seat, self.wire.seen());
        }
    }

    /// An error means that the stream is of no use any more.
    fn answer(&mut self, answer: WatchResponse, asks: &mut Asks) -> Result<()> {
        // What is about no watch is a sign of life.
        let Some(name) = asks.about(&answer) else {
            return Ok(());
        };
        let id = Asked::id(name);
        let seat = self
            .seats
            .get_mut(&id)
            .filter(|it| it.asked.is_called(id, name));
        let Some(seat) = seat else {
            return Ok(());
        };
        if answer.created
            && let Err(error) = self.wire.check_history(seat.following.next())
        {
            asks.cancel(id, seat);
            self.end(id, &error);
            return Ok(());
        }
        match seat.following.hear(answer) {
            Heard::Anew => asks.create(id, seat, self.wire.seen()),
            Heard::Look(at) => {
                self.later.push_back((id, at));
                self.look();
            }
            Heard::Told(updates) => {
                if seat.tell(updates) {
                    seat.following.lag();
                    seat.lag();
                    asks.cancel(id, seat);
                }
            }
            Heard::Over(error) => self.end(id, &error),
            Heard::Denied(error) => {
                if seat.following.denied || !self.wire.auth.is_asked_for() {
                    self.end(id, &error);
                } else {
                    seat.following.denied = true;
                    self.wire.auth.forget_any();
                    return Err(error.into_kind(
                        ErrorKind::Unavailable,
                        "perhaps our token is too old: once more with a new one",
                    ));
                }
            }
            Heard::Broken(error) => return Err(error),
        }
        Ok(())
    }

    /// A server that is not where the store was seen lags behind, or the store has gone back: to be
    /// restored from a backup does not change its cluster's id. Then it would tell a watch nothing
    /// before it has come as far again.
    fn compare(&mut self, seen: Index, answer: &WatchResponse) {
        let at = answer.header.as_ref().and_then(|it| index(it.revision));
        if at < Some(seen)
            && let Some(seat) = self.seats.values().next()
        {
            let come_to = where_it_is(self.wire.clone(), seat.following.key().clone());
            self.progress = Some((seen, come_to.boxed()));
        }
    }

    /// Begins to look for what waits for that, but only for a few at once: a request takes ten
    /// thousand bytes while it is under way.
    fn look(&mut self) {
        while self.looks.len() < MOST_LOOKS {
            let Some((id, at)) = self.later.pop_front() else {
                // It may have been long.
                self.later = VecDeque::new();
                return;
            };
            if let Some(seat) = self.seats.get(&id) {
                let (wire, key) = (self.wire.clone(), seat.following.key().clone());
                self.looks.push(look(wire, id, key, at).boxed());
            }
        }
    }

    fn looked(&mut self, id: i64, at: Index, created: Option<Index>, asks: &mut Asks) {
        self.look();
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        match seat.following.looked(at, created) {
            Some(updates) => {
                // Few have come so far.
                seat.tell(updates);
            }
            None => asks.create(id, seat, self.wire.seen()),
        }
    }

    fn end(&mut self, id: i64, error: &Error) {
        if let Some(seat) = self.seats.remove(&id) {
            seat.end(error.clone().during("watch").at(seat.following.key()));
        }
    }

    fn end_all(&mut self, error: &Error) {
        let ids: Vec<i64> = self.seats.keys().copied().collect();
        for id in ids {
            self.end(id, error);
        }
        self.settled();
    }

    /// Something works again.
    fn settled(&mut self) {
        (self.trouble, self.distrusted) = (None, 0);
    }

    /// For how long to wait after this error; `None` if it cannot pass, or trouble has lasted for
    /// too long.
    fn endure(&mut self, error: &Error) -> Option<Duration> {
        tracing::debug!(target: "tenure::etcd3", watches = self.seats.len(), %error, "watches interrupted");
        let wire = &self.wire;
        match error.kind() {
            // Among good servers such a one just gives way to the next.
            ErrorKind::Untrusted | ErrorKind::Protocol => {
                self.distrusted += 1;
                return (self.distrusted < wire.endpoints.len()).then_some(Duration::ZERO);
            }
            // With a new token.
            ErrorKind::Unauthorized if wire.auth.is_asked_for() => {}
            _ if error.is_transient() => {}
            _ => return None,
        }
        let now = wire.runtime.clock.now();
        let trouble = self.trouble.get_or_insert_with(|| Since {
            since: now,
            pauses: Box::new(pauses(&wire.runtime.entropy)),
        });
        let left = (trouble.since + self.patience).since(now);
        if left.is_zero() {
            return None;
        }
        let pause = trouble.pauses.next().unwrap_or(Duration::from_secs(1));
        Some(pause.min(left))
    }
}

/// When a key was created that is there at this index.
async fn look(wire: Arc<Wire>, id: i64, key: Key, at: Index) -> Found {
    let request = RangeRequest {
        key: bytes(&key),
        revision: number(at),
        keys_only: true,
        serializable: true,
        ..RangeRequest::default()
    };
    let reply = wire.call(&request, Ask::LOCAL, wire.deadline()).await;
    let found = reply
        .ok()
        .and_then(|it| index(it.body.kvs.first()?.create_revision));
    (id, at, found)
}

/// At which index the store is, linearizably; asked by way of a key that can be read.
async fn where_it_is(wire: Arc<Wire>, key: Key) -> Index {
    let request = RangeRequest {
        key: bytes(&key),
        keys_only: true,
        ..RangeRequest::default()
    };
    loop {
        match wire.call(&request, Ask::READ, wire.deadline()).await {
            Ok(reply) => return reply.index,
            Err(_) => wire.runtime.clock.sleep(Duration::from_secs(1)).await,
        }
    }
}

/// The answer to that; never returns if it was not asked.
fn come_to(progress: &mut Option<Progress>) -> impl Future<Output = (Index, Index)> {
    poll_fn(|cx| match progress {
        Some((seen, at)) => at.as_mut().poll(cx).map(|at| (*seen, at)),
        None => Poll::Pending,
    })
}
