//! The embedded store with one bug put in, to show that the conformance suite sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::store::{
    About, Append, Appended, Change, Commit, Committed, Condition, Delete, Deleted, Event, Expiry,
    Filter, Freshness, Get, Grant, Granted, Layout, Naming, Node, Put, Renew, Renewed, Scope,
    Select, Update, Updates, View, Watch, Withdraw, Withdrawn, Written,
};
use tenure::{Error, ErrorKind, Index, Key, LeaseId, Result, Store, StoreExt, Tag, Ttl};

use super::Bug;

#[path = "mutant_commits.rs"]
mod commits;
#[path = "mutant_trees.rs"]
mod trees;

use commits::bend_commit;
use trees::bend_tree;

#[derive(Debug)]
pub(crate) struct Mutant {
    store: Embedded,
    bug: Option<Bug>,
    modest: bool,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    nodes: BTreeMap<Key, Node>,
    views: BTreeMap<Key, View>,
    leases: BTreeSet<LeaseId>,
    tags: BTreeSet<Tag>,
}

impl Mutant {
    /// A store with this bug.
    pub(crate) fn new(bug: Bug) -> Self {
        let layout = match bug {
            Bug::WithdrawsALaterOne | Bug::MarksWhatIsKnown => Layout::Leased,
            _ => Layout::Numbered,
        };
        Self {
            bug: Some(bug),
            ..Self::sane(layout)
        }
    }

    /// A store without any.
    pub(crate) fn sane(layout: Layout) -> Self {
        let runtime = Runtime::on_tokio_time(1);
        let store = Embedded::builder().runtime(runtime).layout(layout);
        Self {
            store: store.build(),
            bug: None,
            modest: false,
            memory: Mutex::default(),
        }
    }

    /// A store without commits and cancel marks, and honest about it.
    pub(crate) fn modest() -> Self {
        Self {
            modest: true,
            ..Self::sane(Layout::Numbered)
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }

    /// The condition that is checked instead.
    fn weaken(&self, when: Condition) -> Condition {
        match (self.bug, when) {
            (Some(Bug::IgnoresAbsent), Condition::Absent) => Condition::Any,
            (Some(Bug::IgnoresValues), Condition::Value(_)) => Condition::Present,
            (Some(Bug::IgnoresValues), Condition::Both { index, .. }) => Condition::Index(index),
            (Some(Bug::AnyIndexWillDo), Condition::Index(_)) => Condition::Present,
            (Some(Bug::AnyIndexWillDo), Condition::Both { value, .. }) => Condition::Value(value),
            (Some(Bug::PresentCreates), Condition::Present) => Condition::Any,
            (Some(Bug::EmptyValueIsNoCondition), Condition::Value(value)) if value.is_empty() => {
                Condition::Any
            }
            (_, when) => when,
        }
    }
}

fn plus_is_space(key: &Key) -> Key {
    Key::new(key.as_str().replace('+', " ")).unwrap()
}

#[async_trait]
impl Store for Mutant {
    fn about(&self) -> About {
        let about = self.store.about();
        if self.modest || self.has(Bug::DeniesAndCommits) {
            return About::new(about.name, about.layout);
        }
        about
    }

    async fn get(&self, mut get: Get) -> Result<View> {
        if self.has(Bug::PlusIsSpace) {
            get.key = plus_is_space(&get.key);
        }
        let is_tree = get.select == Select::Tree;
        let repeats = [Bug::RepeatsThePage, Bug::TreeRepeatsThePage][usize::from(is_tree)];
        if let (true, Some(page)) = (self.has(repeats), &mut get.page) {
            page.after = None;
        }
        let is_list = get.select == Select::Children;
        let mut view = self.store.get(get.clone()).await?;
        match self.bug {
            Some(Bug::AbsenceIsAnError) if view.nodes.is_empty() => {
                return Err(Error::new(ErrorKind::NotFound, "key not found"));
            }
            Some(Bug::ListsHidden) if is_list => {
                let hidden = get.key.join("_hidden")?;
                view.nodes.extend(self.store.node(&hidden).await?);
            }
            Some(Bug::ListsInReverse) => view.nodes.reverse(),
            Some(Bug::ListsNeighbours) if is_list => {
                let neighbour = Key::new(format!("{}b", get.key))?;
                view.nodes.extend(self.store.children(&neighbour).await?);
            }
            Some(Bug::SaysAnOldIndex) => view.index = Index::new(1).unwrap(),
            Some(Bug::ReadsTheStateBefore) if matches!(get.freshness, Freshness::AtLeast(_)) => {
                let before = self.memory().views.insert(get.key.clone(), view.clone());
                view = before.unwrap_or(view);
            }
            Some(Bug::LosesMore) => view.more = false,
            Some(Bug::KeysOnlyLosesOne) if get.keys_only => drop(view.nodes.pop()),
            _ if is_tree => bend_tree(&self.store, self.bug, &get, &mut view).await?,
            Some(Bug::ReadsExpired) if view.nodes.is_empty() => {
                view.nodes
                    .extend(self.memory().nodes.get(&get.key).cloned());
            }
            Some(Bug::ExpiresEarly) => {
                let early = Duration::from_millis(200);
                view.nodes
                    .retain(|node| node.ttl.is_none_or(|left| left > early));
            }
            _ => {}
        }
        Ok(view)
    }

