//! The etcd v2 driver and the members' wall clocks: what their answers prove, and what that does to
//! leases.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{Fake, Say, answer, plain};
use common::words::{key, lease, secs};
use tenure::etcd2::{Builder, Etcd2};
use tenure::runtime::Instant;
use tenure::store::{Attached, Expiry, Grant, Put, Renew};
use tenure::{Client, ErrorKind, Store, StoreExt};

/// A member whose clock stands at this minute and second after eight, whatever it is asked.
async fn member(date: Option<&str>, expiration: &str) -> Fake {
    let date = date.map(|it| format!("Date: Sun, 22 Nov 2026 08:{it} GMT\r\n"));
    let date = date.unwrap_or_default();
    let body = format!(
        r#"{{"action":"set","node":{{"key":"/k","value":"v","expiration":"2026-11-22T08:{expiration}Z","ttl":3,"modifiedIndex":9,"createdIndex":9}}}}"#
    );
    Fake::new(move |_, request| {
        if request.starts_with("GET /version") {
            return Say::Raw(plain(200, &date, "{}"));
        }
        Say::Raw(answer(200, 9, &body))
    })
    .await
}

fn both(one: &Fake, two: &Fake) -> Builder {
    Etcd2::builder(format!("{},{}", one.url(), two.url()))
}

fn asked(fake: &Fake) -> usize {
    let lines = fake.lines();
    lines.iter().filter(|it| *it == "GET /version").count()
}

/// A term of this many seconds, as the driver grants it: its skew.
async fn granted(store: &Etcd2, seconds: u64) -> tenure::Result<Duration> {
    let grant = Grant::new(lease(), secs(seconds));
    Ok(store.grant(grant).await?.skew)
}

#[tokio::test]
async fn clocks_that_differ_widen_the_margin_of_a_lease() {
    let (one, two) = (
        member(Some("00:00"), "00:00").await,
        member(Some("00:20"), "00:00").await,
    );
    let store = both(&one, &two).user("me", "secret").build().unwrap();
    assert_eq!(
        store.client().clock_spread(),
        Duration::ZERO,
        "not proven yet"
    );
    // The two dates are 20 s apart, and each may be nearly a second old.
    let proven = Duration::from_secs(18)..=Duration::from_secs(19);
    let skew = granted(&store, 60).await.unwrap();
    assert!(proven.contains(&skew), "{skew:?}");
    let spread = store.client().clock_spread();
    assert!(proven.contains(&spread), "{spread:?}");
    granted(&store, 60).await.unwrap();
    assert_eq!(
        (asked(&one), asked(&two)),
        (1, 1),
        "once a minute is enough"
    );
    let shown = one.requests().concat() + &two.requests().concat();
    assert!(!shown.contains("authorization"), "{shown}");
}

#[tokio::test]
async fn a_term_that_the_spread_would_eat_is_refused_and_both_servers_are_named() {
    let (one, two) = (
        member(Some("00:00"), "00:00").await,
        member(Some("00:20"), "00:00").await,
    );
    let store = both(&one, &two).build().unwrap();
    let error = granted(&store, 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidTtl, "{error}");
    let story = format!("{} is ahead of {}", two.url(), one.url());
    assert!(error.detail().contains(&story), "{error}");
    // So it is for who wants a lock.
    let client = Client::new(store);
    let error = client.lock("l").acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidTtl, "{error}");
    assert!(error.detail().contains(&story), "{error}");
}

/// What is traced, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn whoever_runs_this_is_warned_once() {
    let log = Log::default();
    let to = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || to.clone())
        .finish();
    // For all threads: with one of its own, a test beside this one that is warned first can settle it
    // for the whole process that nobody listens.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let (one, two) = (
        member(Some("00:00"), "00:00").await,
        member(Some("00:20"), "00:00").await,
    );
    let store = both(&one, &two).build().unwrap();
    for _ in 0..3 {
        granted(&store, 60).await.unwrap();
    }
    let told = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    // Others are warned too, of other servers.
    let told: Vec<_> = told.lines().filter(|it| it.contains(&one.url())).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let told = told.concat();
    for part in ["tenure::etcd2", "differ", &one.url(), &two.url()] {
        assert!(told.contains(part), "{told}");
    }
}

