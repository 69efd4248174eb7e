//! The lock over stores that misbehave: watches that end at once, history that is always lost,
//! old lists, renewals that answer for some keys only, calls that fail for longer than a TTL.
//! Nobody may hang, spin, hold what is lost or lose what is held.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::{self, IntoFuture};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tenure::store::{
    About, Append, Appended, Commit, Committed, Delete, Deleted, Get, Grant, Granted, KeyRenewal,
    Renew, Renewed, Select, Update, Updates, View, Watch, Withdraw, Withdrawn, Written,
};
use tenure::testkit::{Call, Fault, Faulty, Outage};
use tenure::{Error, ErrorKind, Index, Key, LeaseId, LockGuard, Loss, Result, Store};

#[allow(dead_code)] // each test crate uses a part
#[path = "common/scene.rs"]
mod scene;
#[path = "common/v2like.rs"]
mod v2like;

use scene::{LONG, Scene, TTL, scene};

/// More calls than that are a loop without a pause; the store then falls silent, so that the
/// test can go on and say so.
const SPINNING: u64 = 2_000;

/// What is wrong with a [`Bent`] store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bend {
    WatchesEndAtOnce,
    HistoryIsAlwaysLost,
    ListsAreOlderThanAsked,
    /// After the first look the permission to read is gone.
    ListsAreForbidden,
    /// A renewal cannot tell about keys that contain this.
    CannotTellAbout(&'static str),
    /// A renewal says nothing at all about keys that contain this.
    SaysNothingAbout(&'static str),
    /// A commit takes its time.
    CommitsTakeTime,
    /// Commits about keys that contain this fail like that, and watches do not tell of deletions.
    LooksFail(ErrorKind, &'static str),
}

#[derive(Clone, Debug)]
struct Bent {
    inner: Arc<dyn Store>,
    bend: Bend,
    straight: Arc<Mutex<bool>>,
    calls: Arc<AtomicU64>,
    renewed: Arc<Mutex<Vec<Vec<Key>>>>,
    /// How many commits have begun, and how many of them were answered.
    commits: Arc<[AtomicU64; 2]>,
}

impl Bent {
    fn new(inner: impl Store, bend: Bend) -> Self {
        Self {
            inner: Arc::new(inner),
            bend,
            straight: Arc::default(),
            calls: Arc::default(),
            renewed: Arc::default(),
            commits: Arc::default(),
        }
    }

    fn is(&self, bend: Bend) -> bool {
        self.bend == bend && !*self.straight.lock().unwrap()
    }

    fn straighten(&self) {
        *self.straight.lock().unwrap() = true;
    }

    /// Reads and watches so far.
    fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn is_spinning(&self) -> bool {
        self.calls.fetch_add(1, Ordering::SeqCst) > SPINNING
    }
}

#[async_trait]
impl Store for Bent {
    fn about(&self) -> About {
        self.inner.about()
    }

    async fn get(&self, get: Get) -> Result<View> {
        if self.is_spinning() {
            future::pending::<()>().await;
        }
        let list = get.select == Select::Children;
        if list && self.is(Bend::ListsAreForbidden) && self.calls() > 1 {
            return Err(Error::new(ErrorKind::Unauthorized, "no permission").at(&get.key));
        }
        let mut view = self.inner.get(get).await?;
        if list && self.is(Bend::ListsAreOlderThanAsked) {
            view.index = Index::new(1).unwrap();
            view.nodes.clear();
        }
        Ok(view)
    }

    async fn put(&self, put: tenure::store::Put) -> Result<Written> {
        self.inner.put(put).await
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        self.inner.append(append).await
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        self.inner.withdraw(withdraw).await
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        self.inner.delete(delete).await
    }

    fn watch(&self, watch: Watch) -> Updates {
        if self.is_spinning() {
            return stream::pending().boxed();
        }
        let open = Ok(Update::Open(watch.from.unwrap_or(Index::MIN)));
        if self.is(Bend::WatchesEndAtOnce) {
            return stream::iter([open]).boxed();
        }
        if self.is(Bend::HistoryIsAlwaysLost) {
            let lost = Error::new(ErrorKind::HistoryLost, "the history is cleared");
            return stream::iter([Err(lost)]).boxed();
        }
        if matches!(self.bend, Bend::LooksFail(..)) {
            return stream::iter([open]).chain(stream::pending()).boxed();
        }
        self.inner.watch(watch)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let [begun, answered] = &*self.commits;
        begun.fetch_add(1, Ordering::SeqCst);
        if self.is(Bend::CommitsTakeTime) {
            tokio::time::sleep(TTL / 3).await;
        }
        if let Bend::LooksFail(kind, part) = self.bend
            && self.is(self.bend)
            && { commit.checks.iter() }.any(|check| check.key.as_str().contains(part))
        {
            return Err(Error::new(kind, "on purpose"));
        }
        let outcome = self.inner.commit(commit).await;
        answered.fetch_add(1, Ordering::SeqCst);
        outcome
    }

    async fn grant(&self, grant: Grant) -> Result<Granted> {
        self.inner.grant(grant).await
    }

    async fn renew(&self, renew: Renew) -> Result<Renewed> {
        let asked = renew.keys.iter().map(|it| it.key.clone()).collect();
        self.renewed.lock().unwrap().push(asked);
        let mut renewed = self.inner.renew(renew).await?;
        match self.bend {
            Bend::CannotTellAbout(part) if self.is(self.bend) => {
                for (key, renewal) in &mut renewed.keys {
                    if key.as_str().contains(part) {
                        *renewal = KeyRenewal::Unknown;
                    }
                }
            }
            Bend::SaysNothingAbout(part) if self.is(self.bend) => {
                renewed.keys.retain(|(key, _)| !key.as_str().contains(part));
            }
            _ => {}
        }
        Ok(renewed)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.inner.revoke(lease).await
    }
}

/// Waits behind a holder for a while over a bent store, whose watches are of no use, then has to
/// get the lock by the re-check at least.
async fn waits_without_spinning(bend: Bend) {
    let scene = scene();
    let holder = scene.client(scene.store.clone());
    let bent = Bent::new(scene.store.clone(), bend);
    let waiter = scene.client(bent.clone());
    let guard = holder.lock("a").acquire().await.unwrap();
    let lock = waiter.lock("a");
    let waiting = tokio::spawn(async move { lock.acquire().await });
    scene.line_has("a", 2).await;
    scene.sleep(TTL * 10).await;
    let calls = bent.calls();
    assert!(calls < 200, "{bend:?}: {calls} reads and watches in 30 s");
    guard.release().await.unwrap();
    if bend == Bend::ListsAreOlderThanAsked {
        bent.straighten();
    }
    let next = tokio::time::timeout(TTL, waiting).await;
    let next = next.unwrap_or_else(|_| panic!("{bend:?}: never told"));
    next.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_watches_end_at_once_looks_again_but_does_not_spin() {
    waits_without_spinning(Bend::WatchesEndAtOnce).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_history_is_always_lost_looks_again_but_does_not_spin() {
    waits_without_spinning(Bend::HistoryIsAlwaysLost).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_shown_old_lists_only_asks_again_but_does_not_spin() {
    waits_without_spinning(Bend::ListsAreOlderThanAsked).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_may_not_see_the_line_any_more_is_told_so_and_leaves() {
    let scene = scene();
    let v2like = scene.v2like();
    let holder = scene.client(v2like.clone());
    let bent = Bent::new(v2like, Bend::ListsAreForbidden);
    let waiter = scene.client(bent);
    let guard = holder.lock("a").acquire().await.unwrap();
    let outcome = tokio::time::timeout(TTL, waiter.lock("a").acquire().into_future()).await;
    let error = outcome.expect("told at the next look").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    waiter.idle().await;
    assert_eq!(scene.line("a").await.len(), 1);
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_lease_was_revoked_is_never_told_that_it_holds() {
    for v2 in [false, true] {
        let scene = scene();
        let client = || match v2 {
            true => scene.client(scene.v2like()),
            false => scene.client(scene.store.clone()),
        };
        let (a, b) = (client(), client());
        let guard = a.lock("a").acquire().await.unwrap();
        let lock = b.lock("a");
        let waiting = tokio::spawn(async move { lock.acquire().await });
        scene.line_has("a", 2).await;
        scene.sleep(Duration::from_millis(10)).await;
        let ticket = scene.line("a").await.remove(1);
        match ticket.lease {
            Some(lease) => scene.store.revoke(lease).await.unwrap(),
            None => drop(scene.store.delete(Delete::new(ticket.key)).await.unwrap()),
        }
        guard.release().await.unwrap();
        let outcome = tokio::time::timeout(TTL, waiting).await.expect("told");
        let error = outcome.unwrap().expect_err("its ticket is gone");
        assert_eq!(error.kind(), ErrorKind::Lost);
    }
}

#[tokio::test(start_paused = true)]
async fn when_a_holders_ticket_is_gone_those_behind_it_in_the_process_are_looked_for_too() {
    for short_hold in [false, true] {
        let scene = scene();
        let (a, b) = (
            scene.client(scene.store.clone()),
            scene.client(scene.store.clone()),
        );
        let guard = a.lock("a").acquire().await.unwrap();
        let lock = a.lock("a");
        let second = tokio::spawn(async move { lock.acquire().await });
        scene.line_has("a", 2).await;
        if !short_hold {
            // Its own key is watched by now.
            scene.sleep(Duration::from_millis(300)).await;
        }
        let lease = scene.line("a").await[0].lease.unwrap();
        scene.store.revoke(lease).await.unwrap();
        let held = b.lock("a").acquire().await.unwrap();
        if !short_hold {
            assert_eq!(guard.lost().await, Loss::Deleted);
        }
        let _ = guard.release().await;
        let outcome = tokio::time::timeout(TTL, second).await.expect("told");
        let error = outcome.unwrap().expect_err("another holds");
        assert_eq!(error.kind(), ErrorKind::Lost);
        assert!(held.is_held());
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_stays_marked_as_held_while_the_guard_after_the_released_one_lives() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let client = scene.client(link.clone());
    let other = scene.client(scene.store.clone());
    let before = other.lock("a").acquire().await.unwrap();
    let lock = Arc::new(client.lock("a"));
    let first = tokio::spawn(lock.acquire().into_future());
    scene.line_has("a", 2).await;
    let second = tokio::spawn(lock.acquire().into_future());
    scene.line_has("a", 3).await;
    before.release().await.unwrap();
    let first = first.await.unwrap().unwrap();
    // Done at once and answered late: the second is told before.
    link.next(Call::Withdraw, Fault::SlowReply(TTL / 2));
    first.release().await.unwrap();
    let second = second.await.unwrap().unwrap();
    let error = lock.acquire().timeout(TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyHeld);
    second.release().await.unwrap();
    lock.acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_about_which_no_renewal_can_tell_is_asked_for_with_pauses_that_grow() {
    for bend in [Bend::CannotTellAbout("/a/"), Bend::SaysNothingAbout("/a/")] {
        let scene = scene();
        let bent = Bent::new(scene.v2like(), bend);
        let client = scene.client(bent.clone());
        let doubtful = client.lock("a").acquire().await.unwrap();
        let sure = client.lock("b").acquire().await.unwrap();
        let loss = tokio::time::timeout(TTL, doubtful.lost()).await;
        assert_eq!(loss, Ok(Loss::Expired), "{bend:?}");
        let tries = bent.renewed.lock().unwrap().len();
        assert!((3..30).contains(&tries), "{bend:?}: {tries} renewals");
        assert!(sure.is_held());
        // What is lost is not kept alive: the next in line must not wait for the guard's drop.
        scene.sleep(TTL * 2).await;
        assert!(sure.is_held());
        assert_eq!(scene.line("a").await.len(), 0, "{bend:?}: kept alive");
        drop(doubtful);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_one_renewal_said_nothing_about_is_asked_for_again_in_time() {
    let scene = scene();
    let bent = Bent::new(scene.v2like(), Bend::SaysNothingAbout("/a/"));
    let client = scene.client(bent.clone());
    let one = client.lock("a").acquire().await.unwrap();
    let two = client.lock("b").acquire().await.unwrap();
    scene.sleep(TTL / 2).await;
    bent.straighten();
    scene.sleep(TTL * 2).await;
    assert!(one.is_held() && two.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_reported_as_such() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let client = scene.client(link.clone());
    link.set_outage(Outage::Silent);
    let outcome = tokio::time::timeout(LONG, client.lock("a").acquire().into_future()).await;
    let error = outcome.expect("waits for ever").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    link.heal();
    client
        .lock("a")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_try_at_a_taken_lock_writes_nothing_and_one_that_comes_too_late_leaves_nothing() {
    let scene = scene();
    let link = Faulty::new(scene.store.clone(), 1);
    let (a, b) = (
        scene.client(link.clone()),
        scene.client(scene.store.clone()),
    );
    let guard = b.lock("a").acquire().await.unwrap();
    assert!(a.lock("a").try_acquire().await.unwrap().is_none());
    assert_eq!(link.calls(Call::Append), 0);
    guard.release().await.unwrap();
    // It looks while the lock is free, and is told when it is taken.
    link.next(Call::Get, Fault::SlowReply(TTL / 3));
    let lock = a.lock("a");
    let late = tokio::spawn(async move { lock.try_acquire().await });
    scene.sleep(TTL / 6).await;
    let guard = b.lock("a").acquire().await.unwrap();
    assert!(late.await.unwrap().unwrap().is_none());
    assert_eq!(
        (link.calls(Call::Append), scene.line("a").await.len()),
        (1, 1)
    );
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_look_at_what_is_held_is_finished_when_the_client_is_shut_down_meanwhile() {
    let scene = scene();
    let bent = Bent::new(scene.store.clone(), Bend::CommitsTakeTime);
    let client = scene.client(bent.clone());
    let held = client.lock("a").acquire().await.unwrap();
    let counted = || bent.commits.each_ref().map(|it| it.load(Ordering::SeqCst));
    let looks = async {
        while counted() != [1, 0] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TTL, looks).await.expect("a look");
    let ended = client.shutdown(LONG).await;
    assert_eq!((ended.left_to_ttl, ended.tasks_left), (0, 0));
    assert_eq!(counted(), [1, 1], "begun and answered");
    drop(held);
}

/// Locks of these names are held, over a store whose looks at some of them fail; and how many looks
/// there have been.
async fn looked_at(bend: Bend, names: &[String]) -> (Scene, Bent, Vec<LockGuard>) {
    let scene = scene();
    let bent = Bent::new(scene.store.clone(), bend);
    let client = scene.client(bent.clone());
    let mut held = Vec::new();
    for name in names {
        held.push(client.lock(name).acquire().await.unwrap());
    }
    // The first look is over.
    scene.sleep(TTL * 3 / 4).await;
    (scene, bent, held)
}

async fn is_found_gone(scene: &Scene, guard: &LockGuard) {
    let gone = Delete::new(guard.key().clone());
    scene.store.delete(gone).await.unwrap();
    let loss = tokio::time::timeout(TTL * 2 / 3, guard.lost()).await;
    assert_eq!(loss, Ok(Loss::Deleted), "{}", guard.key());
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_looked_at_hides_nothing_else_and_is_seen_again_with_the_rights() {
    let names = ["a", "b", "secret", "secret2", "t", "u"];
    let names: Vec<_> = names.map(String::from).into();
    let bend = Bend::LooksFail(ErrorKind::Forbidden, "secret");
    let (scene, bent, held) = looked_at(bend, &names).await;
    let begun = || bent.commits[0].load(Ordering::SeqCst);
    let before = begun();
    scene.sleep(TTL * 10).await;
    let looks = begun() - before;
    assert!(
        (39..=41).contains(&looks),
        "{looks}: one at each, one at a secret one"
    );
    for place in [0, 4, 5] {
        is_found_gone(&scene, &held[place]).await;
    }
    assert!([1, 2, 3].iter().all(|it| held[*it].is_held()));
    bent.straighten();
    for place in [3, 2] {
        is_found_gone(&scene, &held[place]).await;
    }
    assert!(held[1].is_held());
}

#[tokio::test(start_paused = true)]
async fn one_look_that_is_not_answered_hides_nothing_behind_it_and_two_in_a_row_are_enough() {
    let kinds = [
        ErrorKind::Timeout,
        ErrorKind::Ambiguous,
        ErrorKind::Unavailable,
    ];
    for kind in kinds {
        let names: Vec<_> = (0..300).map(|it| format!("{it:03}")).collect();
        let (scene, _, held) = looked_at(Bend::LooksFail(kind, "/000/"), &names).await;
        is_found_gone(&scene, &held[200]).await;
        let (_, bent, held) = looked_at(Bend::LooksFail(kind, "/"), &names).await;
        assert_eq!(bent.commits[0].load(Ordering::SeqCst), 2);
        assert!(held.iter().all(|guard| guard.is_held()), "{kind:?}");
    }
}
