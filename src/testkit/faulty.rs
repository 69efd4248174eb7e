//! A store on which things go wrong, by script or by seed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, future, stream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::faults::{Call, Fault, ItemFault, Odds, Outage, Plan, Signal};
use crate::error::{Error, ErrorKind, Result};
use crate::key::LeaseId;
use crate::store::{
    About, Append, Appended, Commit, Committed, Delete, Deleted, Get, Grant, Granted, Put, Renew,
    Renewed, Store, Update, Updates, View, Watch, Withdraw, Withdrawn, Written,
};

/// A store on which things go wrong, by script or by seed. Without either it is the store behind.
///
/// For each call the first of these decides: an [`Outage`]; a fault scripted for its number
/// ([`Faulty::nth_of_all`], [`Faulty::nth`]); the next fault scripted for its kind
/// ([`Faulty::next`]); the [`Odds`] of its kind. All delays are on tokio's clock.
///
/// Clones share everything. Late commits are tasks that belong to the clones: they end with the
/// last of these. The same seed gives the same faults to the same sequence of calls.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// # use tenure::{Key, Store, StoreExt, store::Expiry, testkit::{Call, Fault, Faulty}};
/// # async fn show(store: impl Store) -> tenure::Result<()> {
/// let store = Faulty::new(store, 7);
/// store.next(Call::Put, Fault::LostReply);
/// let error = store.set(&Key::new("/a")?, "x".into(), Expiry::Never).await.unwrap_err();
/// assert!(error.is_ambiguous());
/// assert!(store.node(&Key::new("/a")?).await?.is_some());
/// # Ok(()) }
/// # }
/// ```
pub struct Faulty<S: ?Sized>(Arc<Shared<S>>);

struct Shared<S: ?Sized> {
    plan: Arc<Plan>,
    late: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
    store: Arc<S>,
}

impl<S: Store + ?Sized> Faulty<S> {
    /// Wraps a store; nothing goes wrong yet.
    pub fn new(store: S, seed: u64) -> Self
    where
        S: Sized,
    {
        Self::shared(Arc::new(store), seed)
    }

    /// Wraps a store that others use too, without these faults.
    pub fn shared(store: Arc<S>, seed: u64) -> Self {
        let stop = CancellationToken::new();
        Self(Arc::new(Shared {
            plan: Arc::new(Plan::new(seed)),
            late: TaskTracker::new(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
            store,
        }))
    }

    /// The store behind, where nothing goes wrong.
    pub fn inner(&self) -> &Arc<S> {
        &self.0.store
    }

    /// The next call of this kind gets this fault; more of them queue up.
    pub fn next(&self, call: Call, fault: Fault) {
        self.0.plan.next(call, fault);
    }

    /// The `n`-th call of this kind, counted from 1 and from the beginning, gets this fault.
    pub fn nth(&self, call: Call, n: u64, fault: Fault) {
        self.0.plan.nth(call, n, fault);
    }

    /// The `n`-th call of any kind, counted from 1 and from the beginning, gets this fault.
    ///
    /// A run without faults tells by [`Faulty::all_calls`] how many there are; then one run for
    /// each number and each fault makes the whole matrix.
    pub fn nth_of_all(&self, n: u64, fault: Fault) {
        self.0.plan.nth_of_all(n, fault);
    }

    /// Sets the odds for calls of one kind.
    pub fn set_odds(&self, call: Call, odds: Odds) {
        self.0.plan.set_odds(&[call], odds);
    }

    /// Sets the odds for all calls.
    pub fn set_all_odds(&self, odds: Odds) {
        self.0.plan.set_odds(Call::ALL, odds);
    }

    /// Forgets the script and the odds and ends an outage. What was sent and comes late is still
    /// on its way: see [`Faulty::quiesce`].
    pub fn heal(&self) {
        self.0.plan.calm();
        self.0.plan.set_outage(Outage::None);
    }

    /// Begins or ends an outage.
    pub fn set_outage(&self, outage: Outage) {
        self.0.plan.set_outage(outage);
    }

    /// [`Outage::Refused`], or the end of an outage.
    pub fn set_down(&self, down: bool) {
        self.set_outage(if down { Outage::Refused } else { Outage::None });
    }

    /// Ends all watches that are open with `Unavailable`.
    pub fn break_watches(&self) {
        self.0.plan.break_watches();
    }

    /// How long a caller waits for an answer that does not come; 1 s unless set.
    pub fn set_patience(&self, patience: Duration) {
        self.0.plan.set_patience(patience);
    }

    /// How many calls of this kind there were, the failed ones included.
    pub fn calls(&self, call: Call) -> u64 {
        self.0.plan.calls(call)
    }

    /// How many calls there were.
    pub fn all_calls(&self) -> u64 {
        self.0.plan.all_calls()
    }

    /// Waits until no late commit is on its way any more.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn quiesce(&self) {
        // A closed tracker still takes tasks; closing is only what lets `wait` return.
        self.0.late.close();
        self.0.late.wait().await;
    }

