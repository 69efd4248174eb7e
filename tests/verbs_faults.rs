//! What a verb tells after a lost answer, over stores with all, with nothing more than etcd v2 has,
//! and with what etcd v3 has: each verb, each way to lose an answer, alone and with another writer.
//!
//! Checked on the history of the key, after everything late has come: what was answered was done
//! once; what was refused was not done; and where the error says that no more comes, no more comes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::store::{Change, Condition, Event, Expiry, Node, Update, Watch};
use tenure::testkit::{Call, Fault, Faulty};
use tenure::{ErrorKind, Key, Result, Store, StoreExt};

#[path = "common/kinds.rs"]
mod kinds;
#[path = "common/v2like.rs"]
mod v2like;

use kinds::Kind;

const LATE: Duration = Duration::from_secs(10);

/// What another does while the answer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rival {
    Nobody,
    /// Two that count come to the same.
    WritesTheSame,
    WritesSomethingElse,
    Deletes,
    MakesItAnew,
}

const RIVALS: [Rival; 5] = [
    Rival::Nobody,
    Rival::WritesTheSame,
    Rival::WritesSomethingElse,
    Rival::Deletes,
    Rival::MakesItAnew,
];

const FAULTS: [Fault; 3] = [
    Fault::LostRequest,
    Fault::LostReply,
    Fault::LateCommit(LATE),
];

type Verb = fn(Arc<dyn Store>, Node) -> BoxFuture<'static, Result<()>>;

fn update(store: Arc<dyn Store>, mut node: Node) -> BoxFuture<'static, Result<()>> {
    node.value = "6".into();
    Box::pin(async move { store.update(&node, Expiry::Never).await.map(drop) })
}

fn remove_at(store: Arc<dyn Store>, node: Node) -> BoxFuture<'static, Result<()>> {
    let when = Condition::Index(node.modified);
    Box::pin(async move {
        let removed = store.remove_if(&node.key, when).await?;
        let text = "there was nothing";
        removed
            .map(drop)
            .ok_or_else(|| tenure::Error::new(ErrorKind::NotFound, text))
    })
}

fn pop(store: Arc<dyn Store>, node: Node) -> BoxFuture<'static, Result<()>> {
    Box::pin(async move {
        let popped = store.pop(&node.key).await?;
        let text = "there was nothing";
        popped
            .map(drop)
            .ok_or_else(|| tenure::Error::new(ErrorKind::NotFound, text))
    })
}

struct Scene {
    store: Embedded,
    link: Faulty<Embedded>,
    seen: Arc<dyn Store>,
    key: Key,
    node: Node,
}

async fn scene(kind: Kind) -> Scene {
    let runtime = Runtime::on_tokio_time(1);
    let store = kind.store(&runtime);
    let link = Faulty::new(store.clone(), 1);
    let seen = kind.over(link.clone());
    let key = Key::new("/k").unwrap();
    let written = store.set(&key, "5".into(), Expiry::Never).await;
    let node = written.unwrap().node;
    Scene {
        store,
        link,
        seen,
        key,
        node,
    }
}

impl Scene {
    async fn rival(&self, rival: Rival) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let set = |value: &str| {
            let value = value.to_owned().into();
            async { drop(self.store.set(&self.key, value, Expiry::Never).await) }
        };
        let replace =
            |value: &'static str| self.store.replace(&self.key, value.into(), Expiry::Never);
        match rival {
            Rival::Nobody => {}
            // What is replaced was there all the time; what is set is a new node on this store.
            Rival::WritesTheSame => drop(replace("6").await),
            Rival::WritesSomethingElse => drop(replace("7").await),
            Rival::Deletes => drop(self.store.remove(&self.key).await),
            Rival::MakesItAnew => {
                drop(self.store.remove(&self.key).await);
                set("5").await;
            }
        }
    }

    /// All that happened to the key since it was first written.
    async fn history(&self) -> Vec<Event> {
        let end = Key::new("/end").unwrap();
        let end = self
            .store
            .set(&end, "".into(), Expiry::Never)
            .await
            .unwrap();
        let from = self.node.modified.next();
        let mut updates = self.store.watch(Watch::tree(Key::root()).from(from));
        let mut events = Vec::new();
        while let Some(update) = updates.next().await {
            if let Update::Event(event) = update.unwrap() {
                if event.index >= end.index() {
                    break;
                }
                events.push(event);
            }
        }
        events
    }
}

