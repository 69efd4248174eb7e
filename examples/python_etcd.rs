//! python-etcd's examples, line by line: each line of Python stands above what it is here.
//!
//!     cargo run --example python_etcd                               # on the embedded store
//!     cargo run --example python_etcd -- http://127.0.0.1:2379      # on an etcd started with --enable-v2
//!
//! On etcd it is `tenure::etcd2::Client`, which has all that the v2 API has. Everywhere else the
//! common verbs of `tenure::StoreExt` do the same.

use std::time::Duration;

use tenure::etcd2::client::{Action, Client};
use tenure::store::{Change, Expiry, Watch};
use tenure::{Error, ErrorKind, Key, Result, StoreExt, Ttl};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match std::env::args().nth(1) {
        Some(url) => on_etcd(&url).await,
        None => anywhere(&tenure::Client::connect("embedded:").await?).await,
    }
}

/// The Client object: how it is made, and what it tells of itself.
fn clients() -> Result<()> {
    // client = etcd.Client()   # "localhost, port 4001": etcd's port before 2.0, today it is 2379
    let client = Client::new("http://127.0.0.1")?;
    assert_eq!((client.host().as_str(), client.port()), ("127.0.0.1", 2379));

    // client = etcd.Client(port=4002)
    let client = Client::new("http://127.0.0.1:4002")?;
    assert_eq!(client.base_uri(), "http://127.0.0.1:4002");

    // client = etcd.Client(host='127.0.0.1', port=4003)
    // client = etcd.Client(host='127.0.0.1', port=4003, allow_redirect=False)
    let client = Client::builder("http://127.0.0.1:4003")
        .allow_redirect(false)
        .build_client()?;
    assert!(!client.allow_redirect());

    // client = etcd.Client(host='127.0.0.1', port=4003, allow_reconnect=True, protocol='https')
    // (allow_reconnect is the default: a server that fails gives way to the next in the list)
    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
    {
        let client = Client::new("https://127.0.0.1:4003,https://127.0.0.1:4004")?;
        assert_eq!(client.protocol(), "https");
        assert!(client.allow_reconnect());
    }

    // client.key_endpoint, client.version_prefix, client.read_timeout
    assert_eq!(client.key_endpoint(), "/v2/keys");
    assert_eq!(client.version_prefix(), "/v2");
    assert_eq!(client.timeout(), Duration::from_secs(5));
    Ok(())
}

/// Every example on an etcd at `url`, as `http://127.0.0.1:2379`. Removes `/nodes` and `/foo`
/// first.
pub(crate) async fn on_etcd(url: &str) -> Result<()> {
    clients()?;
    let client = Client::new(url)?;
    for key in ["/nodes", "/foo"] {
        if client.contains(key).await? {
            client.delete(key).recursive().await?;
        }
    }

    // lock = client.get_lock('/customer1', ttl=60)
    let mut lock = client.get_lock("/customer1", Duration::from_secs(60));
    // lock.acquire()
    lock.acquire().await?;
    // lock.is_locked()  # True
    assert!(lock.is_locked().await?);
    // lock.renew(60)
    lock.renew(Duration::from_secs(60)).await?;
    // lock.release()
    lock.release().await?;
    // lock.is_locked()  # False
    assert!(!lock.is_locked().await?);

    // The lock object may also be used as a context manager:
    // lock = client.get_lock('/customer1', ttl=60)
    // with lock as my_lock:
    //     do_stuff()
    //     lock.is_locked()  # True
    //     lock.renew(60)
    // lock.is_locked()  # False
    let mut lock = client.get_lock("/customer1", Duration::from_secs(60));
    lock.scoped(async |my_lock| {
        do_stuff(my_lock.token());
        assert!(my_lock.is_locked().await?);
        my_lock.renew(Duration::from_secs(60)).await
    })
    .await??;
    assert!(!lock.is_locked().await?);

    // client.write('/nodes/n1', 1)
    let first = client.write("/nodes/n1").value("1").await?;
    assert!(first.created);
    // client.write('/nodes/n2', 2, ttl=4)  # sets the ttl to 4 seconds
    let short = client
        .write("/nodes/n2")
        .value("2")
        .ttl(Duration::from_secs(4))
        .await?;
    assert_eq!(short.node.ttl, Some(4));
    // client.write('/nodes/n3', 'test', prevExist=False)  # create only
    client
        .write("/nodes/n3")
        .value("test")
        .prev_exist(false)
        .await?;
    let again = client.create("/nodes/n3", "test").await;
    assert_eq!(kind(again), Some(ErrorKind::AlreadyExists));
    // client.write('/nodes/n3', 'test2', prevValue='test1')  # only if the value was test1
    let swap = client.write("/nodes/n3").value("test2").prev_value("test1");
    assert_eq!(kind(swap.await), Some(ErrorKind::ConditionFailed));
    client.test_and_set("/nodes/n3", "test2", "test").await?;

    // client.write('/nodes/queue', dir=True)  # mkdir
    client.make_dir("/nodes/queue").await?;
    // client.write('/nodes/queue', 'test', append=True)   # will write i.e. /nodes/queue/11
    // client.write('/nodes/queue', 'test2', append=True)  # will write i.e. /nodes/queue/12
    let one = client.append("/nodes/queue", "test").await?;
    let two = client.append("/nodes/queue", "test2").await?;
    println!("appended {} and {}", one.node.key, two.node.key);
    assert!(one.node.key < two.node.key);

    // result = client.read('/foo')
    // print(result.value)  # bar
    client.set("/foo", "bar").await?;
    let mut result = client.read("/foo").await?.node;
    assert_eq!(result.value.as_deref(), Some("bar"));
    // result.value += u'bar'
    // updated = client.update(result)
    // print(updated.value)
    result.value = result.value.map(|value| value + "bar");
    let updated = client.update(&result).await?;
    assert_eq!(updated.node.value.as_deref(), Some("barbar"));

    // client.read('/nodes/n2').value
    let n2 = client.read("/nodes/n2").await?;
    println!("n2 is {:?}, for {:?} s more", n2.node.value, n2.node.ttl);
    // r = client.read('/nodes', recursive=True, sorted=True)
    // for child in r.children:
    //     print("%s: %s" % (child.key, child.value))
    let nodes = client.read("/nodes").recursive().sorted().await?;
    let leaves: Vec<_> = nodes.node.leaves().collect();
    for child in &leaves {
        println!("{}: {:?}", child.key, child.value);
    }
    assert_eq!(leaves.len(), 5);

    // client.read('/nodes/n2', wait=True)  # waits for a change in value in the key
    let end = client
        .read("/nodes/n2")
        .wait()
        .timeout(Duration::from_secs(10));
    assert_eq!(end.await?.action, Action::Expire);
    // client.read('/nodes/n2', wait=True, waitIndex=10)  # the first change at or after an index
    let since = client
        .read("/nodes/n2")
        .wait()
        .wait_index(short.node.modified_index);
    assert_eq!(since.await?.action, Action::Set);
    Ok(())
}

