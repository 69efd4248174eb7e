//! A real etcd keeps every promise through its v3 API, also behind a prefix and behind a proxy.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;

use common::etcd::Etcd;
use tenure::etcd3::Etcd3;
use tenure::store::Prefixed;
use tenure::{Key, Store, conformance};

async fn conforms(store: impl Store, under: &Key) {
    let report = conformance::run(Arc::new(store), under).await;
    assert_eq!(report.failures().count(), 0, "{report}");
    assert_eq!(report.passed().count(), conformance::all().count());
}

#[tokio::test]
async fn etcd_conforms() {
    let etcd = Etcd::start();
    conforms(Etcd3::new(etcd.url()).unwrap(), &Key::root()).await;
}

#[tokio::test]
async fn etcd_behind_a_prefix_conforms() {
    let etcd = Etcd::start();
    let prefix = Key::new("/_team/a store").unwrap();
    let store = Prefixed::new(Etcd3::new(etcd.url()).unwrap(), prefix);
    conforms(store, &Key::new("/_conformance").unwrap()).await;
}