/// How often the rival did what the verb does, at the most.
fn alike(events: &[Event], deletes: bool) -> usize {
    let alike = events.iter().filter(|event| match &event.change {
        Change::Put(node) => !deletes && node.text() == Some("6"),
        _ => deletes,
    });
    alike.count()
}

async fn story(kind: Kind, verb: Verb, deletes: bool, fault: Fault, rival: Rival) -> String {
    let what = format!("{kind:?}, deletes: {deletes}, {fault:?}, {rival:?}");
    let scene = scene(kind).await;
    let call = if deletes { Call::Delete } else { Call::Put };
    scene.link.next(call, fault);
    let (outcome, ()) = tokio::join!(
        verb(scene.seen.clone(), scene.node.clone()),
        scene.rival(rival)
    );
    let told = scene.history().await.len();
    scene.link.quiesce().await;
    tokio::time::sleep(LATE * 2).await;
    let events = scene.history().await;
    let own = match (rival, deletes) {
        (Rival::WritesTheSame, false) | (Rival::Deletes | Rival::MakesItAnew, true) => 1,
        _ => 0,
    };
    let done = alike(&events, deletes);
    match &outcome {
        // The rival's deletion may have met nothing.
        Ok(()) => assert!((1..=1 + own).contains(&done), "{what}: {events:?}"),
        Err(error) if error.is_ambiguous() => {
            let text = error.to_string();
            assert!(text.contains("no more comes of this"), "{what}: {text}");
            // One event more is the mark that ended the history of then.
            let events: Vec<_> = events.iter().filter(|it| it.key == scene.key).collect();
            assert_eq!(events.len(), told, "{what}: {events:?}");
            assert!(error.index().is_some(), "{what}");
        }
        Err(error) => {
            assert!(error.changed_nothing(), "{what}: {error}");
            assert_eq!(done, own, "{what}: {error}: {events:?}");
        }
    }
    match outcome {
        Ok(()) => "done".to_owned(),
        Err(error) if error.is_ambiguous() => "unknown".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_on_an_index_finds_out_what_became_of_it_or_says_that_it_cannot_be_told() {
    let late = Fault::LateCommit(LATE);
    for kind in Kind::ALL {
        for fault in FAULTS {
            for rival in RIVALS {
                let outcome = story(kind, update, false, fault, rival).await;
                let alone = rival == Rival::Nobody && fault != Fault::LostReply;
                let expected = if alone { "done" } else { "unknown" };
                assert_eq!(outcome, expected, "{kind:?}, {fault:?}, {rival:?}");
                let outcome = story(kind, remove_at, true, fault, rival).await;
                let expected = match (fault, rival) {
                    (Fault::LostReply, _) => "unknown",
                    (_, Rival::Nobody) => "done",
                    // The same node is there as before, so nobody has deleted it.
                    (_, Rival::WritesTheSame | Rival::WritesSomethingElse) => "ConditionFailed",
                    _ => "unknown",
                };
                assert_eq!(outcome, expected, "{kind:?}, {fault:?}, {rival:?}");
            }
            let outcome = story(kind, pop, true, fault, Rival::Nobody).await;
            let expected = if fault == Fault::LostReply {
                "unknown"
            } else {
                "done"
            };
            assert_eq!(outcome, expected, "{kind:?}, {fault:?}");
            // It is taken as the other has left it.
            let outcome = story(kind, pop, true, late, Rival::WritesSomethingElse).await;
            assert_eq!(outcome, "done", "{kind:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_that_count_lose_no_step_to_a_lost_request() {
    for kind in Kind::ALL {
        let scene = scene(kind).await;
        scene.link.next(Call::Put, Fault::LostRequest);
        let mut sixth = scene.node.clone();
        sixth.value = "6".into();
        let (counted, ()) = tokio::join!(
            scene.seen.update(&sixth, Expiry::Never),
            scene.rival(Rival::WritesTheSame)
        );
        // The six that is there is the other's.
        assert!(counted.unwrap_err().is_ambiguous(), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_never_answered_is_sent_three_times_and_one_refusal_does_not_hide_it() {
    for kind in Kind::ALL {
        let scene = scene(kind).await;
        for _ in 0..9 {
            scene.link.next(Call::Put, Fault::LostRequest);
        }
        let before = scene.link.calls(Call::Put);
        let error = update(scene.seen.clone(), scene.node.clone()).await;
        let error = error.unwrap_err();
        assert!(error.is_ambiguous() && error.to_string().contains("may still be"));
        assert_eq!(scene.link.calls(Call::Put) - before, 3, "{kind:?}");
        scene.link.heal();
        // The first may come; that the second could not be sent says nothing about it.
        scene.link.next(Call::Put, Fault::LateCommit(LATE));
        for _ in 0..2 {
            scene.link.next(Call::Put, Fault::Unreachable);
        }
        let error = update(scene.seen.clone(), scene.node.clone()).await;
        assert!(error.unwrap_err().is_ambiguous(), "{kind:?}");
        // And where it cannot be read back nothing is known either.
        scene.link.next(Call::Put, Fault::LostReply);
        scene.link.next(Call::Get, Fault::Unreachable);
        let error = update(scene.seen.clone(), scene.node.clone()).await;
        let error = error.unwrap_err();
        assert!(error.is_ambiguous(), "{kind:?}: {error}");
        assert!(
            error.to_string().contains("could not be read back"),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_names_no_index_is_sent_once_and_says_what_may_still_come() {
    let verbs: [(&str, Call, Verb); 7] = [
        ("over whatever others write", Call::Put, |store, node| {
            Box::pin(async move {
                store
                    .set(&node.key, "6".into(), Expiry::Never)
                    .await
                    .map(drop)
            })
        }),
        ("whenever there is nothing", Call::Put, |store, node| {
            Box::pin(async move {
                let free = node.key.join("free")?;
                store
                    .create(&free, "6".into(), Expiry::Never)
                    .await
                    .map(drop)
            })
        }),
        ("whenever the condition holds", Call::Put, |store, node| {
            Box::pin(async move {
                store
                    .replace(&node.key, "6".into(), Expiry::Never)
                    .await
                    .map(drop)
            })
        }),
        ("holds the expected value", Call::Put, |store, node| {
            Box::pin(async move {
                let (old, new) = ("5".into(), "6".into());
                store
                    .compare_and_swap(&node.key, old, new, Expiry::Never)
                    .await
                    .map(drop)
            })
        }),
        (
            "what others put there meanwhile",
            Call::Delete,
            |store, node| Box::pin(async move { store.remove(&node.key).await.map(drop) }),
        ),
        (
            "whenever the condition holds",
            Call::Delete,
            |store, node| {
                Box::pin(async move {
                    let when = Condition::Value("5".into());
                    store.remove_if(&node.key, when).await.map(drop)
                })
            },
        ),
        ("append twice", Call::Append, |store, node| {
            Box::pin(async move {
                store
                    .append_value(&node.key, "x".into(), Expiry::Never)
                    .await
                    .map(drop)
            })
        }),
    ];
    for kind in Kind::ALL {
        for (words, call, verb) in verbs {
            for fault in FAULTS {
                let scene = scene(kind).await;
                scene.link.next(call, fault);
                let before = scene.link.calls(call);
                let error = verb(scene.seen.clone(), scene.node.clone())
                    .await
                    .unwrap_err();
                assert!(error.is_ambiguous(), "{kind:?}, {fault:?}: {error}");
                assert!(error.to_string().contains(words), "{kind:?}: {error}");
                assert_eq!(scene.link.calls(call) - before, 1, "{kind:?}: sent once");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fenced_write_without_an_answer_comes_no_more_once_the_lock_is_given_back() {
    for kind in [Kind::Embedded, Kind::V3Like] {
        for fault in FAULTS {
            let scene = scene(kind).await;
            let runtime = Runtime::on_tokio_time(2);
            let ttl = Duration::from_secs(60);
            let (client, link) = kind.client(&scene.store, &runtime, 2, ttl);
            let guard = client.lock("l").acquire().await.unwrap();
            link.next(Call::Commit, fault);
            let error = guard.put(&scene.key, "6", Expiry::Never).await.unwrap_err();
            assert!(error.is_ambiguous(), "{kind:?}, {fault:?}: {error}");
            assert!(
                error.to_string().contains("for as long as this is held"),
                "{error}"
            );
            guard.release().await.unwrap();
            let left = scene.store.node(&scene.key).await.unwrap().unwrap();
            link.quiesce().await;
            let node = scene.store.node(&scene.key).await.unwrap().unwrap();
            assert_eq!(node, left, "{kind:?}, {fault:?}: it came late");
            let done = fault == Fault::LostReply;
            assert_eq!(node.text(), Some(if done { "6" } else { "5" }), "{fault:?}");
        }
    }
}
