//! What pushing and looking after a queue promise, over any store. Consumers are played by hand,
//! by writing what they write. `tests/queue_push_embedded.rs`, `tests/queue_push_etcd2.rs` and
//! `tests/queue_etcd3.rs` run all of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tenure::runtime::Runtime;
use tenure::store::{Expiry, Node};
use tenure::testkit::{Faulty, Odds, cancel_after, cancel_at_every_poll};
use tenure::{
    Client, ErrorKind, JobId, JobState, Key, LeaseId, Priority, Queue, Store, StoreExt, Tag,
};

/// Clients that share one store, each over a connection of its own.
pub(crate) struct World {
    pub(crate) open: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    pub(crate) runtime: Runtime,
    /// How long a node has left, for stores whose nodes do not tell.
    pub(crate) left: Left,
}

type Left = Box<dyn Fn(&Node) -> Option<Duration> + Send + Sync>;

const HOUR: Duration = Duration::from_secs(3_600);

impl World {
    fn client(&self) -> Client {
        let client = Client::builder((self.open)());
        client.runtime(self.runtime.clone()).build()
    }

    /// A client whose every call takes some time, so that there is a moment to drop it in.
    fn slow_client(&self) -> Client {
        let link = Faulty::shared((self.open)(), 1);
        let mut odds = Odds::none();
        (odds.delay, odds.slow_reply) = (0.5, 0.5);
        odds.longest = Duration::from_millis(5);
        link.set_all_odds(odds);
        let client = Client::builder(link);
        client.runtime(self.runtime.clone()).build()
    }

