//! The etcd v2 driver when servers are gone, hang, are cut off or never were there: whoever can be
//! served is, within the deadline, and no write is sent twice.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/peers.rs"]
mod peers;
#[allow(dead_code)] // each test crate uses a part
#[path = "common/proxy.rs"]
mod proxy;

use std::net::SocketAddr;
use std::time::Duration;

use common::etcd::Etcd;
use common::fake::{Fake, Say, answer, node};
use common::words::{key, lease, value};
use futures_util::StreamExt;
use futures_util::future::join_all;
use peers::Peers;
use proxy::{Client, Fault, Match, Proxy};
use tenure::etcd2::{Builder, Etcd2};
use tenure::runtime::Clock;
use tenure::store::{Append, Condition, Delete, Expiry, Get, Put, Update, Updates, Watch};
use tenure::{Error, ErrorKind, Index, Store, StoreExt, Tag};
use tokio::net::{TcpSocket, TcpStream};

/// Long enough for anything on loopback that is going to happen.
const SOON: Duration = Duration::from_secs(30);

fn on(urls: &[String]) -> Builder {
    Etcd2::builder(urls.join(","))
}

fn urls(members: &[Etcd]) -> Vec<String> {
    members.iter().map(Etcd::url).collect()
}

fn put(at: &str, value: &str) -> Put {
    Put::new(key(at), value.to_owned(), Expiry::Never)
}

