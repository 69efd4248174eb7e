//! What a job is called, and in which order jobs come.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key, Name, Tag};

/// The lane of a job: jobs of a higher one come first, always. 0 to 9; 4 unless said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Priority {
    /// What comes last, 0.
    pub const LOWEST: Self = Self(0);
    /// What a job has unless it says otherwise, 4.
    pub const NORMAL: Self = Self(4);
    /// What comes first, 9.
    pub const HIGHEST: Self = Self(9);

    /// The lane of this number.
    ///
    /// # Errors
    /// `InvalidOptions` above 9.
    pub fn new(number: u8) -> Result<Self> {
        if number > Self::HIGHEST.0 {
            let text = format!("{number}: a priority is a number from 0 to 9");
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
        Ok(Self(number))
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

/// What a job is called: the name of its node, one segment of a key.
///
/// | name | whose |
/// |---|---|
/// | 32 hexadecimal digits | pushed without an id |
/// | `id.<id>` | pushed with an id (`%` and `/` escaped) |
/// | `p<digit>.` before either | of a lane other than 4 |
/// | anything else | what plain producers append; lane 4 |
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Arc<str>);

impl JobId {
    /// The id of a job that was pushed without one.
    pub(crate) fn generated(tag: Tag, priority: Priority) -> Self {
        Self::in_lane(priority, &tag.to_string())
    }

    /// The id of a job whose producer has chosen it.
    pub(crate) fn chosen(id: &Name, priority: Priority) -> Self {
        Self::in_lane(priority, &format!("id.{}", id.segment()))
    }

    /// The name of a node that lies among the jobs.
    pub(crate) fn of_node(name: &str) -> Self {
        Self(name.into())
    }

    fn in_lane(priority: Priority, name: &str) -> Self {
        match priority {
            Priority::NORMAL => Self(name.into()),
            Priority(digit) => Self(format!("p{digit}.{name}").into()),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its lane.
    pub fn priority(&self) -> Priority {
        self.split().0
    }

    /// The id that its producer has chosen, if it has.
    pub fn chosen_id(&self) -> Option<String> {
        let id = self.split().1.strip_prefix("id.")?;
        Some(
            id.replace("%2F", "/")
                .replace("%2E", ".")
                .replace("%25", "%"),
        )
    }

    /// Whether it was pushed without an id.
    pub(crate) fn is_generated(&self) -> bool {
        Tag::parse(self.split().1).is_some()
    }

    /// When it was pushed, since 1970, by the producer's wall clock: for people to read. `None`
    /// for a chosen id, and for what plain producers append.
    pub fn pushed(&self) -> Option<Duration> {
        Tag::parse(self.split().1)?.made()
    }

    fn split(&self) -> (Priority, &str) {
        let lane = self.0.strip_prefix('p').and_then(|rest| {
            let (digit, name) = rest.split_once('.')?;
            let digit = digit.parse().ok().filter(|_| digit.len() == 1)?;
            Some((Priority(digit), name))
        });
        lane.unwrap_or((Priority::NORMAL, &self.0))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = Error;

    /// Reads an id as it is printed.
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text.contains('/') || Key::root().join(text).is_err() {
            let text = format!("{text:?} is no id of a job");
            return Err(Error::new(ErrorKind::InvalidName, text));
        }
        Ok(Self(text.into()))
    }
}

/// A job's place: higher lanes first, in a lane by the index of the append. Jobs of one commit
/// share that, and come by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    lane: std::cmp::Reverse<Priority>,
    pub(crate) created: Index,
    pub(crate) id: JobId,
}

impl Place {
    pub(crate) fn new(id: JobId, created: Index) -> Self {
        Self {
            lane: std::cmp::Reverse(id.priority()),
            created,
            id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::LeaseId;

    fn tag() -> Tag {
        let wall = Duration::from_millis(1_795_000_000_123);
        Tag::new(LeaseId::new(9).unwrap(), Tag::next_nonce(0, wall, 1))
    }

    #[test]
    fn a_name_tells_lane_time_and_chosen_id() {
        let plain = JobId::generated(tag(), Priority::NORMAL);
        assert_eq!(plain.as_str(), tag().to_string());
        assert_eq!(plain.pushed(), tag().made());
        assert_eq!(
            (plain.priority(), plain.chosen_id()),
            (Priority::NORMAL, None)
        );
        let urgent = JobId::generated(tag(), Priority::HIGHEST);
        assert_eq!(
            (urgent.priority(), urgent.pushed()),
            (Priority(9), tag().made())
        );
        for text in ["order 17", "p3.x", "a/b", "50%25", "..", "%2F", "id.id."] {
            let name = Name::new(text).unwrap();
            for priority in [Priority::LOWEST, Priority::NORMAL] {
                let id = JobId::chosen(&name, priority);
                assert_eq!(id.chosen_id().as_deref(), Some(text), "{id}");
                assert_eq!((id.priority(), id.pushed()), (priority, None));
                assert_eq!(id.as_str().parse::<JobId>().unwrap(), id);
            }
        }
        for stranger in ["00000000000000000012", "p33.x", "px.y", "p.", "job"] {
            assert_eq!(JobId::of_node(stranger).priority(), Priority::NORMAL);
        }
    }

    #[test]
    fn higher_lanes_come_first_and_older_jobs_before_younger() {
        let at = |index| Index::new(index).unwrap();
        let place = |digit, index, name: &str| {
            let id = JobId::in_lane(Priority(digit), name);
            Place::new(id, at(index))
        };
        let mut places = [
            place(4, 7, "a"),
            place(9, 9, "z"),
            place(4, 7, "b"),
            place(0, 1, "c"),
            place(4, 3, "z"),
        ];
        places.sort();
        let order: Vec<u64> = places.iter().map(|it| it.created.get()).collect();
        assert_eq!(order, [9, 3, 7, 7, 1]);
    }
}