    async fn put(&self, mut put: Put) -> Result<Written> {
        put.when = self.weaken(put.when);
        match self.bug {
            Some(Bug::PlusIsSpace) => put.key = plus_is_space(&put.key),
            Some(Bug::CutsLongValues) => put.value.truncate(64 * 1024),
            Some(Bug::MangleBytes) => {
                let text = String::from_utf8_lossy(&put.value).into_owned();
                put.value = text.into();
            }
            Some(Bug::ResetsCreated) if put.when != Condition::Absent => {
                self.store.put(put.clone()).await?;
                put.when = Condition::Any;
            }
            Some(Bug::SameValueIsNoWrite) if put.when == Condition::Any => {
                let same = self.store.node(&put.key).await?;
                if let Some(node) = same.filter(|node| node.value == put.value) {
                    return Ok(Written::new(node, None));
                }
            }
            Some(Bug::WritesOverDirectories) => {
                let there = self.store.node(&put.key).await?;
                let dirs = there.into_iter().filter(|node| node.is_dir);
                for dir in dirs {
                    self.store.delete(Delete::tree(dir.key)).await?;
                }
            }
            Some(Bug::KeepsTheOldExpiry) if put.expiry == Expiry::Never => {
                let old = self.store.node(&put.key).await?.and_then(|node| node.ttl);
                if old.is_some() {
                    put.expiry = Expiry::After(Ttl::MIN);
                }
            }
            Some(Bug::ForgetsLeases) if matches!(put.expiry, Expiry::With(_)) => {
                put.expiry = Expiry::Never;
            }
            Some(Bug::HangsOnNothing) => {
                if let Expiry::With(lease) = put.expiry {
                    self.store.grant(Grant::new(lease, Ttl::MIN)).await?;
                }
            }
            _ => {}
        }
        let expires = put.expiry != Expiry::Never;
        let mut written = match self.store.put(put).await {
            Err(error) if self.has(Bug::NamesNoKey) => return Err(error.relocate(None)),
            answer => answer?,
        };
        if self.has(Bug::ReadsExpired) && expires {
            let node = written.node.clone();
            self.memory().nodes.insert(node.key.clone(), node);
        }
        if self.has(Bug::TellsAWrongPrevious) {
            written.previous = Some(written.node.clone());
        }
        Ok(written)
    }

