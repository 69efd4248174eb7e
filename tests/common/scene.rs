//! One embedded store on paused time, and clients of it.

use std::time::Duration;

use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::{Client, Key, Store, StoreExt, Ttl};

use crate::v2like::V2Like;

pub(crate) const TTL: Duration = Duration::from_secs(3);
/// More than any step takes; only a hang reaches it.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Scene {
    pub(crate) runtime: Runtime,
    pub(crate) store: Embedded,
}

pub(crate) fn scene() -> Scene {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime.clone()).build();
    Scene { runtime, store }
}

impl Scene {
    pub(crate) fn client(&self, store: impl Store) -> Client {
        Client::builder(store)
            .runtime(self.runtime.clone())
            .ttl(Ttl::new(TTL).unwrap())
            .build()
    }

    pub(crate) fn v2like(&self) -> V2Like<Embedded> {
        V2Like::new(self.store.clone())
    }

    pub(crate) async fn line(&self, name: &str) -> Vec<tenure::store::Node> {
        let dir = Key::new(format!("/_locks/{name}")).unwrap();
        self.store.children(&dir).await.unwrap()
    }

    pub(crate) async fn line_has(&self, name: &str, length: usize) {
        let reached = async {
            while self.line(name).await.len() != length {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let reached = tokio::time::timeout(LONG, reached).await;
        assert!(reached.is_ok(), "the line never had {length} tickets");
    }

    pub(crate) async fn sleep(&self, length: Duration) {
        self.runtime.clock.sleep(length).await;
    }
}
