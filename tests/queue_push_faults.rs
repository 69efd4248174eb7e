//! Pushing and looking after a queue under planned faults: each call of a run hit in turn by each
//! fault, and seeded storms. Over the embedded store on paused time, and over the same store with
//! no more than etcd v2 has.
//!
//! Checked after everything that was late has come: a push that was answered is one job, one that
//! ended as `Ambiguous` at most one, any other none; a delayed job is never without its delay.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use tenure::embedded::Embedded;
use tenure::runtime::{Entropy, Runtime};
use tenure::store::Expiry;
use tenure::testkit::{Call, Fault, Faulty, Odds};
use tenure::{Client, ErrorKind, JobState, Key, Mend, Priority, Push, Queue, Store, StoreExt};

#[path = "common/kinds.rs"]
mod kinds;
#[path = "common/v2like.rs"]
mod v2like;

use kinds::Kind;

const LATE: Duration = Duration::from_secs(2);
const HOUR: Duration = Duration::from_secs(3_600);

const FAULTS: [Fault; 8] = [
    Fault::LostRequest,
    Fault::LostReply,
    Fault::LateCommit(Duration::from_millis(10)),
    Fault::LateCommit(LATE),
    Fault::Delay(LATE),
    Fault::Unavailable,
    Fault::Unreachable,
    Fault::Hang,
];

struct Scene {
    runtime: Runtime,
    store: Embedded,
    link: Faulty<Embedded>,
    /// Over the faults.
    queue: Queue,
    /// Without any.
    truth: Queue,
}

fn scene(kind: Kind, seed: u64) -> Scene {
    let runtime = Runtime::on_tokio_time(seed);
    let store = kind.store(&runtime);
    let link = Faulty::new(store.clone(), seed);
    let faulty = kind.over(link.clone());
    let of = |store: Arc<dyn Store>, seed| {
        let runtime = Runtime::new(runtime.clock.clone(), Entropy::seeded(seed));
        Client::builder(store).runtime(runtime).build().queue("q")
    };
    let (queue, truth) = (of(faulty, seed), of(Arc::new(store.clone()), seed + 1_000));
    Scene {
        runtime,
        store,
        link,
        queue,
        truth,
    }
}

impl Scene {
    async fn set(&self, path: &str, value: &str) {
        let key = Key::new(format!("/_queues/q/{path}")).unwrap();
        let value = value.to_owned().into();
        self.store.set(&key, value, Expiry::Never).await.unwrap();
    }

    async fn count(&self) -> usize {
        self.truth.jobs().await.unwrap().len()
    }
}

type Make = fn(&Queue) -> Push;

const PUSHES: [(&str, Make); 5] = [
    ("plain", |queue| queue.push("x")),
    ("urgent", |queue| {
        queue.push("x").priority(Priority::HIGHEST)
    }),
    ("id", |queue| queue.push("x").id("i")),
    ("delay", |queue| queue.push("x").delay(HOUR)),
    ("id and delay", |queue| queue.push("x").id("i").delay(HOUR)),
];

/// One push, then everything late; returns how many calls it took.
async fn push_story(kind: Kind, what: &str, make: Make, plan: impl Fn(&Faulty<Embedded>)) -> u64 {
    let scene = scene(kind, 1);
    plan(&scene.link);
    let outcome = make(&scene.queue).await;
    let calls = scene.link.all_calls();
    scene.link.heal();
    scene.link.quiesce().await;
    let jobs = scene.truth.jobs().await.unwrap();
    let delayed = what.contains("delay");
    match &outcome {
        Ok(pushed) => {
            assert_eq!(jobs.len(), 1, "{what}: {pushed:?} {jobs:?}");
            assert!(!pushed.duplicate && jobs[0].id == pushed.id, "{what}");
        }
        Err(error) if error.is_ambiguous() => assert!(jobs.len() <= 1, "{what}: {jobs:?}"),
        Err(error) => assert_eq!(jobs.len(), 0, "{what}: {error}"),
    }
    for job in &jobs {
        let is_delayed = matches!(job.state, JobState::Delayed { .. });
        assert_eq!(is_delayed, delayed, "{what}: {job:?}");
    }
    let state = Key::new("/_queues/q/state").unwrap();
    for left in scene.store.children(&state).await.unwrap() {
        assert!(left.ttl.is_some(), "{what}: left for ever: {left:?}");
    }
    // Whatever it was told, the producer says it again: with an id that is one job.
    let again = make(&scene.queue).await.unwrap();
    if what.contains("id") {
        assert_eq!(scene.count().await, 1, "{what}");
        assert_eq!(again.duplicate, !jobs.is_empty(), "{what}");
    } else {
        assert_eq!(scene.count().await, jobs.len() + 1, "{what}");
    }
    calls
}