    async fn append(&self, mut append: Append) -> Result<Appended> {
        match self.bug {
            Some(Bug::NeverExpires) => append.expiry = Expiry::Never,
            Some(Bug::LosesTheBody) => append.body = Bytes::new(),
            Some(Bug::RawIsATicket) => append.naming = Naming::Ticket,
            _ => {}
        }
        let mut appended = self.store.append(append.clone()).await;
        let kind = appended.as_ref().err().map(Error::kind);
        if self.has(Bug::OverwritesByTag) && kind == Some(ErrorKind::AlreadyExists) {
            let key = append.dir.join(&append.tag.to_string())?;
            let put = Put::new(key, append.body, append.expiry);
            return Ok(Appended::new(self.store.put(put).await?.node, None));
        }
        if self.has(Bug::LateAppendLands) && kind == Some(ErrorKind::ConditionFailed) {
            append.tag = Tag::new(LeaseId::new(append.tag.session()).unwrap(), 0);
            appended = self.store.append(append).await;
        }
        let mut appended = appended?;
        if let (true, Some(before)) = (self.has(Bug::CountsItselfBefore), &mut appended.before) {
            before.push(appended.node.clone());
        }
        if self.modest {
            appended.before = None;
        }
        Ok(appended)
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        match self.bug {
            Some(Bug::WithdrawsOnlyWithHelp) if withdraw.node.is_none() => {
                let index = self.store.get(Get::node(withdraw.dir)).await?.index;
                return Ok(Withdrawn::new(index, false, true));
            }
            Some(Bug::WithdrawsByKey) => {
                if let Some(node) = withdraw.node {
                    let deleted = self.store.delete(Delete::new(node.key)).await?;
                    return Ok(Withdrawn::new(deleted.index, true, true));
                }
            }
            Some(Bug::WithdrawsALaterOne) => {
                if let Some(node) = &withdraw.node
                    && let Ok(deleted) = self.store.delete(Delete::new(node.key.clone())).await
                {
                    return Ok(Withdrawn::new(deleted.index, true, true));
                }
            }
            Some(Bug::MarksWhatIsKnown) => {
                let Withdraw {
                    dir, tag, naming, ..
                } = withdraw;
                return self.store.withdraw(Withdraw::new(dir, tag, naming)).await;
            }
            Some(Bug::WithdrawsOnce) if !self.memory().tags.insert(withdraw.tag) => {
                return Err(Error::new(ErrorKind::NotFound, "withdrawn already"));
            }
            _ => {}
        }
        if self.has(Bug::WithdrawsRaw) && withdraw.naming == Naming::Raw {
            let index = self.store.get(Get::node(withdraw.dir)).await?.index;
            return Ok(Withdrawn::new(index, false, true));
        }
        if self.modest && withdraw.naming != Naming::Raw {
            // As a store without marks does it: look for the tag, and delete what has it.
            let layout = self.about().layout;
            let nodes = self.store.children(&withdraw.dir).await?;
            let mine = nodes.into_iter().find(|node| match withdraw.naming {
                Naming::Tag => node.key.name() == withdraw.tag.to_string(),
                _ => layout
                    .ticket(&withdraw.dir, node)
                    .is_some_and(|ticket| ticket.tag == Some(withdraw.tag)),
            });
            let index = self.store.get(Get::node(withdraw.dir)).await?.index;
            let Some(node) = mine else {
                return Ok(Withdrawn::new(index, false, false));
            };
            let delete = Delete::new(node.key).when(Condition::Index(node.modified));
            let index = self.store.delete(delete).await?.index;
            return Ok(Withdrawn::new(index, true, false));
        }
        self.store.withdraw(withdraw).await
    }

    async fn delete(&self, mut delete: Delete) -> Result<Deleted> {
        if self.has(Bug::PlusIsSpace) {
            delete.key = plus_is_space(&delete.key);
        }
        if self.has(Bug::DeletesUnconditionally) {
            delete.when = Condition::Any;
        }
        if self.has(Bug::EmptyValueIsNoCondition) {
            delete.when = self.weaken(delete.when);
        }
        if self.has(Bug::DeletesFullDirectories) && delete.when == Condition::Any {
            delete.recursive = true;
        }
        if self.has(Bug::DeletesNeighbours) && delete.recursive {
            let neighbour = Key::new(format!("{}2", delete.key))?;
            drop(self.store.delete(Delete::tree(neighbour)).await);
        }
        let key = delete.key.clone();
        match self.store.delete(delete).await {
            Err(error)
                if self.has(Bug::DeletesNothingGladly) && error.kind() == ErrorKind::NotFound =>
            {
                let index = self.store.get(Get::node(key)).await?.index;
                Ok(Deleted::new(index, None))
            }
            answer => answer,
        }
    }

