//! A real etcd keeps every promise through its v2 API, also behind a prefix and behind a proxy.
#![cfg(feature = "etcd2")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[allow(dead_code)] // each test crate uses a part
#[path = "common/proxy.rs"]
mod proxy;

use std::net::SocketAddr;
use std::sync::Arc;

use common::etcd::Etcd;
use proxy::{Match, Proxy};
use tenure::etcd2::Etcd2;
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
    conforms(Etcd2::new(etcd.url()).unwrap(), &Key::root()).await;
}

#[tokio::test]
async fn etcd_behind_a_prefix_conforms() {
    let etcd = Etcd::start();
    let prefix = Key::new("/_team/a store").unwrap();
    let store = Prefixed::new(Etcd2::new(etcd.url()).unwrap(), prefix);
    conforms(store, &Key::new("/_conformance").unwrap()).await;
}

#[tokio::test]
async fn etcd_behind_a_proxy_conforms() {
    let etcd = Etcd::start();
    let upstream = SocketAddr::from(([127, 0, 0, 1], etcd.client_port()));
    let proxy = Proxy::start(upstream).await.unwrap();
    conforms(Etcd2::new(proxy.url()).unwrap(), &Key::root()).await;
    assert!(
        proxy.count(&Match::path("wait=true")) > 0,
        "watches went through it"
    );
}
