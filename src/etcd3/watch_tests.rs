//! The edges of a watch, one by one.

use super::super::proto::ResponseHeader;
use super::*;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn at(index: u64) -> Index {
    Index::new(index).unwrap()
}

fn answer(revision: i64) -> WatchResponse {
    WatchResponse {
        header: Some(ResponseHeader {
            cluster_id: 1,
            revision,
            ..ResponseHeader::default()
        }),
        ..WatchResponse::default()
    }
}

fn created(revision: i64) -> WatchResponse {
    WatchResponse {
        created: true,
        ..answer(revision)
    }
}

fn events(of: &[(i32, &str, i64)]) -> WatchResponse {
    let event = |(kind, key, revision): &(i32, &str, i64)| WatchEvent {
        kind: *kind,
        kv: Some(KeyValue {
            key: (*key).to_owned().into(),
            create_revision: *revision,
            mod_revision: *revision,
            ..KeyValue::default()
        }),
    };
    WatchResponse {
        events: of.iter().map(event).collect(),
        ..answer(99)
    }
}

fn told(heard: Heard) -> Vec<String> {
    let Heard::Told(updates) = heard else {
        panic!("{heard:?}")
    };
    let short = |it| match it {
        Update::Open(at) => format!("open {at}"),
        Update::Progress(at) => format!("quiet {at}"),
        Update::Event(event) => {
            let what = match event.change {
                Change::Put(_) => "put",
                Change::Delete { .. } => "del",
            };
            let more = if event.more { " more" } else { "" };
            format!("{} {what} {}{more}", event.index, event.key)
        }
    };
    updates.into_iter().map(short).collect()
}

#[test]
fn a_watch_goes_on_behind_the_last_event_and_opens_once() {
    let mut it = Following::new(Watch::tree(key("/a")));
    assert_eq!(it.ask(7, None).unwrap().start_revision, 0);
    assert_eq!(told(it.hear(created(10))), ["open 10"]);
    let heard = it.hear(events(&[(0, "/a", 11), (1, "/a/b", 12)]));
    assert_eq!(told(heard), ["11 put /a", "12 del /a/b"]);
    let again = it.ask(7, Some(at(12))).unwrap();
    assert_eq!((again.start_revision, again.watch_id), (13, 7));
    let again = it.ask(8, Some(at(20))).unwrap();
    assert_eq!((again.start_revision, again.watch_id), (12, 8));
    assert!(
        told(it.hear(events(&[(0, "/a", 13)]))).is_empty(),
        "before it is open"
    );
    assert!(told(it.hear(created(20))).is_empty());
    let heard = it.hear(events(&[(1, "/a/b", 12), (0, "/a", 13)]));
    assert_eq!(
        told(heard),
        ["13 put /a"],
        "what was told is not told again"
    );
}

#[test]
fn an_index_that_comes_in_fragments_is_told_whole() {
    let mut it = Following::new(Watch::tree(key("/a")));
    it.ask(1, None);
    it.hear(created(1));
    let part = |of: &[(i32, &str, i64)]| WatchResponse {
        fragment: true,
        ..events(of)
    };
    assert!(told(it.hear(part(&[(0, "/a/1", 2)]))).is_empty());
    assert_eq!(
        it.ask(1, Some(at(2))).unwrap().start_revision,
        1,
        "half of it is none"
    );
    it.hear(created(2));
    assert!(told(it.hear(part(&[(0, "/a/1", 2)]))).is_empty());
    // What is whole does not wait for the rest.
    let heard = it.hear(part(&[(0, "/a/2", 2), (0, "/a/3", 3), (1, "/a/4", 4)]));
    assert_eq!(told(heard), ["2 put /a/1 more", "2 put /a/2", "3 put /a/3"]);
    assert_eq!(it.ask(1, Some(at(9))).unwrap().start_revision, 3);
    it.hear(created(9));
    it.hear(part(&[(1, "/a/4", 4)]));
    let heard = it.hear(events(&[(1, "/a/5", 4), (0, "/a/6", 5)]));
    assert_eq!(told(heard), ["4 del /a/4 more", "4 del /a/5", "5 put /a/6"]);
}

#[test]
fn the_writes_of_one_index_say_that_more_follows_of_those_that_are_told() {
    let mut it = Following::new(Watch::tree(key("/a")));
    it.ask(1, None);
    it.hear(created(1));
    let heard = it.hear(events(&[
        (0, "/a/_hidden", 2),
        (0, "/a/b", 2),
        (0, "/a/c", 2),
        (0, "/a/x/_hidden", 2),
        (0, "/a/b", 3),
        (0, "/a/_hidden", 4),
    ]));
    assert_eq!(told(heard), ["2 put /a/b more", "2 put /a/c", "3 put /a/b"]);
}

/// A server that was compacted at an index has forgotten what was deleted there, and serves a watch
/// from there all the same.
#[test]
fn a_watch_from_where_something_may_have_been_written_begins_one_earlier() {
    let mut it = Following::new(Watch::tree(key("/a")).from(at(5)));
    assert_eq!(it.ask(1, Some(at(5))).unwrap().start_revision, 4);
    assert_eq!(told(it.hear(created(5))), ["open 5"]);
    assert_eq!(
        told(it.hear(events(&[(1, "/a", 4), (1, "/a", 5)]))),
        ["5 del /a"]
    );
    // Where nothing has been written it begins there, and is fed at once.
    assert_eq!(it.ask(1, Some(at(5))).unwrap().start_revision, 6);
    assert!(told(it.hear(created(5))).is_empty());
    // It was thought that nothing had.
    assert_eq!(it.ask(1, Some(at(5))).unwrap().start_revision, 6);
    assert!(matches!(it.hear(created(6)), Heard::Anew));
    assert_eq!(it.ask(1, Some(at(6))).unwrap().start_revision, 5);
    assert!(told(it.hear(created(7))).is_empty());
    // Before the first write there is nothing.
    let mut it = Following::new(Watch::tree(key("/a")).from(Index::MIN));
    assert_eq!(it.ask(1, Some(at(5))).unwrap().start_revision, 1);
}

