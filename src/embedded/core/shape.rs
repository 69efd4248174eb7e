//! From what is stored to what is answered: nodes, and refusals in etcd's words.

use super::{Code, Core, Life, Missing, Node, Outcome, Refusal, Stored, Term};
use crate::key::{Index, Key};

impl Core {
    pub(super) fn term(&self, life: Life) -> Term {
        match life {
            Life::Forever => Term::Never,
            Life::For(duration) => Term::At(self.age.saturating_add(duration)),
            Life::With(lease) => Term::Lease(lease),
        }
    }

    /// A node as others see it, without its children.
    pub(super) fn node(&self, stored: &Stored) -> Node {
        let (expires, lease) = match stored.term {
            Term::Never => (None, None),
            Term::At(age) => (Some(age), None),
            Term::Lease(id) => (self.leases.get(&id).map(|lease| lease.deadline), Some(id)),
        };
        Node {
            key: stored.key.clone(),
            dir: stored.is_dir(),
            value: stored.value().cloned(),
            nodes: Vec::new(),
            created: stored.created,
            modified: stored.modified,
            expires,
            lease,
        }
    }

    /// What the event of a removal says about the node.
    pub(super) fn gone(&self, key: &Key, created: Index, dir: bool) -> Node {
        Node {
            key: key.clone(),
            dir,
            value: None,
            nodes: Vec::new(),
            created,
            modified: self.index,
            expires: None,
            lease: None,
        }
    }

    pub(super) fn refusal(&self, code: Code, cause: impl Into<String>) -> Refusal {
        Refusal {
            code,
            key: None,
            cause: cause.into(),
            index: self.index,
        }
    }

    /// A refusal whose cause is a key, as most are.
    pub(super) fn refusal_at(&self, code: Code, key: &Key) -> Refusal {
        Refusal {
            key: Some(key.clone()),
            ..self.refusal(code, key.as_str())
        }
    }

    pub(super) fn missing(&self, key: &Key, missing: Missing<'_>) -> Refusal {
        match missing {
            Missing::NotADirectory(file) => Refusal {
                key: Some(key.clone()),
                ..self.refusal(Code::NotADirectory, file.as_str())
            },
            Missing::Nothing { parent, name } => {
                let parent = if parent.is_root() {
                    ""
                } else {
                    parent.as_str()
                };
                Refusal {
                    key: Some(key.clone()),
                    ..self.refusal(Code::KeyNotFound, format!("{parent}/{name}"))
                }
            }
        }
    }

    /// The node at `key`, or etcd's reason why there is none.
    pub(super) fn find(&self, key: &Key) -> Outcome<&Stored> {
        match self.tree.find(key) {
            Ok(stored) => Ok(stored),
            Err(missing) => Err(self.missing(key, missing)),
        }
    }

    /// Refuses a life that hangs on a lease that is gone.
    pub(super) fn check_life(&self, key: &Key, life: Life) -> Outcome<()> {
        match life {
            Life::With(lease) if !self.leases.contains_key(&lease) => Err(Refusal {
                key: Some(key.clone()),
                ..self.no_lease(lease)
            }),
            _ => Ok(()),
        }
    }
}
