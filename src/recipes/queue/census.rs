//! What is in a queue: read from its nodes, as of one index.

use std::collections::BTreeMap;
use std::time::Duration;

use super::job::{JobId, Place};
use super::mend;
use super::outcome::Found;
use super::paths::Paths;
use super::register::Register;
use crate::key::Tag;
use crate::session::Who;
use crate::store::Node;

/// How much there is to do: see [`Queue::stats`](super::Queue::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that a consumer can have now; those of a consumer that is gone are among them.
    pub ready: usize,
    /// Jobs that a consumer is at.
    pub claimed: usize,
    /// Jobs whose time has not come.
    pub delayed: usize,
    /// Jobs that were given up.
    pub dead: usize,
    /// How long ago the oldest job that is not dead was pushed, by the wall clocks of its producer
    /// and of this machine. `None` when there is none whose time is known: jobs with an id of
    /// their own and those of plain producers do not tell.
    pub oldest_age: Option<Duration>,
}

/// A job that is not done: see [`Queue::jobs`](super::Queue::jobs).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobInfo {
    /// What it is called.
    pub id: JobId,
    /// What it is waiting for.
    pub state: JobState,
    /// How often it was delivered, a delivery under way included.
    pub attempts: u32,
    /// How long ago it was pushed, by the wall clocks, where its id tells.
    pub age: Option<Duration>,
    /// How many bytes its payload has.
    pub size: usize,
}

/// What a job that is not done is waiting for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobState {
    /// A consumer.
    Ready,
    /// A time.
    Delayed {
        /// When, since 1970, by the wall clocks of the consumers.
        until: Duration,
    },
    /// The end of a delivery.
    Claimed {
        /// Whose.
        by: Claimant,
    },
    /// Somebody who requeues or purges it.
    Dead {
        /// Why it was given up.
        reason: String,
    },
}

/// A consumer, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claimant {
    /// The number of its session.
    pub session: u64,
    /// Whose that is, as it says itself.
    pub who: Option<Who>,
}

/// The nodes of a queue as of one index, read into words.
pub(super) struct Census<'a> {
    paths: &'a Paths,
    /// By the wall clock, since 1970.
    now: Duration,
    jobs: Vec<(Place, usize)>,
    registers: BTreeMap<JobId, Found>,
    consumers: BTreeMap<Tag, Claimant>,
}

impl<'a> Census<'a> {
    /// Reads the nodes; those that are none of this queue's are passed over.
    pub(super) fn new(
        paths: &'a Paths,
        now: Duration,
        nodes: impl IntoIterator<Item = Node>,
    ) -> Self {
        let mut census = Self {
            paths,
            now,
            jobs: Vec::new(),
            registers: BTreeMap::new(),
            consumers: BTreeMap::new(),
        };
        for node in nodes.into_iter().filter(|node| !node.is_dir) {
            census.add(&node);
        }
        census.jobs.sort();
        census
    }

    fn add(&mut self, node: &Node) {
        if let Some(id) = Paths::id_in(&self.paths.jobs, &node.key) {
            let place = Place::new(id, node.created);
            self.jobs.push((place, node.value.len()));
        } else if let Some(id) = Paths::id_in(&self.paths.state, &node.key) {
            self.registers.insert(id, Found::in_node(Some(node)));
        } else if let Some(tag) = node.key.below(&self.paths.consumers).and_then(Tag::parse) {
            let (session, who) = (tag.session(), Who::parse(&node.value));
            self.consumers.insert(tag, Claimant { session, who });
        }
    }

