//! Appends that can be taken back for good.
//!
//! Withdrawing puts a mark and deletes the node in one step; an append compares "no mark" in its
//! own. So a withdrawn append leaves nothing, whether it came before or comes after.

use std::sync::Arc;
use std::time::Duration;

use super::{Action, Code, Core, Event, Life, Missing, Node, Outcome, Payload, Refusal, Stored};
use crate::key::{Index, Key};
use crate::store::{self, Append, Layout, Naming, Withdraw};

/// How long a mark stays that has no lease to stay with.
pub(crate) const MARK_LIFE: Duration = Duration::from_secs(10 * 60);

impl Core {
    /// Adds a node to a directory, unless its tag was withdrawn.
    pub(crate) fn append(&mut self, append: &Append) -> Outcome<Arc<Event>> {
        self.check_mark(append)?;
        let key = self.place_of(append, self.index.next())?;
        self.create(&key, self.appended(append), append.expiry.into())
    }

    /// Whether the conditions hold that an append has when it is one of several.
    pub(super) fn check_append(&self, append: &Append) -> Outcome<()> {
        self.check_mark(append)?;
        let named = append.naming == Naming::Tag || self.layout == Layout::Leased;
        match self.place_of(append, self.index) {
            Ok(key) if named && self.tree.find(&key).is_ok() => {
                let taken = self.refusal(Code::AlreadyExists, key.as_str());
                Err(at_line(append, taken))
            }
            // What can be no key at all fails later.
            _ => Ok(()),
        }
    }

    /// Whether a node can be made at this key, which is that of this append.
    pub(super) fn append_fits(&self, append: &Append, key: &Key) -> Outcome<()> {
        match self.tree.find(key) {
            Ok(_) => Err(self.refusal_at(Code::AlreadyExists, key)),
            Err(missing @ Missing::NotADirectory(_)) => Err(self.missing(key, missing)),
            Err(Missing::Nothing { .. }) => self.check_life(key, append.expiry.into()),
        }
    }

    /// Adds a node at this key, where it [fits](Self::append_fits).
    pub(super) fn append_at(&mut self, append: &Append, key: &Key) -> Arc<Event> {
        let value = self.appended(append);
        self.write(Action::Create, key, value, append.expiry.into())
    }

    /// The key of what an append makes that gets this index.
    pub(super) fn place_of(&self, append: &Append, index: Index) -> Outcome<Key> {
        let Append { dir, tag, .. } = append;
        match (append.naming, self.layout) {
            (Naming::Ticket, Layout::Leased) => self.named(dir, &Layout::leased_name(*tag)),
            (Naming::Ticket, Layout::Numbered) | (Naming::Raw, _) => {
                self.named(dir, &format!("{:020}", index.get()))
            }
            (Naming::Tag, _) => self.named(dir, &tag.to_string()),
        }
    }

    fn appended(&self, append: &Append) -> Payload {
        let Append { tag, body, .. } = append;
        Payload::File(match append.naming {
            Naming::Ticket => self.layout.ticket_value(*tag, body),
            Naming::Raw | Naming::Tag => body.clone(),
        })
    }

    fn check_mark(&self, append: &Append) -> Outcome<()> {
        let tag = append.tag;
        if append.naming == Naming::Raw || !self.marks.contains_key(&tag) {
            return Ok(());
        }
        let withdrawn = self.refusal(Code::CompareFailed, format!("{tag} was withdrawn"));
        Err(at_line(append, withdrawn))
    }

    /// The live tickets of `dir` before `ticket`, in order.
    pub(crate) fn tickets_before(&self, dir: &Key, ticket: &Key) -> Vec<Node> {
        let position = |it: &Stored| self.layout.position(dir, &it.key, it.created);
        let mine = self.tree.find(ticket).ok().and_then(position);
        let children = self.tree.find(dir).ok().and_then(Stored::children);
        let mut before: Vec<_> = children
            .into_iter()
            .flat_map(|children| children.values())
            .filter(|child| !child.is_dir())
            .filter_map(|child| position(child).map(|place| (place, child)))
            .filter(|(place, _)| Some(place) < mine.as_ref())
            .collect();
        before.sort_by(|(one, _), (two, _)| one.cmp(two));
        before.iter().map(|(_, child)| self.node(child)).collect()
    }