    /// One call, with what is to go wrong.
    async fn call<T, F>(&self, call: Call, ask: impl Fn(Arc<S>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let plan = &self.0.plan;
        let fault = plan.draw(call);
        let send = ask(self.0.store.clone());
        self.reachable(call).await?;
        let Some(fault) = fault else {
            return send.await;
        };
        match fault {
            Fault::LostRequest => Err(self.no_answer(call).await),
            Fault::LostReply => {
                // What the store says, even a refusal, nobody hears.
                drop(send.await);
                Err(self.no_answer(call).await)
            }
            Fault::LateCommit(delay) => {
                if call.is_mutation() {
                    self.later(self.0.plan.patience() + delay, send);
                }
                Err(self.no_answer(call).await)
            }
            Fault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                self.reachable(call).await?;
                send.await
            }
            Fault::SlowReply(delay) => {
                let answer = send.await;
                tokio::time::sleep(delay).await;
                answer
            }
            Fault::Echo(delay) => {
                let answer = send.await;
                if call.is_repeatable() {
                    self.later(delay, ask(self.0.store.clone()));
                }
                answer
            }
            Fault::Unavailable => Err(refused(call)),
            Fault::Unreachable => Err(unreachable(call)),
            Fault::Hang => future::pending().await,
        }
    }

    async fn reachable(&self, call: Call) -> Result<()> {
        match self.0.plan.outage() {
            Outage::None => Ok(()),
            Outage::Refused => Err(unreachable(call)),
            Outage::Silent => Err(self.no_answer(call).await),
        }
    }

    async fn no_answer(&self, call: Call) -> Error {
        no_answer(call, self.0.plan.patience()).await
    }

    /// Lets the store do it later, unless the last clone is gone by then.
    fn later<T: Send + 'static>(
        &self,
        delay: Duration,
        send: impl Future<Output = Result<T>> + Send + 'static,
    ) {
        let stop = self.0.stop.clone();
        self.0.late.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = async { tokio::time::sleep(delay).await; drop(send.await) } => {}
            }
        });
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store + ?Sized> Store for Faulty<S> {
    fn about(&self) -> About {
        self.0.store.about()
    }

    async fn get(&self, get: Get) -> Result<View> {
        let send = |store: Arc<S>| {
            let get = get.clone();
            async move { store.get(get).await }
        };
        self.call(Call::Get, send).await
    }

    async fn put(&self, put: Put) -> Result<Written> {
        let send = |store: Arc<S>| {
            let put = put.clone();
            async move { store.put(put).await }
        };
        self.call(Call::Put, send).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        let send = |store: Arc<S>| {
            let append = append.clone();
            async move { store.append(append).await }
        };
        self.call(Call::Append, send).await
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        let send = |store: Arc<S>| {
            let withdraw = withdraw.clone();
            async move { store.withdraw(withdraw).await }
        };
        self.call(Call::Withdraw, send).await
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        let send = |store: Arc<S>| {
            let delete = delete.clone();
            async move { store.delete(delete).await }
        };
        self.call(Call::Delete, send).await
    }

    fn watch(&self, watch: Watch) -> Updates {
        let plan = self.0.plan.clone();
        let fault = plan.draw(Call::Watch);
        let store = self.0.store.clone();
        stream::once(async move { open(&plan, fault, store, watch).await })
            .flatten()
            .boxed()
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let send = |store: Arc<S>| {
            let commit = commit.clone();
            async move { store.commit(commit).await }
        };
        self.call(Call::Commit, send).await
    }

    async fn grant(&self, grant: Grant) -> Result<Granted> {
        let send = |store: Arc<S>| async move { store.grant(grant).await };
        self.call(Call::Grant, send).await
    }

    async fn renew(&self, renew: Renew) -> Result<Renewed> {
        let send = |store: Arc<S>| {
            let renew = renew.clone();
            async move { store.renew(renew).await }
        };
        self.call(Call::Renew, send).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let send = |store: Arc<S>| async move { store.revoke(lease).await };
        self.call(Call::Revoke, send).await
    }
}

