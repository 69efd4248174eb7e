//! What a lock has besides being held: contenders, who they are, requests to give back, and several
//! locks at once. Over any store: each check takes a [`World`] of clients that share one.

mod mixed;

use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenure::runtime::Runtime;
use tenure::store::{Delete, Expiry, Get};
use tenure::testkit::{Call, Fault, Faulty, cancel_after};
use tenure::{Client, Contender, ErrorKind, Key, Loss, MultiLock, Store, StoreExt, Ttl};

pub(crate) use mixed::*;

/// Clients that share one store, each over a connection of its own.
pub(crate) struct World {
    pub(crate) open: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    pub(crate) runtime: Runtime,
}

const TTL: Duration = Duration::from_secs(3);
/// Far more than any step takes on a slow machine; only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);

impl World {
    fn client(&self, app: &str) -> Client {
        self.client_of(app, (self.open)())
    }

    fn client_of(&self, app: &str, store: impl Store) -> Client {
        Client::builder(store)
            .runtime(self.runtime.clone())
            .ttl(Ttl::new(TTL).unwrap())
            .app(app)
            .build()
    }
}

fn dir(name: &str) -> Key {
    Key::new(format!("/_locks/{name}")).unwrap()
}

async fn eventually<F: Future<Output = bool>>(what: &str, limit: Duration, check: impl Fn() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(limit, wait).await;
    assert!(reached.is_ok(), "{what}: not within {limit:?}");
}

async fn soon<T>(what: &str, future: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(LONG, future.into_future()).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: still pending after {LONG:?}"),
    }
}

async fn line_has(client: &Client, name: &str, length: usize) {
    let has = || async { client.store().children(&dir(name)).await.unwrap().len() == length };
    eventually(&format!("{length} in the line of {name}"), LONG, has).await;
}

pub(crate) async fn contenders_are_listed_in_order_with_who_they_are(world: World) {
    let (a, b) = (world.client("holder"), world.client("waiter"));
    let lock = a.lock("a");
    assert_eq!(lock.owner().await.unwrap(), None);
    assert_eq!(lock.contenders().await.unwrap(), []);
    let guard = lock.acquire().await.unwrap();
    let waiter = tokio::spawn({
        let lock = b.lock("a");
        async move { lock.acquire().await.unwrap() }
    });
    line_has(&a, "a", 2).await;
    let line = b.lock("a").contenders().await.unwrap();
    let [first, second] = &line[..] else {
        panic!("{line:?}")
    };
    assert_eq!((first.key(), first.token()), (guard.key(), guard.token()));
    assert!(first.holds() && !second.holds() && first.token() < second.token());
    assert_eq!((first.weight(), &first.body()[..]), (1, &b""[..]));
    assert!(first.since().unwrap() <= second.since().unwrap());
    assert_eq!(lock.owner().await.unwrap().as_ref(), Some(first));
    // They say who they are once they have been there for a while.
    for (contender, app) in [(first, "holder"), (second, "waiter")] {
        let session = contender.session().unwrap();
        let known = || async { b.who(session).await.unwrap().is_some() };
        eventually("it is announced", LONG, known).await;
        let who = a.who(session).await.unwrap().unwrap();
        assert_eq!((who.app(), who.pid()), (app, std::process::id()));
        assert!(!who.host().is_empty());
    }
    assert_eq!(a.sessions().await.unwrap().len(), 2);
    // For as long as they live, and no longer.
    let clock = &world.runtime.clock;
    clock.sleep(TTL * 2).await;
    assert_eq!(a.sessions().await.unwrap().len(), 2);
    guard.release().await.unwrap();
    soon("the waiter", waiter)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    a.shutdown(LONG).await;
    let left = b.sessions().await.unwrap();
    let apps: Vec<&str> = left.values().map(tenure::Who::app).collect();
    assert_eq!(apps, ["waiter"]);
    assert_eq!(b.who(1).await.unwrap(), None);
}

pub(crate) async fn a_short_hold_says_nothing_about_itself(world: World) {
    let client = world.client("short");
    for _ in 0..20 {
        let guard = client.lock("a").acquire().await.unwrap();
        let session = client.lock("a").owner().await.unwrap().unwrap().session();
        guard.release().await.unwrap();
        assert_eq!(client.who(session.unwrap()).await.unwrap(), None);
    }
    // Nor later.
    world.runtime.clock.sleep(TTL / 2).await;
    assert!(client.sessions().await.unwrap().is_empty());
}