#[test]
fn siblings_hidden_keys_and_strangers_are_left_out_and_move_it_on() {
    let mut it = Following::new(Watch::tree(key("/a")).deletes_only());
    let ask = it.ask(1, None).unwrap();
    assert_eq!(
        (&ask.range_end[..], &ask.filters[..]),
        (&b"/a0"[..], &[NO_PUTS][..])
    );
    it.hear(created(1));
    let heard = it.hear(events(&[
        (1, "/a-b", 2),
        (1, "/a/_x/y", 3),
        (1, "/a//x", 4),
        (0, "/a/put", 5),
        (1, "/a/z", 6),
    ]));
    assert_eq!(told(heard), ["6 del /a/z"]);
    assert!(told(it.hear(events(&[(1, "/a-b", 8)]))).is_empty());
    assert_eq!(it.ask(1, None).unwrap().start_revision, 9);
}

fn waiting_since(from: u64) -> Following {
    let mut it = Following::new(Watch::node(key("/a")).from(at(from)).deletes_only());
    assert_eq!(it.ask(1, None).unwrap().start_revision, 0, "from now on");
    it
}

#[test]
fn a_key_that_was_there_all_the_while_is_watched_from_now_on() {
    let mut it = waiting_since(5);
    assert!(matches!(it.hear(created(8)), Heard::Look(opened) if opened == at(8)));
    assert!(told(it.hear(events(&[(1, "/a", 9)]))).is_empty());
    let whole = it.looked(at(8), Some(at(4))).unwrap();
    assert_eq!(told(Heard::Told(whole)), ["open 8", "9 del /a"]);
    assert_eq!(it.ask(1, None).unwrap().start_revision, 10);
}

#[test]
fn a_key_that_may_have_gone_meanwhile_is_watched_from_the_index() {
    for found in [None, Some(at(5)), Some(at(7))] {
        let mut it = waiting_since(5);
        it.hear(created(8));
        it.hear(events(&[(1, "/a", 9)]));
        assert!(it.looked(at(8), found).is_none(), "{found:?}");
        assert_eq!(it.ask(1, Some(at(8))).unwrap().start_revision, 4);
        assert_eq!(told(it.hear(created(9))), ["open 9"]);
        let heard = it.hear(events(&[(1, "/a", 6), (1, "/a", 9)]));
        assert_eq!(told(heard), ["6 del /a", "9 del /a"]);
    }
}

#[test]
fn what_is_found_for_a_stream_that_has_ended_counts_no_more() {
    let mut it = waiting_since(5);
    it.hear(created(8));
    assert_eq!(it.ask(1, None).unwrap().start_revision, 0);
    assert_eq!(it.looked(at(8), Some(at(4))), Some(Vec::new()));
    assert!(matches!(it.hear(created(9)), Heard::Look(opened) if opened == at(9)));
    // Nothing was written since: nothing needs to be looked at.
    let mut it = waiting_since(9);
    assert_eq!(told(it.hear(created(8))), ["open 8"]);
    assert_eq!(it.ask(1, None).unwrap().start_revision, 9);
}

#[test]
fn progress_moves_it_on_and_never_back() {
    let mut it = Following::new(Watch::node(key("/a")));
    it.ask(1, None);
    it.hear(created(5));
    assert_eq!(told(it.hear(answer(9))), ["quiet 9"]);
    assert!(told(it.hear(answer(8))).is_empty());
    assert_eq!(it.ask(1, None).unwrap().start_revision, 10);
}

#[test]
fn what_is_compacted_away_is_history_lost() {
    let mut it = Following::new(Watch::node(key("/a")).from(at(3)));
    it.ask(1, Some(at(9)));
    assert_eq!(told(it.hear(created(9))), ["open 9"]);
    let mut lost = answer(0);
    (lost.canceled, lost.compact_revision) = (true, 7);
    let Heard::Over(error) = it.hear(lost) else {
        panic!("not over")
    };
    let told = (error.kind(), error.index());
    assert_eq!(told, (ErrorKind::HistoryLost, Some(at(7))));
}

#[test]
fn a_server_that_ends_a_watch_is_understood() {
    let end = |reason: &str| {
        let mut it = Following::new(Watch::node(key("/a")));
        it.ask(1, None);
        it.hear(WatchResponse {
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..answer(3)
        })
    };
    assert!(matches!(
        end("etcdserver: permission denied"),
        Heard::Denied(_)
    ));
    assert!(matches!(end("etcdserver: no leader"), Heard::Broken(_)));
    assert!(matches!(end(""), Heard::Broken(_)));
}

#[test]
fn a_watch_that_is_not_read_asks_for_nothing_until_it_is() {
    let mut it = Following::new(Watch::node(key("/a")));
    it.ask(1, None);
    it.hear(created(5));
    it.hear(events(&[(0, "/a", 6)]));
    it.lag();
    assert!(it.ask(1, None).is_none());
    assert!(told(it.hear(events(&[(0, "/a", 7)]))).is_empty());
    it.resume();
    assert_eq!(
        it.ask(1, None).unwrap().start_revision,
        7,
        "nothing is lost"
    );
}