impl<S: ?Sized> Clone for Faulty<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: fmt::Debug + ?Sized> fmt::Debug for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faulty").field(&&*self.0.store).finish()
    }
}

/// Opens a watch, or fails to.
async fn open<S: Store + ?Sized>(
    plan: &Arc<Plan>,
    fault: Option<Fault>,
    store: Arc<S>,
    watch: Watch,
) -> Updates {
    const CALL: Call = Call::Watch;
    let failed = match (plan.outage(), fault) {
        (Outage::Refused, _) | (_, Some(Fault::Unreachable)) => Some(unreachable(CALL)),
        (Outage::Silent, _)
        | (_, Some(Fault::LostRequest | Fault::LostReply | Fault::LateCommit(_))) => {
            Some(no_answer(CALL, plan.patience()).await)
        }
        (_, Some(Fault::Unavailable)) => Some(refused(CALL)),
        (_, Some(Fault::Delay(delay) | Fault::SlowReply(delay))) => {
            tokio::time::sleep(delay).await;
            None
        }
        (_, Some(Fault::Hang)) => future::pending().await,
        (Outage::None, None | Some(Fault::Echo(_))) => None,
    };
    if let Some(error) = failed {
        return stream::iter([Err(error)]).boxed();
    }
    let signals = plan.signals();
    let breaks = signals.borrow().breaks;
    let following = Following {
        plan: plan.clone(),
        signals,
        breaks,
        updates: store.watch(watch),
        again: None,
    };
    stream::unfold(Some(following), async |following| {
        let mut following = following?;
        let item = following.next().await?;
        let rest = item.is_ok().then_some(following);
        Some((item, rest))
    })
    .boxed()
}

/// An open watch and what can happen to it.
struct Following {
    plan: Arc<Plan>,
    signals: watch::Receiver<Signal>,
    /// How many breaks there had been when it was opened.
    breaks: u64,
    updates: Updates,
    /// An event that is going to be told once more.
    again: Option<Update>,
}

impl Following {
    async fn next(&mut self) -> Option<Result<Update>> {
        if let Some(update) = self.again.take() {
            return Some(Ok(update));
        }
        let item = match self.receive().await {
            Ok(item) => item?,
            Err(error) => return Some(Err(error)),
        };
        match (self.plan.draw_item(), &item) {
            (Some(ItemFault::Ends), _) => return Some(Err(refused(Call::Watch))),
            (Some(ItemFault::Delay(delay)), _) => tokio::time::sleep(delay).await,
            (Some(ItemFault::Repeats), Ok(update @ Update::Event(_))) => {
                self.again = Some(update.clone());
            }
            _ => {}
        }
        // The outage may have begun during the delay.
        match self.audible().await {
            Ok(()) => Some(item),
            Err(error) => Some(Err(error)),
        }
    }

    /// The next item of the store behind, if the outage lets it through.
    async fn receive(&mut self) -> Result<Option<Result<Update>>> {
        loop {
            self.audible().await?;
            tokio::select! {
                biased;
                _ = self.signals.changed() => {}
                item = self.updates.next() => return Ok(item),
            }
        }
    }

    /// Returns when no outage keeps the watch silent.
    async fn audible(&mut self) -> Result<()> {
        loop {
            let signal = *self.signals.borrow_and_update();
            if signal.breaks != self.breaks {
                return Err(refused(Call::Watch));
            }
            match signal.outage {
                Outage::None => return Ok(()),
                Outage::Refused => return Err(unreachable(Call::Watch)),
                // The plan, and with it the sender, is kept alive by this watch.
                Outage::Silent => drop(self.signals.changed().await),
            }
        }
    }
}

async fn no_answer(call: Call, patience: Duration) -> Error {
    tokio::time::sleep(patience).await;
    let kind = if call.is_mutation() {
        ErrorKind::Ambiguous
    } else {
        ErrorKind::Timeout
    };
    Error::new(kind, format!("no answer within {patience:?} (injected)")).during(call.name())
}

fn refused(call: Call) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the store cannot serve now (injected)",
    )
    .during(call.name())
}

fn unreachable(call: Call) -> Error {
    Error::new(ErrorKind::Unreachable, "connection refused (injected)").during(call.name())
}
