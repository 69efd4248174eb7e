//! Where a queue's nodes lie.
//!
//! | what | of a named queue `N` | of a raw queue at `path` |
//! |---|---|---|
//! | a job: its payload, as it was given | `/_queues/N/jobs/<job>` | `path/<job>` |
//! | its register, permanent until it is done | `/_queues/N/state/<job>` | `/_queues/<path, escaped>/raw/state/<job>` |
//! | a consumer: JSON, on its session's lease | `/_queues/N/consumers/<tag>` | `/_queues/<path, escaped>/raw/consumers/<tag>` |
//!
//! Registers and consumers lie in one tree, so that one view shows both at one index.

use crate::error::Result;
use crate::key::{Key, Name};
use crate::recipes::queue::job::JobId;

/// The keys of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    /// What registers and consumers lie below; of a named queue also the jobs.
    pub(crate) root: Key,
    /// The directory of the jobs.
    pub(crate) jobs: Key,
    /// The directory of the registers.
    pub(crate) state: Key,
    /// The directory of the consumers.
    pub(crate) consumers: Key,
    /// Whether others may append jobs of their own, under names of their own.
    pub(crate) is_raw: bool,
}

impl Paths {
    pub(crate) fn named(name: &Name) -> Result<Self> {
        let root = Key::root().join("_queues")?.join(name.segment())?;
        Self::at(root.clone(), root.join("jobs")?, false)
    }

    pub(crate) fn raw(jobs: Key) -> Result<Self> {
        let name = Name::new(jobs.as_str())?;
        let root = Key::root().join("_queues")?.join(name.segment())?;
        Self::at(root.join("raw")?, jobs, true)
    }

    fn at(root: Key, jobs: Key, is_raw: bool) -> Result<Self> {
        Ok(Self {
            state: root.join("state")?,
            consumers: root.join("consumers")?,
            root,
            jobs,
            is_raw,
        })
    }

    pub(crate) fn job(&self, id: &JobId) -> Result<Key> {
        self.jobs.join(id.as_str())
    }

    pub(crate) fn register(&self, id: &JobId) -> Result<Key> {
        self.state.join(id.as_str())
    }

    /// The job that a key below `dir` stands for; only direct children do.
    pub(crate) fn id_in(dir: &Key, key: &Key) -> Option<JobId> {
        let name = key.below(dir)?;
        (!name.is_empty() && !name.contains('/')).then(|| JobId::of_node(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_never_touch_each_other() {
        let named = |name: &str| Paths::named(&Name::new(name).unwrap()).unwrap();
        let raw = |path: &str| Paths::raw(Key::new(path).unwrap()).unwrap();
        let all = [
            named("q"),
            named("q2"),
            named("q/jobs"),
            named("/nodes/queue"),
            raw("/nodes/queue"),
            raw("/nodes"),
        ];
        for one in &all {
            for other in all.iter().filter(|it| it.state != one.state) {
                assert!(!other.state.is_within(&one.state), "{one:?} {other:?}");
                assert!(!other.jobs.is_within(&one.root), "{one:?} {other:?}");
            }
        }
        let states = all.iter().map(|it| &it.state);
        assert_eq!(states.collect::<std::collections::BTreeSet<_>>().len(), 6);
    }

    #[test]
    fn only_direct_children_are_jobs() {
        let jobs = Key::new("/nodes/queue").unwrap();
        let id = |key: &str| Paths::id_in(&jobs, &Key::new(key).unwrap());
        assert_eq!(id("/nodes/queue/7").unwrap().as_str(), "7");
        assert_eq!(id("/nodes/queue"), None);
        assert_eq!(id("/nodes/queue/a/b"), None);
        assert_eq!(id("/nodes/queues/7"), None);
    }
}