#[tokio::test]
async fn a_date_out_of_a_cache_proves_nothing() {
    let cache = Fake::new(|_, _| {
        let headers = "Date: Sun, 22 Nov 2026 09:00:00 GMT\r\nAge: 5\r\n";
        Say::Raw(plain(200, headers, "{}"))
    })
    .await;
    let one = member(Some("00:00"), "00:00").await;
    let store = both(&one, &cache).build().unwrap();
    granted(&store, 10).await.unwrap();
    assert_eq!((asked(&one), asked(&cache)), (1, 1));
    assert_eq!(store.client().clock_spread(), Duration::ZERO);
}

#[tokio::test]
async fn the_date_of_a_proxys_error_page_proves_nothing() {
    let proxy = Fake::new(|_, _| {
        let headers = "Date: Sun, 22 Nov 2026 09:00:00 GMT\r\n";
        Say::Raw(plain(502, headers, "bad gateway"))
    })
    .await;
    let one = member(Some("00:00"), "00:00").await;
    let store = both(&one, &proxy).build().unwrap();
    granted(&store, 10).await.unwrap();
    assert_eq!((asked(&one), asked(&proxy)), (1, 1));
    assert_eq!(store.client().clock_spread(), Duration::ZERO);
}

#[tokio::test]
async fn what_was_configured_is_the_least_that_is_left() {
    let (one, two) = (
        member(Some("00:00"), "00:00").await,
        member(Some("00:02"), "00:00").await,
    );
    let promised = Duration::from_secs(3);
    let store = both(&one, &two).max_skew(promised).build().unwrap();
    assert_eq!(granted(&store, 10).await.unwrap(), promised);
    let spread = store.client().clock_spread();
    assert!(!spread.is_zero() && spread < promised, "{spread:?}");
}

#[tokio::test]
async fn the_only_server_is_not_asked_for_its_time() {
    let one = member(Some("00:00"), "00:00").await;
    let store = Etcd2::new(one.url()).unwrap();
    assert_eq!(
        granted(&store, 10).await.unwrap(),
        Duration::from_millis(500)
    );
    assert_eq!(asked(&one), 0);
}

#[tokio::test]
async fn a_server_that_does_not_tell_its_time_holds_a_grant_up_once() {
    let silent = Fake::new(|_, _| Say::Nothing).await;
    let one = member(Some("00:00"), "00:00").await;
    let store = both(&one, &silent).build().unwrap();
    for _ in 0..3 {
        let granted = tokio::time::timeout(Duration::from_secs(5), granted(&store, 10));
        let skew = granted.await.expect("bounded").unwrap();
        assert_eq!(skew, Duration::from_millis(500));
    }
    assert_eq!((asked(&one), asked(&silent)), (1, 1));
}

#[tokio::test]
async fn the_end_of_a_term_shows_the_clock_of_who_stamped_it_and_a_renewal_tells_the_growth() {
    // By one it is 08:00:00 when it stamps ten seconds, by the other 08:01:00.
    let (one, two) = (member(None, "00:10").await, member(None, "01:10").await);
    let store = both(&one, &two).build().unwrap();
    let ours = || Put::new(key("/k"), "v", Expiry::With(lease()));
    assert_eq!(
        granted(&store, 10).await.unwrap(),
        Duration::from_millis(500)
    );
    store.put(ours()).await.unwrap();
    assert_eq!(store.client().clock_spread(), Duration::ZERO);
    drop(one);
    let keys = vec![Attached::new(key("/k"), "v".into())];
    let since = Instant::new(Duration::from_secs(1));
    let renewed = store.renew(Renew::new(lease(), since, keys)).await.unwrap();
    assert!(renewed.skew > Duration::from_secs(50), "{:?}", renewed.skew);
    assert!(
        renewed.skew <= Duration::from_secs(60),
        "{:?}",
        renewed.skew
    );
}

#[tokio::test]
async fn members_whose_clocks_agree_prove_no_spread() {
    let members = Etcd::start_three();
    let urls = members.each_ref().map(Etcd::url);
    let store = Etcd2::new(urls.join(",")).unwrap();
    for _ in 0..30 {
        let skew = granted(&store, 10).await.unwrap();
        assert_eq!(skew, Duration::from_millis(500));
        let expiry = Expiry::With(lease());
        store.set(&key("/k"), "v".into(), expiry).await.unwrap();
    }
    assert_eq!(store.client().clock_spread(), Duration::ZERO);
}
