//! A store without real leases, made of one that has them: each key has a time-to-live of its
//! own, which a renewal sets anew for the keys that it lists. As on etcd v2.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::store::{
    About, Append, Appended, Commit, Committed, Condition, Delete, Deleted, Expiry, Get, Grant,
    Granted, KeyRenewal, Operation, Put, Renew, Renewed, Updates, View, Watch, Withdraw, Withdrawn,
    Written,
};
use tenure::{Error, ErrorKind, Key, LeaseId, Result, Store, Ttl};

use super::Flaw;

#[derive(Debug)]
pub(crate) struct Keyed {
    store: Embedded,
    flaw: Option<Flaw>,
    leases: Mutex<BTreeMap<LeaseId, Lease>>,
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: Ttl,
    attached: BTreeMap<Key, Bytes>,
}

impl Keyed {
    pub(crate) fn new(flaw: Option<Flaw>) -> Self {
        let runtime = Runtime::on_tokio_time(1);
        Self {
            store: Embedded::builder().runtime(runtime).build(),
            flaw,
            leases: Mutex::default(),
        }
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Lease>> {
        self.leases.lock().unwrap()
    }

    fn lease(&self, lease: LeaseId) -> Result<Lease> {
        let found = self.leases().get(&lease).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such lease"))
    }

    /// The expiry of a key of its own, and the lease that it is noted for.
    fn own(&self, expiry: Expiry) -> Result<(Expiry, Option<LeaseId>)> {
        match expiry {
            Expiry::With(lease) => Ok((Expiry::After(self.lease(lease)?.ttl), Some(lease))),
            other => Ok((other, None)),
        }
    }

    fn attach(&self, lease: Option<LeaseId>, key: &Key, value: &Bytes) {
        let mut leases = self.leases();
        if lease.is_some() && self.flaw != Some(Flaw::KeepsWhatMoved) {
            leases
                .values_mut()
                .for_each(|other| drop(other.attached.remove(key)));
        }
        if let Some(lease) = lease.and_then(|lease| leases.get_mut(&lease)) {
            lease.attached.insert(key.clone(), value.clone());
        }
    }

    /// Sets the time-to-live of a key anew, if its value is still ours.
    async fn extend(&self, key: &Key, value: Bytes, ttl: Ttl) -> Result<bool> {
        let when = match self.flaw {
            Some(Flaw::TakesOver) => Condition::Any,
            _ => Condition::Value(value.clone()),
        };
        let put = Put::new(key.clone(), value, Expiry::After(ttl)).when(when);
        match self.store.put(put).await {
            Ok(_) => Ok(true),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConditionFailed
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Store for Keyed {
    fn about(&self) -> About {
        self.store.about()
    }

    async fn get(&self, get: Get) -> Result<View> {
        self.store.get(get).await
    }

    async fn put(&self, mut put: Put) -> Result<Written> {
        let (expiry, lease) = self.own(put.expiry)?;
        put.expiry = expiry;
        let written = self.store.put(put).await?;
        self.attach(lease, &written.node.key, &written.node.value);
        Ok(written)
    }

    async fn append(&self, mut append: Append) -> Result<Appended> {
        let (expiry, lease) = self.own(append.expiry)?;
        append.expiry = expiry;
        let appended = self.store.append(append).await?;
        self.attach(lease, &appended.node.key, &appended.node.value);
        Ok(appended)
    }

    async fn withdraw(&self, withdraw: Withdraw) -> Result<Withdrawn> {
        self.store.withdraw(withdraw).await
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        self.store.delete(delete).await
    }

    fn watch(&self, watch: Watch) -> Updates {
        self.store.watch(watch)
    }

    async fn commit(&self, mut commit: Commit) -> Result<Committed> {
        let mut leases = Vec::new();
        for operation in &mut commit.operations {
            let expiry = match operation {
                Operation::Put(put) => Some(&mut put.expiry),
                Operation::Append(append) => Some(&mut append.expiry),
                _ => None,
            };
            let mut lease = None;
            if let Some(expiry) = expiry {
                (*expiry, lease) = self.own(*expiry)?;
            }
            leases.push(lease);
        }
        let committed = self.store.commit(commit).await?;
        for (lease, node) in leases.into_iter().zip(&committed.nodes) {
            if let Some(node) = node {
                self.attach(lease, &node.key, &node.value);
            }
        }
        Ok(committed)
    }

    async fn grant(&self, grant: Grant) -> Result<Granted> {
        let attached = BTreeMap::new();
        let lease = Lease {
            ttl: grant.ttl,
            attached,
        };
        self.leases().entry(grant.lease).or_insert(lease);
        Ok(Granted::new(grant.ttl))
    }

    async fn renew(&self, renew: Renew) -> Result<Renewed> {
        let Lease { ttl, attached } = self.lease(renew.lease)?;
        let (mut answers, since) = (Vec::new(), renew.at);
        for key in renew.keys {
            let live = self.extend(&key.key, key.value, ttl).await?;
            let answer = if live || self.flaw == Some(Flaw::BelievesAllLive) {
                KeyRenewal::Live { since }
            } else {
                KeyRenewal::Gone
            };
            answers.push((key.key, answer));
        }
        match self.flaw {
            Some(Flaw::RenewsTheUnlisted) => {
                for (key, value) in attached {
                    self.extend(&key, value, ttl).await?;
                }
            }
            Some(Flaw::ForgetsAnAnswer) => drop(answers.pop()),
            Some(Flaw::CountsFromTheFuture) => {
                return Ok(Renewed::new(ttl, since + ttl.get()).with_keys(answers));
            }
            _ => {}
        }
        Ok(Renewed::new(ttl, since).with_keys(answers))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let Some(lease) = self.leases().remove(&lease) else {
            return Ok(());
        };
        for (key, value) in lease.attached {
            let when = match self.flaw {
                Some(Flaw::RevokesBlindly) => Condition::Any,
                _ => Condition::Value(value),
            };
            match self.store.delete(Delete::new(key).when(when)).await {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConditionFailed
                    ) => {}
                answer => drop(answer?),
            }
        }
        Ok(())
    }
}
