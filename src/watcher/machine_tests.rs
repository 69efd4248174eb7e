//! The edges of the watcher's machine, one by one.

use super::*;
use crate::store::{Change, Node};

fn at(number: u64) -> Index {
    Index::new(number).unwrap()
}

fn key(name: &str) -> Key {
    Key::new(format!("/t/{name}")).unwrap()
}

fn event(index: u64, name: &str) -> Event {
    let node = Node::file(key(name), "v", at(index), at(index));
    Event::new(at(index), key(name), Change::Put(node))
}

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, "on purpose")
}

struct Rig {
    machine: Machine,
    entropy: Entropy,
}

impl Rig {
    fn new() -> Self {
        Self {
            machine: Machine::new(),
            entropy: Entropy::seeded(1),
        }
    }

    /// One that has listed at `index`.
    fn listed(index: u64) -> Self {
        let mut rig = Self::new();
        let item = rig.list(Ok(View::new(at(index), Vec::new()))).unwrap();
        assert!(matches!(item, Follow::Snapshot(view) if view.index == at(index)));
        rig
    }

    fn list(&mut self, outcome: Result<View, Error>) -> Result<Follow, Error> {
        self.list_slowly(Duration::ZERO, outcome)
    }

    fn list_slowly(
        &mut self,
        took: Duration,
        outcome: Result<View, Error>,
    ) -> Result<Follow, Error> {
        self.machine.listed(outcome, took, &self.entropy)
    }

    fn update(&mut self, update: Update) -> Option<Follow> {
        let item = self.machine.updated(Some(Ok(update)), &self.entropy);
        item.unwrap()
    }

    /// Whether a change is told.
    fn tells(&mut self, index: u64, name: &str) -> bool {
        match self.update(Update::Event(event(index, name))) {
            Some(Follow::Event(told)) => told.index == at(index),
            other => {
                assert!(other.is_none(), "{other:?}");
                false
            }
        }
    }

    /// Breaks the watch, and says for how long it rests.
    fn breaks(&mut self, kind: ErrorKind) -> Duration {
        let item = self.machine.updated(Some(Err(error(kind))), &self.entropy);
        assert!(matches!(item, Ok(Some(Follow::Interrupted(_)))), "{item:?}");
        self.rests()
    }

    fn rests(&mut self) -> Duration {
        let Want::Rest(pause) = self.machine.wants() else {
            panic!("{:?}", self.machine);
        };
        self.machine.rested();
        pause
    }
}

#[test]
fn it_lists_linearizably_and_watches_from_the_index_after() {
    let rig = Rig::new();
    assert_eq!(rig.machine.wants(), Want::List(Freshness::Linearizable));
    assert_eq!(Rig::listed(7).machine.wants(), Want::Watch(at(8)));
}

#[test]
fn one_that_goes_on_from_a_read_watches_from_the_index_after() {
    assert_eq!(Machine::after(at(7)).wants(), Want::Watch(at(8)));
}

#[test]
fn one_that_begins_now_lists_only_if_something_may_have_happened_meanwhile() {
    let begun = || Rig {
        machine: Machine::from_now(at(7)),
        ..Rig::new()
    };
    for opened in [6, 7] {
        let mut rig = begun();
        assert_eq!(rig.machine.wants(), Want::WatchFromNow);
        assert!(rig.update(Update::Open(at(opened))).is_none());
        assert_eq!(rig.machine.wants(), Want::Watch(at(8)));
        assert!(!rig.tells(7, "a"), "it was read");
        assert!(rig.tells(8, "a"));
    }
    let mut rig = begun();
    rig.breaks(ErrorKind::Unavailable);
    assert_eq!(rig.machine.wants(), Want::WatchFromNow);
    let resumed = rig.update(Update::Open(at(9)));
    assert!(matches!(resumed, Some(Follow::Resumed(_))), "{resumed:?}");
    assert_eq!(rig.machine.wants(), Want::List(Freshness::AtLeast(at(9))));
    let view = View::new(at(11), Vec::new());
    assert!(matches!(rig.list(Ok(view)), Ok(Follow::Snapshot(_))));
    assert!(!rig.tells(10, "a"), "it is in the list");
    assert!(rig.tells(12, "a"));
}

