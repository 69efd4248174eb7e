//! Reads, watches and rests as the machine wants; no task of its own.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, stream};

use super::Follow;
use super::machine::{Machine, Want};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::runtime::Runtime;
use crate::store::{Get, Scope, Store, Updates, Watch};

struct Driver {
    store: Arc<dyn Store>,
    key: Key,
    scope: Scope,
    runtime: Runtime,
    machine: Machine,
    updates: Option<Updates>,
}

pub(super) fn items(
    store: Arc<dyn Store>,
    key: Key,
    scope: Scope,
    runtime: Runtime,
    machine: Machine,
) -> BoxStream<'static, Result<Follow>> {
    let driver = Driver {
        store,
        key,
        scope,
        runtime,
        machine,
        updates: None,
    };
    let next = async |mut driver: Driver| Some((driver.next().await?, driver));
    stream::unfold(driver, next).boxed()
}

impl Driver {
    async fn next(&mut self) -> Option<Result<Follow>> {
        loop {
            let entropy = &self.runtime.entropy;
            let item = match self.machine.wants() {
                Want::List(freshness) => {
                    let mut get = Get::node(self.key.clone()).fresh(freshness);
                    get.select = self.scope.select();
                    let sent = self.runtime.clock.now();
                    let view = self.store.get(get).await;
                    let took = self.runtime.clock.now().since(sent);
                    self.machine.listed(view, took, entropy).map(Some)
                }
                Want::Watch(from) => {
                    let updates = self.updates.get_or_insert_with(|| {
                        let mut watch = Watch::node(self.key.clone()).from(from);
                        watch.scope = self.scope;
                        self.store.watch(watch)
                    });
                    let update = updates.next().await;
                    if !matches!(update, Some(Ok(_))) {
                        self.updates = None;
                    }
                    self.machine.updated(update, entropy)
                }
                Want::WatchFromNow => {
                    let mut watch = Watch::node(self.key.clone());
                    watch.scope = self.scope;
                    let mut updates = self.store.watch(watch);
                    let update = updates.next().await;
                    if matches!(update, Some(Ok(_))) {
                        self.updates = Some(updates);
                    }
                    self.machine.updated(update, entropy)
                }
                Want::Rest(pause) => {
                    self.runtime.clock.sleep(pause).await;
                    self.machine.rested();
                    Ok(None)
                }
                Want::Nothing => return None,
            };
            match item {
                Ok(None) => {}
                Ok(Some(item)) => {
                    if let Follow::Interrupted(error) = &item {
                        tracing::debug!(target: "tenure::watcher", key = %self.key, %error, "interrupted");
                    }
                    return Some(Ok(item));
                }
                Err(error) => return Some(Err(self.place(error))),
            }
        }
    }

    fn place(&self, error: Error) -> Error {
        error.during("follow").at(&self.key)
    }
}
