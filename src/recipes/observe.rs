//! Seeing who leads: the current leader first, then every change.
//!
//! The election's directory is followed by a [`Watcher`]; the leader is the first ticket in it. All
//! that is kept is a copy of the line, and what was told last.
//!
//! * An item for each other leader, for each proposal of a leader, and `None` when nobody leads.
//! * **Terms never go back.** A ticket below a term that was told is never told any more, so nobody
//!   is reported after a successor could be known.
//! * **Whole commits.** Candidates that came, or went, in one commit (a lease that is revoked takes
//!   all of its tickets) are taken in together: nobody is told who was first only between two of
//!   them.
//! * History that was lost is made up for by a list, and comes to one item at most: what is true
//!   now, if that is something else than what was told.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;

use crate::client::Core;
use crate::error::{Error, Result};
use crate::key::{Key, Position};
use crate::recipes::contender::Contender;
use crate::recipes::election::Leader;
use crate::store::{Change, Event, Layout, Node, Scope, View};
use crate::watcher::{Follow, Watcher};

/// A stream of who leads: see the [module](self). Made by
/// [`Election::observe`](super::election::Election::observe).
///
/// Yields `Err` once at most, as its last item: for what will not pass. What passes (a store that
/// is away) is waited for, and traced by the watcher.
///
/// # Cancel safety
/// Dropping a future of the next item loses nothing.
#[must_use = "a stream does nothing until polled"]
pub struct Leaders {
    state: State,
}

enum State {
    Following(Watcher, Sight),
    Refused(Error),
    Over,
}

impl Leaders {
    pub(super) fn new(core: &Core, dir: Result<Key>) -> Self {
        let state = match dir {
            Ok(dir) => {
                let store = core.store.clone();
                let watcher = Watcher::new(store, dir.clone(), Scope::Tree, &core.runtime);
                State::Following(watcher, Sight::new(dir, core.layout))
            }
            Err(error) => State::Refused(error.during("observe")),
        };
        Self { state }
    }
}

impl Stream for Leaders {
    type Item = Result<Option<Leader>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let error = match &mut self.state {
            State::Following(watcher, sight) => loop {
                match Pin::new(&mut *watcher).poll_next(cx) {
                    Poll::Ready(Some(Ok(follow))) => {
                        if let Some(news) = sight.learn(follow) {
                            return Poll::Ready(Some(Ok(news)));
                        }
                    }
                    Poll::Ready(Some(Err(error))) => break Some(error.during("observe")),
                    Poll::Ready(None) => break None,
                    Poll::Pending => return Poll::Pending,
                }
            },
            State::Refused(error) => Some(error.clone()),
            State::Over => None,
        };
        self.state = State::Over;
        Poll::Ready(error.map(Err))
    }
}

impl fmt::Debug for Leaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match &self.state {
            State::Following(watcher, _) => Some(watcher.key()),
            State::Refused(_) | State::Over => None,
        };
        f.debug_struct("Leaders")
            .field("key", &key)
            .finish_non_exhaustive()
    }
}

/// What an observer knows: pure, no clock, no I/O.
struct Sight {
    dir: Key,
    layout: Layout,
    line: BTreeMap<Position, Leader>,
    /// What was told last.
    told: Option<Option<Leader>>,
    /// The latest term that was told.
    term: u64,
}

impl Sight {
    fn new(dir: Key, layout: Layout) -> Self {
        Self {
            dir,
            layout,
            line: BTreeMap::new(),
            told: None,
            term: 0,
        }
    }

    /// Takes in what the watcher says; what there is to tell.
    fn learn(&mut self, follow: Follow) -> Option<Option<Leader>> {
        match follow {
            Follow::Snapshot(View { nodes, .. }) => {
                self.line.clear();
                nodes.iter().for_each(|node| self.put(node));
            }
            Follow::Event(event) => {
                match &event.change {
                    Change::Put(node) => self.put(node),
                    Change::Delete { .. } => self.delete(&event),
                }
                if event.more {
                    // Nobody has ever seen this without what follows.
                    return None;
                }
            }
            Follow::Progress(_) | Follow::Interrupted(_) | Follow::Resumed(_) => return None,
        }
        self.news()
    }

    fn put(&mut self, node: &Node) {
        if let Some(ticket) = self.layout.ticket(&self.dir, node) {
            let position = ticket.position.clone();
            let leader = Leader::from(Contender::new(ticket, 1, true));
            self.line.insert(position, leader);
        }
    }

    fn delete(&mut self, event: &Event) {
        self.line
            .retain(|position, _| !event.removes(&position.key));
    }

