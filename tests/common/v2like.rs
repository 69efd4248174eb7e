//! A store without leases, cancel marks, commits or "who is before me": what etcd v2 is, over
//! the embedded store and on paused time.
//!
//! Each client has one of its own, over its own link: an outage of the link hits the single
//! requests that a renewal or a withdrawal is made of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use tenure::runtime::Instant;
use tenure::store::{
    About, Append, Appended, Commit, Committed, Condition, Delete, Deleted, Expiry, Get, Grant,
    Granted, KeyRenewal, Layout, Naming, Node, Put, Renew, Renewed, Updates, View, Watch, Withdraw,
    Withdrawn, Written,
};
use tenure::{Error, ErrorKind, Key, LeaseId, Result, Store, Ttl};

#[derive(Clone, Debug)]
pub(crate) struct V2Like<S> {
    inner: S,
    leases: Arc<Mutex<BTreeMap<LeaseId, Lease>>>,
    /// What renewals say of the clocks from now on.
    skew: Arc<Mutex<Duration>>,
}

/// The client's own list of what hangs together.
#[derive(Debug)]
struct Lease {
    ttl: Ttl,
    keys: BTreeMap<Key, Held>,
}

#[derive(Clone, Debug)]
struct Held {
    value: Bytes,
    /// The modified index that the next refresh compares with, where it is known.
    pin: Option<tenure::Index>,
    /// When the oldest refresh was sent that may have landed unheard.
    unanswered: Option<Instant>,
}

impl<S: Store> V2Like<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            leases: Arc::default(),
            skew: Arc::default(),
        }
    }

    /// Lets renewals say that the members' clocks differ by so much.
    #[allow(dead_code)] // each test crate uses a part
    pub(crate) fn set_skew(&self, skew: Duration) {
        *self.skew.lock().unwrap() = skew;
    }

    fn expiry(&self, expiry: Expiry) -> Result<Expiry> {
        Ok(match expiry {
            Expiry::With(lease) => Expiry::After(self.ttl(lease)?),
            other => other,
        })
    }

    fn ttl(&self, lease: LeaseId) -> Result<Ttl> {
        let leases = self.leases.lock().unwrap();
        let lease = leases.get(&lease).map(|lease| lease.ttl);
        lease.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such lease"))
    }

    fn hold(&self, lease: LeaseId, key: &Key, held: Option<Held>) {
        if let Some(lease) = self.leases.lock().unwrap().get_mut(&lease) {
            match held {
                Some(held) => lease.keys.insert(key.clone(), held),
                None => lease.keys.remove(key),
            };
        }
    }

    async fn renew_key(&self, renew: &Renew, key: &Key, mut held: Held) -> KeyRenewal {
        let mut landed = None;
        for _ in 0..4 {
            let Some(pin) = held.pin else {
                match self.inner.get(Get::node(key.clone())).await {
                    Ok(view) => match view.nodes.first() {
                        Some(node) if node.value == held.value => {
                            held.pin = Some(node.modified);
                            landed = landed.or(held.unanswered.take());
                            self.hold(renew.lease, key, Some(held.clone()));
                            continue;
                        }
                        _ => {
                            self.hold(renew.lease, key, None);
                            return KeyRenewal::Gone;
                        }
                    },
                    Err(_) => break,
                }
            };
            let sent = held.unanswered.unwrap_or(renew.at);
            held.unanswered = Some(sent);
            self.hold(renew.lease, key, Some(held.clone()));
            let Ok(ttl) = self.ttl(renew.lease) else {
                return KeyRenewal::Gone;
            };
            let both = Condition::Both {
                value: held.value.clone(),
                index: pin,
            };
            let put = Put::new(key.clone(), held.value.clone(), Expiry::After(ttl)).when(both);
            match self.inner.put(put).await {
                Ok(written) => {
                    held.pin = Some(written.node.modified);
                    held.unanswered = None;
                    self.hold(renew.lease, key, Some(held));
                    return KeyRenewal::Live { since: renew.at };
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.hold(renew.lease, key, None);
                    return KeyRenewal::Gone;
                }
                Err(error) if error.kind() == ErrorKind::ConditionFailed => held.pin = None,
                Err(_) => break,
            }
        }
        landed.map_or(KeyRenewal::Unknown, |since| KeyRenewal::Live { since })
    }
}

#[async_trait]
impl<S: Store + Clone> Store for V2Like<S> {
    fn about(&self) -> About {
        About::new("v2like", Layout::Numbered)
    }

    async fn get(&self, get: Get) -> Result<View> {
        self.inner.get(get).await
    }

    async fn put(&self, put: Put) -> Result<Written> {
        let (asked, expiry) = (put.expiry, self.expiry(put.expiry)?);
        if let Expiry::With(lease) = asked {
            // Before it is sent: what hangs on the lease when no answer comes is to be deleted too.
            let held = Held {
                value: put.value.clone(),
                pin: None,
                unanswered: None,
            };
            self.hold(lease, &put.key, Some(held));
        }
        let put = Put::new(put.key, put.value, expiry).when(put.when);
        let key = put.key.clone();
        let outcome = self.inner.put(put).await;
        if let (Expiry::With(lease), Err(error)) = (asked, &outcome)
            && error.changed_nothing()
        {
            self.hold(lease, &key, None);
        }
        let written = outcome?;
        if let Expiry::With(lease) = asked {
            let mut leases = self.leases.lock().unwrap();
            for (id, other) in leases.iter_mut() {
                if *id != lease {
                    other.keys.remove(&written.node.key);
                }
            }
        }
        Ok(written)
    }