    /// The jobs that are not done, in the order of their delivery.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobInfo> {
        self.jobs.iter().filter_map(|(place, size)| {
            let id = place.id.clone();
            let (state, attempts) = self.state(self.registers.get(&id))?;
            let pushed = id.pushed();
            Some(JobInfo {
                id,
                state,
                attempts,
                age: pushed.map(|pushed| self.now.saturating_sub(pushed)),
                size: *size,
            })
        })
    }

    /// The jobs that are there although a purge has ended them.
    pub(super) fn half_purged(&self) -> impl Iterator<Item = &JobId> {
        let ids = self.jobs.iter().map(|(place, _)| &place.id);
        ids.filter(|id| self.registers.get(id).is_some_and(mend::is_purged))
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for job in self.jobs() {
            let count = match job.state {
                JobState::Ready => &mut stats.ready,
                JobState::Delayed { .. } => &mut stats.delayed,
                JobState::Claimed { .. } => &mut stats.claimed,
                JobState::Dead { .. } => {
                    stats.dead += 1;
                    continue;
                }
            };
            *count += 1;
            stats.oldest_age = stats.oldest_age.max(job.age);
        }
        stats
    }

    /// `None` for a job that is done.
    fn state(&self, register: Option<&Found>) -> Option<(JobState, u32)> {
        let register = match register {
            None | Some(Found::Nothing) => return Some((JobState::Ready, 0)),
            Some(Found::Unreadable) => {
                let reason = "its register is somebody else's writing".to_owned();
                return Some((JobState::Dead { reason }, 0));
            }
            Some(Found::Register(register)) => register,
        };
        let state = match register {
            Register::Ready { not_before, .. } if *not_before > self.now => {
                JobState::Delayed { until: *not_before }
            }
            Register::Ready { .. } => JobState::Ready,
            Register::Claimed { consumer, .. } => match self.consumers.get(consumer) {
                Some(by) => JobState::Claimed { by: by.clone() },
                None => JobState::Ready,
            },
            Register::Done { .. } => return None,
            Register::Dead { reason, .. } => JobState::Dead {
                reason: reason.clone(),
            },
        };
        Some((state, register.attempts()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Index, Key, LeaseId, Name};
    use crate::recipes::queue::Priority;

    const NOW: Duration = Duration::from_millis(1_795_000_100_000);

    fn node(key: &str, value: &str, index: u64) -> Node {
        let at = Index::new(index).unwrap();
        Node::file(Key::new(key).unwrap(), value.to_owned(), at, at)
    }

    fn tag(nonce: u64) -> Tag {
        Tag::new(LeaseId::new(0xc0).unwrap(), nonce)
    }

    fn of(nodes: &[(&str, &str)]) -> (Vec<(String, JobState, u32)>, Stats) {
        let paths = Paths::named(&Name::new("q").unwrap()).unwrap();
        let nodes = nodes.iter().enumerate();
        let nodes = nodes
            .map(|(at, (key, value))| node(&format!("/_queues/q/{key}"), value, at as u64 + 1));
        let census = Census::new(&paths, NOW, nodes);
        let jobs = census.jobs();
        let jobs = jobs.map(|job| (job.id.to_string(), job.state, job.attempts));
        (jobs.collect(), census.stats())
    }

    #[test]
    fn each_job_is_counted_once_by_what_it_waits_for() {
        let there = format!("consumers/{}", tag(1));
        let (alive, gone) = (tag(1), tag(2));
        let claimed = |tag: Tag| format!("claimed 2 {tag} 0000000000000007");
        let later = format!("ready 1 {}", (NOW + Duration::from_millis(1)).as_millis());
        let due = format!("ready 3 {}", NOW.as_millis());
        let (jobs, stats) = of(&[
            ("jobs/plain", "x"),
            ("jobs/later", "x"),
            ("jobs/due", "x"),
            ("jobs/claimed", "x"),
            ("jobs/orphaned", "x"),
            ("jobs/done", "x"),
            ("jobs/dead", "x"),
            ("jobs/strange", "x"),
            ("state/later", &later),
            ("state/due", &due),
            ("state/claimed", &claimed(alive)),
            ("state/orphaned", &claimed(gone)),
            ("state/done", "done 1 0000000000000007"),
            ("state/dead", "dead 5 it does not parse"),
            ("state/strange", "?"),
            ("state/without-a-job", "ready 1 0"),
            (&there, r#"{"host":"h","pid":7,"app":"a","more":1}"#),
        ]);
        let by = Claimant {
            session: 0xc0,
            who: Who::parse(br#"{"host":"h","pid":7,"app":"a"}"#),
        };
        assert!(by.who.is_some());
        let until = NOW + Duration::from_millis(1);
        let dead = |reason: &str| JobState::Dead {
            reason: reason.into(),
        };
        let expected = [
            ("plain", JobState::Ready, 0),
            ("later", JobState::Delayed { until }, 1),
            ("due", JobState::Ready, 3),
            ("claimed", JobState::Claimed { by }, 2),
            ("orphaned", JobState::Ready, 2),
            ("dead", dead("it does not parse"), 5),
            (
                "strange",
                dead("its register is somebody else's writing"),
                0,
            ),
        ];
        assert_eq!(
            jobs,
            expected.map(|(id, state, n)| (id.to_owned(), state, n))
        );
        let counts = (stats.ready, stats.claimed, stats.delayed, stats.dead);
        assert_eq!((counts, stats.oldest_age), ((3, 1, 1, 2), None));
    }

    #[test]
    fn the_age_is_that_of_the_oldest_job_that_is_to_be_done() {
        let id = |ago: u64| {
            let wall = NOW - Duration::from_secs(ago);
            let tag = Tag::new(LeaseId::new(3).unwrap(), Tag::next_nonce(0, wall, 0));
            JobId::generated(tag, Priority::NORMAL)
        };
        let (oldest, old, young) = (id(90), id(60), id(5));
        let (_, stats) = of(&[
            (&format!("jobs/{oldest}"), ""),
            (&format!("jobs/{old}"), ""),
            (&format!("jobs/{young}"), ""),
            (&format!("state/{oldest}"), "dead 1 x"),
        ]);
        assert_eq!(stats.oldest_age, Some(Duration::from_secs(60)));
        let ahead = JobId::generated(
            Tag::new(LeaseId::new(3).unwrap(), Tag::next_nonce(0, NOW * 2, 0)),
            Priority::NORMAL,
        );
        let (_, stats) = of(&[(&format!("jobs/{ahead}"), "")]);
        assert_ne!(stats.oldest_age, Some(Duration::from_secs(1)));
    }

    #[test]
    fn jobs_come_in_the_order_of_their_delivery() {
        let (jobs, _) = of(&[
            ("jobs/b", ""),
            ("jobs/a", ""),
            ("jobs/p9.z", ""),
            ("jobs/p0.a", ""),
        ]);
        let order: Vec<_> = jobs.iter().map(|(id, ..)| id.as_str()).collect();
        assert_eq!(order, ["p9.z", "b", "a", "p0.a"]);
    }
}