#[test]
fn a_watch_that_breaks_before_a_change_begins_where_it_began() {
    let mut rig = Rig::listed(7);
    assert!(rig.update(Update::Open(at(9))).is_none());
    rig.breaks(ErrorKind::Unavailable);
    assert_eq!(rig.machine.wants(), Want::Watch(at(8)));
}

#[test]
fn changes_that_share_an_index_come_once_each_across_a_break() {
    let mut rig = Rig::listed(7);
    assert!(rig.tells(9, "a"));
    assert!(rig.tells(9, "b"));
    rig.breaks(ErrorKind::Unavailable);
    assert_eq!(rig.machine.wants(), Want::Watch(at(9)));
    assert!(!rig.tells(9, "a"));
    assert!(!rig.tells(9, "b"));
    assert!(rig.tells(9, "c"));
    assert!(rig.tells(10, "a"));
    assert!(!rig.tells(9, "c"), "an old one");
}

#[test]
fn progress_moves_on_and_is_told_once() {
    let mut rig = Rig::listed(7);
    assert!(rig.tells(9, "a"));
    assert!(
        matches!(rig.update(Update::Progress(at(20))), Some(Follow::Progress(i)) if i == at(20))
    );
    assert!(rig.update(Update::Progress(at(20))).is_none());
    assert!(
        !rig.tells(20, "b"),
        "it was said that there is nothing else"
    );
    rig.breaks(ErrorKind::Timeout);
    assert_eq!(rig.machine.wants(), Want::Watch(at(21)));
}

#[test]
fn lost_history_is_listed_anew_and_never_older_than_what_was_told() {
    let mut rig = Rig::listed(7);
    assert!(rig.tells(9, "a"));
    rig.breaks(ErrorKind::HistoryLost);
    assert_eq!(rig.machine.wants(), Want::List(Freshness::AtLeast(at(9))));
    let item = rig.list(Ok(View::new(at(30), Vec::new())));
    assert!(matches!(item, Ok(Follow::Snapshot(_))));
    assert_eq!(rig.machine.wants(), Want::Watch(at(31)));
}

#[test]
fn a_list_that_takes_long_is_not_asked_for_more_than_half_of_the_time() {
    let (mut rig, took) = (Rig::listed(7), Duration::from_secs(5));
    for index in 1..4 {
        rig.breaks(ErrorKind::HistoryLost);
        let list = rig.list_slowly(took, Ok(View::new(at(index * 1_000), Vec::new())));
        assert!(matches!(list, Ok(Follow::Snapshot(_))));
        assert!(rig.tells(index * 1_000 + 1, "a"));
        // What broke otherwise goes on at once.
        assert!(rig.breaks(ErrorKind::Unavailable) < took);
        assert!(rig.tells(index * 1_000 + 2, "a"));
        let item = rig
            .machine
            .updated(Some(Err(error(ErrorKind::HistoryLost))), &rig.entropy);
        assert!(matches!(item, Ok(Some(Follow::Interrupted(_)))));
        assert!(rig.rests() >= took);
        let list = rig.list_slowly(took, Ok(View::new(at(index * 1_000 + 500), Vec::new())));
        assert!(matches!(list, Ok(Follow::Snapshot(_))));
    }
}

#[test]
fn a_list_after_lost_history_is_as_new_as_the_server_that_lost_it() {
    let mut rig = Rig::listed(7);
    let lost = error(ErrorKind::HistoryLost).seen_at(at(5_000));
    let item = rig.machine.updated(Some(Err(lost)), &rig.entropy);
    assert!(matches!(item, Ok(Some(Follow::Interrupted(_)))));
    rig.rests();
    assert_eq!(
        rig.machine.wants(),
        Want::List(Freshness::AtLeast(at(5_000)))
    );
}

