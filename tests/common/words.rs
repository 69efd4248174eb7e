//! Short words for tests of the etcd v2 driver.
#![allow(dead_code, unreachable_pub)] // each test crate uses a part

use std::time::Duration;

use tenure::etcd2::Etcd2;
use tenure::store::Expiry;
use tenure::{Index, Key, LeaseId, Store, StoreExt, Tag, Ttl};

use super::etcd::Etcd;

pub fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub fn open(etcd: &Etcd) -> Etcd2 {
    Etcd2::new(etcd.url()).unwrap()
}

pub fn lease() -> LeaseId {
    LeaseId::new(0xabc).unwrap()
}

pub fn tag(nonce: u64) -> Tag {
    Tag::new(lease(), nonce)
}

pub fn secs(number: u64) -> Ttl {
    Ttl::new(Duration::from_secs(number)).unwrap()
}

pub async fn write(store: &impl Store, at: &str, value: &str) -> Index {
    let value = value.to_owned().into();
    let written = store.set(&key(at), value, Expiry::Never).await;
    written.unwrap().index()
}

pub async fn value(store: &impl Store, at: &str) -> Option<String> {
    let node = store.node(&key(at)).await.unwrap()?;
    Some(node.text().unwrap().to_owned())
}

/// Waits until the server has so many watches.
pub async fn until_watched(etcd: &Etcd, number: u64) {
    let expected = format!("\"watchers\":{number}}}");
    let watched = async {
        while !etcd.http("/v2/stats/store").unwrap().1.contains(&expected) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let watched = tokio::time::timeout(Duration::from_secs(20), watched).await;
    watched.expect("so many watches within 20 s");
}