    /// Makes sure that no node of this tag is in the directory, now or later. Says whether there
    /// was one.
    pub(crate) fn withdraw(&mut self, withdraw: &Withdraw) -> Outcome<bool> {
        let life = match withdraw.lease {
            Some(lease) if self.leases.contains_key(&lease) => Life::With(lease),
            _ => Life::For(MARK_LIFE),
        };
        let keys = match withdraw.naming {
            Naming::Tag => {
                let key = self.named(&withdraw.dir, &withdraw.tag.to_string())?;
                let file = self.tree.find(&key).is_ok_and(|stored| !stored.is_dir());
                file.then_some(key).into_iter().collect()
            }
            Naming::Ticket => self.tickets_of(withdraw),
            // The store refuses these before it comes here.
            Naming::Raw => return Ok(false),
        };
        let mut removed = false;
        for key in keys {
            removed |= self.remove(Action::Delete, &key).is_some();
        }
        // What made a known node was answered, so nothing of its append can come any more, and a
        // lock that is taken and given back all day leaves no marks.
        if withdraw.node.is_none() {
            self.mark(withdraw.tag, life);
        }
        Ok(removed)
    }

    /// Where the tag's tickets are: where they were last seen, else wherever they are.
    fn tickets_of(&self, withdraw: &Withdraw) -> Vec<Key> {
        let Withdraw { dir, tag, node, .. } = withdraw;
        let is_ours = |stored: &Stored| {
            stored.value().is_some_and(|value| {
                // Values are shared, not copied.
                let (at, value) = (stored.modified, value.clone());
                let node = store::Node::file(stored.key.clone(), value, stored.created, at);
                self.layout
                    .ticket(dir, &node)
                    .is_some_and(|ticket| ticket.tag == Some(*tag))
            })
        };
        let seen = node
            .as_ref()
            .and_then(|node| self.tree.find(&node.key).ok());
        if let Some(seen) = seen.filter(|seen| is_ours(seen)) {
            // Where the tag is the name, the name can be used again: that is another ticket.
            let later = self.layout == Layout::Leased
                && node
                    .as_ref()
                    .is_some_and(|node| node.created != seen.created);
            return (!later).then(|| seen.key.clone()).into_iter().collect();
        }
        let children = self.tree.find(dir).ok().and_then(Stored::children);
        children
            .into_iter()
            .flat_map(|children| children.values())
            .filter(|child| is_ours(child))
            .map(|child| child.key.clone())
            .collect()
    }

    fn named(&self, dir: &Key, name: &str) -> Outcome<Key> {
        dir.join(name).map_err(|error| Refusal {
            key: Some(dir.clone()),
            ..self.refusal(Code::InvalidField, error.detail())
        })
    }
}

