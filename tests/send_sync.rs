//! What may cross threads, checked by the compiler: every public type that a service holds, and
//! every future that it awaits.
#![allow(clippy::unwrap_used)]

use std::future::IntoFuture;
use std::time::Duration;

use tenure::embedded::Embedded;
use tenure::store::{Expiry, Scope, Watch};
use tenure::{
    Acquire, AcquirePermit, Cache, CacheBuilder, Campaign, Change, Changes, Client, Contender,
    Election, Error, Follow, HandLock, Key, Leader, Leadership, Lock, LockGuard, MultiGuard,
    MultiLock, Permit, Revocation, Semaphore, Store, StoreExt, Watcher, Who,
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
    shared::<Election>();
    shared::<Campaign>();
    shared::<Leadership>();
    shared::<Leader>();
    shared::<Contender>();
    shared::<MultiLock>();
    shared::<MultiGuard>();
    shared::<Revocation>();
    shared::<Who>();
    shared::<Semaphore>();
    shared::<AcquirePermit>();
    shared::<Permit>();
    shared::<Follow>();
    shared::<Cache<String>>();
    shared::<CacheBuilder>();
    shared::<Change<String>>();
    shared::<tenure::Snapshot<String>>();
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
    sent(&guard.revocation());
    sent(&guard.run(std::future::ready(())));
    sent(&guard.put(&key, "", tenure::store::Expiry::Never));
    sent(&guard.delete(&key));
    sent(&guard.release());
    let store = client.store();
    sent(&store.leaves(&key));
    sent(&store.pop(&key));
    sent(&store.append_value(&key, "".into(), Expiry::Never));
    sent(&store.wait(Watch::node(key.clone())));
    sent(&lock.contenders());
    sent(&lock.request_release(""));
    sent(&client.who(1));
    let locks = client.lock_all(["a", "b"]);
    sent(&locks.acquire().timeout(Duration::ZERO).into_future());
    sent(&locks.try_acquire());
    let guards = locks.acquire().await.unwrap();
    sent(&guards.lost());
    sent(&guards.run(std::future::ready(())));
    sent(&guards.release());
    let election = client.election("a");
    sent(&election.campaign("").timeout(Duration::ZERO).into_future());
    sent(&election.try_campaign(""));
    sent(&election.leader());
    sent(&election.observe());
    let owned = String::from("owned");
    let work = async move |leadership: &Leadership| {
        let (borrowed, text): (&str, &'static str) = (&owned, "static");
        leadership.proclaim(text).await?;
        leadership.proclaim(borrowed.to_owned()).await
    };
    sent(&election.lead("", work));
    let leadership = election.campaign("").await.unwrap();
    sent(&leadership.proclaim(""));
    sent(&leadership.resign());
    let watcher: Watcher = client.follow(&key, Scope::Tree);
    sent(&watcher);
    let semaphore = client.semaphore("a").permits(2);
    sent(&semaphore.acquire().weight(2).into_future());
    sent(&semaphore.try_acquire());
    sent(&semaphore.resize(3));
    sent(&semaphore.limit());
    sent(&semaphore.contenders());
    sent(&semaphore.holders());
    sent(&semaphore.acquire().await.unwrap().release());
    let cache = client.cache("/k").start().unwrap();
    sent(&cache.synced());
    sent(&cache.caught_up_to(tenure::Index::MIN));
    let mut changes: Changes<bytes::Bytes> = cache.changes();
    sent(&changes);
    sent(&futures_util::StreamExt::next(&mut changes));
    let mut by_hand = client.get_lock("a", Duration::from_secs(60));
    sent(&by_hand.acquire().timeout(Duration::ZERO).into_future());
    sent(&by_hand.try_acquire());
    sent(&by_hand.is_locked());
    sent(&by_hand.renew(Duration::ZERO));
    sent(&by_hand.release());
    sent(&by_hand.scoped(async |held: &HandLock| held.is_locked().await));
}