    async fn append(&self, append: Append) -> Result<Appended> {
        let (asked, expiry) = (append.expiry, self.expiry(append.expiry)?);
        let ticket = match append.naming {
            Naming::Tag => Append::tagged(append.dir, append.tag, append.body, expiry),
            Naming::Raw => Append::raw(append.dir, append.body, expiry),
            _ => Append::ticket(append.dir, append.tag, expiry).body(append.body),
        };
        let Appended { node, .. } = self.inner.append(ticket).await?;
        if let Expiry::With(lease) = asked {
            let held = Held {
                value: node.value.clone(),
                pin: Some(node.modified),
                unanswered: None,
            };
            self.hold(lease, &node.key, Some(held));
        }
        Ok(Appended::new(node, None))
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        if withdraw.naming == Naming::Tag {
            let key = withdraw.dir.join(&withdraw.tag.to_string())?;
            return match self.inner.delete(Delete::new(key)).await {
                Ok(deleted) => Ok(Withdrawn::new(deleted.index, true, true)),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let index = error.index().unwrap_or(tenure::Index::new(1).unwrap());
                    Ok(Withdrawn::new(index, false, withdraw.node.is_some()))
                }
                Err(error) => Err(error),
            };
        }
        for _ in 0..4 {
            let view = self.inner.get(Get::children(withdraw.dir.clone())).await?;
            let is_ours = |node: &&Node| {
                Layout::Numbered
                    .ticket(&withdraw.dir, node)
                    .is_some_and(|ticket| ticket.tag == Some(withdraw.tag))
            };
            let Some(node) = view.nodes.iter().find(is_ours) else {
                return Ok(Withdrawn::new(view.index, false, withdraw.node.is_some()));
            };
            let value = Condition::Value(node.value.clone());
            let delete = Delete::new(node.key.clone()).when(value);
            match self.inner.delete(delete).await {
                Ok(deleted) => return Ok(Withdrawn::new(deleted.index, true, true)),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let index = error.index().unwrap_or(view.index);
                    return Ok(Withdrawn::new(index, false, true));
                }
                // It says something else by now.
                Err(error) if error.kind() == ErrorKind::ConditionFailed => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "it kept changing"))
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        self.inner.delete(delete).await
    }

    fn watch(&self, watch: Watch) -> Updates {
        self.inner.watch(watch)
    }

    async fn commit(&self, _: Commit) -> Result<Committed> {
        Err(Error::new(ErrorKind::Unsupported, "one key at a time"))
    }

    /// No request: only the client knows of it.
    async fn grant(&self, grant: Grant) -> Result<Granted> {
        let keys = BTreeMap::new();
        let lease = Lease {
            ttl: grant.ttl,
            keys,
        };
        let mut leases = self.leases.lock().unwrap();
        leases.entry(grant.lease).or_insert(lease);
        Ok(Granted::new(grant.ttl))
    }

    async fn renew(&self, renew: Renew) -> Result<Renewed> {
        let ttl = self.ttl(renew.lease)?;
        let known = {
            let mut leases = self.leases.lock().unwrap();
            let lease = leases.get_mut(&renew.lease).expect("it was there");
            let mut known = std::mem::take(&mut lease.keys);
            for attached in &renew.keys {
                let held = known.remove(&attached.key);
                // What it is compared with is what the session believes.
                let held = held.filter(|held| held.value == attached.value);
                let held = held.unwrap_or_else(|| Held {
                    value: attached.value.clone(),
                    pin: None,
                    unanswered: None,
                });
                lease.keys.insert(attached.key.clone(), held);
            }
            lease.keys.clone()
        };
        let renewals = renew.keys.iter().filter_map(|attached| {
            let held = known.get(&attached.key)?.clone();
            Some(async {
                let renewal = self.renew_key(&renew, &attached.key, held);
                let patience = renew.patience.unwrap_or(Duration::MAX);
                let renewal = tokio::time::timeout(patience, renewal).await;
                let renewal = renewal.unwrap_or(KeyRenewal::Unknown);
                (attached.key.clone(), renewal)
            })
        });
        let keys = join_all(renewals).await;
        if !keys.is_empty() && keys.iter().all(|(_, it)| *it == KeyRenewal::Unknown) {
            return Err(Error::new(ErrorKind::Unavailable, "no key could be told"));
        }
        let skew = *self.skew.lock().unwrap();
        Ok(Renewed::new(ttl, renew.at).with_keys(keys).with_skew(skew))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let keys = match self.leases.lock().unwrap().get(&lease) {
            Some(lease) => lease.keys.clone(),
            None => return Ok(()),
        };
        for (key, held) in keys {
            let value = Condition::Value(held.value);
            match self
                .inner
                .delete(Delete::new(key.clone()).when(value))
                .await
            {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConditionFailed
                    ) => {}
                Err(error) => return Err(error),
            }
            self.hold(lease, &key, None);
        }
        self.leases.lock().unwrap().remove(&lease);
        Ok(())
    }
}
