//! One watch, as a machine: what it asks a stream for, and what it makes of the answers.
//!
//! ```text
//!           created                     compacted
//! Asked ───────────────▶ Open ───────────────────────▶ ended: HistoryLost
//!   ▲  (first: Open)      │ │ not read: too much queued
//!   │                     │ └──────────▶ Lagging ── drained ──▶ Asked
//!   └── the stream ended ─┘
//! ```
//!
//! **From the past, and at once.** A server feeds a watch that begins at or before its own index ten
//! times a second only. A watch for the deletion of one key, which is what a line waits with, would
//! so wait for nothing: it is opened from now on instead, and the key is looked at as of the moment
//! when it opened. If it has been there since before the first index asked for, nothing is missing
//! in between; if not, the watch is opened anew from that index.
//!
//! ```text
//! Asked ──created──▶ Looking ── there all the while ──▶ Open
//!   ▲                   │ cannot be told
//!   └───────────────────┘ from the index
//! ```
//!
//! **No event is lost or doubled.** `next` is the first index not told. A stream is asked to begin
//! there; what is older is dropped, because servers say things twice. It moves behind an index only
//! when all events of that index are there (a large one comes in fragments), so an index is never
//! split. Only what a server says about *this* watch moves it: an answer to a request for progress
//! is a sign of life and no more, because old servers send it ahead of events.

use bytes::Bytes;

use super::driver::{bytes, named, node, prefix_end};
use super::error::{Next, judge};
use super::proto::{KeyValue, WatchCreateRequest, WatchEvent, WatchResponse};
use super::rpc::index;
use super::txn::number;
use crate::error::{Error, ErrorKind};
use crate::key::{Index, Key};
use crate::store::{Change, Event, Filter, Scope, Update, Watch};

/// A deletion, in etcd's words.
const DELETION: i32 = 1;
/// Do not send writes.
const NO_PUTS: i32 = 0;

/// A watch.
#[derive(Debug)]
pub(super) struct Following {
    watch: Watch,
    /// The first index that was not told; `None` for from now on.
    next: Option<Index>,
    state: State,
    /// Whether it has been told that it is open.
    announced: bool,
    /// Whether it may be opened from now on, although an index was asked for.
    short_cut: bool,
    /// Whether a new token was tried when it was forbidden.
    pub(super) denied: bool,
    /// The parts of an answer that is not whole yet.
    parts: Vec<WatchEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A stream was, or will be, asked for it.
    Asked,
    Open,
    /// It was opened after this index, and what came before is being looked for.
    Looking(Index),
    /// It is not read, and nothing is asked for.
    Lagging,
}

/// What an answer means.
#[derive(Debug)]
pub(super) enum Heard {
    /// This is to be told.
    Told(Vec<Update>),
    /// Whether the key was there, at this index, since before the first that was asked for.
    Look(Index),
    /// The watch is over.
    Over(Error),
    /// Perhaps only the token is too old.
    Denied(Error),
    /// The stream is of no use any more.
    Broken(Error),
}

impl Following {
    pub(super) fn new(watch: Watch) -> Self {
        let alone = watch.scope == Scope::Node && watch.filter == Filter::Deletes;
        Self {
            next: watch.from,
            short_cut: alone && watch.from.is_some(),
            watch,
            state: State::Asked,
            announced: false,
            denied: false,
            parts: Vec::new(),
        }
    }

    pub(super) fn key(&self) -> &Key {
        &self.watch.key
    }

    /// What a stream is to be asked for; `None` if nothing.
    pub(super) fn ask(&mut self, id: i64) -> Option<WatchCreateRequest> {
        if self.state == State::Lagging {
            return None;
        }
        self.state = State::Asked;
        self.parts.clear();
        let tree = self.watch.scope == Scope::Tree;
        let filters = match self.watch.filter {
            Filter::All => Vec::new(),
            Filter::Deletes => vec![NO_PUTS],
        };
        Some(WatchCreateRequest {
            key: bytes(&self.watch.key),
            // With the siblings that lie between a key and what is below it.
            range_end: if tree {
                prefix_end(&self.watch.key)
            } else {
                Bytes::new()
            },
            start_revision: self.next.filter(|_| !self.short_cut).map_or(0, number),
            progress_notify: true,
            filters,
            watch_id: id,
            fragment: true,
        })
    }

    /// It is not read: stop asking for more.
    pub(super) fn lag(&mut self) {
        self.state = State::Lagging;
        self.parts.clear();
    }

    /// It is read again.
    pub(super) fn resume(&mut self) {
        if self.state == State::Lagging {
            self.state = State::Asked;
        }
    }

