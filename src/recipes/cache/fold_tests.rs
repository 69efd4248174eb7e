//! The edges of the fold, one by one.

use super::*;
use crate::error::ErrorKind;
use crate::recipes::cache::health::{CacheSource, CacheState};
use crate::store::View;

fn index(number: u64) -> Index {
    Index::new(number).unwrap()
}

fn key(name: &str) -> Key {
    Key::new(format!("/t/{name}")).unwrap()
}

fn at(secs: u64) -> Instant {
    Instant::new(Duration::from_secs(secs))
}

fn file(name: &str, value: &str, created: u64, modified: u64) -> Node {
    Node::file(key(name), value.to_owned(), index(created), index(modified))
}

fn put(number: u64, name: &str, value: &str) -> Event {
    let node = file(name, value, number, number);
    Event::new(index(number), key(name), Change::Put(node))
}

fn gone(number: u64, name: &str) -> Event {
    Event::new(index(number), key(name), Change::Delete { expired: false })
}

struct Rig(Fold);

impl Rig {
    /// One that has listed at `number`.
    fn listed(number: u64, nodes: Vec<Node>) -> Self {
        let mut rig = Self(Fold::new());
        assert!(matches!(rig.list(number, nodes), Some(What::Resync)));
        rig
    }

    fn list(&mut self, number: u64, nodes: Vec<Node>) -> Option<What> {
        self.take(Follow::Snapshot(View::new(index(number), nodes)))
    }

    /// What is told; the state is posted with it.
    fn take(&mut self, item: Follow) -> Option<What> {
        self.0.take(item, at(0)).expect("a post").1
    }