    fn wall(&self) -> Duration {
        self.runtime.clock.wall()
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn register(id: &JobId) -> Key {
    key("/_queues/q/state").join(id.as_str()).unwrap()
}

async fn set(client: &Client, at: &Key, value: &str) {
    let value = value.to_owned().into();
    client.store().set(at, value, Expiry::Never).await.unwrap();
}

async fn text(client: &Client, at: &Key) -> Option<String> {
    let node = client.store().node(at).await.unwrap();
    node.map(|node| node.text().unwrap().to_owned())
}

/// What a consumer leaves: the register says done, and the job is deleted.
async fn finish(client: &Client, id: &JobId) {
    set(client, &register(id), "done 1 0000000000000007").await;
    let job = key("/_queues/q/jobs").join(id.as_str()).unwrap();
    client.store().remove(&job).await.unwrap();
}

async fn payloads(queue: &Queue) -> Vec<String> {
    let mut payloads = Vec::new();
    for job in queue.jobs().await.unwrap() {
        let payload = queue.payload(&job.id).await.unwrap();
        payloads.push(String::from_utf8(payload.into()).unwrap());
    }
    payloads
}

pub(crate) async fn a_pushed_job_is_there_under_its_own_name(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    let before = world.wall();
    let pushed = queue.push("payload").await.unwrap();
    assert!(!pushed.duplicate);
    let made = pushed.id.pushed().unwrap();
    // The name counts whole milliseconds.
    assert!(made + Duration::from_millis(1) > before && made <= world.wall());
    let job = key("/_queues/q/jobs").join(pushed.id.as_str()).unwrap();
    let node = client.store().node(&job).await.unwrap().unwrap();
    assert_eq!((&node.value[..], node.ttl), (&b"payload"[..], None));
    assert!(node.created <= pushed.index);
    assert_eq!(queue.payload(&pushed.id).await.unwrap(), "payload");
    assert_eq!(text(&client, &register(&pushed.id)).await, None);
}

pub(crate) async fn jobs_stand_in_the_order_of_their_pushes_and_higher_lanes_first(world: World) {
    let (a, b) = (world.client(), world.client());
    for (turn, payload) in ["1", "2", "3", "4"].into_iter().enumerate() {
        let queue = if turn % 2 == 0 { &a } else { &b }.queue("q");
        queue.push(payload).await.unwrap();
    }
    let queue = a.queue("q");
    let urgent = queue.push("0").priority(Priority::HIGHEST).await.unwrap();
    assert_eq!(urgent.id.priority(), Priority::HIGHEST);
    let last = queue.push("5").priority(Priority::LOWEST).id("last");
    last.await.unwrap();
    assert_eq!(payloads(&queue).await, ["0", "1", "2", "3", "4", "5"]);
}

pub(crate) async fn an_id_is_pushed_once_until_its_window_ends(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    let first = queue.push("a").id("order/17").await.unwrap();
    assert!(!first.duplicate);
    assert_eq!(first.id.chosen_id().as_deref(), Some("order/17"));
    let second = queue.push("b").id("order/17").await.unwrap();
    assert!(second.duplicate && second.id == first.id);
    assert!(second.index >= first.index);
    assert_eq!(payloads(&queue).await, ["a"]);
    // Another lane is another name.
    let other = queue.push("c").id("order/17").priority(Priority::LOWEST);
    assert!(!other.await.unwrap().duplicate);
    for delay in [None, Some(HOUR)] {
        finish(&client, &first.id).await;
        let again = queue.push("d").id("order/17");
        let again = match delay {
            Some(delay) => again.delay(delay),
            None => again,
        };
        assert!(again.await.unwrap().duplicate, "{delay:?}");
        assert_eq!(payloads(&queue).await, ["c"], "{delay:?}");
        let done = text(&client, &register(&first.id)).await.unwrap();
        assert!(done.starts_with("done 1"), "{done}");
    }
    client.store().remove(&register(&first.id)).await.unwrap();
    assert!(!queue.push("e").id("order/17").await.unwrap().duplicate);
    assert_eq!(payloads(&queue).await, ["e", "c"]);
}

pub(crate) async fn of_concurrent_pushes_of_one_id_one_makes_the_job(world: World) {
    for delay in [Duration::ZERO, HOUR] {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..8 {
            let queue = world.client().queue("q");
            let push = queue.push(number.to_string()).id(format!("{delay:?}"));
            tasks.spawn(async move { push.delay(delay).await.unwrap().duplicate });
        }
        let duplicates = tasks.join_all().await;
        let fresh = duplicates.iter().filter(|it| !**it).count();
        assert_eq!(fresh, 1, "{delay:?}");
    }
    let stats = world.client().queue("q").stats().await.unwrap();
    assert_eq!((stats.ready, stats.delayed), (1, 1));
}

pub(crate) async fn a_delayed_job_is_never_there_without_its_delay(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    let before = world.wall();
    let pushed = queue.push("a").id("x").delay(HOUR).await.unwrap();
    let jobs = queue.jobs().await.unwrap();
    let JobState::Delayed { until } = jobs[0].state else {
        panic!("{jobs:?}");
    };
    assert!(until >= before + HOUR);
    assert!(until <= world.wall() + HOUR + Duration::from_millis(1));
    // The note ends by itself, after the delay: a producer that dies leaves nothing.
    let noted = client
        .store()
        .node(&register(&pushed.id))
        .await
        .unwrap()
        .unwrap();
    let ttl = (world.left)(&noted).unwrap();
    assert!(
        ttl > HOUR && ttl <= HOUR * 2 * 5 / 4 + Duration::from_secs(1),
        "{ttl:?}"
    );
    // A duplicate moves nothing.
    let again = queue.push("b").id("x").delay(HOUR * 3).await.unwrap();
    assert!(again.duplicate);
    assert!(queue.push("b").id("x").await.unwrap().duplicate);
    assert_eq!(queue.jobs().await.unwrap()[0].state, jobs[0].state);
    // What is due has no delay, and nothing is written down for it.
    let due = queue
        .push("c")
        .at(SystemTime::UNIX_EPOCH + before)
        .await
        .unwrap();
    assert_eq!(text(&client, &register(&due.id)).await, None);
    let at = queue
        .push("d")
        .at(SystemTime::UNIX_EPOCH + before + HOUR * 48);
    let at = at.await.unwrap();
    let noted = client
        .store()
        .node(&register(&at.id))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(noted.ttl, None, "longer than a time-to-live can be");
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.ready, stats.delayed), (1, 2));
}

