//! Watching: registered under the same lock as everything else, so nothing falls in between.

use std::sync::Arc;
use std::task::Waker;

use super::{Code, Core, Event, Interest, Outcome, WatcherId, hub};
use crate::key::Index;
use crate::runtime::Instant;

/// What a watcher finds when it looks.
#[derive(Debug)]
pub(crate) enum Look {
    /// Something happened; and whether more of the same commit is ready.
    Event(Arc<Event>, bool),
    /// Nothing yet. The waker is called when something does; something will by itself at this
    /// time, but only if somebody brings the store to it.
    Nothing(Option<Instant>),
}

impl Core {
    /// Registers a watcher for what happens from `from` on, by default from the next index on.
    ///
    /// # Errors
    /// [`Code::HistoryCleared`] when the history no longer reaches back to `from`.
    pub(crate) fn watch(&mut self, interest: Interest, from: Option<Index>) -> Outcome<WatcherId> {
        let from = from.unwrap_or(self.index.next());
        let events = self.history.since(from).map_err(|oldest| {
            let cause = format!("the requested history has been cleared [{oldest}/{from}]");
            self.refusal(Code::HistoryCleared, cause)
        })?;
        let queue = events
            .filter(|event| interest.wants(event))
            .cloned()
            .collect();
        Ok(self.hub.add(interest, from, queue))
    }

    /// The watcher's next event.
    ///
    /// # Errors
    /// [`Code::HistoryCleared`] when it was too slow.
    pub(crate) fn look(&mut self, id: WatcherId, waker: &Waker) -> Outcome<Look> {
        match self.hub.look(id, waker) {
            hub::Look::Event(event, more) => Ok(Look::Event(event, more)),
            hub::Look::Nothing => {
                let next = self.timeline.next().map(|age| self.instant_of(age));
                Ok(Look::Nothing(next))
            }
            hub::Look::Lost => {
                let limit = self.history.limit();
                let cause = format!("this watch has more than {limit} events unread");
                Err(self.refusal(Code::HistoryCleared, cause))
            }
        }
    }

    /// Forgets a watcher; its waker is to be dropped when the lock is free.
    #[must_use]
    pub(crate) fn leave(&mut self, id: WatcherId) -> Option<Waker> {
        self.hub.remove(id)
    }