    /// An answer about this watch.
    pub(super) fn hear(&mut self, answer: WatchResponse) -> Heard {
        let revision = answer.header.and_then(|it| index(it.revision));
        if self.state == State::Lagging {
            return Heard::Told(Vec::new());
        }
        if answer.compact_revision > 0 {
            let text = format!(
                "the events from index {} on are compacted away up to {}",
                self.next.map_or(0, Index::get),
                answer.compact_revision
            );
            return Heard::Over(Error::new(ErrorKind::HistoryLost, text));
        }
        if answer.canceled {
            return cancelled(&answer.cancel_reason);
        }
        if answer.created {
            let Some(opened) = revision else {
                let text = "the watch was opened at no revision";
                return Heard::Over(Error::new(ErrorKind::Protocol, text));
            };
            self.denied = false;
            if self.short_cut && self.next.is_some_and(|next| next <= opened) {
                self.state = State::Looking(opened);
                return Heard::Look(opened);
            }
            self.short_cut = false;
            self.state = State::Open;
            self.next.get_or_insert(opened.next());
            let first = !std::mem::replace(&mut self.announced, true);
            return Heard::Told(Vec::from_iter(first.then_some(Update::Open(opened))));
        }
        if let State::Looking(_) = self.state {
            self.parts.extend(answer.events);
            return Heard::Told(Vec::new());
        }
        if self.state != State::Open {
            // Of the time before it was asked for anew.
            return Heard::Told(Vec::new());
        }
        if answer.events.is_empty() && !answer.fragment && self.parts.is_empty() {
            return Heard::Told(Vec::from_iter(revision.and_then(|it| self.quiet_up_to(it))));
        }
        self.parts.extend(answer.events);
        if answer.fragment {
            return Heard::Told(Vec::new());
        }
        let parts = std::mem::take(&mut self.parts);
        Heard::Told(self.tell(&parts))
    }

    /// What was found at the index that was to be looked at; `None` if nothing can be told. Whether
    /// the watch is whole now, and what is told then; if not it is to be asked for anew.
    pub(super) fn looked(&mut self, at: Index, created: Option<Index>) -> Option<Vec<Update>> {
        if self.state != State::Looking(at) {
            // The stream has ended meanwhile, and the next was asked.
            return Some(Vec::new());
        }
        self.short_cut = false;
        let parts = std::mem::take(&mut self.parts);
        if created.is_none() || created >= self.next {
            self.state = State::Asked;
            return None;
        }
        self.state = State::Open;
        self.next = Some(at.next());
        let first = !std::mem::replace(&mut self.announced, true);
        let mut told = Vec::from_iter(first.then_some(Update::Open(at)));
        told.extend(self.tell(&parts));
        Some(told)
    }

    fn quiet_up_to(&mut self, at: Index) -> Option<Update> {
        if self.next.is_some_and(|next| at < next) {
            return None;
        }
        self.next = Some(at.next());
        Some(Update::Progress(at))
    }

    fn tell(&mut self, events: &[WatchEvent]) -> Vec<Update> {
        let begin = self.next;
        let mut told = Vec::with_capacity(events.len());
        for event in events {
            let Some(kv) = &event.kv else { continue };
            let Some(at) = index(kv.mod_revision) else {
                continue;
            };
            if begin.is_some_and(|begin| at < begin) {
                continue;
            }
            self.next = self.next.max(Some(at.next()));
            told.extend(self.event(event.kind, kv, at).map(Update::Event));
        }
        told
    }

    /// A change that was asked for; `None` for others, and for a key that this crate cannot name.
    fn event(&self, kind: i32, kv: &KeyValue, at: Index) -> Option<Event> {
        let top = &self.watch.key;
        let key = named(top, &kv.key)?;
        let wanted = match self.watch.scope {
            Scope::Node => key == *top,
            Scope::Tree => key.is_within(top) && !key.is_hidden_below(top),
        };
        if !wanted {
            return None;
        }
        let change = if kind == DELETION {
            Change::Delete { expired: false }
        } else if self.watch.filter == Filter::Deletes {
            return None;
        } else {
            Change::Put(node(top, kv)?)
        };
        Some(Event::new(at, key, change))
    }
}

/// A server has ended a watch for this reason.
fn cancelled(reason: &str) -> Heard {
    let judged = judge(&tonic::Status::unavailable(reason));
    match (judged.next, judged.error.kind()) {
        (_, ErrorKind::Forbidden) => Heard::Denied(judged.error),
        (Next::Final, _) => Heard::Over(judged.error),
        _ => Heard::Broken(judged.error),
    }
}