pub(crate) async fn the_leftover_of_a_push_that_died_delays_nobody_else(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    let later = (world.wall() + HOUR).as_millis();
    for (id, delay) in [("now", Duration::ZERO), ("then", HOUR * 2)] {
        let left = key("/_queues/q/state").join(&format!("id.{id}")).unwrap();
        set(&client, &left, &format!("ready 0 {later}")).await;
        let pushed = queue.push(id).id(id).delay(delay).await.unwrap();
        assert!(!pushed.duplicate, "{id}");
    }
    let states: Vec<_> = queue.jobs().await.unwrap();
    assert_eq!(states[0].state, JobState::Ready);
    let JobState::Delayed { until } = states[1].state else {
        panic!("{states:?}");
    };
    assert!(until.as_millis() > later, "its own delay: {until:?}");
}

pub(crate) async fn a_raw_queue_keeps_payloads_bare_and_its_books_elsewhere(world: World) {
    let client = world.client();
    let queue = client.raw_queue("/nodes/queue");
    let dir = key("/nodes/queue");
    let append = client
        .store()
        .append_value(&dir, "one".into(), Expiry::Never);
    append.await.unwrap();
    let pushed = queue.push("two").await.unwrap();
    assert_eq!(pushed.id.as_str().len(), 20, "named by the store");
    queue.push("three").id("x").await.unwrap();
    assert!(queue.push("three").id("x").await.unwrap().duplicate);
    queue
        .push("zero")
        .priority(Priority::HIGHEST)
        .await
        .unwrap();
    queue.push("four").delay(HOUR).await.unwrap();
    assert_eq!(
        payloads(&queue).await,
        ["zero", "one", "two", "three", "four"]
    );
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.ready, stats.delayed), (4, 1));
    let names = client.store().children(&key("/nodes")).await.unwrap();
    assert_eq!(names.len(), 1, "nothing beside the jobs: {names:?}");
    // A register in its place is the job's.
    let state = key("/_queues").join("%2Fnodes%2Fqueue").unwrap();
    let state = state.join("raw").unwrap().join("state").unwrap();
    set(
        &client,
        &state.join(pushed.id.as_str()).unwrap(),
        "dead 5 bad",
    )
    .await;
    assert_eq!(queue.dead().await.unwrap()[0].id, pushed.id);
    assert_eq!(queue.purge_dead().await.unwrap(), 1);
    assert_eq!(payloads(&queue).await, ["zero", "one", "three", "four"]);
}

pub(crate) async fn a_bounded_queue_refuses_what_is_too_much(world: World) {
    let client = world.client();
    let queue = client.queue("q").bound(3);
    for number in 0..3 {
        queue.push(number.to_string()).await.unwrap();
    }
    let error = queue.push("more").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(
        error.changed_nothing() && error.to_string().contains("3 jobs"),
        "{error}"
    );
    let first = &queue.jobs().await.unwrap()[0];
    finish(&client, &first.id).await;
    let answers = queue.push_all(["a", "b"]).await;
    assert!(answers[0].is_ok(), "{answers:?}");
    assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(queue.stats().await.unwrap().ready, 3);
    // Others are not held back.
    client.queue("q").push("more").await.unwrap();
}

