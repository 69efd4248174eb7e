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
