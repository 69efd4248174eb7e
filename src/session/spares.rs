//! Tags that have done with a line, to be used in that line again.
//!
//! Where the tag is in the name of the ticket, each fresh tag is a name that the store has never
//! seen. etcd v3 keeps the names of deleted keys until it is compacted, and an append that reads its
//! line walks over all of them, in the one thread that applies writes. A lock that is taken and given
//! back a thousand times a second would soon make its own appends several times as slow.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::key::{Key, Tag};

/// For how long after it was made a tag is used again: it says since when its ticket is there, for
/// people to read.
pub(super) const LIFE: Duration = Duration::from_secs(1);

/// How many are kept. With more, all are forgotten: fresh ones are never wrong.
const MOST: usize = 256;

/// By line.
#[derive(Default)]
pub(super) struct Spares {
    tags: BTreeMap<Key, Vec<Tag>>,
    count: usize,
}

impl Spares {
    pub(super) fn take(&mut self, dir: &Key) -> Option<Tag> {
        let tags = self.tags.get_mut(dir)?;
        let tag = tags.pop();
        if tags.is_empty() {
            self.tags.remove(dir);
        }
        self.count -= usize::from(tag.is_some());
        tag
    }

    pub(super) fn put(&mut self, dir: &Key, tag: Tag) {
        if self.count >= MOST {
            *self = Self::default();
        }
        self.tags.entry(dir.clone()).or_default().push(tag);
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::LeaseId;

    #[test]
    fn a_tag_is_used_again_in_its_own_line_only_once_and_few_are_kept() {
        let (a, b) = (Key::new("/a").unwrap(), Key::new("/b").unwrap());
        let lease = LeaseId::new(7).unwrap();
        let mut spares = Spares::default();
        spares.put(&a, Tag::new(lease, 1));
        spares.put(&a, Tag::new(lease, 2));
        assert_eq!(spares.take(&b), None);
        assert_eq!(spares.take(&a), Some(Tag::new(lease, 2)));
        assert_eq!(spares.take(&a), Some(Tag::new(lease, 1)));
        assert_eq!(spares.take(&a), None);
        for nonce in 0..10_000 {
            let dir = Key::new(format!("/{nonce}")).unwrap();
            spares.put(&dir, Tag::new(lease, nonce));
            assert!(spares.count <= MOST && spares.tags.len() == spares.count);
        }
    }
}
