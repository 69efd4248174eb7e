//! Leases: keys and cancel marks that end together.
//!
//! ```text
//!            grant, renew: a full term from now
//!                 ┌──┐
//!   grant ──▶ [ alive ] ──▶ (gone: its keys are deleted or expire, its marks are forgotten)
//!                          revoke, or the term ran out
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use super::expiry::Due;
use super::{Action, Age, Code, Core, Outcome, Refusal, Step};
use crate::key::{Key, LeaseId, Tag, Ttl};

/// A live lease.
#[derive(Debug, PartialEq)]
pub(crate) struct Lease {
    pub(crate) ttl: Duration,
    pub(crate) deadline: Age,
    pub(crate) keys: BTreeSet<Key>,
    pub(crate) marks: BTreeSet<Tag>,
}

impl Core {
    /// Begins a lease, or a new term of one that lives; its terms never become shorter.
    ///
    /// A repeated grant must not only find the lease: its sender counts a full term from it.
    pub(crate) fn grant(&mut self, lease: LeaseId, ttl: Ttl) -> Duration {
        let known = self.leases.get(&lease).map(|lease| lease.ttl);
        let ttl = known.unwrap_or_default().max(ttl.get());
        self.begin_term(lease, ttl);
        ttl
    }

    /// Begins another term of a lease that lives, and says how long it is.
    pub(crate) fn renew(&mut self, lease: LeaseId) -> Outcome<Duration> {
        let Some(ttl) = self.leases.get(&lease).map(|lease| lease.ttl) else {
            return Err(self.no_lease(lease));
        };
        self.begin_term(lease, ttl);
        Ok(ttl)
    }

    /// Ends a lease, if it lives, and deletes what hangs on it.
    pub(crate) fn revoke(&mut self, lease: LeaseId) {
        self.end(lease, Action::Delete);
    }

    pub(super) fn begin_term(&mut self, id: LeaseId, ttl: Duration) {
        self.note(|| Step::Grant { lease: id, ttl });
        let deadline = self.age.saturating_add(ttl);
        let lease = self.leases.entry(id).or_insert_with(|| Lease {
            ttl,
            deadline,
            keys: BTreeSet::new(),
            marks: BTreeSet::new(),
        });
        self.timeline.remove(lease.deadline, Due::Lease(id));
        lease.ttl = ttl;
        lease.deadline = deadline;
        self.timeline.add(deadline, Due::Lease(id));
    }

    /// Removes what hangs on a lease, in key order, and then the lease.
    pub(super) fn end(&mut self, id: LeaseId, action: Action) {
        // A key can go with a directory that was removed just before it.
        while let Some(key) = self
            .leases
            .get(&id)
            .and_then(|lease| lease.keys.first().cloned())
        {
            if self.remove(action, &key).is_none() {
                break; // never: the list holds only what is there
            }
        }
        if self.leases.contains_key(&id) {
            self.forget(id);
        }
    }

    pub(super) fn forget(&mut self, id: LeaseId) {
        self.note(|| Step::Forget { lease: id });
        if let Some(lease) = self.leases.remove(&id) {
            self.timeline.remove(lease.deadline, Due::Lease(id));
            for tag in lease.marks {
                self.marks.remove(&tag);
            }
        }
    }

