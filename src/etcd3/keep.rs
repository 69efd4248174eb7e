//! Keeping leases alive: all of them on one stream to one server.
//!
//! ```text
//! ask ──▶ [waiting of this lease, in order] ──▶ stream ──▶ answer to the first of its lease
//! ```
//!
//! A stream answers in the order in which it was asked, so the first that waits for a lease gets its
//! first answer, and a term counts from the send that was answered, or an earlier one. With the
//! stream all that wait for it fail, and each asks again: to repeat a renewal is harmless.
//!
//! A stream that does not answer is left for one to another server, also when whoever waits for the
//! answer gives up first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{FutureExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::driver::lease_number;
use super::lease::ttl;
use super::proto::{KEEP_ALIVE, LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use super::rpc::{Ask, Trouble, Wire};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{LeaseId, Ttl};
use crate::runtime::Instant;
use crate::transport::{Endpoint, Failure, Limits};

/// The stream, while there is one.
#[derive(Debug, Default)]
pub(super) struct Keeper(Mutex<Option<Arc<Stream>>>);

/// A stream, and who waits for its answers. Dropped, it ends.
#[derive(Debug)]
struct Stream {
    endpoint: Arc<Endpoint>,
    asks: mpsc::UnboundedSender<LeaseKeepAliveRequest>,
    waiting: Arc<Waiting>,
    _task: AbortOnDropHandle<()>,
}

/// Who waits, by lease and in order; `None` once the stream has ended.
#[derive(Debug)]
struct Waiting(Mutex<Option<Queues>>);

type Answer = Result<LeaseKeepAliveResponse, Trouble>;
type Queues = BTreeMap<i64, VecDeque<oneshot::Sender<Answer>>>;

impl Keeper {
    /// Another full term for a lease. Cost: one message, no proposal.
    ///
    /// # Errors
    /// `NotFound`: there is no such lease any more.
    pub(super) async fn keep_alive(
        &self,
        wire: &Arc<Wire>,
        lease: LeaseId,
        deadline: Instant,
    ) -> Result<Ttl> {
        let id = lease_number(lease);
        let attempt = |endpoint: Arc<Endpoint>, limits| {
            async move { self.ask(wire, id, &endpoint, limits).await }.boxed()
        };
        let reply = wire
            .rounds(KEEP_ALIVE, Ask::HARMLESS, deadline, attempt)
            .await?;
        if reply.body.ttl <= 0 {
            let text = "the lease is gone";
            return Err(Error::new(ErrorKind::NotFound, text).on(&*reply.server));
        }
        ttl(reply.body.ttl)
    }

    async fn ask(
        &self,
        wire: &Arc<Wire>,
        id: i64,
        endpoint: &Arc<Endpoint>,
        limits: Limits,
    ) -> Answer {
        let (stream, answer) = self.queue(wire, id, endpoint);
        let mut hope = Hope {
            keeper: self,
            wire,
            stream: &stream,
            since: wire.runtime.clock.now(),
            over: false,
        };
        tokio::select! {
            biased;
            answer = answer => {
                hope.over = true;
                answer.unwrap_or_else(|_| {
                    let reason = "the stream of renewals ended".to_owned();
                    Err(Trouble::Failure(Failure::new(true, reason)))
                })
            }
            () = wire.runtime.clock.sleep_until(limits.answer) => {
                hope.over = true;
                self.leave(&stream);
                let reason = "a renewal was not answered".to_owned();
                Err(Trouble::Failure(Failure::new(true, reason)))
            }
        }
    }

    /// Sends a request on the stream to this endpoint, which is opened if there is none.
    fn queue(
        &self,
        wire: &Arc<Wire>,
        id: i64,
        endpoint: &Arc<Endpoint>,
    ) -> (Arc<Stream>, oneshot::Receiver<Answer>) {
        let mut slot = self.lock();
        if let Some(stream) = slot.as_ref().filter(|it| it.endpoint == *endpoint)
            && let Some(answer) = stream.queue(id)
        {
            return (stream.clone(), answer);
        }
        let stream = Arc::new(Stream::open(wire, endpoint));
        // It has only just begun, so it has not ended: this one it takes.
        let answer = stream.queue(id).unwrap_or_else(|| oneshot::channel().1);
        *slot = Some(stream.clone());
        (stream, answer)
    }

    /// The next renewal gets another stream.
    fn leave(&self, stream: &Arc<Stream>) {
        let mut slot = self.lock();
        if slot.as_ref().is_some_and(|it| Arc::ptr_eq(it, stream)) {
            *slot = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Stream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A renewal that is not answered yet. A short term leaves it less time than an attempt may take: so
/// who gives it up counts too, or all tries of the term would go to a server that hangs.
struct Hope<'a> {
    keeper: &'a Keeper,
    wire: &'a Wire,
    stream: &'a Arc<Stream>,
    since: Instant,
    over: bool,
}

impl Drop for Hope<'_> {
    fn drop(&mut self) {
        let now = self.wire.runtime.clock.now();
        if !self.over && self.wire.latency.is_unusual(now.since(self.since)) {
            self.keeper.leave(self.stream);
            self.wire.endpoints.failed(&self.stream.endpoint, now);
        }
    }
}

impl Stream {
    fn open(wire: &Arc<Wire>, endpoint: &Arc<Endpoint>) -> Self {
        let (asks, requests) = mpsc::unbounded_channel();
        let waiting = Arc::new(Waiting(Mutex::new(Some(Queues::new()))));
        let task = run(wire.clone(), endpoint.clone(), requests, waiting.clone());
        Self {
            endpoint: endpoint.clone(),
            asks,
            waiting,
            _task: wire.spawn(task),
        }
    }

    /// `None` once it has ended.
    fn queue(&self, id: i64) -> Option<oneshot::Receiver<Answer>> {
        let mut waiting = self.waiting.lock();
        let (sender, answer) = oneshot::channel();
        waiting.as_mut()?.entry(id).or_default().push_back(sender);
        // With the lock held: the order of those that wait is that of the requests.
        self.asks.send(LeaseKeepAliveRequest { id }).ok()?;
        Some(answer)
    }
}

/// Runs a stream until it ends.
async fn run(
    wire: Arc<Wire>,
    endpoint: Arc<Endpoint>,
    mut requests: mpsc::UnboundedReceiver<LeaseKeepAliveRequest>,
    waiting: Arc<Waiting>,
) {
    let requests = stream::poll_fn(move |cx| requests.poll_recv(cx));
    let opened = wire.stream(KEEP_ALIVE, requests, &endpoint).await;
    let mut trouble = match opened {
        Err(trouble) => Some(trouble),
        Ok((mut answers, channel)) => loop {
            match answers.message().await {
                Ok(Some(answer)) => waiting.answer(answer),
                Ok(None) => break None,
                Err(status) => {
                    let until = wire.stream_limits().answer;
                    break Some(wire.trouble(status, &endpoint, &channel, until).await);
                }
            }
        },
    };
    let left = waiting.lock().take();
    for sender in left.into_iter().flat_map(BTreeMap::into_values).flatten() {
        let trouble = trouble.take().unwrap_or_else(|| {
            let reason = "the stream of renewals ended".to_owned();
            Trouble::Failure(Failure::new(true, reason))
        });
        // Who does not wait any more asks again anyway.
        let _ = sender.send(Err(trouble));
    }
}

impl Waiting {
    fn answer(&self, answer: LeaseKeepAliveResponse) {
        let mut waiting = self.lock();
        let Some(queues) = waiting.as_mut() else {
            return;
        };
        let Some(queue) = queues.get_mut(&answer.id) else {
            return;
        };
        if let Some(sender) = queue.pop_front() {
            let _ = sender.send(Ok(answer));
        }
        if queue.is_empty() {
            queues.remove(&answer.id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Queues>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_waits_gets_the_first_answer_even_when_it_has_gone() {
        let waiting = Waiting(Mutex::new(Some(Queues::new())));
        let queue = |id| {
            let (sender, answer) = oneshot::channel();
            let mut queues = waiting.lock();
            queues
                .as_mut()
                .unwrap()
                .entry(id)
                .or_default()
                .push_back(sender);
            answer
        };
        let (first, mut second, mut other) = (queue(1), queue(1), queue(2));
        drop(first);
        let answer = |id, ttl| {
            waiting.answer(LeaseKeepAliveResponse {
                header: None,
                id,
                ttl,
            });
        };
        answer(1, 10);
        assert!(
            second.try_recv().is_err(),
            "that was the answer to the first"
        );
        answer(2, 7);
        answer(3, 9);
        assert_eq!(other.try_recv().unwrap().unwrap().ttl, 7);
        answer(1, 11);
        assert_eq!(second.try_recv().unwrap().unwrap().ttl, 11);
        assert!(waiting.lock().as_ref().unwrap().is_empty());
    }
}
