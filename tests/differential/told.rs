//! From steps to requests, and from answers to what can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use tenure::store::{
    Append, Change, Condition, Delete, Event, Expiry, Freshness, Get, Naming, Node, Page, Put,
    Select, View, Watch, Withdraw,
};
use tenure::{Error, ErrorKind, Index, Key, LeaseId, Result, Store, Tag, Ttl};

use crate::script::{At, Follow, Fresh, Held, KEYS, Seen, Step, When};

/// What one run has done so far: what the steps' names stand for.
///
/// Both stores answer alike, down to the indexes, so there is one memory for both.
#[derive(Debug)]
pub(crate) struct Memory {
    top: Key,
    session: LeaseId,
    /// What was last written at each key, whatever became of it.
    latest: BTreeMap<Key, (Index, Bytes)>,
    /// The index of each write.
    writes: Vec<Index>,
    /// The keys of the writes.
    places: Vec<Key>,
    /// The appends that landed.
    landed: Vec<Landed>,
    /// Where each tag was to go.
    aims: BTreeMap<u64, (Key, Naming)>,
    withdrawn: BTreeSet<u64>,
}

#[derive(Debug)]
struct Landed {
    tag: u64,
    node: Node,
}

#[derive(Clone, Debug)]
pub(crate) enum Request {
    Put(Put),
    Append(Append),
    Withdraw(Withdraw),
    Delete(Delete),
    Get(Get),
}

/// An answer that can be compared.
#[derive(Debug)]
pub(crate) enum Told {
    Done {
        text: String,
        index: Index,
        node: Option<Node>,
    },
    Refused(Error),
}

impl Memory {
    /// Of run `number`, which has a directory and a session to itself.
    pub(crate) fn new(number: u64, start: Index) -> Self {
        Self {
            top: Key::new(format!("/run{number}")).unwrap(),
            session: LeaseId::new(number).unwrap(),
            latest: BTreeMap::new(),
            writes: vec![start],
            places: Vec::new(),
            landed: Vec::new(),
            aims: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
        }
    }

    pub(crate) fn key(&self, at: At) -> Key {
        match at {
            At::Root => Key::root(),
            At::Top => self.top.clone(),
            At::Key(path) => Key::new(format!("{}/{path}", self.top)).unwrap(),
            At::BelowTicket(number) => self.key(At::Ticket(number)).join("x").unwrap(),
            At::Written(back) => match self.places.iter().rev().nth(back) {
                Some(key) => key.clone(),
                None => self.key(At::Key(KEYS[0])),
            },
            At::Ticket(number) => match self.landed.len() {
                0 => self.key(At::Key(KEYS[0])),
                some => self.landed[number % some].node.key.clone(),
            },
        }
    }

    /// The request that a step stands for; `None` for one that would break the rules of appends.
    pub(crate) fn request(&mut self, step: &Step) -> Option<Request> {
        Some(match *step {
            Step::Put {
                at,
                text,
                when,
                hours,
            } => {
                let key = self.key(at);
                let when = self.condition(&key, when);
                Request::Put(Put::new(key, text.text(), expiry(hours)).when(when))
            }
            Step::Append {
                dir,
                ticket,
                tag,
                body,
                hours,
            } => {
                if self.withdrawn.contains(&tag) {
                    return None;
                }
                let (dir, naming) = (self.key(dir), naming(ticket));
                self.aims.insert(tag, (dir.clone(), naming));
                let tag = Tag::new(self.session, tag);
                Request::Append(match naming {
                    Naming::Ticket => Append::ticket(dir, tag, expiry(hours)).body(body.text()),
                    _ => Append::tagged(dir, tag, body.text(), expiry(hours)),
                })
            }
            Step::Withdraw { tag, hint } => {
                self.withdrawn.insert(tag);
                let nowhere = (self.key(At::Key("q")), Naming::Ticket);
                let (dir, naming) = self.aims.get(&tag).cloned().unwrap_or(nowhere);
                let withdraw = Withdraw::new(dir, Tag::new(self.session, tag), naming);
                let landed = self.landed.iter().find(|landed| landed.tag == tag);
                Request::Withdraw(match landed {
                    Some(landed) if hint => withdraw.node(landed.node.clone()),
                    _ => withdraw,
                })
            }
            Step::Delete {
                at,
                when,
                recursive,
            } => {
                let key = self.key(at);
                let when = self.condition(&key, when);
                let delete = if recursive {
                    Delete::tree(key)
                } else {
                    Delete::new(key)
                };
                Request::Delete(delete.when(when))
            }
            Step::Node {
                at,
                fresh,
                keys_only,
            } => self.read(Get::node(self.key(at)), fresh, keys_only),
            Step::Children {
                at,
                tree,
                fresh,
                keys_only,
                after,
            } => {
                let get = match tree {
                    true => Get::tree(self.key(at)),
                    false => Get::children(self.key(at)),
                };
                let get = match after.map(|name| get.key.join(name).unwrap()) {
                    // As many as there are: etcd v2 cannot page.
                    Some(after) => get.page(Page::after(NonZeroUsize::MAX, after, self.now())),
                    None => get,
                };
                self.read(get, fresh, keys_only)
            }
        })
    }