#[cfg(test)]
mod tests {
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
            Update::Event(Event {
                index, key, change, ..
            }) => match change {
                Change::Put(_) => format!("{index} put {key}"),
                Change::Delete { .. } => format!("{index} del {key}"),
            },
        };
        updates.into_iter().map(short).collect()
    }

    fn over(heard: Heard) -> ErrorKind {
        match heard {
            Heard::Over(error) => error.kind(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_watch_goes_on_behind_the_last_event_and_opens_once() {
        let mut it = Following::new(Watch::tree(key("/a")));
        assert_eq!(it.ask(7).unwrap().start_revision, 0);
        assert_eq!(told(it.hear(created(10))), ["open 10"]);
        let heard = it.hear(events(&[(0, "/a", 11), (1, "/a/b", 12)]));
        assert_eq!(told(heard), ["11 put /a", "12 del /a/b"]);
        let again = it.ask(7).unwrap();
        assert_eq!((again.start_revision, again.watch_id), (13, 7));
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
        it.ask(1);
        it.hear(created(1));
        let mut part = events(&[(0, "/a/1", 2)]);
        part.fragment = true;
        assert!(told(it.hear(part.clone())).is_empty());
        assert_eq!(it.ask(1).unwrap().start_revision, 2, "half of it is none");
        it.hear(created(2));
        assert!(told(it.hear(part)).is_empty());
        let heard = it.hear(events(&[(0, "/a/2", 2)]));
        assert_eq!(told(heard), ["2 put /a/1", "2 put /a/2"]);
    }

    #[test]
    fn siblings_hidden_keys_and_strangers_are_left_out_and_move_it_on() {
        let mut it = Following::new(Watch::tree(key("/a")).deletes_only());
        let ask = it.ask(1).unwrap();
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
        assert_eq!(it.ask(1).unwrap().start_revision, 9);
    }

    fn waiting_since(from: u64) -> Following {
        let mut it = Following::new(Watch::node(key("/a")).from(at(from)).deletes_only());
        assert_eq!(it.ask(1).unwrap().start_revision, 0, "from now on");
        it
    }

    #[test]
    fn a_key_that_was_there_all_the_while_is_watched_from_now_on() {
        let mut it = waiting_since(5);
        assert!(matches!(it.hear(created(8)), Heard::Look(opened) if opened == at(8)));
        assert!(told(it.hear(events(&[(1, "/a", 9)]))).is_empty());
        let whole = it.looked(at(8), Some(at(4))).unwrap();
        assert_eq!(told(Heard::Told(whole)), ["open 8", "9 del /a"]);
        assert_eq!(it.ask(1).unwrap().start_revision, 10);
    }

    #[test]
    fn a_key_that_may_have_gone_meanwhile_is_watched_from_the_index() {
        for found in [None, Some(at(5)), Some(at(7))] {
            let mut it = waiting_since(5);
            it.hear(created(8));
            it.hear(events(&[(1, "/a", 9)]));
            assert!(it.looked(at(8), found).is_none(), "{found:?}");
            assert_eq!(it.ask(1).unwrap().start_revision, 5);
            assert_eq!(told(it.hear(created(9))), ["open 9"]);
            let heard = it.hear(events(&[(1, "/a", 6), (1, "/a", 9)]));
            assert_eq!(told(heard), ["6 del /a", "9 del /a"]);
        }
    }

    #[test]
    fn what_is_found_for_a_stream_that_has_ended_counts_no_more() {
        let mut it = waiting_since(5);
        it.hear(created(8));
        assert_eq!(it.ask(1).unwrap().start_revision, 0);
        assert_eq!(it.looked(at(8), Some(at(4))), Some(Vec::new()));
        assert!(matches!(it.hear(created(9)), Heard::Look(opened) if opened == at(9)));
        // Nothing was written since: nothing needs to be looked at.
        let mut it = waiting_since(9);
        assert_eq!(told(it.hear(created(8))), ["open 8"]);
        assert_eq!(it.ask(1).unwrap().start_revision, 9);
    }

    #[test]
    fn progress_moves_it_on_and_never_back() {
        let mut it = Following::new(Watch::node(key("/a")));
        it.ask(1);
        it.hear(created(5));
        assert_eq!(told(it.hear(answer(9))), ["quiet 9"]);
        assert!(told(it.hear(answer(8))).is_empty());
        assert_eq!(it.ask(1).unwrap().start_revision, 10);
    }

    #[test]
    fn what_is_compacted_away_is_history_lost() {
        let mut it = Following::new(Watch::node(key("/a")).from(at(3)));
        it.ask(1);
        assert_eq!(told(it.hear(created(9))), ["open 9"]);
        let mut lost = answer(0);
        (lost.canceled, lost.compact_revision) = (true, 7);
        assert_eq!(over(it.hear(lost)), ErrorKind::HistoryLost);
    }

    #[test]
    fn a_server_that_ends_a_watch_is_understood() {
        let end = |reason: &str| {
            let mut it = Following::new(Watch::node(key("/a")));
            it.ask(1);
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
        it.ask(1);
        it.hear(created(5));
        it.hear(events(&[(0, "/a", 6)]));
        it.lag();
        assert!(it.ask(1).is_none());
        assert!(told(it.hear(events(&[(0, "/a", 7)]))).is_empty());
        it.resume();
        assert_eq!(it.ask(1).unwrap().start_revision, 7, "nothing is lost");
    }
}