fn at_line(append: &Append, refusal: Refusal) -> Refusal {
    Refusal {
        key: Some(append.dir.clone()),
        ..refusal
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;

    use super::*;
    use crate::embedded::core::rig::{core, file, key, lease, refused, secs, tag, ttl};
    use crate::store::Expiry;

    fn ticket(nonce: u64) -> Append {
        Append::ticket(key("/l"), tag(nonce), Expiry::Never)
    }

    fn take_back(nonce: u64) -> Withdraw {
        Withdraw::new(key("/l"), tag(nonce), Naming::Ticket)
    }

    #[test]
    fn a_ticket_is_numbered_and_says_its_tag() {
        let mut core = core();
        let event = core.append(&ticket(1)).unwrap();
        assert_eq!(event.node.key, key("/l/00000000000000000004"));
        assert_eq!(event.node.value, Some(tag(1).to_string().into()));
        let event = core.append(&ticket(2).body("b")).unwrap();
        assert_eq!(event.node.value, Some(format!("{} b", tag(2)).into()));
    }

    #[test]
    fn before_a_ticket_are_the_live_tickets_of_its_line_and_nothing_else() {
        let mut core = core();
        let first = core.append(&ticket(1)).unwrap();
        let mut brief = ticket(2);
        brief.expiry = Expiry::After(ttl(2));
        core.append(&brief).unwrap();
        for stranger in [
            "/l/!x",
            "/l/_meta",
            "/l/7",
            "/l/00000000000000000001/deeper",
            "/m/x",
        ] {
            core.have(stranger, "");
        }
        core.have("/l/99999999999999999999", "later");
        core.go_to(2.0);
        let mine = core.append(&ticket(3)).unwrap();
        let before = core.tickets_before(&key("/l"), &mine.node.key);
        assert_eq!(before, std::slice::from_ref(&first.node));
    }

    #[test]
    fn a_leased_ticket_is_named_by_its_tag_and_placed_by_its_creation() {
        let mut core = core();
        core.layout = Layout::Leased;
        // In the order of creation, which is not that of the names.
        let first = core.append(&ticket(3).body("c")).unwrap();
        let name = format!("/l/{}", Layout::leased_name(tag(3)));
        assert_eq!(first.node.key, key(&name));
        assert_eq!(first.node.value, Some("c".into()));
        for stranger in ["/l/!x", "/l/_meta", "/l/7/deeper"] {
            core.have(stranger, "");
        }
        core.have("/l/7f", "another program");
        let second = core.append(&ticket(1)).unwrap();
        let third = core.append(&ticket(2)).unwrap();
        let names = |of: &Event| -> Vec<Key> {
            let before = core.tickets_before(&key("/l"), &of.node.key);
            before.into_iter().map(|node| node.key).collect()
        };
        assert_eq!(names(&second), [first.node.key.clone(), key("/l/7f")]);
        assert_eq!(names(&third).last(), Some(&second.node.key));
        assert_eq!(core.withdraw(&take_back(1)), Ok(true));
        assert!(core.append(&ticket(1)).is_err() && core.peek(&second.node.key).is_none());
        assert_eq!(
            core.append(&ticket(2)).unwrap_err().code,
            Code::AlreadyExists
        );
    }

    #[test]
    fn a_tagged_node_is_named_by_its_tag_and_made_once() {
        let mut core = core();
        let append = Append::tagged(key("/jobs"), tag(1), "raw", Expiry::Never);
        let event = core.append(&append).unwrap();
        assert_eq!(event.node.key, key(&format!("/jobs/{}", tag(1))));
        assert_eq!(event.node.value, Some("raw".into()));
        assert_eq!(core.append(&append).unwrap_err().code, Code::AlreadyExists);
    }

    #[test]
    fn a_withdrawn_append_leaves_nothing_whether_it_came_before_or_comes_after() {
        let mut core = core();
        core.append(&ticket(1)).unwrap();
        assert_eq!(core.withdraw(&take_back(1)), Ok(true));
        assert_eq!(core.withdraw(&take_back(1)), Ok(false));
        assert_eq!(core.withdraw(&take_back(2)), Ok(false));
        for nonce in [1, 2] {
            let cause = format!("101 {} was withdrawn", tag(nonce));
            assert_eq!(refused(core.append(&ticket(nonce))), cause);
        }
        core.append(&ticket(3)).unwrap();

        let tagged = Append::tagged(key("/jobs"), tag(4), "", Expiry::Never);
        core.append(&tagged).unwrap();
        let back = Withdraw::new(key("/jobs"), tag(4), Naming::Tag);
        assert_eq!(core.withdraw(&back), Ok(true));
        assert_eq!(core.append(&tagged).unwrap_err().code, Code::CompareFailed);
    }

    #[test]
    fn a_ticket_that_is_known_leaves_no_mark() {
        let mut core = core();
        core.grant(lease(7), ttl(10));
        for nonce in 0..1_000 {
            let event = core.append(&ticket(nonce)).unwrap();
            let at = event.index();
            let node = store::Node::file(
                event.node.key.clone(),
                event.node.value.clone().unwrap(),
                at,
                at,
            );
            let back = take_back(nonce).node(node).lease(lease(7));
            assert_eq!(core.withdraw(&back), Ok(true));
        }
        assert!(core.marks.is_empty());
    }

    #[test]
    fn withdrawing_touches_only_nodes_of_the_tag() {
        let mut core = core();
        let other = core.append(&ticket(1)).unwrap();
        let seen = |event: &Event| {
            let (key, at) = (event.node.key.clone(), event.index());
            store::Node::file(key, event.node.value.clone().unwrap(), at, at)
        };
        // A wrong hint is no harm: the tag is looked for.
        let mine = core.append(&ticket(2)).unwrap();
        assert_eq!(core.withdraw(&take_back(2).node(seen(&other))), Ok(true));
        assert!(core.peek(&other.node.key).is_some() && core.peek(&mine.node.key).is_none());
        assert_eq!(core.withdraw(&take_back(1).node(seen(&other))), Ok(true));
        assert!(core.peek(&other.node.key).is_none());
    }

    #[test]
    fn a_mark_lives_as_long_as_the_lease_or_ten_minutes() {
        let mut core = core();
        core.grant(lease(7), ttl(10));
        core.withdraw(&take_back(1).lease(lease(7))).unwrap();
        core.withdraw(&take_back(2).lease(lease(8))).unwrap();
        core.withdraw(&take_back(3)).unwrap();
        core.go_to(9.0);
        core.append(&ticket(1)).unwrap_err();
        core.go_to(10.0);
        core.append(&ticket(1)).unwrap();
        core.go_to(599.0);
        core.append(&ticket(2)).unwrap_err();
        core.append(&ticket(3)).unwrap_err();
        core.go_to(600.0);
        core.append(&ticket(2)).unwrap();
        core.append(&ticket(3)).unwrap();
        assert!(core.marks.is_empty() && core.timeline.next().is_none());
    }

    #[test]
    fn a_mark_is_no_key() {
        let mut core = core();
        core.withdraw(&take_back(1)).unwrap();
        assert_eq!(core.index().get(), 3);
        assert!(core.read(&Key::root(), true).unwrap().nodes.is_empty());
    }

    #[test]
    fn an_append_with_a_lease_that_is_gone_is_refused() {
        let mut core = core();
        core.grant(lease(7), ttl(2));
        core.go_to(2.0);
        let late = Append::ticket(key("/l"), tag(1), Expiry::With(lease(7)));
        assert_eq!(core.append(&late).unwrap_err().code, Code::LeaseNotFound);
        core.have("/f", "");
        let below = Append::ticket(key("/f"), tag(1), Expiry::Never);
        assert_eq!(core.append(&below).unwrap_err().code, Code::NotADirectory);
    }

    #[test]
    fn expired_key_is_never_read() {
        let mut core = core();
        let path = key("/l/00000000000000000004");
        let mut append = ticket(1);
        append.expiry = Expiry::After(ttl(2));
        core.append(&append).unwrap();
        core.go_to(2.0);
        assert_eq!(core.peek(&path), None);
        assert_eq!(core.read(&path, false).unwrap_err().code, Code::KeyNotFound);
        assert!(core.read(&key("/l"), true).unwrap().nodes.is_empty());
        assert!(core.children(&key("/l"), Bound::Unbounded, 9).0.is_empty());
        let update = core.update(&path, Payload::Keep, secs(9));
        assert_eq!(update.unwrap_err().code, Code::KeyNotFound);
        assert_eq!(
            core.delete(&path, false, false).unwrap_err().code,
            Code::KeyNotFound
        );
        assert_eq!(core.withdraw(&take_back(1)), Ok(false));
        let mine = core.append(&ticket(2)).unwrap();
        assert!(core.tickets_before(&key("/l"), &mine.node.key).is_empty());
        assert!(
            core.create(&path, file(""), Life::Forever)
                .unwrap()
                .previous
                .is_none()
        );
    }
}
