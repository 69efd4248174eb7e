//! python-etcd's `get_lock` on the keys client: a client of the recipes on the same connections.

use std::time::Duration;

use crate::etcd2::client::Client as KeysClient;
use crate::recipes::by_hand::HandLock;

impl KeysClient {
    /// The lock of this name to be taken and given back by hand: see
    /// [`Client::get_lock`](crate::Client::get_lock), which this calls on a client of its own with
    /// the same connections. To take many locks make one with
    /// [`Client::new`](crate::Client::new)`(keys.store())`.
    ///
    /// # Panics
    /// Outside a tokio runtime: the lock renews itself there.
    pub fn get_lock(&self, name: impl AsRef<str>, ttl: Duration) -> HandLock {
        let client = crate::Client::builder(self.store());
        let client = client.runtime(self.runtime().clone()).build();
        client.get_lock(name, ttl)
    }
}