pub(crate) async fn what_a_session_says_is_said_again_after_a_failure_or_a_deletion(world: World) {
    let link = Faulty::shared((world.open)(), 1);
    let a = world.client_of("holder", link.clone());
    let b = world.client("other");
    link.next(Call::Put, Fault::Unavailable);
    let guard = a.lock("a").acquire().await.unwrap();
    let session = guard_session(&b).await;
    let key = Key::new(format!("/_sessions/{session:016x}")).unwrap();
    let known = || async { b.store().contains(&key).await.unwrap() };
    eventually("it is announced after all", TTL, known).await;
    b.store().delete(Delete::new(key.clone())).await.unwrap();
    // On a store with leases nobody notices; that costs a name, and no lock.
    if !b.store().about().cancels {
        eventually("it is announced again", TTL, known).await;
    }
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

async fn guard_session(client: &Client) -> u64 {
    let owner = client.lock("a").owner().await.unwrap().unwrap();
    owner.session().unwrap()
}

pub(crate) async fn a_holder_hears_that_it_is_asked_back_and_why(world: World) {
    let (a, b) = (world.client("holder"), world.client("asker"));
    assert_eq!(b.lock("a").request_release("x").await.unwrap(), None);
    let guard = a.lock("a").acquire().await.unwrap();
    let token = guard.token();
    let (heard, asked) = tokio::join!(soon("the request", guard.revocation()), async {
        // Not before it listens, nor with anything else at hand.
        tokio::time::sleep(Duration::from_millis(50)).await;
        b.lock("a").request_release("a \"deploy\"\n").await
    });
    let heard = heard.unwrap();
    assert_eq!(asked.unwrap(), Some(token));
    assert_eq!((heard.token(), heard.reason()), (token, "a \"deploy\"\n"));
    assert_eq!(heard.by().app(), "asker");
    // One that was written before the call is heard as well, and it is no seizure.
    assert_eq!(
        soon("the request", guard.revocation()).await.unwrap(),
        heard
    );
    assert!(guard.is_held());
    guard.release().await.unwrap();
    // It was for the earlier token: the next holder is not meant.
    let guard = a.lock("a").acquire().await.unwrap();
    let limit = Duration::from_millis(300);
    assert!(
        tokio::time::timeout(limit, guard.revocation())
            .await
            .is_err()
    );
    // Another one is.
    b.lock("a").request_release("again").await.unwrap();
    let heard = soon("the request", guard.revocation()).await.unwrap();
    assert_eq!((heard.token(), heard.reason()), (guard.token(), "again"));
    guard.release().await.unwrap();
}

pub(crate) async fn a_request_that_comes_late_does_not_hide_a_newer_one(world: World) {
    let link = Faulty::shared((world.open)(), 1);
    let (a, b) = (
        world.client("holder"),
        world.client_of("late", link.clone()),
    );
    link.set_patience(Duration::from_millis(50));
    let guard = a.lock("a").acquire().await.unwrap();
    link.next(Call::Put, Fault::LateCommit(Duration::from_millis(600)));
    // The first try is on its way for a while; the second one is heard.
    assert_eq!(
        b.lock("a").request_release("late").await.unwrap(),
        Some(guard.token())
    );
    guard.release().await.unwrap();
    let guard = a.lock("a").acquire().await.unwrap();
    b.lock("a").request_release("newer").await.unwrap();
    link.quiesce().await;
    let heard = soon("the request", guard.revocation()).await.unwrap();
    assert_eq!((heard.token(), heard.reason()), (guard.token(), "newer"));
    guard.release().await.unwrap();
}

pub(crate) async fn who_listens_for_a_request_is_told_of_the_loss_and_may_stop_at_any_poll(
    world: World,
) {
    let (a, b) = (world.client("holder"), world.client("asker"));
    let guard = a.lock("a").acquire().await.unwrap();
    for polls in 0..6 {
        let limited = tokio::time::timeout(Duration::from_millis(20), guard.revocation());
        if let Some(Ok(heard)) = cancel_after(limited, polls).await {
            panic!("nobody has asked: {heard:?}");
        }
    }
    let (heard, ()) = tokio::join!(soon("the loss", guard.revocation()), async {
        b.store()
            .delete(Delete::new(guard.key().clone()))
            .await
            .unwrap();
    });
    assert_eq!(heard.unwrap_err().kind(), ErrorKind::Lost);
}

pub(crate) async fn a_request_disturbs_no_line(world: World) {
    let (a, b) = (world.client("holder"), world.client("asker"));
    let guard = a.lock("a").acquire().await.unwrap();
    b.lock("a").request_release("please").await.unwrap();
    let place = b.store().about().layout.meta(&dir("a")).unwrap();
    let place = place.join("revoke").unwrap();
    let node = b.store().node(&place).await.unwrap().unwrap();
    // Where a node does not say how long it has left, its lease does.
    let ends = node.ttl.is_some_and(|it| it <= Duration::from_secs(600));
    assert!(ends || node.lease.is_some(), "{node:?}");
    assert_eq!(b.lock("a").contenders().await.unwrap().len(), 1);
    let listed = b.store().get(Get::tree(dir("a"))).await.unwrap();
    assert!(
        listed
            .nodes
            .iter()
            .all(|node| !node.key.as_str().contains("_meta"))
    );
    assert!(b.lock("a").try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    let taken = soon("the free lock", async {
        loop {
            // A local read may lag behind another client's write for a moment.
            if let Some(guard) = b.lock("a").try_acquire().await.unwrap() {
                break guard;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    taken.await.release().await.unwrap();
}

pub(crate) async fn several_locks_are_taken_together_and_given_back_together(world: World) {
    let (a, b) = (world.client("a"), world.client("b"));
    let locks = a.lock_all(["z", "a/b", "m"]);
    let guard = locks.acquire().await.unwrap();
    let names: Vec<&str> = guard.guards().map(|(name, _)| name).collect();
    // In the order of the keys.
    assert_eq!(names, ["a/b", "m", "z"]);
    let tokens = guard.tokens();
    for (name, held) in guard.guards() {
        assert_eq!(tokens[name], held.token());
        let owner = b.lock(name).owner().await.unwrap().unwrap();
        assert_eq!(owner.token(), held.token());
    }
    assert!(guard.is_held());
    assert_eq!(guard.run(async { 7 }).await.unwrap(), 7);
    let error = locks.acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyHeld);
    assert!(b.lock_all(["m"]).try_acquire().await.unwrap().is_none());
    guard.release().await.unwrap();
    for name in ["z", "a/b", "m"] {
        assert_eq!(b.lock(name).owner().await.unwrap(), None, "{name}");
    }
    let error = async |names: &[&str]| a.lock_all(names).acquire().await.unwrap_err().kind();
    assert_eq!(error(&[]).await, ErrorKind::InvalidOptions);
    assert_eq!(error(&["a", "b", "a"]).await, ErrorKind::InvalidOptions);
    assert_eq!(error(&["a", ""]).await, ErrorKind::InvalidName);
}

pub(crate) async fn if_one_lock_is_not_free_none_is_kept(world: World) {
    let (a, b) = (world.client("a"), world.client("b"));
    let taken = b.lock("m").acquire().await.unwrap();
    let locks = a.lock_all(["a", "m", "z"]);
    assert!(locks.try_acquire().await.unwrap().is_none());
    // Given back already, not only in the background.
    assert_eq!(b.lock("a").owner().await.unwrap(), None);
    let limit = Duration::from_millis(300);
    let start = world.runtime.clock.now();
    let error = locks.acquire().timeout(limit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let took = world.runtime.clock.now().since(start);
    assert!(took >= limit && took < limit * 3, "{took:?}");
    soon("the janitor", a.idle()).await;
    assert_eq!(b.lock("a").owner().await.unwrap(), None);
    assert_eq!(b.lock("m").contenders().await.unwrap().len(), 1);
    taken.release().await.unwrap();
    soon("all", locks.acquire())
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

pub(crate) async fn the_loss_of_one_lock_is_the_loss_of_all(world: World) {
    let (a, b) = (world.client("a"), world.client("b"));
    let guard = a.lock_all(["a", "m"]).acquire().await.unwrap();
    let key = guard.guards().next().unwrap().1.key().clone();
    let (ran, ()) = tokio::join!(
        soon("run", guard.run(std::future::pending::<()>())),
        async {
            b.store().delete(Delete::new(key.clone())).await.unwrap();
        }
    );
    let error = ran.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Lost, Some(&key)));
    assert_eq!(soon("the loss", guard.lost()).await, Loss::Deleted);
    assert!(!guard.is_held());
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    // The other one was given back all the same.
    assert_eq!(b.lock("m").owner().await.unwrap(), None);
    // And while another is still waited for.
    let taken = b.lock("m").acquire().await.unwrap();
    let locks = a.lock_all(["a", "m"]);
    let (waited, ()) = tokio::join!(soon("the wait", locks.acquire()), async {
        line_has(&b, "m", 2).await;
        let owner = b.lock("a").owner().await.unwrap().unwrap();
        b.store()
            .delete(Delete::new(owner.key().clone()))
            .await
            .unwrap();
    });
    let error = waited.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(error.key().unwrap().is_within(&dir("a")), "{error}");
    soon("the janitor", a.idle()).await;
    assert_eq!(b.lock("m").contenders().await.unwrap().len(), 1);
    taken.release().await.unwrap();
}

pub(crate) async fn overlapping_sets_in_any_order_never_block_each_other(world: World) {
    let sets = [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["b", "d", "a"],
        ["d", "c", "b"],
    ];
    let inside = Arc::new([const { AtomicUsize::new(0) }; 4]);
    let mut tasks = tokio::task::JoinSet::new();
    for (number, set) in sets.into_iter().enumerate() {
        let client = world.client(&number.to_string());
        let inside = inside.clone();
        tasks.spawn(async move {
            let locks = client.lock_all(set);
            for _ in 0..8 {
                let guard = locks.acquire().await.unwrap();
                let places = set.map(|name| usize::from(name.as_bytes()[0] - b'a'));
                for place in places {
                    assert_eq!(inside[place].fetch_add(1, Ordering::SeqCst), 0, "two hold");
                }
                tokio::task::yield_now().await;
                for place in places {
                    inside[place].fetch_sub(1, Ordering::SeqCst);
                }
                guard.release().await.unwrap();
            }
        });
    }
    while let Some(done) = soon("all cycles", tasks.join_next()).await {
        done.unwrap();
    }
}

pub(crate) async fn several_locks_dropped_at_any_poll_leave_nothing(world: World) {
    let (a, b) = (world.client("a"), world.client("b"));
    let nothing_left = async |what: &str| {
        soon("the janitor", a.idle()).await;
        for name in ["x", "y"] {
            let line: Vec<Contender> = b.lock(name).contenders().await.unwrap();
            assert!(line.is_empty(), "{what}: {line:?}");
        }
    };
    for polls in 0.. {
        let locks = a.lock_all(["x", "y"]);
        let cycle = async { locks.acquire().await.unwrap().release().await.unwrap() };
        let done = cancel_after(cycle, polls).await.is_some();
        nothing_left(&format!("cycle, after {polls} polls")).await;
        if done {
            assert!(polls > 1, "the future never waited");
            break;
        }
    }
    for polls in 0.. {
        let locks = a.lock_all(["x", "y"]);
        let attempt = async { drop(locks.try_acquire().await.unwrap()) };
        let done = cancel_after(attempt, polls).await.is_some();
        nothing_left(&format!("try, after {polls} polls")).await;
        if done {
            break;
        }
    }
}

pub(crate) async fn several_locks_are_given_back_in_one_step(world: World) {
    let link = Faulty::shared((world.open)(), 1);
    let (a, b) = (world.client_of("a", link.clone()), world.client("b"));
    let writes = || (link.calls(Call::Commit), link.calls(Call::Withdraw));
    let guard = a.lock_all(["a", "b", "c"]).acquire().await.unwrap();
    let (commits, withdrawals) = writes();
    guard.release().await.unwrap();
    let once = b.store().about().commits;
    let cost = if once { (1, 0) } else { (0, 3) };
    assert_eq!(writes(), (commits + cost.0, withdrawals + cost.1));
    nobody_stands_in(&b, &["a", "b", "c"], "afterwards").await;
    // One that somebody has taken away, and perhaps nobody has noticed, does not keep the others.
    let guard = a.lock_all(["a", "b", "c"]).acquire().await.unwrap();
    let key = guard.guards().nth(1).unwrap().1.key().clone();
    b.store().delete(Delete::new(key)).await.unwrap();
    let released = guard.release().await;
    let lost = released.err().map(|error| error.kind());
    assert!(lost.is_none_or(|kind| kind == ErrorKind::Lost), "{lost:?}");
    nobody_stands_in(&b, &["a", "b", "c"], "without one").await;
    let guard = a.lock_all(["a", "b", "c"]).acquire().await.unwrap();
    let (_, second) = guard.guards().nth(1).unwrap();
    let key = second.key().clone();
    b.store().delete(Delete::new(key)).await.unwrap();
    drop(guard);
    soon_nobody_stands_in(&b, &["a", "b", "c"]).await;
}

async fn nobody_stands_in(client: &Client, names: &[&str], what: &str) {
    for name in names {
        let line = client.lock(*name).contenders().await.unwrap();
        assert!(line.is_empty(), "{what}: {name}: {line:?}");
    }
}

pub(crate) async fn whatever_becomes_of_the_release_of_several_it_is_done_and_no_later_one_is_hit(
    world: World,
) {
    const LATE: Duration = Duration::from_millis(300);
    let link = Faulty::shared((world.open)(), 1);
    link.set_patience(Duration::from_millis(50));
    let (a, b) = (world.client_of("a", link.clone()), world.client("b"));
    let names = ["a", "b", "c"];
    let faults = [
        Fault::LostRequest,
        Fault::LostReply,
        Fault::LateCommit(LATE),
        Fault::Unavailable,
        Fault::Unreachable,
    ];
    let each = faults.into_iter().flat_map(|it| [(it, true), (it, false)]);
    for (fault, released) in each {
        let guard = a.lock_all(names).acquire().await.unwrap();
        link.next(Call::Commit, fault);
        if released {
            soon("the release", guard.release()).await.unwrap();
        } else {
            drop(guard);
            soon_nobody_stands_in(&b, &names).await;
        }
        nobody_stands_in(&b, &names, &format!("{fault:?}")).await;
        // What comes late is meant for the tickets of before.
        let guard = a.lock_all(names).acquire().await.unwrap();
        link.quiesce().await;
        for (name, held) in guard.guards() {
            let owner = b.lock(name).owner().await.unwrap().unwrap();
            assert_eq!(owner.token(), held.token(), "{fault:?}: {name}");
        }
        assert!(guard.is_held(), "{fault:?}");
        guard.release().await.unwrap();
        nobody_stands_in(&b, &names, &format!("{fault:?}")).await;
        link.heal();
    }
    let guard = a.lock_all(names).acquire().await.unwrap();
    link.next(Call::Commit, Fault::LostReply);
    drop(guard);
    let ended = a.shutdown(LONG).await;
    assert_eq!((ended.left_to_ttl, ended.tasks_left), (0, 0));
    nobody_stands_in(&b, &names, "after a shutdown").await;
}

async fn soon_nobody_stands_in(client: &Client, names: &[&str]) {
    for name in names {
        let lock = client.lock(*name);
        let is_free = async || lock.contenders().await.unwrap().is_empty();
        eventually("it is taken back", LONG, is_free).await;
    }
}

/// So many commits, appends and withdrawals there were.
fn writes<S: Store + ?Sized>(link: &Faulty<S>) -> [u64; 3] {
    [Call::Commit, Call::Append, Call::Withdraw].map(|call| link.calls(call))
}

pub(crate) async fn many_free_locks_are_taken_by_the_handful(world: World) {
    let (link, b) = (Faulty::shared((world.open)(), 1), world.client("b"));
    let a = world.client_of("a", link.clone());
    let together = b.store().about().commits;
    let counts = [(1, 0), (2, 1), (64, 1), (65, 1), (130, 3)];
    let each = counts.into_iter().flat_map(|it| [(it, true), (it, false)]);
    for ((count, commits), released) in each {
        let names: Vec<_> = (0..count).map(|it| format!("{it:03}")).collect();
        let before = writes(&link);
        let guard = soon("all", a.lock_all(&names).acquire()).await.unwrap();
        assert_eq!(guard.guards().len(), count);
        for (number, (name, held)) in guard.guards().enumerate() {
            assert_eq!(name, names[number]);
            let line = b.lock(name).contenders().await.unwrap();
            assert_eq!(line.len(), 1, "{name} of {count}: {line:?}");
            assert_eq!(line[0].token(), held.token(), "{name} of {count}");
        }
        assert!(guard.is_held());
        if released {
            guard.release().await.unwrap();
        } else {
            let names: Vec<&str> = names.iter().map(|it| &**it).collect();
            drop(guard);
            soon_nobody_stands_in(&b, &names).await;
        }
        // What is left over by the handfuls is one that goes alone, there and back.
        let alone = u64::from(count % 64 == 1);
        let cost = if together {
            [commits * 2, alone, alone]
        } else {
            [0, count as u64, count as u64]
        };
        let after = writes(&link);
        let spent: Vec<_> = (0..3).map(|it| after[it] - before[it]).collect();
        assert_eq!(spent, cost, "{count} names, released: {released}");
        let names: Vec<&str> = names.iter().map(|it| &**it).collect();
        nobody_stands_in(&b, &names, "afterwards").await;
    }
}

pub(crate) async fn who_waits_for_one_of_several_stands_in_no_line_behind_it(world: World) {
    let (link, b) = (Faulty::shared((world.open)(), 1), world.client("b"));
    let a = world.client_of("a", link.clone());
    let first = b.lock("d").acquire().await.unwrap();
    let second = b.lock("g").acquire().await.unwrap();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let waits = tokio::spawn({
        let locks = a.lock_all(names);
        async move { locks.acquire().await.unwrap() }
    });
    let stands = async |lengths: [usize; 8], what: &str| {
        for (name, length) in names.iter().zip(lengths) {
            let line = b.lock(*name).contenders().await.unwrap();
            assert_eq!(line.len(), length, "{what}: {name}: {line:?}");
        }
    };
    line_has(&b, "d", 2).await;
    stands([1, 1, 1, 2, 0, 0, 1, 0], "at the first").await;
    // Somebody who goes by the order of keys passes in front of it.
    let passes = b.lock_all(["e", "h"]).acquire();
    let passes = soon("who passes", passes).await.unwrap();
    passes.release().await.unwrap();
    first.release().await.unwrap();
    line_has(&b, "g", 2).await;
    stands([1, 1, 1, 1, 1, 1, 2, 0], "at the second").await;
    second.release().await.unwrap();
    let guard = soon("all", waits).await.unwrap();
    stands([1; 8], "all").await;
    if b.store().about().commits {
        // Two refusals, those before the first, and then each by itself.
        assert_eq!(writes(&link), [3, 5, 0]);
    }
    guard.release().await.unwrap();
    nobody_stands_in(&b, &names, "afterwards").await;
}

pub(crate) async fn of_two_that_try_for_the_same_locks_one_gets_them(world: World) {
    let together = (world.open)().about().commits;
    let clients: Vec<_> = (0..4).map(|it| world.client(&it.to_string())).collect();
    for round in 0..10 {
        let tries = clients.iter().map(|client| async {
            let locks = client.lock_all(["a", "b", "c"]);
            locks.try_acquire().await.unwrap()
        });
        let held: Vec<_> = futures_util::future::join_all(tries).await;
        let held: Vec<_> = held.into_iter().flatten().collect();
        // One by one they can be in each other's way.
        let most = if together { 1..=1 } else { 0..=1 };
        assert!(most.contains(&held.len()), "round {round}: {held:?}");
        for guard in held {
            guard.release().await.unwrap();
        }
    }
    nobody_stands_in(&clients[0], &["a", "b", "c"], "afterwards").await;
}

pub(crate) async fn who_tries_again_and_again_writes_nothing_meanwhile(world: World) {
    let (link, b) = (Faulty::shared((world.open)(), 1), world.client("b"));
    let a = world.client_of("a", link.clone());
    // One that this client has seen is not sent anything about.
    a.lock("z")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let taken = b.lock("m").acquire().await.unwrap();
    let locks = a.lock_all(["a", "m", "z"]);
    let before = b.store().get(Get::node(dir("a"))).await.unwrap().index;
    assert!(locks.try_acquire().await.unwrap().is_none());
    if b.store().about().commits {
        // Nothing was visible for a moment either.
        let after = b.store().get(Get::node(dir("a"))).await.unwrap().index;
        assert_eq!(after, before);
    }
    let known = writes(&link);
    for _ in 0..20 {
        assert!(locks.try_acquire().await.unwrap().is_none());
    }
    if b.store().about().commits {
        assert_eq!(writes(&link), known);
    }
    taken.release().await.unwrap();
    take_when_free(&locks).await;
    // What is no ticket keeps nobody away.
    let stranger = Key::new("/_locks/m/!stranger").unwrap();
    b.store()
        .set(&stranger, "x".into(), Expiry::Never)
        .await
        .unwrap();
    let tried = locks.try_acquire().await.unwrap();
    tried.expect("nobody is in line").release().await.unwrap();
    let guard = soon("all", locks.acquire()).await.unwrap();
    guard.release().await.unwrap();
}

/// Tries until it has them, and gives them back.
async fn take_when_free(locks: &MultiLock) {
    let free = async {
        loop {
            // A local read may lag behind another client's write for a moment.
            if let Some(guard) = locks.try_acquire().await.unwrap() {
                break guard;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the free locks", free).await.release().await.unwrap();
}

pub(crate) async fn a_lock_whose_name_goes_on_from_that_of_another_keeps_nobody_from_that(
    world: World,
) {
    let (a, b) = (world.client("a"), world.client("b"));
    let deeper = b.lock("a/b").acquire().await.unwrap();
    // Nor does what was asked of an earlier holder.
    let held = b.lock("a").acquire().await.unwrap();
    b.lock("a").request_release("please").await.unwrap();
    held.release().await.unwrap();
    let locks = a.lock_all(["a", "x"]);
    let guard = soon("both", locks.acquire()).await.unwrap();
    guard.release().await.unwrap();
    take_when_free(&locks).await;
    let all = a.lock_all(["a", "a/b", "x"]);
    assert!(all.try_acquire().await.unwrap().is_none());
    nobody_stands_in(&b, &["a", "x"], "after a try").await;
    deeper.release().await.unwrap();
    let guard = soon("all", all.acquire()).await.unwrap();
    assert_eq!(guard.tokens().len(), 3);
    guard.release().await.unwrap();
    nobody_stands_in(&b, &["a", "a/b", "x"], "afterwards").await;
}

pub(crate) async fn whatever_becomes_of_taking_several_they_are_held_and_nothing_else_is_left(
    world: World,
) {
    const LATE: Duration = Duration::from_millis(300);
    let link = Faulty::shared((world.open)(), 1);
    link.set_patience(Duration::from_millis(50));
    let (a, b) = (world.client_of("a", link.clone()), world.client("b"));
    let names = ["a", "b", "c"];
    let faults = [
        Fault::LostRequest,
        Fault::LostReply,
        Fault::LateCommit(LATE),
        Fault::Unavailable,
        Fault::Unreachable,
    ];
    // The call that goes wrong is the first, or the one for what is before a lock that is not free.
    for (fault, busy) in faults.into_iter().flat_map(|it| [(it, false), (it, true)]) {
        let what = format!("{fault:?}, one is taken: {busy}");
        let taken = match busy {
            true => Some(b.lock("c").acquire().await.unwrap()),
            false => None,
        };
        if busy {
            link.nth(Call::Commit, link.calls(Call::Commit) + 2, fault);
        } else {
            link.next(Call::Commit, fault);
        }
        let locks = a.lock_all(names);
        let (held, ()) = tokio::join!(soon(&what, locks.acquire()), async {
            if let Some(taken) = taken {
                line_has(&b, "c", 2).await;
                taken.release().await.unwrap();
            }
        });
        let held = held.unwrap_or_else(|error| panic!("{what}: {error}"));
        link.quiesce().await;
        soon("the janitor", a.idle()).await;
        for (name, guard) in held.guards() {
            let line = b.lock(name).contenders().await.unwrap();
            assert_eq!(line.len(), 1, "{what}: {name}: {line:?}");
            assert_eq!(line[0].token(), guard.token(), "{what}: {name}");
        }
        assert!(held.is_held(), "{what}");
        held.release().await.unwrap();
        nobody_stands_in(&b, &names, &what).await;
        link.heal();
    }
    // Who gives up meanwhile leaves nothing either.
    for fault in faults {
        link.next(Call::Commit, fault);
        let limit = Duration::from_millis(20);
        let given_up = a.lock_all(names).acquire().timeout(limit).await;
        soon("the janitor", a.idle()).await;
        drop(given_up);
        link.quiesce().await;
        soon("the janitor", a.idle()).await;
        nobody_stands_in(&b, &names, &format!("{fault:?}, given up")).await;
        link.heal();
    }
}

pub(crate) async fn several_locks_behind_another_dropped_at_any_poll_leave_nothing(world: World) {
    let (a, b) = (world.client("a"), world.client("b"));
    for polls in 0.. {
        let taken = b.lock("y").acquire().await.unwrap();
        let locks = a.lock_all(["w", "x", "y", "z"]);
        let cycle = async {
            let (guard, ()) = tokio::join!(locks.acquire(), async {
                line_has(&b, "y", 2).await;
                taken.release().await.unwrap();
            });
            guard.unwrap().release().await.unwrap();
        };
        let done = cancel_after(cycle, polls).await.is_some();
        soon("the janitor", a.idle()).await;
        soon("the janitor", b.idle()).await;
        let what = format!("after {polls} polls");
        nobody_stands_in(&b, &["w", "x", "y", "z"], &what).await;
        if done {
            assert!(polls > 1, "the future never waited");
            break;
        }
    }
}

pub(crate) async fn what_a_guard_writes_is_still_fenced_while_a_session_is_announced(world: World) {
    let client = world.client("a");
    let guard = client.lock("a").acquire().await.unwrap();
    let session = guard_session(&client).await;
    let known = || async { client.who(session).await.unwrap().is_some() };
    eventually("it is announced", LONG, known).await;
    let key = Key::new("/data").unwrap();
    match guard.put(&key, "1", Expiry::Never).await {
        Ok(()) => assert_eq!(
            client.store().node(&key).await.unwrap().unwrap().text(),
            Some("1")
        ),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
    }
    guard.release().await.unwrap();
}

/// Runs every check of the suite, each in a world of its own that `$world` makes.
#[macro_export]
macro_rules! lock_more_suite {
    ($attributes:meta, $world:expr) => {
        $crate::lock_more_suite!(@each $attributes, $world,
            contenders_are_listed_in_order_with_who_they_are,
            a_short_hold_says_nothing_about_itself,
            what_a_session_says_is_said_again_after_a_failure_or_a_deletion,
            a_holder_hears_that_it_is_asked_back_and_why,
            a_request_that_comes_late_does_not_hide_a_newer_one,
            who_listens_for_a_request_is_told_of_the_loss_and_may_stop_at_any_poll,
            a_request_disturbs_no_line,
            several_locks_are_taken_together_and_given_back_together,
            if_one_lock_is_not_free_none_is_kept,
            the_loss_of_one_lock_is_the_loss_of_all,
            overlapping_sets_in_any_order_never_block_each_other,
            several_locks_dropped_at_any_poll_leave_nothing,
            several_locks_are_given_back_in_one_step,
            many_free_locks_are_taken_by_the_handful,
            who_waits_for_one_of_several_stands_in_no_line_behind_it,
            of_two_that_try_for_the_same_locks_one_gets_them,
            who_tries_again_and_again_writes_nothing_meanwhile,
            a_lock_whose_name_goes_on_from_that_of_another_keeps_nobody_from_that,
            whatever_becomes_of_taking_several_they_are_held_and_nothing_else_is_left,
            several_locks_behind_another_dropped_at_any_poll_leave_nothing,
            whoever_takes_several_and_however_nobody_waits_for_ever,
            the_auditor_sees_who_waits_in_one_line_and_stands_in_a_later_one,
            whatever_becomes_of_the_release_of_several_it_is_done_and_no_later_one_is_hit,
            what_a_guard_writes_is_still_fenced_while_a_session_is_announced,
        );
    };
    (@each $attributes:meta, $world:expr, $($check:ident,)*) => {
        $(
            #[$attributes]
            async fn $check() {
                let (world, _server) = $world.await;
                suite::$check(world).await;
            }
        )*
    };
}