    pub(super) fn no_lease(&self, lease: LeaseId) -> Refusal {
        self.refusal(Code::LeaseNotFound, format!("lease {lease} is gone"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::core::Life;
    use crate::embedded::core::rig::{core, file, key, lease, secs, ttl};

    const L: LeaseId = match LeaseId::new(7) {
        Some(id) => id,
        None => unreachable!(),
    };

    fn with_keys() -> Core {
        let mut core = core();
        core.grant(L, ttl(10));
        for path in ["/b", "/a"] {
            core.set(&key(path), file("v"), Life::With(L)).unwrap();
        }
        core
    }

    #[test]
    fn a_lease_that_runs_out_takes_its_keys_with_it() {
        let mut core = with_keys();
        let watcher = core.follow("/", None).unwrap();
        core.go_to(9.999);
        assert_eq!(core.value("/a").as_deref(), Some("v"));
        core.go_to(10.0);
        assert_eq!(core.unread(watcher), ["6 expire /a", "7 expire /b"]);
        assert_eq!(core.renew(L).unwrap_err().code, Code::LeaseNotFound);
    }

    #[test]
    fn a_renewal_is_a_full_term_for_all_keys() {
        let mut core = with_keys();
        core.go_to(6.0);
        assert_eq!(core.renew(L).unwrap(), Duration::from_secs(10));
        core.go_to(15.9);
        let node = core.peek(&key("/a")).unwrap();
        assert_eq!(
            (node.lease, node.expires),
            (Some(L), Some(Duration::from_secs(16)))
        );
        core.go_to(16.0);
        assert_eq!(core.peek(&key("/a")), None);
        core.renew(L).unwrap_err();
    }

    #[test]
    fn a_repeated_grant_begins_a_new_term_and_never_a_shorter_one() {
        let mut core = with_keys();
        core.go_to(5.0);
        assert_eq!(core.grant(L, ttl(10)), Duration::from_secs(10));
        core.go_to(14.0);
        assert_eq!(core.grant(L, ttl(3)), Duration::from_secs(10));
        core.go_to(20.0);
        assert_eq!(core.grant(L, ttl(30)), Duration::from_secs(30));
        core.go_to(49.0);
        assert!(core.value("/a").is_some());
        core.go_to(50.0);
        assert!(core.value("/a").is_none());
    }

    #[test]
    fn revoking_deletes_the_keys_and_may_be_repeated() {
        let mut core = with_keys();
        let watcher = core.follow("/", None).unwrap();
        core.revoke(L);
        core.revoke(L);
        core.revoke(lease(99));
        assert_eq!(core.unread(watcher), ["6 delete /a", "7 delete /b"]);
        core.renew(L).unwrap_err();
        core.go_to(100.0);
        assert!(core.unread(watcher).is_empty());
    }

    #[test]
    fn a_key_that_is_written_again_hangs_only_on_what_it_was_written_with() {
        let mut core = with_keys();
        core.grant(lease(8), ttl(20));
        core.set(&key("/a"), file("w"), Life::Forever).unwrap();
        core.update(&key("/b"), file("w"), Life::With(lease(8)))
            .unwrap();
        core.set(&key("/c"), file(""), secs(5)).unwrap();
        core.set(&key("/c"), file(""), Life::With(L)).unwrap();
        core.go_to(9.0);
        assert!(core.value("/c").is_some());
        core.go_to(10.0);
        assert_eq!(
            (core.value("/a").is_some(), core.value("/b").is_some()),
            (true, true)
        );
        assert_eq!(core.value("/c"), None);
        core.go_to(20.0);
        assert_eq!(
            (core.value("/a").is_some(), core.value("/b").is_some()),
            (true, false)
        );
    }

    #[test]
    fn a_key_deleted_and_made_anew_is_not_the_leases_any_more() {
        let mut core = with_keys();
        core.set(&key("/d/x"), file(""), Life::With(L)).unwrap();
        core.delete(&key("/a"), false, false).unwrap();
        core.delete(&key("/d"), false, true).unwrap();
        core.have("/a", "mine");
        core.have("/d/x", "mine");
        core.revoke(L);
        assert_eq!(core.value("/a").as_deref(), Some("mine"));
        assert_eq!(core.value("/d/x").as_deref(), Some("mine"));
        assert_eq!(core.value("/b"), None);
    }

    #[test]
    fn leases_and_keys_end_in_the_order_of_their_time() {
        let mut core = core();
        core.grant(L, ttl(2));
        core.set(&key("/leased"), file(""), Life::With(L)).unwrap();
        core.set(&key("/sooner"), file(""), secs(1)).unwrap();
        core.set(&key("/later"), file(""), secs(3)).unwrap();
        let watcher = core.follow("/", None).unwrap();
        core.go_to(9.0);
        let told = ["7 expire /sooner", "8 expire /leased", "9 expire /later"];
        assert_eq!(core.unread(watcher), told);
    }
}