    /// Takes note of what both stores answered.
    pub(crate) fn learn(&mut self, step: &Step, told: &Told) {
        let Told::Done {
            index,
            node: Some(node),
            ..
        } = told
        else {
            return;
        };
        self.writes.push(*index);
        self.places.push(node.key.clone());
        let written = (node.modified, node.value.clone());
        self.latest.insert(node.key.clone(), written);
        if let Step::Append { tag, .. } = *step {
            let node = node.clone();
            self.landed.push(Landed { tag, node });
        }
    }

    /// What a follower watches.
    pub(crate) fn watch(&self, follow: &Follow) -> Watch {
        let key = self.key(follow.at);
        let watch = if follow.tree {
            Watch::tree(key)
        } else {
            Watch::node(key)
        };
        if follow.deletes_only {
            watch.deletes_only()
        } else {
            watch
        }
    }

    fn now(&self) -> Index {
        self.writes[self.writes.len() - 1]
    }

    fn read(&self, get: Get, fresh: Fresh, keys_only: bool) -> Request {
        let get = get.fresh(match fresh {
            Fresh::Any => Freshness::Any,
            Fresh::AtLeastNow => Freshness::AtLeast(self.now()),
            Fresh::Linearizable => Freshness::Linearizable,
        });
        Request::Get(if keys_only { get.keys_only() } else { get })
    }

    fn condition(&self, key: &Key, when: When) -> Condition {
        let value = |held| match (held, self.latest.get(key)) {
            (Held::This(text), _) => text.text().into(),
            (Held::Latest, Some((_, value))) => value.clone(),
            (Held::Latest, None) => "x".into(),
        };
        let index = |seen| match (seen, self.latest.get(key)) {
            (Seen::Future, _) => Index::new(self.now().get() + 1_000).unwrap(),
            (Seen::Latest, Some((index, _))) => *index,
            (Seen::Latest, None) => self.now(),
            (Seen::Earlier(back), _) => self.writes[(self.writes.len() - 1).saturating_sub(back)],
        };
        match when {
            When::Any => Condition::Any,
            When::Absent => Condition::Absent,
            When::Present => Condition::Present,
            When::Value(held) => Condition::Value(value(held)),
            When::Index(seen) => Condition::Index(index(seen)),
            When::Both(held, seen) => Condition::Both {
                value: value(held),
                index: index(seen),
            },
        }
    }
}

impl Step {
    /// What kind of step came to what end.
    pub(crate) fn end(&self, told: &Told) -> String {
        let on = |when: When| match when {
            When::Any => "",
            When::Absent => " if absent",
            When::Present => " if present",
            When::Value(_) => " if it holds",
            When::Index(_) => " if it is at",
            When::Both(..) => " if both",
        };
        let what = match *self {
            Self::Put { when, .. } => format!("put{}", on(when)),
            Self::Append { ticket: true, .. } => "append a ticket".into(),
            Self::Append { .. } => "append by tag".into(),
            Self::Withdraw { .. } => "withdraw".into(),
            Self::Delete {
                recursive: true, ..
            } => "delete all".into(),
            Self::Delete { when, .. } => format!("delete{}", on(when)),
            Self::Node { .. } => "read".into(),
            Self::Children { .. } => "list".into(),
        };
        match told {
            Told::Done { .. } => format!("{what}: done"),
            Told::Refused(error) => format!("{what}: {:?}", error.kind()),
        }
    }
}

impl Told {
    /// Does the request.
    pub(crate) async fn by(store: &dyn Store, request: Request) -> Self {
        match Self::answer(store, request).await {
            Ok(done) => done,
            Err(error) => Self::Refused(error),
        }
    }

