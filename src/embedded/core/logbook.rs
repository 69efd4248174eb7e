//! What the machine did, told to a journal once a turn, and done again from one.

use std::mem;

use super::{Age, Code, Core, Outcome};
use crate::embedded::journal::{Entry, Journal, Step};
use crate::runtime::Instant;

/// What the journal has not been told yet.
#[derive(Debug)]
pub(crate) struct Logbook {
    journal: Box<dyn Journal>,
    pending: Vec<Entry>,
    last_at: Age,
    broken: bool,
}

impl Logbook {
    /// Whether the store is ahead of its journal for good.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }
}

impl Core {
    /// The store that these entries tell of, going on at `now`.
    #[cfg_attr(not(test), allow(dead_code))] // for durable stores
    pub(crate) fn replay<'a>(
        entries: impl IntoIterator<Item = &'a Entry>,
        history_limit: usize,
        now: Instant,
    ) -> Self {
        let mut core = Self::new(history_limit, now);
        for entry in entries {
            core.age += entry.after;
            match &entry.step {
                Step::Write {
                    action,
                    key,
                    payload,
                    life,
                } => drop(core.write(*action, key, payload.clone(), *life)),
                Step::Remove { action, key } => drop(core.remove(*action, key)),
                Step::Grant { lease, ttl } => core.begin_term(*lease, *ttl),
                Step::Forget { lease } => core.forget(*lease),
                Step::Mark { tag, life } => core.mark(*tag, *life),
            }
        }
        core
    }

    /// Tells this journal of everything from now on.
    #[cfg_attr(not(test), allow(dead_code))] // for durable stores
    pub(crate) fn keep(&mut self, journal: Box<dyn Journal>) {
        self.logbook = Some(Logbook {
            journal,
            pending: Vec::new(),
            last_at: self.age,
            broken: false,
        });
    }

    /// Notes what is being done, if anybody wants to know.
    pub(super) fn note(&mut self, step: impl FnOnce() -> Step) {
        if let Some(logbook) = &mut self.logbook {
            logbook.pending.push(Entry {
                index: self.index,
                after: self.age.saturating_sub(logbook.last_at),
                step: step(),
            });
            logbook.last_at = self.age;
        }
    }

    /// Tells the journal what this turn did, all or nothing.
    pub(super) fn tell(&mut self) -> Outcome<()> {
        let Some(logbook) = &mut self.logbook else {
            return Ok(());
        };
        if logbook.pending.is_empty() {
            return Ok(());
        }
        let entries = mem::take(&mut logbook.pending);
        let told = logbook.journal.record(&entries);
        logbook.broken = told.is_err();
        told.map_err(|error| self.refusal(Code::JournalFailed, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::embedded::core::Life;
    use crate::embedded::core::rig::{at, core, file, key, lease, refused, tag, ttl};
    use crate::embedded::core::verbs::Expected;
    use crate::embedded::journal::Payload;
    use crate::key::Index;
    use crate::store::{Append, Commit, Condition, Delete, Expiry, Naming, Put, Withdraw};

    /// Keeps everything, one batch a turn.
    #[derive(Clone, Debug, Default)]
    struct Memory(Arc<Mutex<Vec<Vec<Entry>>>>);

    impl Journal for Memory {
        fn record(&mut self, entries: &[Entry]) -> io::Result<()> {
            self.0.lock().unwrap().push(entries.to_vec());
            Ok(())
        }
    }

    impl Memory {
        fn entries(&self) -> Vec<Entry> {
            self.0.lock().unwrap().concat()
        }
    }

    #[derive(Debug)]
    struct Full;

    impl Journal for Full {
        fn record(&mut self, _: &[Entry]) -> io::Result<()> {
            Err(io::Error::other("disk full"))
        }
    }

    #[track_caller]
    fn assert_same(a: &Core, b: &Core) {
        assert_eq!((a.index, a.age), (b.index, b.age));
        assert_eq!(a.tree, b.tree);
        assert_eq!(a.timeline, b.timeline);
        assert_eq!((&a.leases, &a.marks), (&b.leases, &b.marks));
        let history = |core: &Core| core.history.without_commits();
        assert_eq!(history(a), history(b));
    }

    /// Any verb, chosen by four numbers. Whether it is refused does not matter here.
    fn any_verb(core: &mut Core, [verb, place, life, other]: [u8; 4]) {
        const PLACES: [&str; 7] = ["/a", "/b", "/d", "/d/x", "/d/_y", "/d/e/z", "/"];
        let path = key(PLACES[usize::from(place) % PLACES.len()]);
        let id = lease(u64::from(other % 3) + 1);
        let mark = tag(u64::from(other % 4));
        let value = (other % 4).to_string();
        let expiry = match life % 4 {
            0 => Expiry::Never,
            1 | 2 => Expiry::After(ttl(u64::from(life / 4 % 8) + 1)),
            _ => Expiry::With(id),
        };
        let life = Life::from(expiry);
        let by_index = Expected {
            value: None,
            index: core.peek(&path).map(|node| node.modified),
        };
        let by_value = Condition::Value(value.clone().into());
        let put = Put::new(path.clone(), value.clone(), expiry);
        match verb % 18 {
            0 => drop(core.set(&path, file(&value), life)),
            1 => drop(core.create(&path, file(&value), life)),
            2 => drop(core.create_in_order(&path, file(&value), life)),
            3 => drop(core.update(&path, file(&value), life)),
            4 => drop(core.update(&path, Payload::Keep, life)),
            5 => drop(core.set(&path, Payload::Keep, life)),
            6 => drop(core.set(&path, Payload::Dir, life)),
            7 => drop(core.compare_and_swap(&path, by_index, file(&value), life)),
            8 => drop(core.compare_and_swap(&path, by_index, Payload::Keep, life)),
            9 => drop(core.delete(&path, other % 2 == 0, other % 3 == 0)),
            10 => drop(core.compare_and_delete(&path, by_index)),
            11 => drop(core.grant(id, ttl(u64::from(place % 6) + 1))),
            12 => drop(core.renew(id)),
            13 if other % 4 == 0 => core.revoke(id),
            14 => drop(core.append(&Append::ticket(path, mark, expiry))),
            15 => {
                let withdraw = Withdraw::new(path, mark, Naming::Ticket);
                let leased = withdraw.clone().lease(id);
                drop(core.withdraw(if other % 2 == 0 { &withdraw } else { &leased }));
            }
            16 => {
                let commit = Commit::new().put(put).delete(Delete::tree(key("/d/e")));
                drop(core.commit(&commit));
            }
            _ => drop(core.put(&put.when(by_value))),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn replaying_the_journal_gives_the_same_store(
            verbs in proptest::collection::vec((any::<[u8; 4]>(), 0u64..1500), 0..120),
        ) {
            let memory = Memory::default();
            let mut original = Core::new(50, at(3.0));
            original.keep(Box::new(memory.clone()));
            let mut now = at(3.0);
            for (verb, pause) in verbs {
                now = now + Age::from_millis(pause);
                original.advance(now).unwrap();
                any_verb(&mut original, verb);
                original.finish().1.unwrap();
            }
            let entries = memory.entries();
            let mut last = Index::new(3).unwrap();
            for entry in &entries {
                prop_assert!(entry.index == last || entry.index == last.next());
                last = entry.index;
            }
            // Another clock, as after a restart.
            let mut copy = Core::replay(&entries, 50, at(70.0));
            let idle = original.age - copy.age;
            copy.advance(at(70.0) + idle).unwrap();
            assert_same(&copy, &original);
            copy.advance(at(70.0) + idle + Age::from_secs(3)).unwrap();
            original.advance(now + Age::from_secs(3)).unwrap();
            assert_same(&copy, &original);
        }
    }

    #[test]
    fn one_turn_is_one_batch_so_a_commit_is_kept_whole_or_not_at_all() {
        let memory = Memory::default();
        let mut core = core();
        core.keep(Box::new(memory.clone()));
        let put = |path| Put::new(key(path), "", Expiry::Never);
        core.commit(&Commit::new().put(put("/a")).put(put("/b")))
            .unwrap();
        core.finish().1.unwrap();
        core.peek(&key("/a")).unwrap();
        core.finish().1.unwrap();
        let sizes: Vec<usize> = memory.0.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [2]);
    }

    #[test]
    fn expiries_are_told_even_when_the_verb_is_refused() {
        let memory = Memory::default();
        let mut core = core();
        core.set(&key("/a"), file(""), Life::For(Age::from_secs(1)))
            .unwrap();
        core.keep(Box::new(memory.clone()));
        core.go_to(1.0);
        core.delete(&key("/a"), false, false).unwrap_err();
        core.finish().1.unwrap();
        assert!(matches!(
            memory.entries()[..],
            [Entry {
                step: Step::Remove { .. },
                ..
            }]
        ));
    }

    #[test]
    fn a_store_whose_journal_failed_serves_nobody_any_more() {
        let mut core = core();
        core.keep(Box::new(Full));
        core.have("/a", "");
        assert_eq!(refused(core.finish().1), "300 disk full");
        assert_eq!(core.advance(at(1.0)).unwrap_err().code, Code::Stopped);
    }
}