/// Whether a write failed so that it may be looked for and tried again.
fn passes(error: &Error) -> bool {
    error.is_ambiguous() || error.is_transient()
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A port that takes no more connections and refuses none: packets to it vanish.
struct BlackHole {
    addr: SocketAddr,
    _kept: (tokio::net::TcpListener, Vec<TcpStream>),
}

impl BlackHole {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut kept = Vec::new();
        let patience = Duration::from_millis(300);
        while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(addr)).await {
            kept.push(stream.unwrap());
        }
        Self {
            addr,
            _kept: (listener, kept),
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

async fn opened(updates: &mut Updates) -> Index {
    match updates.next().await.unwrap().unwrap() {
        Update::Open(index) => index,
        other => panic!("{other:?} before the watch was open"),
    }
}

/// Reads on until the watch tells of the write at `index`.
async fn sees(updates: &mut Updates, index: Index) {
    let seen = async {
        loop {
            if let Update::Event(event) = updates.next().await.unwrap().unwrap() {
                assert!(event.index <= index, "{index} was left out");
                if event.index == index {
                    return;
                }
            }
        }
    };
    let seen = tokio::time::timeout(SOON, seen).await;
    seen.expect("the event");
}

#[tokio::test]
async fn reads_never_fail_while_one_of_three_members_is_dead_or_hangs() {
    let mut members = Etcd::start_three();
    for hangs in [false, true] {
        for number in 0..3 {
            let store = on(&urls(&members)).build().unwrap();
            store.put(put("/k", "v")).await.unwrap();
            if hangs {
                members[number].pause();
            } else {
                members[number].stop();
            }
            let mut lost = 0;
            for round in 0..10 {
                let at = format!("/r/{number}/{hangs}/{round}");
                if let Err(error) = store.put(put(&at, "v")).await {
                    assert!(passes(&error), "{error}");
                    lost += 1;
                }
                let read = store.node(&key("/k")).await;
                assert!(read.unwrap().is_some());
            }
            // One that was on its way, and one that met the election of another leader.
            assert!(lost <= 2, "{lost} of 10 writes");
            if hangs {
                members[number].resume();
            } else {
                members[number].restart();
            }
        }
    }
}

#[tokio::test]
async fn one_given_host_is_enough_to_outlive_it() {
    let mut members = Etcd::start_three();
    let store = Etcd2::builder(members[0].url())
        .use_proxies(false)
        .build()
        .unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    opened(&mut updates).await;
    members[0].stop();
    let written = async {
        loop {
            match store.put(put("/k", "v")).await {
                Ok(written) => return written.index(),
                Err(error) => assert!(passes(&error), "{error}"),
            }
        }
    };
    let index = tokio::time::timeout(SOON, written).await.expect("written");
    // Of two writes that both took effect the watch tells of the first first.
    let first = async {
        loop {
            if let Update::Event(event) = updates.next().await.unwrap().unwrap() {
                return event.index;
            }
        }
    };
    let first = tokio::time::timeout(SOON, first).await.expect("told");
    assert!(first <= index, "{first} {index}");
    assert_ne!(store.client().base_uri(), members[0].url());
}

#[tokio::test]
async fn a_member_that_is_cut_off_from_its_peers_is_left_by_reads_writes_and_watches() {
    let peers = Peers::default();
    let members = Etcd::start_three_behind(|number, port| peers.gate(number, port));
    let store = on(&urls(&members))
        .watchdog_period(Duration::from_millis(300))
        // So that it is not the renewal of the poll that helps.
        .poll_period(Duration::from_secs(3_600))
        .build()
        .unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    opened(&mut updates).await;
    let (_, itself) = members[0].http("/v2/stats/self").unwrap();
    let id = itself.split("\"id\":\"").nth(1).unwrap().split('"').next();
    peers.cut(0, id.unwrap());
    let alone = async {
        while !matches!(members[0].http("/v2/members/leader"), Ok((503, _))) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, alone).await.expect("cut off");

    // Whoever comes new to it: a read moves on in time, a write says that it does not know.
    let fresh = on(&urls(&members)).build().unwrap();
    let start = Clock::boot().now();
    assert!(fresh.node(&key("/nothing")).await.unwrap().is_none());
    let took = Clock::boot().now().since(start);
    assert!(took < Duration::from_secs(5), "{took:?}");
    fresh.put(put("/k", "by another")).await.unwrap();
    let unlucky = on(&urls(&members)).build().unwrap();
    let error = unlucky.put(put("/elsewhere", "v")).await.unwrap_err();
    assert!(error.is_ambiguous(), "{error}");
    assert_eq!(error.server(), Some(members[0].url().as_str()));
    unlucky.put(put("/elsewhere", "v")).await.unwrap();

    // The watch that was open there, and would never hear of it.
    let written = fresh.node(&key("/k")).await.unwrap().unwrap().modified;
    sees(&mut updates, written).await;
    assert_ne!(store.client().base_uri(), members[0].url());
    store.put(put("/k", "all follow")).await.unwrap();
    peers.heal();
}

#[tokio::test]
async fn a_host_list_that_is_mostly_wrong_still_serves_within_the_deadline() {
    let etcd = Etcd::start();
    let hole = BlackHole::new().await;
    let ssh = Fake::new(|_, _| Say::Raw("SSH-2.0-OpenSSH_9.2\r\n".into())).await;
    let list = [
        nobody(),
        hole.url(),
        "http://no-such-host.invalid:2379".into(),
        ssh.url(),
        etcd.url(),
    ];
    let store = on(&list).build().unwrap();
    assert!(store.node(&key("/k")).await.unwrap().is_none());
    assert_eq!(store.client().base_uri(), etcd.url());
    store.put(put("/k", "v")).await.unwrap();
    assert_eq!(ssh.requests().len(), 1, "the one that works is kept");
}

#[tokio::test]
async fn the_last_good_server_is_reached_in_time_behind_any_number_of_black_holes() {
    let etcd = Etcd::start();
    let holes = join_all((0..7).map(|_| BlackHole::new())).await;
    let mut list: Vec<String> = holes.iter().map(BlackHole::url).collect();
    list.push(etcd.url());
    let store = on(&list).build().unwrap();
    let start = Clock::boot().now();
    // A write: none of these attempts was sent.
    store.put(put("/k", "v")).await.unwrap();
    let took = Clock::boot().now().since(start);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(value(&store, "/k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn after_all_were_down_any_one_that_comes_back_is_found() {
    let etcd = Etcd::start();
    let upstream = SocketAddr::from(([127, 0, 0, 1], etcd.client_port()));
    let proxies = join_all((0..3).map(|_| Proxy::start(upstream))).await;
    let proxies: Vec<Proxy> = proxies.into_iter().map(Result::unwrap).collect();
    let list: Vec<String> = proxies.iter().map(Proxy::url).collect();
    let store = on(&list)
        .timeout(Duration::from_millis(900))
        .build()
        .unwrap();
    store.put(put("/k", "v")).await.unwrap();
    for back in [2, 0, 1, 1, 0] {
        for proxy in &proxies {
            proxy.cut().await;
        }
        for _ in 0..3 {
            let error = store.node(&key("/k")).await.unwrap_err();
            assert!(error.is_transient(), "{error}");
            let named = list.iter().all(|it| error.detail().contains(it));
            assert!(named, "{error}");
        }
        proxies[back].heal().await;
        assert_eq!(value(&store, "/k").await.as_deref(), Some("v"));
        assert_eq!(store.client().base_uri(), proxies[back].url());
    }
}

#[tokio::test]
async fn a_server_that_hangs_costs_the_timeout_once_and_is_sent_a_write_once() {
    let (one, two) = (
        Fake::new(|_, _| Say::Nothing).await,
        Fake::new(|_, _| Say::Nothing).await,
    );
    let timeout = Duration::from_millis(900);
    let store = on(&[one.url(), two.url()])
        .timeout(timeout)
        .build()
        .unwrap();
    let clock = Clock::boot();
    let start = clock.now();
    let error = store.node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let took = clock.now().since(start);
    assert!(took >= timeout && took < timeout * 2, "{took:?}");
    let reads = one.requests().len() + two.requests().len();
    let error = store.put(put("/k", "v")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    assert_eq!(one.requests().len() + two.requests().len(), reads + 1);
}

#[tokio::test]
async fn a_create_whose_reply_is_lost_is_unclear_and_not_refused_as_existing() {
    let etcd = Etcd::start();
    let upstream = SocketAddr::from(([127, 0, 0, 1], etcd.client_port()));
    let proxy = Proxy::start(upstream).await.unwrap();
    let store = on(&[proxy.url(), etcd.url()]).build().unwrap();
    proxy.inject(Match::method("PUT"), Fault::LoseReply(Client::IsClosed));
    let create = put("/k", "mine").when(Condition::Absent);
    let error = store.put(create).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    assert_eq!(proxy.count(&Match::method("PUT")), 1);
    assert_eq!(value(&store, "/k").await.as_deref(), Some("mine"));
}

#[tokio::test]
async fn without_failover_only_the_first_server_is_ever_asked() {
    let (one, two) = (
        Fake::new(|_, _| Say::Close).await,
        Fake::new(|_, _| Say::Raw(answer(200, 9, &node("get", "/k", "v", 7)))).await,
    );
    let store = on(&[one.url(), two.url()])
        .allow_reconnect(false)
        .timeout(Duration::from_millis(600))
        .watch_patience(Duration::from_millis(100))
        .build()
        .unwrap();
    let error = store.node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(store.put(put("/k", "v")).await.unwrap_err().is_ambiguous());
    let mut updates = store.watch(Watch::node(key("/k")));
    let error = updates.next().await.unwrap().unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(one.requests().len() > 3);
    assert_eq!(two.requests().len(), 0);
}

#[tokio::test]
async fn without_failover_what_was_never_sent_is_tried_again() {
    let etcd = Etcd::start();
    let upstream = SocketAddr::from(([127, 0, 0, 1], etcd.client_port()));
    let proxy = Proxy::start(upstream).await.unwrap();
    proxy.cut().await;
    let store = on(&[proxy.url()]).allow_reconnect(false).build().unwrap();
    let (written, ()) = tokio::join!(store.put(put("/k", "v")), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        proxy.heal().await;
    });
    written.unwrap();
    assert_eq!(proxy.count(&Match::method("PUT")), 1);
}

/// What a write was, so that it can be found again in the proxies' logs and in the store.
enum Write {
    Put { at: String },
    Post { tag: Tag },
    Delete { at: String },
}

impl Write {
    fn of(number: u64) -> Self {
        match number % 3 {
            0 => Self::Put {
                at: format!("/w/put{number}x"),
            },
            1 => Self::Post {
                tag: Tag::new(lease(), number),
            },
            _ => Self::Delete {
                at: format!("/w/gone{number}x"),
            },
        }
    }

    async fn send(&self, store: &Etcd2) -> Result<(), Error> {
        match self {
            Self::Put { at } => store.put(put(at, "v")).await.map(drop),
            Self::Post { tag } => {
                let append = Append::ticket(key("/w/line"), *tag, Expiry::Never);
                store.append(append).await.map(drop)
            }
            Self::Delete { at } => store.delete(Delete::new(key(at))).await.map(drop),
        }
    }

    /// How often it went by.
    fn seen(&self, proxies: &[Proxy]) -> usize {
        let logs = proxies.iter().flat_map(Proxy::log);
        logs.filter(|request| match self {
            Self::Put { at } => request.method == "PUT" && request.path.ends_with(at),
            Self::Post { tag } => {
                request.method == "POST" && request.body.contains(&tag.to_string())
            }
            Self::Delete { at } => request.method == "DELETE" && request.path.contains(at),
        })
        .count()
    }

    /// How often it took effect.
    async fn done(&self, store: &Etcd2) -> usize {
        match self {
            Self::Put { at } => usize::from(store.node(&key(at)).await.unwrap().is_some()),
            Self::Post { tag } => {
                let line = store.get(Get::children(key("/w/line"))).await.unwrap();
                let tag = tag.to_string();
                let own = |it: &&tenure::store::Node| it.text() == Some(tag.as_str());
                line.nodes.iter().filter(own).count()
            }
            Self::Delete { at } => usize::from(store.node(&key(at)).await.unwrap().is_none()),
        }
    }
}

#[tokio::test]
async fn of_hundreds_of_writes_with_faults_none_is_sent_twice_and_each_is_accounted_for() {
    const WRITES: u64 = 300;
    let members = Etcd::start_three();
    let direct = on(&urls(&members)).build().unwrap();
    for number in (2..WRITES).step_by(3) {
        let at = format!("/w/gone{number}x");
        direct.put(put(&at, "v")).await.unwrap();
    }
    let upstream = members
        .each_ref()
        .map(|it| ([127, 0, 0, 1], it.client_port()));
    let proxies = join_all(upstream.map(|it| Proxy::start(it.into()))).await;
    let proxies: Vec<Proxy> = proxies.into_iter().map(Result::unwrap).collect();
    let list: Vec<String> = proxies.iter().map(Proxy::url).collect();
    let store = on(&list)
        .timeout(Duration::from_millis(600))
        .build()
        .unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut outcomes = Vec::new();
    for number in 0..WRITES {
        let proxy = &proxies[random.usize(..3)];
        let writes = Match::path("/v2/keys/w/");
        match random.u32(..12) {
            0 => proxy.inject(writes, Fault::LoseReply(Client::Hangs)),
            1 | 2 => proxy.inject(writes, Fault::LoseReply(Client::IsClosed)),
            3 => proxy.inject(writes, Fault::LoseRequest(Client::Hangs)),
            4 | 5 => proxy.inject(writes, Fault::LoseRequest(Client::IsClosed)),
            6 => proxy.inject(writes, Fault::Answer(503)),
            7 => proxy.cut().await,
            _ => {}
        }
        let write = Write::of(number);
        let outcome = write.send(&store).await;
        outcomes.push((write, outcome));
        proxy.heal().await;
    }
    let (mut acknowledged, mut unclear) = (0, 0);
    for (write, outcome) in &outcomes {
        let (seen, done) = (write.seen(&proxies), write.done(&direct).await);
        assert!(seen <= 1, "{outcome:?} was sent {seen} times");
        assert!(done <= 1, "{outcome:?} was done {done} times");
        match outcome {
            Ok(()) => {
                assert_eq!((seen, done), (1, 1));
                acknowledged += 1;
            }
            Err(error) if error.is_ambiguous() => {
                assert_eq!(seen, 1, "{error}");
                unclear += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
                assert_eq!((seen, done), (0, 0), "{error}");
            }
        }
    }
    assert!(
        acknowledged > 100 && unclear > 30,
        "{acknowledged}, {unclear}"
    );
}