    #[cfg(test)]
    pub(crate) fn watchers(&self) -> usize {
        self.hub.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;
    use crate::embedded::core::Life;
    use crate::embedded::core::rig::{at, core, file, index, key, secs};
    use crate::store::{Filter, Scope};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn finish(core: &mut Core) {
        let (woken, told) = core.finish();
        told.unwrap();
        woken.into_iter().for_each(Waker::wake);
    }

    #[test]
    fn a_watch_from_now_sees_what_comes_next_once_and_in_order() {
        let mut core = core();
        core.have("/a", "");
        let watcher = core.follow("/", None).unwrap();
        core.have("/a", "");
        core.have("/b", "");
        assert_eq!(core.unread(watcher), ["5 set /a", "6 set /b"]);
        assert!(core.unread(watcher).is_empty());
    }

    #[test]
    fn a_watch_from_an_index_gets_the_history_from_there_and_then_what_comes() {
        let mut core = core();
        for path in ["/a", "/b", "/c"] {
            core.have(path, "");
        }
        let watcher = core.follow("/", Some(5)).unwrap();
        core.have("/d", "");
        assert_eq!(core.unread(watcher), ["5 set /b", "6 set /c", "7 set /d"]);
    }

    #[test]
    fn a_watch_from_a_later_index_waits_for_it() {
        let mut core = core();
        let watcher = core.follow("/", Some(6)).unwrap();
        for path in ["/a", "/b", "/c"] {
            core.have(path, "");
        }
        assert_eq!(core.unread(watcher), ["6 set /c"]);
    }

    #[test]
    fn a_watch_from_before_the_history_is_refused() {
        let mut core = Core::new(2, at(0.0));
        for path in ["/a", "/b", "/c"] {
            core.have(path, "");
        }
        let refusal = core.follow("/", Some(4)).unwrap_err();
        assert_eq!(refusal.code, Code::HistoryCleared);
        assert!(refusal.cause.ends_with("[5/4]"), "{}", refusal.cause);
        let watcher = core.follow("/", Some(5)).unwrap();
        assert_eq!(core.unread(watcher), ["5 set /b", "6 set /c"]);
    }

    #[test]
    fn a_slow_watcher_is_told_that_it_lost_and_a_quiet_one_loses_nothing() {
        let mut core = Core::new(3, at(0.0));
        let slow = core.follow("/busy", None).unwrap();
        let quiet = core.follow("/quiet", None).unwrap();
        for _ in 0..3 {
            core.have("/busy/x", "");
        }
        let keeps_up = core.follow("/busy", None).unwrap();
        core.have("/busy/x", "");
        core.have("/quiet/x", "");
        let refusal = core.look(slow, Waker::noop()).unwrap_err();
        assert_eq!(refusal.code, Code::HistoryCleared);
        assert_eq!(core.unread(quiet), ["8 set /quiet/x"]);
        assert_eq!(core.unread(keeps_up), ["7 set /busy/x"]);
    }

    #[test]
    fn a_removed_directory_is_told_above_at_and_below_it_and_nowhere_else() {
        let mut core = core();
        core.have("/d/x/y", "");
        let mut follow = |path| core.follow(path, None).unwrap();
        let concerned = ["/", "/d", "/d/x", "/d/x/y", "/d/x/y/z"].map(&mut follow);
        let others = ["/d/x0", "/d/x-y", "/dx", "/d/w"].map(&mut follow);
        core.delete(&key("/d/x"), false, true).unwrap();
        for watcher in concerned {
            assert_eq!(core.unread(watcher), ["5 delete /d/x"]);
        }
        for watcher in others {
            assert!(core.unread(watcher).is_empty());
        }
    }

    #[test]
    fn only_those_who_have_something_to_read_are_woken() {
        let mut core = core();
        let (a, b) = (Arc::new(Count::default()), Arc::new(Count::default()));
        for (path, count) in [("/a", &a), ("/b", &b)] {
            let watcher = core.follow(path, None).unwrap();
            let waker = Waker::from(Arc::clone(count));
            assert!(matches!(
                core.look(watcher, &waker),
                Ok(Look::Nothing(None))
            ));
        }
        core.have("/a/x", "");
        core.have("/a/y", "");
        assert_eq!(a.get(), 0, "woken under the lock");
        finish(&mut core);
        assert_eq!((a.get(), b.get()), (1, 0));
    }

    #[test]
    fn whoever_sleeps_is_woken_when_the_next_expiry_becomes_sooner() {
        let mut core = core();
        core.set(&key("/x"), file(""), secs(9)).unwrap();
        finish(&mut core);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let watcher = core.follow("/a", None).unwrap();
        let look = core.look(watcher, &waker).unwrap();
        assert!(matches!(look, Look::Nothing(Some(when)) if when == at(9.0)));
        core.set(&key("/y"), file(""), secs(10)).unwrap();
        finish(&mut core);
        assert_eq!(count.get(), 0);
        core.set(&key("/x"), file(""), Life::For(Duration::from_millis(10)))
            .unwrap();
        finish(&mut core);
        assert_eq!(count.get(), 1);
    }

    #[test]
    fn a_watch_for_deletions_of_one_key_gets_nothing_else() {
        let mut core = core();
        let interest = Interest {
            key: key("/a"),
            scope: Scope::Node,
            filter: Filter::Deletes,
        };
        core.have("/a", "");
        let watcher = core.watch(interest, Some(index(4))).unwrap();
        core.have("/a", "");
        core.have("/b", "");
        core.delete(&key("/b"), false, false).unwrap();
        core.delete(&key("/a"), false, false).unwrap();
        assert_eq!(core.unread(watcher), ["8 delete /a"]);
    }

    #[test]
    fn a_watcher_that_left_costs_nothing() {
        let mut core = core();
        let (one, two) = (
            core.follow("/a", None).unwrap(),
            core.follow("/a", None).unwrap(),
        );
        drop(core.leave(one));
        assert_eq!(core.watchers(), 1);
        core.have("/a", "");
        assert_eq!(core.unread(two).len(), 1);
        drop(core.leave(two));
        drop(core.leave(two));
        assert_eq!(core.watchers(), 0);
        assert!(core.look(two, Waker::noop()).is_err());
    }
}