#[test]
fn a_list_that_fails_is_tried_again_and_as_new_as_before() {
    let mut rig = Rig::new();
    for kind in [
        ErrorKind::Unreachable,
        ErrorKind::Unavailable,
        ErrorKind::Timeout,
    ] {
        assert!(matches!(
            rig.list(Err(error(kind))),
            Ok(Follow::Interrupted(_))
        ));
        rig.rests();
        assert_eq!(rig.machine.wants(), Want::List(Freshness::Linearizable));
    }
}

#[test]
fn an_index_that_goes_back_is_another_store() {
    let mut rig = Rig::listed(70);
    rig.breaks(ErrorKind::HistoryLost);
    let outcome = rig.list(Ok(View::new(at(6), Vec::new())));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ClusterChanged);
    assert_eq!(rig.machine.wants(), Want::Nothing);
}

#[test]
fn what_will_not_pass_ends_it() {
    for kind in [
        ErrorKind::Unauthorized,
        ErrorKind::Forbidden,
        ErrorKind::ClusterChanged,
        ErrorKind::Protocol,
    ] {
        let mut rig = Rig::new();
        assert_eq!(rig.list(Err(error(kind))).unwrap_err().kind(), kind);
        assert_eq!(rig.machine.wants(), Want::Nothing);
        let mut rig = Rig::listed(7);
        let outcome = rig.machine.updated(Some(Err(error(kind))), &rig.entropy);
        assert_eq!(outcome.unwrap_err().kind(), kind);
        assert_eq!(rig.machine.wants(), Want::Nothing);
    }
}

#[test]
fn a_watch_that_ends_without_a_word_is_taken_up_again() {
    let mut rig = Rig::listed(7);
    let item = rig.machine.updated(None, &rig.entropy);
    assert!(matches!(item, Ok(Some(Follow::Interrupted(_)))));
    rig.rests();
    assert_eq!(rig.machine.wants(), Want::Watch(at(8)));
}

#[test]
fn the_end_of_an_interruption_is_told_once_and_by_a_list_alone() {
    let mut rig = Rig::listed(7);
    assert!(rig.update(Update::Open(at(7))).is_none(), "no interruption");
    rig.breaks(ErrorKind::Unavailable);
    rig.breaks(ErrorKind::Unavailable);
    assert!(matches!(rig.update(Update::Open(at(9))), Some(Follow::Resumed(i)) if i == at(9)));
    assert!(rig.update(Update::Open(at(9))).is_none());
    rig.breaks(ErrorKind::HistoryLost);
    assert!(matches!(
        rig.list(Ok(View::new(at(30), Vec::new()))),
        Ok(Follow::Snapshot(_))
    ));
    assert!(rig.update(Update::Open(at(30))).is_none());
}

#[test]
fn lists_that_succeed_between_lost_histories_do_not_make_it_hurry() {
    let mut rig = Rig::listed(7);
    let mut pauses = Vec::new();
    for round in 1..10 {
        pauses.push(rig.breaks(ErrorKind::HistoryLost));
        let item = rig.list(Ok(View::new(at(7 + round), Vec::new())));
        assert!(matches!(item, Ok(Follow::Snapshot(_))));
    }
    assert!(pauses[8] >= Duration::from_millis(500), "{pauses:?}");
}

#[test]
fn pauses_grow_until_something_is_told() {
    let mut rig = Rig::listed(7);
    let first = rig.breaks(ErrorKind::Unavailable);
    for _ in 0..8 {
        rig.breaks(ErrorKind::Unavailable);
        // Not a sign of health: the watch opens, and breaks.
        assert!(matches!(
            rig.update(Update::Open(at(7))),
            Some(Follow::Resumed(_))
        ));
    }
    let late = rig.breaks(ErrorKind::Unavailable);
    assert!(first <= Duration::from_millis(25), "{first:?}");
    assert!(late >= Duration::from_millis(500), "{late:?}");
    assert!(late <= Duration::from_secs(1), "{late:?}");
    assert!(rig.tells(9, "a"));
    assert!(rig.breaks(ErrorKind::Unavailable) <= Duration::from_millis(25));
}
