//! What a stream of watches is asked, and what the watches are called on it.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::hub::Seat;
use super::proto::{WatchAsk, WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use crate::key::Index;

/// What the watch of nothing is called.
const NOTHING: i64 = 0;

/// What a stream is asked, and what it has not answered yet.
///
/// A watch has another name each time it is asked for, so that what a server still says about an
/// earlier one, its end included, is not taken for the word of the present one.
pub(super) struct Asks {
    requests: mpsc::UnboundedSender<WatchRequest>,
    /// The names that were asked for, in order: a server that refuses one does not name it.
    created: VecDeque<i64>,
}

impl Asks {
    pub(super) fn new(requests: mpsc::UnboundedSender<WatchRequest>) -> Self {
        Self {
            requests,
            created: VecDeque::new(),
        }
    }

    /// Asks for a watch of a store that is known to be at `seen`; not for one that lags.
    pub(super) fn create(&mut self, id: i64, seat: &mut Seat, seen: Option<Index>) {
        self.cancel(id, seat);
        let times = seat.asked.times.wrapping_add(1);
        let asked = Asked { times, now: true };
        if let Some(ask) = seat.following.ask(asked.name(id), seen) {
            seat.asked = asked;
            self.created.push_back(asked.name(id));
            self.send(WatchAsk::Create(ask));
        }
    }

    pub(super) fn cancel(&mut self, id: i64, seat: &mut Seat) {
        if std::mem::take(&mut seat.asked.now) {
            let watch_id = seat.asked.name(id);
            self.send(WatchAsk::Cancel(WatchCancelRequest { watch_id }));
        }
    }

    /// Asks for a watch of an empty range, which every server answers, with a refusal that leaves
    /// nothing behind.
    ///
    /// Not for progress: a server says nothing to that where no watch is, where one is not fed to
    /// the end yet, and (since etcd#20229) where one begins at an index that the store has not come
    /// to, as most of ours do until somebody writes.
    pub(super) fn sign_of_life(&mut self) {
        let key = Bytes::from_static(b"\x01");
        self.created.push_back(NOTHING);
        self.send(WatchAsk::Create(WatchCreateRequest {
            range_end: key.clone(),
            key,
            ..WatchCreateRequest::default()
        }));
    }

    /// The name of what an answer is about; `None` if that is nothing.
    pub(super) fn about(&mut self, answer: &WatchResponse) -> Option<i64> {
        if !answer.created {
            return Some(answer.watch_id);
        }
        let name = self.created.pop_front();
        if self.created.is_empty() {
            // It may have been long.
            self.created = VecDeque::new();
        }
        if name == Some(NOTHING) && !answer.canceled {
            // By somebody who is not etcd.
            let watch_id = answer.watch_id;
            self.send(WatchAsk::Cancel(WatchCancelRequest { watch_id }));
        }
        name.filter(|name| *name != NOTHING)
    }

    fn send(&self, ask: WatchAsk) {
        // The other end is in our hands too.
        let _ = self.requests.send(ask.into());
    }
}

/// How often a watch was asked for, and whether a stream has been asked for it now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    times: u32,
    pub(super) now: bool,
}

impl Asked {
    const BITS: u32 = 20;

    /// What the watch of this number is called. etcd takes all names from 1 on. Once in a million
    /// times one comes again: nothing is said any more about the watch that had it before.
    fn name(self, id: i64) -> i64 {
        let times = i64::from(self.times) % (1 << Self::BITS);
        (id << Self::BITS) + times
    }

    /// Whether the watch of this number is called so now.
    pub(super) fn is_called(self, id: i64, name: i64) -> bool {
        self.now && self.name(id) == name
    }

    /// The number of the watch of this name.
    pub(super) fn id(name: i64) -> i64 {
        name >> Self::BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_has_another_name_each_time_and_no_other_watch_has_it() {
        let mut asked = Asked {
            times: 0,
            now: true,
        };
        let mut before = 0;
        for times in 1..1 << Asked::BITS {
            asked.times = times;
            let name = asked.name(7);
            assert!(name > before && asked.is_called(7, name) && Asked::id(name) == 7);
            before = name;
        }
        asked.times = u32::MAX;
        assert_eq!(Asked::id(asked.name(7)), 7);
        assert!(!asked.is_called(7, 0) && !asked.is_called(7, -1));
        asked.now = false;
        assert!(!asked.is_called(7, asked.name(7)));
    }
}