/// Every example that needs no server, with the verbs that all stores have.
pub(crate) async fn anywhere(client: &tenure::Client) -> Result<()> {
    let store = client.store();
    let key = |text: &str| Key::new(text);

    // lock = client.get_lock('/customer1', ttl=60): as above
    let mut lock = client.get_lock("/customer1", Duration::from_secs(60));
    lock.acquire().await?;
    assert!(lock.is_locked().await?);
    lock.renew(Duration::from_secs(60)).await?;
    lock.release().await?;
    assert!(!lock.is_locked().await?);
    lock.scoped(async |my_lock| {
        do_stuff(my_lock.token());
        my_lock.renew(Duration::from_secs(60)).await
    })
    .await??;
    assert!(!lock.is_locked().await?);

    // client.write('/nodes/n1', 1)
    let (n1, n2, n3) = (key("/nodes/n1")?, key("/nodes/n2")?, key("/nodes/n3")?);
    store.set(&n1, "1".into(), Expiry::Never).await?;
    // client.write('/nodes/n2', 2, ttl=4)
    let short = store
        .set(&n2, "2".into(), Expiry::After(seconds(4)?))
        .await?;
    // client.write('/nodes/n3', 'test', prevExist=False)
    store.create(&n3, "test".into(), Expiry::Never).await?;
    // client.write('/nodes/n3', 'test2', prevValue='test1')
    let swap = store.compare_and_swap(&n3, "test1".into(), "test2".into(), Expiry::Never);
    assert_eq!(kind(swap.await), Some(ErrorKind::ConditionFailed));

    // client.write('/nodes/queue', dir=True): directories come with what is in them
    // client.write('/nodes/queue', 'test', append=True)
    // client.write('/nodes/queue', 'test2', append=True)
    let queue = key("/nodes/queue")?;
    let one = store
        .append_value(&queue, "test".into(), Expiry::Never)
        .await?;
    let two = store
        .append_value(&queue, "test2".into(), Expiry::Never)
        .await?;
    println!("appended {} and {}", one.node.key, two.node.key);
    assert!(one.node.position() < two.node.position());

    // result = client.read('/foo'); result.value += u'bar'; updated = client.update(result)
    let at = key("/foo")?;
    store.set(&at, "bar".into(), Expiry::Never).await?;
    let found = store.node(&at).await?;
    let mut result = found.ok_or_else(|| Error::new(ErrorKind::NotFound, "no /foo"))?;
    result.value = [&result.value[..], b"bar"].concat().into();
    let updated = store.update(&result, Expiry::Never).await?;
    assert_eq!(updated.node.text(), Some("barbar"));

    // client.read('/nodes/n2').value
    let value = store.node(&n2).await?;
    println!("n2 is {:?}", value.as_ref().and_then(|node| node.text()));
    // r = client.read('/nodes', recursive=True, sorted=True)
    // for child in r.children: print("%s: %s" % (child.key, child.value))
    let leaves = store.leaves(&key("/nodes")?).await?;
    for child in &leaves {
        println!("{}: {:?}", child.key, child.text());
    }
    assert_eq!(leaves.len(), 5);

    // client.read('/nodes/n2', wait=True)
    let end = store.wait(Watch::node(n2.clone()).from(short.index().next()));
    let end = tokio::time::timeout(Duration::from_secs(10), end).await;
    let end = end.map_err(|_| Error::new(ErrorKind::Timeout, "n2 is still there"))??;
    assert_eq!(end.change, Change::Delete { expired: true });
    // client.read('/nodes/n2', wait=True, waitIndex=10)
    let since = store.wait(Watch::node(n2).from(short.index())).await?;
    assert_eq!(since.index, short.index());
    Ok(())
}

fn seconds(number: u64) -> Result<Ttl> {
    Ttl::new(Duration::from_secs(number))
}

/// What went wrong, if anything did.
fn kind<T>(outcome: Result<T>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind())
}

fn do_stuff(token: Option<u64>) {
    println!("working under the fencing token {token:?}");
}