    async fn answer(store: &dyn Store, request: Request) -> Result<Self> {
        Ok(match request {
            Request::Put(put) => {
                let written = store.put(put).await?;
                let previous = written.previous.as_ref().map(show);
                Self::Done {
                    text: format!("wrote {}, before {previous:?}", show(&written.node)),
                    index: written.index(),
                    node: Some(written.node),
                }
            }
            Request::Append(append) => {
                // Those before are told by one of the two only.
                let node = store.append(append).await?.node;
                Self::Done {
                    text: format!("appended {}", show(&node)),
                    index: node.modified,
                    node: Some(node),
                }
            }
            Request::Withdraw(withdraw) => {
                // Whether that is settled depends on cancel marks, which one of the two has.
                let withdrawn = store.withdraw(withdraw).await?;
                Self::Done {
                    text: format!("removed: {}", withdrawn.removed),
                    index: withdrawn.index,
                    node: None,
                }
            }
            Request::Delete(delete) => {
                let deleted = store.delete(delete).await?;
                let previous = deleted.previous.as_ref().map(show);
                Self::Done {
                    text: format!("deleted {previous:?}"),
                    index: deleted.index,
                    node: None,
                }
            }
            Request::Get(get) => {
                let list = get.select == Select::Children;
                let view = match store.get(get).await {
                    // The trait does not say what the children of a file are: the embedded store
                    // says none, and etcd's driver that there is a file.
                    Err(error) if list && error.kind() == ErrorKind::NotADirectory => {
                        View::new(error.index().unwrap(), Vec::new())
                    }
                    outcome => outcome?,
                };
                let nodes: Vec<_> = view.nodes.iter().map(show).collect();
                Self::Done {
                    text: format!("{nodes:?}, more: {}", view.more),
                    index: view.index,
                    node: None,
                }
            }
        })
    }

    pub(crate) fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Done { .. }, Self::Done { .. }) => self.to_string() == other.to_string(),
            (Self::Refused(one), Self::Refused(two)) => {
                // A number is the server's own: what the driver finds out itself has none, and
                // then the index is that of what it looked at.
                let numbered = one.code().is_some() && two.code().is_some();
                one.kind() == two.kind()
                    && (!numbered || (one.code(), one.index()) == (two.code(), two.index()))
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done { text, index, .. } => write!(f, "{text} at {index}"),
            Self::Refused(error) => {
                let index = error.index().map_or(0, Index::get);
                write!(f, "{:?} ({:?}) at {index}", error.kind(), error.code())?;
                write!(f, ": {}", cut(error.detail()))
            }
        }
    }
}

/// A node in words. Its time-to-live is rounded up to hours: a run takes seconds.
pub(crate) fn show(node: &Node) -> String {
    const HOUR: u64 = 60 * 60;
    let Node { key, value, .. } = node;
    let mut text = key.to_string();
    // Writing to a string cannot fail.
    let _ = match node.is_dir {
        true => write!(text, "/"),
        false => write!(text, "={}", cut(&String::from_utf8_lossy(value))),
    };
    let _ = write!(text, " {}..{}", node.created, node.modified);
    if let Some(ttl) = node.ttl {
        let _ = write!(text, " for {} h", ttl.as_secs().div_ceil(HOUR));
    }
    text
}

/// An event in words.
pub(crate) fn show_event(event: &Event) -> String {
    let Event {
        index, key, change, ..
    } = event;
    match change {
        Change::Put(node) => format!("{index} {key} put {}", show(node)),
        change => format!("{index} {key} {change:?}"),
    }
}

fn cut(text: &str) -> String {
    let shown: String = text.chars().take(120).collect();
    match shown.len() < text.len() {
        true => format!("{shown}… ({} bytes)", text.len()),
        false => shown,
    }
}

fn naming(ticket: bool) -> Naming {
    if ticket { Naming::Ticket } else { Naming::Tag }
}

fn expiry(hours: Option<u64>) -> Expiry {
    match hours {
        // A little less, so that etcd's whole seconds and the store's milliseconds round alike.
        Some(hours) => {
            let ttl = Duration::from_secs(hours * 60 * 60 - 60);
            Expiry::After(Ttl::new(ttl).unwrap())
        }
        None => Expiry::Never,
    }
}

/// All that is below `top`, hidden or not as far as scripts can have made it.
pub(crate) async fn whole_tree(store: &dyn Store, top: &Key) -> Result<String> {
    let hidden = ["_h", "_q", "a/_h", "a/b/_h"].map(|path| format!("{top}/{path}"));
    let mut open = vec![top.clone()];
    open.extend(hidden.iter().map(|path| Key::new(path).unwrap()));
    let mut text = String::new();
    while let Some(key) = open.pop() {
        let found = store
            .get(Get::node(key.clone()).fresh(Freshness::Any))
            .await?;
        let Some(node) = found.nodes.first() else {
            continue;
        };
        let _ = writeln!(text, "  {}", show(node));
        if node.is_dir {
            let children = Get::children(key).fresh(Freshness::Any);
            let children = store.get(children).await?.nodes;
            open.extend(children.into_iter().map(|node| node.key));
        }
    }
    Ok(text)
}

/// Whether this event is about a directory above what is followed.
pub(crate) fn is_from_above(event: &Event, watch: &Watch) -> bool {
    event.key != watch.key && watch.key.is_within(&event.key)
}
