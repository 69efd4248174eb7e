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
//! split, and each event says whether more of its index follows. Only what a server says about *this*
//! watch moves it: an answer to a request for progress is a sign of life and no more, because old
//! servers send it ahead of events.
//!
//! **A deletion that was compacted away.** A server that is compacted at the very index of a deletion
//! forgets it, and serves a watch from that index as if there had been nothing (etcd#18089). So
//! where something may have been written at `next` already, a watch begins one index earlier: then
//! the server says that it has been compacted.

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
    /// Whether it was asked for from `next` on, because nothing had been written there yet.
    fresh: bool,
    /// What has come of an index that is not whole yet.
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
    /// It is to be asked for anew.
    Anew,
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
            fresh: false,
            parts: Vec::new(),
        }
    }

    pub(super) fn key(&self) -> &Key {
        &self.watch.key
    }

    /// The first index that was not told.
    pub(super) fn next(&self) -> Option<Index> {
        self.next
    }

    /// What a stream is to be asked for, by this name, of a store that is known to be at `seen`;
    /// `None` if nothing.
    pub(super) fn ask(&mut self, id: i64, seen: Option<Index>) -> Option<WatchCreateRequest> {
        if self.state == State::Lagging {
            return None;
        }
        self.state = State::Asked;
        self.parts.clear();
        self.fresh = self.next > seen;
        let from = match self.next.filter(|_| !self.short_cut) {
            None => 0,
            Some(next) if self.fresh => number(next),
            // Index 1 is before the first write.
            Some(next) => (number(next) - 1).max(1),
        };
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
            start_revision: from,
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
            let error = Error::new(ErrorKind::HistoryLost, text);
            return Heard::Over(match index(answer.compact_revision) {
                // What is read instead must be of a server that has come as far.
                Some(compacted) => error.seen_at(compacted),
                None => error,
            });
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
            if !self.short_cut && self.fresh && self.next.is_some_and(|next| next <= opened) {
                return Heard::Anew;
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
        let mut parts = std::mem::take(&mut self.parts);
        if answer.fragment {
            let last = parts.last().map(revision_of);
            let whole = parts.partition_point(|it| Some(revision_of(it)) < last);
            self.parts = parts.split_off(whole);
        }
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

    /// Tells whole indexes.
    fn tell(&mut self, events: &[WatchEvent]) -> Vec<Update> {
        let begin = self.next;
        let mut told: Vec<Event> = Vec::with_capacity(events.len());
        for event in events {
            let Some(kv) = &event.kv else { continue };
            let Some(at) = index(kv.mod_revision) else {
                continue;
            };
            if begin.is_some_and(|begin| at < begin) {
                continue;
            }
            self.next = self.next.max(Some(at.next()));
            let Some(event) = self.event(event.kind, kv, at) else {
                continue;
            };
            if let Some(last) = told.last_mut() {
                last.more = last.index == at;
            }
            told.push(event);
        }
        told.into_iter().map(Update::Event).collect()
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

fn revision_of(event: &WatchEvent) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
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
#[path = "watch_tests.rs"]
mod tests;