pub(crate) async fn a_batch_keeps_its_order_and_answers_for_each(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    queue.push("first").await.unwrap();
    let all: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    let answers = queue.push_all(all.clone()).await;
    queue.push("last").await.unwrap();
    let ids: Vec<_> = answers
        .iter()
        .map(|it| it.as_ref().unwrap().id.clone())
        .collect();
    let there: Vec<_> = queue
        .jobs()
        .await
        .unwrap()
        .into_iter()
        .map(|it| it.id)
        .collect();
    assert_eq!(there[1..301], ids);
    for number in [0, 127, 128, 299] {
        let payload = queue.payload(&ids[number]).await.unwrap();
        assert_eq!(payload, number.to_string());
    }
    assert!(queue.push_all(Vec::<String>::new()).await.is_empty());
    let urgent = queue.push_all(["x", "y"]).priority(Priority::HIGHEST).await;
    assert!(urgent.iter().all(Result::is_ok));
    let head: Vec<_> = queue.jobs().await.unwrap().into_iter().take(2).collect();
    assert_eq!(queue.payload(&head[0].id).await.unwrap(), "x");
    assert_eq!(queue.payload(&head[1].id).await.unwrap(), "y");
}

pub(crate) async fn what_a_store_cannot_keep_is_refused_before_anything_is_sent(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    let bytes: &[u8] = b"\xff\xfe";
    let text_only = client.store().about().text_only;
    let outcome = queue.push(bytes).id("x").delay(HOUR).await;
    let batch = queue.push_all([&b"a"[..], bytes, &b"b"[..]]).await;
    if text_only {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::InvalidValue);
        assert!(batch[0].is_ok());
        for answer in &batch[1..] {
            assert_eq!(answer.as_ref().unwrap_err().kind(), ErrorKind::InvalidValue);
        }
        assert_eq!(payloads(&queue).await, ["a"]);
        let left = client.store().children(&key("/_queues/q/state")).await;
        assert_eq!(left.unwrap(), [], "the note of the delay");
    } else {
        let id = outcome.unwrap().id;
        assert_eq!(queue.payload(&id).await.unwrap(), bytes);
        assert!(batch.iter().all(Result::is_ok));
    }
    let large = "ä".repeat(512 * 1024);
    let pushed = queue.push(large.clone()).await.unwrap();
    assert_eq!(queue.payload(&pushed.id).await.unwrap(), large);
    let jobs = queue.jobs().await.unwrap();
    assert_eq!(jobs.last().unwrap().size, 1024 * 1024);
    for answer in queue.push_all([large.clone(), large]).await {
        answer.unwrap();
    }
    let huge = queue.push("ä".repeat(6 * 1024 * 1024)).delay(HOUR).await;
    if text_only {
        assert_eq!(huge.unwrap_err().kind(), ErrorKind::InvalidValue);
        let left = client.store().children(&key("/_queues/q/state")).await;
        assert_eq!(left.unwrap(), [], "the note of the delay is taken back");
    }
}

pub(crate) async fn bad_names_are_refused_and_a_closed_client_pushes_nothing(world: World) {
    let client = world.client();
    let kind = async |queue: Queue, id: &str| {
        let error = queue.push("x").id(id).await.unwrap_err();
        assert!(error.changed_nothing(), "{error}");
        error.kind()
    };
    assert_eq!(kind(client.queue(""), "x").await, ErrorKind::InvalidName);
    assert_eq!(kind(client.queue("q"), "").await, ErrorKind::InvalidName);
    assert_eq!(
        kind(client.raw_queue("q"), "x").await,
        ErrorKind::InvalidKey
    );
    let queue = client.queue("q");
    client.shutdown(Duration::from_secs(5)).await;
    assert_eq!(kind(queue.clone(), "x").await, ErrorKind::Closed);
    assert_eq!(queue.stats().await.unwrap_err().kind(), ErrorKind::Closed);
    let all = queue.push_all(["a", "b"]).await;
    assert!(
        all.iter()
            .all(|it| it.as_ref().unwrap_err().kind() == ErrorKind::Closed)
    );
}