    fn news(&mut self) -> Option<Option<Leader>> {
        let mut leaders = self.line.values();
        let leader = leaders.find(|leader| leader.token() >= self.term).cloned();
        if self.told.as_ref() == Some(&leader) {
            return None;
        }
        if let Some(leader) = &leader {
            self.term = leader.token();
        }
        self.told = Some(leader.clone());
        Some(leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::key::{Index, LeaseId, Tag};

    fn dir() -> Key {
        Key::new("/_elections/a").unwrap()
    }

    fn at(index: u64) -> Index {
        Index::new(index).unwrap()
    }

    fn ticket(term: u64, proposal: &str) -> Node {
        let tag = Tag::new(LeaseId::new(7).unwrap(), term);
        let value = Layout::Numbered.ticket_value(tag, proposal.as_bytes());
        let key = dir().join(&format!("{term:020}")).unwrap();
        Node::file(key, value, at(term), at(term))
    }

    fn put(node: Node) -> Follow {
        Follow::Event(Event::new(at(99), node.key.clone(), Change::Put(node)))
    }

    fn delete(key: Key) -> Follow {
        let change = Change::Delete { expired: false };
        Follow::Event(Event::new(at(99), key, change))
    }

    fn snapshot(nodes: &[Node]) -> Follow {
        Follow::Snapshot(View::new(at(99), nodes.to_vec()))
    }

    /// What is told: nothing, that nobody leads, or the term and the proposal.
    fn tell(sight: &mut Sight, follow: Follow) -> Option<Option<(u64, String)>> {
        let news = sight.learn(follow)?;
        Some(news.map(|leader| {
            let text = String::from_utf8(leader.proposal().to_vec()).unwrap();
            (leader.token(), text)
        }))
    }

    fn leads(term: u64, proposal: &str) -> Option<Option<(u64, String)>> {
        Some(Some((term, proposal.into())))
    }

    fn sight() -> Sight {
        Sight::new(dir(), Layout::Numbered)
    }

    #[test]
    fn the_first_item_comes_at_once_even_if_nobody_leads() {
        assert_eq!(tell(&mut sight(), snapshot(&[])), Some(None));
        let line = [ticket(4, "a"), ticket(6, "b")];
        assert_eq!(tell(&mut sight(), snapshot(&line)), leads(4, "a"));
    }

    #[test]
    fn another_leader_another_proposal_and_nobody_are_told_and_nothing_else() {
        let mut sight = sight();
        assert_eq!(tell(&mut sight, snapshot(&[ticket(4, "a")])), leads(4, "a"));
        // A candidate comes, changes its mind, and another one goes.
        assert_eq!(tell(&mut sight, put(ticket(6, "b"))), None);
        assert_eq!(tell(&mut sight, put(ticket(7, "c"))), None);
        assert_eq!(tell(&mut sight, put(ticket(6, "b2"))), None);
        assert_eq!(tell(&mut sight, delete(ticket(7, "").key)), None);
        assert_eq!(tell(&mut sight, put(ticket(4, "a2"))), leads(4, "a2"));
        assert_eq!(tell(&mut sight, put(ticket(4, "a2"))), None);
        assert_eq!(tell(&mut sight, delete(ticket(4, "").key)), leads(6, "b2"));
        // The whole directory.
        assert_eq!(tell(&mut sight, delete(dir())), Some(None));
        assert_eq!(tell(&mut sight, Follow::Progress(at(120))), None);
    }

    #[test]
    fn a_resync_is_one_item_or_none() {
        let mut sight = sight();
        let line = [ticket(4, "a"), ticket(6, "b")];
        assert_eq!(tell(&mut sight, snapshot(&line)), leads(4, "a"));
        assert_eq!(tell(&mut sight, snapshot(&line)), None);
        let later = [ticket(8, "c"), ticket(9, "d")];
        assert_eq!(tell(&mut sight, snapshot(&later)), leads(8, "c"));
    }

    #[test]
    fn a_term_below_one_that_was_told_is_never_told() {
        let mut sight = sight();
        assert_eq!(tell(&mut sight, snapshot(&[ticket(6, "b")])), leads(6, "b"));
        // Somebody writes an old ticket again, as python-etcd's renewal can.
        assert_eq!(tell(&mut sight, put(ticket(4, "a"))), None);
        assert_eq!(tell(&mut sight, delete(ticket(6, "").key)), Some(None));
        assert_eq!(tell(&mut sight, put(ticket(7, "c"))), leads(7, "c"));
    }

    #[test]
    fn interruptions_and_strangers_are_no_news() {
        let mut sight = sight();
        assert_eq!(tell(&mut sight, snapshot(&[])), Some(None));
        let away = Error::new(ErrorKind::Unavailable, "away");
        assert_eq!(tell(&mut sight, Follow::Interrupted(away)), None);
        let stranger = Node::file(dir().join("readme").unwrap(), "", at(3), at(3));
        assert_eq!(tell(&mut sight, put(stranger)), None);
    }
}