    fn watch(&self, mut watch: Watch) -> Updates {
        let asked = watch.clone();
        match self.bug {
            Some(Bug::IgnoresFrom) => watch.from = None,
            Some(Bug::FromIsExclusive) => watch.from = watch.from.map(Index::next),
            Some(Bug::TellsWritesToo) => watch.filter = Filter::All,
            Some(Bug::TellsNeighbours) if watch.from.is_some() => {
                watch.key = watch.key.parent().unwrap();
            }
            _ => {}
        }
        let (bug, store) = (self.bug, self.store.clone());
        let updates = store.watch(watch);
        let event = |item: &Result<Update>| match item {
            Ok(Update::Event(event)) => Some(event.clone()),
            _ => None,
        };
        let removal = move |item: &_| {
            event(item).filter(|event| matches!(event.change, Change::Delete { .. }))
        };
        let only = |keep: fn(&Result<Update>) -> bool| move |item: &_| future::ready(keep(item));
        match bug {
            Some(Bug::DropsDeletions) => {
                let keep = move |item: &_| future::ready(removal(item).is_none());
                updates.filter(keep).boxed()
            }
            Some(Bug::TellsTwice) => updates
                .flat_map(move |item| {
                    let again = event(&item).map(|event| Ok(Update::Event(event)));
                    stream::iter([Some(item), again]).filter_map(future::ready)
                })
                .boxed(),
            Some(Bug::ClaimsTooMuchProgress) => updates
                .flat_map(move |item| {
                    let claim = event(&item).map(|event| {
                        let too_far = event.index.get() + 10;
                        Ok(Update::Progress(Index::new(too_far).unwrap()))
                    });
                    stream::iter([Some(item), claim]).filter_map(future::ready)
                })
                .boxed(),
            Some(Bug::TellsHidden) if asked.scope == Scope::Tree && asked.key.name() != "_h" => {
                let hidden = Watch::tree(asked.key.join("_h").unwrap());
                let hidden = store
                    .watch(hidden)
                    .filter(only(|item| matches!(item, Ok(Update::Event(_)))));
                stream::select(updates, hidden).boxed()
            }
            Some(Bug::TellsNeighbours) if asked.from.is_some() => updates
                .filter(move |item| {
                    let event = event(item);
                    let told = event.is_none_or(|event| {
                        let (key, event) = (asked.key.as_str(), event.key);
                        event.as_str().starts_with(key) || key.starts_with(event.as_str())
                    });
                    future::ready(told)
                })
                .boxed(),
            Some(Bug::TellsChildrenDeleted) => updates
                .flat_map(move |item| {
                    let child = removal(&item).map(|event| {
                        let key = event.key.join("a").unwrap();
                        Ok(Update::Event(Event::new(event.index, key, event.change)))
                    });
                    stream::iter([Some(item), child]).filter_map(future::ready)
                })
                .boxed(),
            Some(Bug::SilentAboutTheTop) => updates
                .filter(move |item| {
                    let event = event(item);
                    let above = event.is_some_and(|event| asked.key.below(&event.key).is_some());
                    future::ready(!above)
                })
                .boxed(),
            Some(Bug::TellsNoExpiry) => updates
                .map(move |item| match removal(&item) {
                    Some(mut event) => {
                        event.change = Change::Delete { expired: false };
                        Ok(Update::Event(event))
                    }
                    None => item,
                })
                .boxed(),
            Some(Bug::LosesHistorySilently) => updates
                .flat_map(move |item| match item {
                    Err(_) => store.watch(Watch::node(asked.key.clone())),
                    item => stream::iter([item]).boxed(),
                })
                .boxed(),
            Some(Bug::GoesOnAfterAnError) => {
                let index = Index::new(1).unwrap();
                let more = stream::repeat_with(move || Ok(Update::Progress(index)));
                updates.chain(more).boxed()
            }
            Some(Bug::SkipsTheHundredth) => {
                let kept = updates
                    .enumerate()
                    .filter(|(at, _)| future::ready(*at != 100));
                kept.map(|(_, item)| item).boxed()
            }
            Some(Bug::NeverOpens) => {
                let opens = only(|item| !matches!(item, Ok(Update::Open(_))));
                updates.filter(opens).boxed()
            }
            _ => updates,
        }
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        if self.modest {
            return Err(Error::new(ErrorKind::Unsupported, "no commits here"));
        }
        bend_commit(&self.store, self.bug, commit).await
    }

    async fn grant(&self, grant: Grant) -> Result<Granted> {
        if self.has(Bug::GrantsOnlyOnce) && !self.memory().leases.insert(grant.lease) {
            return Err(Error::new(ErrorKind::AlreadyExists, "granted already"));
        }
        self.store.grant(grant).await
    }

    async fn renew(&self, renew: Renew) -> Result<Renewed> {
        let (lease, at, keys) = (renew.lease, renew.at, renew.keys.clone());
        let live = Renewed::new(Ttl::MIN, at);
        match self.bug {
            Some(Bug::RenewsNothing) => Ok(live),
            Some(Bug::RenewsTheUnknown) => {
                let answer = self.store.renew(renew).await;
                Ok(answer.unwrap_or(live))
            }
            Some(Bug::RenewsTheDeleted) => {
                let answer = self.store.renew(renew).await;
                for key in keys {
                    let put = Put::new(key.key, key.value, Expiry::With(lease));
                    drop(self.store.put(put.when(Condition::Absent)).await);
                }
                answer
            }
            _ => self.store.renew(renew).await,
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        match self.bug {
            Some(Bug::RevokesNothing) => Ok(()),
            Some(Bug::RevokesOnce) if !self.memory().leases.insert(lease) => {
                Err(Error::new(ErrorKind::NotFound, "revoked already"))
            }
            _ => self.store.revoke(lease).await,
        }
    }
}
