//! What clients run on when faults are planned: one store on paused time, with the faces that real
//! stores have.

use std::sync::Arc;
use std::time::Duration;

use tenure::embedded::Embedded;
use tenure::runtime::{Entropy, Runtime};
use tenure::store::Layout;
use tenure::testkit::Faulty;
use tenure::{Client, Store, Ttl};

use crate::v2like::V2Like;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Numbered tickets; leases, cancel marks, commits; appends tell who is before.
    Embedded,
    /// Numbered tickets and nothing else of it.
    V2Like,
    /// All of it, and tickets named by their lease and placed by their creation.
    V3Like,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Embedded, Self::V2Like, Self::V3Like];

    /// The store that all clients share.
    pub(crate) fn store(self, runtime: &Runtime) -> Embedded {
        let layout = match self {
            Self::Embedded | Self::V2Like => Layout::Numbered,
            Self::V3Like => Layout::Leased,
        };
        let store = Embedded::builder().runtime(runtime.clone());
        store.layout(layout).build()
    }

    /// The store as a client sees it over its own link.
    pub(crate) fn over(self, link: Faulty<Embedded>) -> Arc<dyn Store> {
        match self {
            Self::Embedded | Self::V3Like => Arc::new(link),
            Self::V2Like => Arc::new(V2Like::new(link)),
        }
    }

    /// A client with a session of this length, and its link to the store.
    #[allow(dead_code)] // each test crate uses a part
    pub(crate) fn client(
        self,
        store: &Embedded,
        runtime: &Runtime,
        seed: u64,
        ttl: Duration,
    ) -> (Client, Faulty<Embedded>) {
        let link = Faulty::new(store.clone(), seed);
        let runtime = Runtime::new(runtime.clock.clone(), Entropy::seeded(seed));
        let client = Client::builder(self.over(link.clone()))
            .runtime(runtime)
            .ttl(Ttl::new(ttl).unwrap());
        (client.build(), link)
    }
}
