//! What may cross threads, checked by the compiler: every public type that a service holds, and
//! every future that it awaits.
#![allow(clippy::unwrap_used)]

use std::future::IntoFuture;
use std::time::Duration;

use tenure::embedded::Embedded;
use tenure::store::{Expiry, Scope, Watch};
use tenure::{
    Acquire, Client, Error, Follow, HandLock, Key, Lock, LockGuard, Store, StoreExt, Watcher,
};

fn shared<T: ?Sized + Send + Sync + 'static>() {}
fn sent<T: Send>(_: &T) {}

#[test]
fn types_are_send_and_sync() {
    shared::<Client>();
    shared::<Lock>();
    shared::<Acquire>();
    shared::<LockGuard>();
    shared::<HandLock>();
    shared::<Follow>();
    shared::<Error>();
    shared::<Embedded>();
    shared::<dyn Store>();
    #[cfg(feature = "etcd3")]
    {
        shared::<tenure::etcd3::Etcd3>();
        shared::<tenure::etcd3::Builder>();
    }
    #[cfg(feature = "etcd2")]
    {
        use tenure::etcd2::client as keys;
        shared::<tenure::etcd2::Etcd2>();
        shared::<keys::Client>();
        shared::<keys::Read>();
        shared::<keys::Write>();
        shared::<keys::Delete>();
        shared::<keys::Watch>();
        shared::<keys::EternalWatch>();
        shared::<keys::Response>();
        shared::<keys::Change>();
        shared::<keys::Raw>();
        shared::<keys::RawAnswer>();
        shared::<keys::Auth>();
        shared::<tenure::etcd2::Builder>();
        shared::<tenure::transport::Tls>();
    }
}

#[cfg(feature = "etcd2")]
#[tokio::test]
async fn futures_of_the_keys_client_are_send() {
    let client = tenure::etcd2::Client::new("http://127.0.0.1:1").unwrap();
    sent(&client.read("/k").into_future());
    sent(&client.set("/k", "").into_future());
    sent(&client.delete("/k").into_future());
    sent(&client.watch("/k").into_future());
    sent(&client.pop("/k"));
    sent(&client.contains("/k"));
    sent(
        &client
            .append("/k", "")
            .timeout(Duration::ZERO)
            .into_future(),
    );
    let raw = client.api_execute(tenure::etcd2::client::Method::Get, "/version", []);
    sent(&raw.into_future());
    sent(&client.members());
    sent(&client.leader_stats());
    sent(&client.health());
    sent(&client.auth().user("me"));
    let mut changes = client.eternal_watch("/k").changes();
    sent(&changes);
    sent(&changes.next());
}

#[tokio::test]
async fn futures_are_send() {
    let client = Client::connect("embedded:").await.unwrap();
    let (lock, key) = (client.lock("a"), Key::new("/k").unwrap());
    sent(&Client::connect("embedded:"));
    sent(&client.idle());
    sent(&client.shutdown(Duration::ZERO));
    sent(&lock.try_acquire());
    sent(&lock.acquire().timeout(Duration::ZERO).into_future());
    sent(&client.store().node(&key));
    let guard = lock.acquire().await.unwrap();
    sent(&guard.lost());
    sent(&guard.run(std::future::ready(())));
    sent(&guard.put(&key, "", tenure::store::Expiry::Never));
    sent(&guard.delete(&key));
    sent(&guard.release());
    let store = client.store();
    sent(&store.leaves(&key));
    sent(&store.pop(&key));
    sent(&store.append_value(&key, "".into(), Expiry::Never));
    sent(&store.wait(Watch::node(key.clone())));
    let watcher: Watcher = client.follow(&key, Scope::Tree);
    sent(&watcher);
    let mut by_hand = client.get_lock("a", Duration::from_secs(60));
    sent(&by_hand.acquire().timeout(Duration::ZERO).into_future());
    sent(&by_hand.try_acquire());
    sent(&by_hand.is_locked());
    sent(&by_hand.renew(Duration::ZERO));
    sent(&by_hand.release());
    sent(&by_hand.scoped(async |held: &HandLock| held.is_locked().await));
}