    /// The names that an event changes.
    fn update(&mut self, event: Event) -> Vec<String> {
        match self.take(Follow::Event(event)) {
            Some(What::Update(changed)) => {
                changed.keys().map(|key| key.name().to_owned()).collect()
            }
            None => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn text(&self) -> String {
        let entries = self.0.state.entries.iter();
        let entries = entries.map(|(key, stored)| {
            let value = String::from_utf8_lossy(&stored.value).into_owned();
            format!("{}={value}", key.below(&Key::new("/t").unwrap()).unwrap())
        });
        entries.collect::<Vec<_>>().join(" ")
    }

    fn state(&self) -> CacheState {
        self.0.state.health.state
    }

    fn at(&self) -> u64 {
        self.0.state.index.map_or(0, Index::get)
    }

    fn interrupt(&mut self) {
        let error = Error::new(ErrorKind::Unreachable, "on purpose");
        assert!(self.take(Follow::Interrupted(error)).is_none());
    }
}

#[test]
fn a_list_makes_it_live_and_directories_are_no_entries() {
    let mut rig = Rig(Fold::new());
    assert_eq!((rig.state(), rig.at()), (CacheState::Loading, 0));
    rig.interrupt();
    assert_eq!(rig.state(), CacheState::Loading);
    assert!(rig.0.state.health.error.is_some());
    let dir = Node::dir(key("d"), index(2), index(2));
    rig.list(9, vec![file("a", "1", 3, 3), dir, file("d/b", "2", 4, 4)]);
    assert_eq!((rig.text().as_str(), rig.at()), ("a=1 d/b=2", 9));
    assert_eq!(rig.state(), CacheState::Live);
    assert!(rig.0.state.health.error.is_none());
    assert_eq!(rig.0.state.health.source, CacheSource::Store);
}

#[test]
fn each_kind_of_event_is_applied() {
    let nodes = vec![
        file("a", "1", 3, 3),
        file("d", "x", 4, 4),
        file("e-f", "x", 4, 4),
        file("e/f", "x", 5, 5),
        file("e/g/h", "x", 6, 6),
        file("e0", "x", 6, 6),
    ];
    let mut rig = Rig::listed(9, nodes);
    assert_eq!(rig.update(put(10, "a", "2")), ["a"]);
    assert_eq!(rig.update(put(11, "b", "1")), ["b"]);
    assert_eq!(rig.update(gone(12, "b")), ["b"]);
    assert_eq!(rig.update(gone(13, "b")), [""; 0], "nothing was there");
    assert_eq!(rig.update(gone(14, "e")), ["f", "h"]);
    let dir = Change::Put(Node::dir(key("d"), index(15), index(15)));
    assert_eq!(rig.update(Event::new(index(15), key("d"), dir)), ["d"]);
    assert_eq!((rig.text().as_str(), rig.at()), ("a=2 e-f=x e0=x", 15));
    let above = Event::new(index(16), Key::root(), Change::Delete { expired: true });
    assert_eq!(rig.update(above), ["a", "e-f", "e0"]);
    assert_eq!((rig.text().as_str(), rig.at()), ("", 16));
}

#[test]
fn what_is_old_changes_nothing() {
    let mut rig = Rig::listed(9, vec![file("a", "1", 3, 3)]);
    assert!(
        rig.0
            .take(Follow::Event(put(9, "a", "old")), at(0))
            .is_none()
    );
    assert!(rig.0.take(Follow::Event(gone(5, "a")), at(0)).is_none());
    rig.take(Follow::Progress(index(4)));
    assert_eq!((rig.text().as_str(), rig.at()), ("a=1", 9));
}

#[test]
fn a_commit_is_one_step_and_nobody_sees_a_half_of_it() {
    let mut rig = Rig::listed(9, vec![file("a", "1", 3, 3)]);
    for event in [put(10, "b", "2"), gone(10, "a")] {
        let event = event.and_more(true);
        assert!(rig.0.take(Follow::Event(event), at(0)).is_none());
        assert_eq!((rig.text().as_str(), rig.at()), ("a=1", 9));
    }
    // The connection breaks in the middle; the rest comes after.
    rig.interrupt();
    assert_eq!((rig.text().as_str(), rig.at()), ("a=1", 9));
    rig.take(Follow::Resumed(index(10)));
    assert_eq!(rig.state(), CacheState::Stale, "the rest is missing");
    assert_eq!(rig.update(put(11, "c", "3")), ["a", "b", "c"]);
    assert_eq!((rig.text().as_str(), rig.at()), ("b=2 c=3", 11));
    assert_eq!(rig.state(), CacheState::Live);
}

#[test]
fn a_list_takes_the_place_of_a_half_commit() {
    let mut rig = Rig::listed(9, vec![file("a", "1", 3, 3)]);
    let half = put(10, "b", "2").and_more(true);
    assert!(rig.0.take(Follow::Event(half), at(0)).is_none());
    rig.list(20, vec![file("c", "3", 12, 12)]);
    assert_eq!(rig.update(put(21, "d", "4")), ["d"]);
    assert_eq!(rig.text(), "c=3 d=4");
}

#[test]
fn a_new_list_shares_what_is_the_same_and_sees_what_was_created_again() {
    let nodes = vec![
        file("again", "v", 3, 3),
        file("gone", "v", 4, 4),
        file("refreshed", "v", 5, 5),
        file("same", "v", 6, 6),
        file("set", "v", 7, 7),
        file("z-gone", "v", 7, 8),
    ];
    let mut rig = Rig::listed(9, nodes);
    let before = rig.0.state.entries.clone();
    let nodes = vec![
        file("again", "v", 12, 12),
        file("new", "v", 13, 13),
        file("refreshed", "v", 5, 14),
        file("same", "v", 6, 6),
        file("set", "w", 7, 15),
    ];
    rig.list(20, nodes);
    let found =
        crate::recipes::cache::board::differing(&before, &rig.0.state.entries, |one, other| {
            one.same(other)
        });
    let found: Vec<_> = found
        .iter()
        .map(|(key, new)| (key.name(), new.is_some()))
        .collect();
    assert_eq!(
        found,
        [
            ("again", true),
            ("gone", false),
            ("new", true),
            ("set", true),
            ("z-gone", false)
        ]
    );
    assert!(Arc::ptr_eq(
        &before[&key("same")],
        &rig.0.state.entries[&key("same")]
    ));
}

#[test]
fn a_resumed_watch_is_live_when_it_has_told_what_it_had() {
    let mut rig = Rig::listed(9, Vec::new());
    rig.interrupt();
    assert_eq!(rig.state(), CacheState::Stale);
    rig.take(Follow::Resumed(index(9)));
    assert_eq!(rig.state(), CacheState::Live, "it had nothing");

    rig.interrupt();
    rig.take(Follow::Resumed(index(12)));
    assert_eq!(rig.0.settles_at(), Some(at(1)));
    rig.update(put(10, "a", "1"));
    assert_eq!(rig.state(), CacheState::Stale);
    rig.update(put(12, "a", "2"));
    assert_eq!((rig.state(), rig.0.settles_at()), (CacheState::Live, None));

    // The rest was somewhere else in the store.
    rig.interrupt();
    rig.take(Follow::Resumed(index(50)));
    let post = rig.0.take(Follow::Event(put(14, "a", "3")), at(3));
    assert!(post.is_some());
    assert_eq!(
        (rig.state(), rig.0.settles_at()),
        (CacheState::Stale, Some(at(4)))
    );
    assert!(rig.0.settled().is_some());
    assert_eq!((rig.state(), rig.at()), (CacheState::Live, 14));
    assert!(rig.0.settled().is_none());

    rig.interrupt();
    rig.take(Follow::Resumed(index(60)));
    rig.interrupt();
    assert_eq!(
        rig.0.settles_at(),
        None,
        "it does not settle while it is cut off"
    );
    rig.take(Follow::Resumed(index(60)));
    rig.take(Follow::Progress(index(60)));
    assert_eq!((rig.state(), rig.at()), (CacheState::Live, 60));
}

#[test]
fn an_end_is_told_and_the_next_list_may_go_back() {
    let mut rig = Rig::listed(90, vec![file("a", "1", 3, 3)]);
    let error = Error::new(ErrorKind::ClusterChanged, "on purpose");
    let Some((state, Some(What::Trouble(told)))) = rig.0.failed(error) else {
        panic!("not told")
    };
    assert_eq!(told.kind(), ErrorKind::ClusterChanged);
    assert_eq!(
        (state.health.state, rig.text().as_str()),
        (CacheState::Stale, "a=1")
    );
    rig.list(5, vec![file("b", "1", 3, 3)]);
    assert_eq!(
        (rig.text().as_str(), rig.at(), rig.state()),
        ("b=1", 5, CacheState::Live)
    );
}

#[test]
fn a_prefix_that_is_a_file_is_an_entry() {
    let top = Key::new("/t").unwrap();
    let node = Node::file(top.clone(), "x", index(3), index(3));
    let rig = Rig::listed(9, vec![node]);
    assert_eq!(rig.0.state.entries.size(), 1);
    assert_eq!(within(&rig.0.state.entries, &top), [top]);
}