pub(crate) async fn what_consumers_do_is_counted_as_of_one_moment(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    assert_eq!(queue.stats().await.unwrap(), Default::default());
    let mut ids = Vec::new();
    for number in 0..6 {
        ids.push(queue.push(number.to_string()).await.unwrap().id);
    }
    let tag = Tag::new(LeaseId::new(7).unwrap(), 1);
    let gone = Tag::new(LeaseId::new(8).unwrap(), 1);
    let consumer = key("/_queues/q/consumers").join(&tag.to_string()).unwrap();
    set(&client, &consumer, r#"{"host":"there","pid":12}"#).await;
    set(&client, &register(&ids[1]), &format!("claimed 1 {tag} 1")).await;
    set(&client, &register(&ids[2]), &format!("claimed 3 {gone} 1")).await;
    set(&client, &register(&ids[3]), "dead 5 it does not parse").await;
    set(&client, &register(&ids[4]), "done 1 1").await;
    let later = (world.wall() + HOUR).as_millis();
    set(&client, &register(&ids[5]), &format!("ready 1 {later}")).await;
    let stats = queue.stats().await.unwrap();
    let counts = (stats.ready, stats.claimed, stats.delayed, stats.dead);
    assert_eq!(counts, (2, 1, 1, 1));
    assert!(stats.oldest_age.unwrap() < HOUR);
    let jobs = queue.jobs().await.unwrap();
    assert_eq!(jobs.len(), 5, "{jobs:?}");
    let JobState::Claimed { by } = &jobs[1].state else {
        panic!("{jobs:?}");
    };
    let who = by.who.as_ref().unwrap();
    assert_eq!((by.session, who.host(), who.pid()), (7, "there", 12));
    assert_eq!((&jobs[2].state, jobs[2].attempts), (&JobState::Ready, 3));
    let reason = "it does not parse".to_owned();
    assert_eq!(jobs[3].state, JobState::Dead { reason });
    let dead = queue.dead().await.unwrap();
    assert!(dead.len() == 1 && dead[0].id == ids[3], "{dead:?}");
}

pub(crate) async fn the_dead_are_requeued_or_purged_and_nobody_else(world: World) {
    let client = world.client();
    let queue = client.queue("q");
    let mut ids = Vec::new();
    for number in 0..4 {
        let id = queue.push(number.to_string()).id(number.to_string());
        ids.push(id.await.unwrap().id);
    }
    let kind = |outcome: tenure::Result<()>| outcome.unwrap_err().kind();
    let tag = Tag::new(LeaseId::new(7).unwrap(), 1);
    let unknown: JobId = "nobody".parse().unwrap();
    let claimed = format!("claimed 1 {tag} 1");
    set(&client, &register(&ids[3]), &claimed).await;
    for id in [&ids[0], &ids[3], &unknown] {
        assert_eq!(kind(queue.requeue(id).await), ErrorKind::NotFound);
        assert_eq!(kind(queue.purge(id).await), ErrorKind::NotFound);
    }
    assert_eq!(text(&client, &register(&ids[3])).await, Some(claimed));
    for id in &ids[..3] {
        set(&client, &register(id), "dead 5 x").await;
    }
    queue.requeue(&ids[1]).await.unwrap();
    assert_eq!(
        text(&client, &register(&ids[1])).await.unwrap(),
        "ready 0 0"
    );
    queue.purge(&ids[0]).await.unwrap();
    let done = client
        .store()
        .node(&register(&ids[0]))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(done.text(), Some("done 5 0000000000000000"));
    let ttl = (world.left)(&done).unwrap();
    assert!(
        ttl > Duration::from_secs(590) && ttl <= Duration::from_secs(751),
        "{ttl:?}"
    );
    assert_eq!(
        payloads(&queue).await,
        ["1", "2", "3"],
        "in their old places"
    );
    // A purge that was cut short is finished by the next.
    set(&client, &register(&ids[2]), "done 5 0000000000000000").await;
    queue.purge(&ids[2]).await.unwrap();
    assert!(queue.push("0").id("0").await.unwrap().duplicate);
    assert_eq!(payloads(&queue).await, ["1", "3"]);
    let gone = queue.payload(&ids[0]).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    for id in [&ids[1], &ids[3]] {
        set(&client, &register(id), "dead 1 y").await;
    }
    assert_eq!(queue.requeue_all().await.unwrap(), 2);
    assert_eq!(queue.stats().await.unwrap().ready, 2);
    set(&client, &register(&ids[1]), "dead 1 y").await;
    set(&client, &register(&ids[3]), "somebody else's writing").await;
    assert_eq!(queue.purge_dead().await.unwrap(), 2);
    assert_eq!(queue.stats().await.unwrap(), Default::default());
}

/// Each future dropped at each of its awaits: what it leaves is whole, or nothing.
pub(crate) async fn a_future_dropped_at_any_poll_leaves_a_whole_job_or_none(world: World) {
    let client = world.client();
    let slow = world.slow_client();
    let (queue, slow_queue) = (client.queue("q"), slow.queue("q"));
    let limit = 200;
    let polls = cancel_at_every_poll(limit, async |polls| {
        let id = format!("cancelled {polls}");
        let push = async { slow_queue.push("x").id(&id).delay(HOUR).await };
        let pushed = cancel_after(push, polls).await;
        for job in queue.jobs().await.unwrap() {
            let state = job.state;
            assert!(matches!(state, JobState::Delayed { .. }), "{id}: {state:?}");
        }
        let again = queue.push("x").id(&id).delay(HOUR).await.unwrap();
        assert!(pushed.is_none() || again.duplicate, "{id}");
        let jobs = queue.jobs().await.unwrap();
        assert_eq!(jobs.len(), 1, "{id}: {jobs:?}");
        set(&client, &register(&again.id), "dead 1 x").await;
        cancel_after(async { slow_queue.requeue(&again.id).await }, polls).await;
        let _ = queue.requeue(&again.id).await;
        assert_eq!(queue.stats().await.unwrap().ready, 1, "{id}");
        set(&client, &register(&again.id), "dead 1 x").await;
        cancel_after(async { slow_queue.purge(&again.id).await }, polls).await;
        let _ = queue.purge(&again.id).await;
        assert_eq!(queue.stats().await.unwrap(), Default::default(), "{id}");
        pushed.is_some()
    })
    .await;
    assert!(polls.is_some_and(|polls| polls > 3), "{polls:?}");
    let polls = cancel_at_every_poll(limit, async |polls| {
        let name = format!("batch {polls}");
        let (queue, slow_queue) = (client.queue(&name), slow.queue(&name));
        let batch = async { slow_queue.push_all(["0", "1", "2"]).await };
        let done = cancel_after(batch, polls).await;
        let left = payloads(&queue).await;
        assert_eq!(left, ["0", "1", "2"][..left.len()], "{polls}");
        assert!(done.is_none() || left.len() == 3);
        done.is_some()
    })
    .await;
    assert!(polls.is_some_and(|polls| polls > 1), "{polls:?}");
}

macro_rules! queue_push_suite {
    ($attributes:meta, $world:expr) => {
        queue_push_suite!(@each $attributes, $world,
            a_pushed_job_is_there_under_its_own_name,
            jobs_stand_in_the_order_of_their_pushes_and_higher_lanes_first,
            an_id_is_pushed_once_until_its_window_ends,
            of_concurrent_pushes_of_one_id_one_makes_the_job,
            a_delayed_job_is_never_there_without_its_delay,
            the_leftover_of_a_push_that_died_delays_nobody_else,
            a_raw_queue_keeps_payloads_bare_and_its_books_elsewhere,
            a_bounded_queue_refuses_what_is_too_much,
            a_batch_keeps_its_order_and_answers_for_each,
            what_a_store_cannot_keep_is_refused_before_anything_is_sent,
            bad_names_are_refused_and_a_closed_client_pushes_nothing,
            what_consumers_do_is_counted_as_of_one_moment,
            the_dead_are_requeued_or_purged_and_nobody_else,
            a_future_dropped_at_any_poll_leaves_a_whole_job_or_none,
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