#[tokio::test(start_paused = true)]
async fn whichever_call_of_a_push_is_hit_by_whichever_fault_an_answer_is_one_job() {
    for kind in Kind::ALL {
        for (name, make) in PUSHES {
            let calls = push_story(kind, name, make, |_| {}).await;
            for fault in FAULTS {
                for n in 1..=calls + 2 {
                    let what = format!("{name}, {kind:?}: {fault:?} on call {n}");
                    push_story(kind, &what, make, |link| link.nth_of_all(n, fault)).await;
                    // And the same again on what comes next: the look, or the second try.
                    let what = format!("{what} and {}", n + 1);
                    push_story(kind, &what, make, |link| {
                        link.nth_of_all(n, fault);
                        link.nth_of_all(n + 1, fault);
                    })
                    .await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_lost_request_or_reply_does_not_fail_a_push() {
    for kind in Kind::ALL {
        for fault in [
            Fault::LostRequest,
            Fault::LostReply,
            Fault::LateCommit(LATE),
        ] {
            for (name, make) in PUSHES {
                let scene = scene(kind, 1);
                scene.link.next(Call::Put, fault);
                let pushed = make(&scene.queue).await;
                assert!(pushed.is_ok(), "{name}, {kind:?}, {fault:?}: {pushed:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_done_while_its_push_had_no_answer_is_not_pushed_again() {
    for kind in Kind::ALL {
        for id in [None, Some("i")] {
            let scene = scene(kind, 1);
            scene.link.next(Call::Put, Fault::LostReply);
            let push = match id {
                Some(id) => scene.queue.push("x").id(id),
                None => scene.queue.push("x"),
            };
            let push = tokio::spawn(push.into_future());
            let job = loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if let Some(job) = scene.truth.jobs().await.unwrap().pop() {
                    break job;
                }
            };
            assert!(!push.is_finished());
            scene.set(&format!("state/{}", job.id), "done 1 7").await;
            let at = Key::new(format!("/_queues/q/jobs/{}", job.id)).unwrap();
            scene.store.remove(&at).await.unwrap();
            let pushed = push.await.unwrap().unwrap();
            assert_eq!(pushed.id, job.id);
            assert!(
                !scene.store.contains(&at).await.unwrap(),
                "{kind:?}, {id:?}: back from the dead"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn anothers_job_of_the_same_id_is_not_taken_for_the_one_without_an_answer() {
    let scene = scene(Kind::V2Like, 1);
    scene.link.next(Call::Put, Fault::LostRequest);
    let push = tokio::spawn(scene.queue.push("mine").id("i").into_future());
    while scene.link.calls(Call::Put) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!scene.truth.push("theirs").id("i").await.unwrap().duplicate);
    assert!(push.await.unwrap().unwrap().duplicate);
    assert_eq!(scene.count().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_one_budget_and_says_whether_the_job_can_come() {
    let scene = scene(Kind::Embedded, 1);
    let start = scene.runtime.clock.now();
    let limit = Duration::from_secs(3);
    scene.link.next(Call::Put, Fault::Hang);
    let error = scene.queue.push("x").timeout(limit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous);
    assert!(
        error.to_string().contains("may be there, or come"),
        "{error}"
    );
    assert_eq!(scene.runtime.clock.now().since(start), limit);
    // The note of a delay hangs: the job was never sent.
    scene.link.next(Call::Put, Fault::Hang);
    let push = scene.queue.push("x").delay(HOUR).timeout(limit);
    assert_eq!(push.await.unwrap_err().kind(), ErrorKind::Timeout);
    scene.link.next(Call::Put, Fault::Hang);
    let all = scene.queue.push_all(["a"]).timeout(limit).await;
    assert_eq!(all[0].as_ref().unwrap_err().kind(), ErrorKind::Ambiguous);
    scene.link.next(Call::Commit, Fault::Hang);
    let all = scene.queue.push_all(vec!["a"; 200]).timeout(limit).await;
    let kinds: Vec<_> = all
        .iter()
        .map(|it| it.as_ref().unwrap_err().kind())
        .collect();
    assert_eq!(kinds[127], ErrorKind::Ambiguous);
    assert_eq!(
        kinds[128],
        ErrorKind::Unavailable,
        "not sent: surely nothing"
    );
    assert_eq!(scene.count().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_raw_push_without_an_answer_says_that_it_cannot_be_found_out() {
    for fault in [Fault::LostRequest, Fault::LostReply] {
        let scene = scene(Kind::V2Like, 1);
        let store = v2like::V2Like::new(scene.link.clone());
        let queue = Client::builder(store)
            .runtime(scene.runtime.clone())
            .build()
            .raw_queue("/nodes/queue");
        scene.link.next(Call::Append, fault);
        let error = queue.push("x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Ambiguous);
        assert!(error.to_string().contains("pushing twice"), "{error}");
        assert_eq!(scene.link.calls(Call::Append), 1, "never sent twice");
        scene.link.next(Call::Append, Fault::Unreachable);
        let error = queue.push("x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        let all = queue.push_all(["a", "b"]).await;
        assert!(all.iter().all(Result::is_ok));
    }
}

async fn batch_story(kind: Kind, what: &str, plan: impl Fn(&Faulty<Embedded>)) -> u64 {
    const JOBS: usize = 5;
    let scene = scene(kind, 1);
    plan(&scene.link);
    let all: Vec<String> = (0..JOBS).map(|number| number.to_string()).collect();
    let answers = scene.queue.push_all(all).await;
    let calls = scene.link.all_calls();
    scene.link.heal();
    scene.link.quiesce().await;
    assert_eq!(answers.len(), JOBS, "{what}");
    let there: Vec<_> = scene.truth.jobs().await.unwrap();
    let there: Vec<_> = there.into_iter().map(|job| job.id).collect();
    let mut place = 0;
    let mut failed = false;
    for answer in &answers {
        match answer {
            Ok(pushed) => {
                assert!(!failed, "{what}: pushed after a failure");
                assert_eq!(there.get(place), Some(&pushed.id), "{what}: {answers:?}");
                place += 1;
            }
            Err(_) => failed = true,
        }
    }
    let unknown = answers.iter().flat_map(|it| it.as_ref().err());
    let unknown = unknown.filter(|error| error.is_ambiguous()).count();
    assert!(there.len() <= place + unknown, "{what}: {there:?}");
    calls
}

#[tokio::test(start_paused = true)]
async fn whichever_call_of_a_batch_is_hit_each_answer_is_true_and_the_order_stands() {
    for kind in Kind::ALL {
        let calls = batch_story(kind, "no fault", |_| {}).await;
        for fault in FAULTS {
            for n in 1..=calls + 2 {
                let what = format!("{kind:?}: {fault:?} on call {n}");
                batch_story(kind, &what, |link| link.nth_of_all(n, fault)).await;
            }
        }
    }
}

type Act = fn(&Queue) -> futures_util::future::BoxFuture<'_, tenure::Result<()>>;

async fn admin_story(what: &str, kind: Kind, act: Act, plan: impl Fn(&Faulty<Embedded>)) -> u64 {
    let scene = scene(kind, 1);
    scene.truth.push("x").id("i").await.unwrap();
    scene.truth.push("y").id("other").await.unwrap();
    for id in ["i", "other"] {
        scene.set(&format!("state/id.{id}"), "dead 5 why").await;
    }
    plan(&scene.link);
    let outcome = tokio::time::timeout(LATE * 10, act(&scene.queue)).await;
    let calls = scene.link.all_calls();
    scene.link.heal();
    scene.link.quiesce().await;
    let left = scene.truth.jobs().await.unwrap();
    let (it, other): (Vec<_>, Vec<_>) = left.iter().partition(|it| it.id.as_str() == "id.i");
    let is_dead = |state: &JobState| matches!(state, JobState::Dead { .. });
    assert!(is_dead(&other[0].state), "{what}: {left:?}");
    if let Ok(Ok(())) = outcome {
        assert!(
            it.iter().all(|it| it.state == JobState::Ready),
            "{what}: {left:?}"
        );
        assert_eq!(it.is_empty(), what.starts_with("purge"), "{what}");
    }
    // Said again it is so, or was so already.
    match act(&scene.queue).await {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{what}"),
    }
    let stats = scene.truth.stats().await.unwrap();
    let ready = usize::from(what.starts_with("requeue"));
    assert_eq!((stats.ready, stats.dead), (ready, 1), "{what}");
    calls
}

#[tokio::test(start_paused = true)]
async fn whichever_call_of_a_requeue_or_a_purge_is_hit_it_happens_once_or_not() {
    let requeue: Act = |queue| Box::pin(async { queue.requeue(&"id.i".parse()?).await });
    let purge: Act = |queue| Box::pin(async { queue.purge(&"id.i".parse()?).await });
    for kind in Kind::ALL {
        for (name, act) in [("requeue", requeue), ("purge", purge)] {
            let calls = admin_story(name, kind, act, |_| {}).await;
            for fault in FAULTS {
                for n in 1..=calls + 2 {
                    let what = format!("{name}, {kind:?}: {fault:?} on call {n}");
                    admin_story(&what, kind, act, |link| link.nth_of_all(n, fault)).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_requeue_or_a_purge_that_comes_late_spoils_nothing_that_came_since() {
    let claimed = "claimed 6 00000000000000070000000000000001 7";
    let register = Key::new("/_queues/q/state/id.i").unwrap();
    for purge in [false, true] {
        for fault in [Fault::LateCommit(LATE), Fault::Delay(LATE)] {
            let what = format!("{fault:?}, purge: {purge}");
            let scene = scene(Kind::V2Like, 1);
            let id = scene.truth.push("x").id("i").await.unwrap().id;
            scene.set("state/id.i", "dead 5 why").await;
            scene.link.next(Call::Put, fault);
            let queue = scene.queue.clone();
            let change = async move {
                if purge {
                    queue.purge(&id).await
                } else {
                    queue.requeue(&id).await
                }
            };
            let change = tokio::spawn(change);
            let late = matches!(fault, Fault::LateCommit(_));
            if late {
                // The second try was answered; then a consumer came.
                change.await.unwrap().unwrap();
                scene.set("state/id.i", claimed).await;
            } else {
                // Somebody else was faster, and a consumer came.
                while scene.link.calls(Call::Put) == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                scene.set("state/id.i", claimed).await;
                let error = change.await.unwrap().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotFound, "{what}");
                assert_eq!(scene.count().await, 1, "{what}");
            }
            scene.link.quiesce().await;
            let node = scene.store.node(&register).await.unwrap().unwrap();
            assert_eq!(node.text(), Some(claimed), "{what}");
        }
    }
    // The deletion of a purged job comes when its id has a new one.
    for (kind, call) in [(Kind::V2Like, Call::Delete), (Kind::V3Like, Call::Commit)] {
        let scene = scene(kind, 1);
        let id = scene.truth.push("x").id("i").await.unwrap().id;
        scene.set("state/id.i", "dead 5 why").await;
        scene.link.next(call, Fault::LateCommit(LATE));
        scene.queue.purge(&id).await.unwrap();
        assert_eq!(scene.count().await, 0);
        scene.store.remove(&register).await.unwrap();
        scene.truth.push("y").id("i").await.unwrap();
        scene.link.quiesce().await;
        assert_eq!(scene.count().await, 1, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_requeue_and_a_purge_end_in_their_time_and_say_how_far_they_came() {
    let limit = Duration::from_secs(3);
    let register = Key::new("/_queues/q/state/id.i").unwrap();
    let set = |it: Mend| it.timeout(limit);
    for kind in Kind::ALL {
        let commits = kind.over(Faulty::new(Embedded::new(), 1)).about().commits;
        let end = if commits { Call::Commit } else { Call::Put };
        // What hangs; what it is told; what is there then.
        let stories = [
            (
                false,
                Call::Get,
                1,
                ErrorKind::Timeout,
                "nothing was changed",
                "dead 5 why",
            ),
            (
                false,
                Call::Put,
                1,
                ErrorKind::Ambiguous,
                "may be requeued",
                "dead 5 why",
            ),
            (
                true,
                Call::Get,
                1,
                ErrorKind::Timeout,
                "nothing was changed",
                "dead 5 why",
            ),
            (
                true,
                end,
                1,
                ErrorKind::Ambiguous,
                "may be purged",
                "dead 5 why",
            ),
            (
                true,
                Call::Get,
                2,
                ErrorKind::Ambiguous,
                "the job is done",
                "done 5 ",
            ),
            (
                true,
                Call::Delete,
                1,
                ErrorKind::Ambiguous,
                "the job is done",
                "done 5 ",
            ),
        ];
        for (purge, call, n, told, words, left) in stories {
            if commits && left.starts_with("done") {
                continue;
            }
            let what = format!("{kind:?}, purge: {purge}, {call:?} {n}");
            let scene = scene(kind, 1);
            let id = scene.truth.push("x").id("i").await.unwrap().id;
            scene.set("state/id.i", "dead 5 why").await;
            scene.link.nth(call, n, Fault::Hang);
            let start = scene.runtime.clock.now();
            let error = match purge {
                true => set(scene.queue.purge(&id)).await.unwrap_err(),
                false => set(scene.queue.requeue(&id)).await.unwrap_err(),
            };
            assert_eq!(scene.runtime.clock.now().since(start), limit, "{what}");
            assert_eq!(error.kind(), told, "{what}: {error}");
            assert!(error.to_string().contains(words), "{what}: {error}");
            let node = scene.store.node(&register).await.unwrap().unwrap();
            assert!(node.text().unwrap().starts_with(left), "{what}: {node:?}");
            // Dead, or ended and listed nowhere: never both, never ready.
            let stats = scene.truth.stats().await.unwrap();
            assert_eq!(stats.ready, 0, "{what}");
            assert_eq!(stats.dead, usize::from(left.starts_with("dead")), "{what}");
            // Whoever purges all comes across what was left half done.
            assert_eq!(scene.truth.purge_dead().await.unwrap(), 1, "{what}");
            let job = Key::new("/_queues/q/jobs/id.i").unwrap();
            assert!(!scene.store.contains(&job).await.unwrap(), "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_mends_all_has_one_limit_and_says_how_many_it_did_before() {
    let limit = Duration::from_secs(3);
    for kind in Kind::ALL {
        for purge in [false, true] {
            let scene = scene(kind, 1);
            for id in ["a", "b", "c"] {
                scene.truth.push("x").id(id).await.unwrap();
                scene.set(&format!("state/id.{id}"), "dead 5 why").await;
            }
            let all = |queue: &Queue| match purge {
                true => queue.purge_dead(),
                false => queue.requeue_all(),
            };
            let start = scene.runtime.clock.now();
            scene.link.nth(Call::Get, 1, Fault::Hang);
            let error = all(&scene.queue).timeout(limit).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout);
            assert!(error.to_string().contains("nothing was changed"), "{error}");
            assert_eq!(scene.runtime.clock.now().since(start), limit);
            // The list, the first, and then no answer for the second.
            let reads = scene.link.calls(Call::Get);
            let each = if purge && kind == Kind::V2Like { 2 } else { 1 };
            scene.link.nth(Call::Get, reads + 1 + each + 1, Fault::Hang);
            let error = all(&scene.queue).timeout(limit).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout);
            assert!(error.to_string().contains("before it 1 of 3"), "{error}");
            assert_eq!(scene.runtime.clock.now().since(start), limit * 2);
            let stats = scene.truth.stats().await.unwrap();
            assert_eq!(stats.dead, 2, "{kind:?}, purge: {purge}");
            assert_eq!(all(&scene.queue).await.unwrap(), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_whose_deletion_was_refused_does_not_say_that_it_changed_nothing() {
    let scene = scene(Kind::V2Like, 1);
    let id = scene.truth.push("x").id("i").await.unwrap().id;
    scene.set("state/id.i", "dead 5 why").await;
    for _ in 0..10 {
        scene.link.next(Call::Delete, Fault::Unavailable);
    }
    let error = scene.queue.purge(&id).await.unwrap_err();
    assert!(!error.changed_nothing(), "{error}");
    assert!(error.to_string().contains("the job is done"), "{error}");
}

/// Producers push while everything goes wrong now and then; returns how many were answered.
async fn storm(kind: Kind, seed: u64) -> usize {
    let scene = scene(kind, seed);
    scene.link.set_all_odds(Odds::network(0.05, LATE * 2));
    let dice = Entropy::seeded(seed);
    let mut answered = Vec::new();
    let mut unknown = 0;
    for number in 0..40 {
        let push = scene.queue.push(number.to_string());
        let push = match dice.u64() % 4 {
            0 => push.id((dice.u64() % 8).to_string()),
            1 => push.delay(HOUR),
            _ => push,
        };
        match push.await {
            Ok(pushed) => answered.push(pushed),
            Err(error) => unknown += usize::from(error.is_ambiguous()),
        }
    }
    scene.link.heal();
    scene.link.quiesce().await;
    let there = scene.truth.jobs().await.unwrap();
    for pushed in &answered {
        let found = there.iter().filter(|job| job.id == pushed.id).count();
        assert_eq!(found, 1, "{kind:?}, seed {seed}: {pushed:?}");
    }
    let fresh = answered.iter().filter(|it| !it.duplicate).count();
    assert!(
        there.len() <= fresh + unknown,
        "{kind:?}, seed {seed}: {} jobs of {fresh} and at most {unknown}",
        there.len()
    );
    answered.len()
}

#[test]
fn in_seeded_storms_every_answered_push_is_one_job() {
    let seeds = std::env::var("TENURE_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(50);
    for kind in Kind::ALL {
        let mut answered = 0;
        for seed in 1..=seeds {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            answered += runtime.block_on(storm(kind, seed));
        }
        assert!(answered > seeds as usize * 20, "{kind:?}: {answered}");
        println!("{kind:?}: {seeds} storms, {answered} pushes answered");
    }
}
