//! Watches of the etcd v3 driver: nothing is lost when connections break, servers hang or are cut
//! off, or nobody reads; what is lost for good is said.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/gate.rs"]
mod gate;
#[path = "common/grpc.rs"]
mod grpc;
#[path = "common/peers.rs"]
mod peers;

use std::time::Duration;

use common::etcd::Etcd;
use common::v3::quiet;
use common::wait::{LONG, until};
use common::words::{key, write};
use futures_util::StreamExt;
use gate::{Gate, Pass};
use grpc::{Fault, Grpc, Which};
use peers::Peers;
use tenure::etcd3::{Builder, Etcd3};
use tenure::runtime::Clock;
use tenure::store::{Change, Commit, Delete, Expiry, Put, Update, Updates, Watch};
use tenure::{Error, ErrorKind, Index, Store, StoreExt};
use tokio::net::TcpListener;

fn impatient(url: &str) -> Builder {
    Etcd3::builder(url)
        .timeout(Duration::from_secs(1))
        .watchdog_period(Duration::from_millis(200))
}

async fn next(updates: &mut Updates) -> Result<Update, Error> {
    let next = tokio::time::timeout(LONG, updates.next()).await;
    next.expect("an update in time")
        .expect("a watch ends only after an error")
}

async fn opened(updates: &mut Updates) -> Index {
    match next(updates).await.unwrap() {
        Update::Open(index) => index,
        other => panic!("{other:?}"),
    }
}

/// The next event, in short.
async fn told(updates: &mut Updates) -> String {
    loop {
        match next(updates).await.unwrap() {
            Update::Event(event) => {
                return match event.change {
                    Change::Put(node) => format!("{} +{}", event.key, node.text().unwrap()),
                    _ => format!("{} -", event.key),
                };
            }
            Update::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// What the server has: streams of watches that were opened, and watches.
fn watches(etcd: &Etcd) -> (f64, f64) {
    let streams = etcd.metric("etcd_debugging_mvcc_watch_stream_total");
    (streams, etcd.metric("etcd_debugging_mvcc_watcher_total"))
}

#[tokio::test]
async fn all_watches_share_one_stream_and_end_with_their_readers() {
    let etcd = quiet();
    let store = Etcd3::new(etcd.url()).unwrap();
    let mut open = Vec::new();
    for number in 0..50 {
        let mut updates = store.watch(Watch::node(key(&format!("/w/{number}"))));
        opened(&mut updates).await;
        open.push(updates);
    }
    assert_eq!(watches(&etcd), (1.0, 50.0));
    for (number, updates) in open.iter_mut().enumerate() {
        write(&store, &format!("/w/{number}"), "x").await;
        assert_eq!(told(updates).await, format!("/w/{number} +x"));
    }
    open.truncate(10);
    until("their watches end", || watches(&etcd) == (1.0, 10.0)).await;
    drop(open);
    until("the stream ends", || watches(&etcd) == (0.0, 0.0)).await;
}

#[tokio::test]
async fn a_broken_connection_loses_no_event() {
    let etcd = quiet();
    let (gate, direct) = (
        Gate::start(etcd.client_port()).await,
        Etcd3::new(etcd.url()).unwrap(),
    );
    let store = impatient(&gate.url()).build().unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    for round in 0..20 {
        write(&direct, "/w/k", &format!("{round} a")).await;
        if round % 2 == 0 {
            gate.cut();
        }
        write(&direct, "/w/k", &format!("{round} b")).await;
        for part in ["a", "b"] {
            assert_eq!(told(&mut updates).await, format!("/w/k +{round} {part}"));
        }
    }
}

#[tokio::test]
async fn history_that_was_compacted_meanwhile_is_lost_and_said_to_be() {
    let etcd = quiet();
    let (gate, direct) = (
        Gate::start(etcd.client_port()).await,
        Etcd3::new(etcd.url()).unwrap(),
    );
    let store = impatient(&gate.url()).build().unwrap();
    let first = write(&direct, "/w/k", "1").await;
    let mut updates = store.watch(Watch::tree(key("/w")).from(first));
    opened(&mut updates).await;
    assert_eq!(told(&mut updates).await, "/w/k +1");
    gate.set(Pass::Nothing);
    write(&direct, "/w/k", "2").await;
    let last = write(&direct, "/w/k", "3").await;
    let compact = format!("{{\"revision\":{}}}", last.get());
    assert_eq!(
        etcd.json("POST", "/v3/kv/compaction", &compact).unwrap().0,
        200
    );
    gate.cut();
    gate.set(Pass::All);
    let error = loop {
        match next(&mut updates).await {
            Ok(Update::Progress(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(
        (error.kind(), error.key()),
        (ErrorKind::HistoryLost, Some(&key("/w")))
    );
    assert!(updates.next().await.is_none());
}

#[tokio::test]
async fn a_silent_server_is_left_for_another_and_nothing_is_missed() {
    let members = tokio::task::spawn_blocking(Etcd::start_three)
        .await
        .unwrap();
    let gate = Gate::start(members[0].client_port()).await;
    let urls = format!("{},{}", gate.url(), members[1].url());
    let store = impatient(&urls).build().unwrap();
    let direct = Etcd3::new(members[2].url()).unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    write(&direct, "/w/k", "before").await;
    assert_eq!(told(&mut updates).await, "/w/k +before");
    gate.set(Pass::Nothing);
    let clock = Clock::boot();
    let since = clock.now();
    write(&direct, "/w/k", "after").await;
    assert_eq!(told(&mut updates).await, "/w/k +after");
    let took = clock.now().since(since);
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    println!("moved within {took:?}");
}

/// Longer than any of these tests takes: what moves a watch here is not the silence.
const NEVER: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_server_that_accepts_the_watches_and_says_nothing_is_left_after_one_attempt() {
    let etcd = Etcd::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut client = h2::server::handshake(client).await.unwrap();
                let mut kept = Vec::new();
                while let Some(Ok((_, mut respond))) = client.accept().await {
                    let head = http::Response::builder().header("content-type", "application/grpc");
                    kept.push(respond.send_response(head.body(()).unwrap(), false));
                }
            });
        }
    });
    let urls = format!("http://{mute},{}", etcd.url());
    let store = Etcd3::builder(urls).watchdog_period(NEVER).build().unwrap();
    let clock = Clock::boot();
    let since = clock.now();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    let took = clock.now().since(since);
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    println!("left within {took:?}");
}

#[tokio::test]
async fn a_server_that_calls_have_left_is_asked_at_once_whether_it_still_feeds_the_watches() {
    let members = tokio::task::spawn_blocking(Etcd::start_three)
        .await
        .unwrap();
    let gate = Gate::start(members[0].client_port()).await;
    let urls = format!("{},{}", gate.url(), members[1].url());
    let store = Etcd3::builder(urls).watchdog_period(NEVER).build().unwrap();
    let direct = Etcd3::new(members[2].url()).unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    write(&direct, "/w/k", "before").await;
    assert_eq!(told(&mut updates).await, "/w/k +before");
    gate.set(Pass::Nothing);
    let clock = Clock::boot();
    let since = clock.now();
    write(&direct, "/w/k", "after").await;
    // One attempt, by any call, and one for the sign of life.
    assert!(store.contains(&key("/w/k")).await.unwrap());
    assert_eq!(told(&mut updates).await, "/w/k +after");
    let took = clock.now().since(since);
    assert!(took < Duration::from_secs(15), "it took {took:?}");
    println!("moved within {took:?}");
}

/// As etcd does since etcd#20229 while a watch begins at an index that the store has not come to.
#[tokio::test]
async fn a_quiet_server_that_tells_no_progress_keeps_the_watches() {
    let etcd = quiet();
    let proxy = Grpc::start(etcd.client_port()).await;
    for nth in 1..1_000 {
        proxy.inject(Which::of("WatchProgress", nth), Fault::Ignored);
    }
    let store = impatient(&proxy.url()).build().unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    let asked = || {
        let calls = proxy.calls();
        let asks = calls.iter().filter(|(name, _)| name.starts_with("Watch"));
        asks.map(|(_, times)| times).sum::<u64>()
    };
    // A watch, a sign of life, and many more of these.
    until("it is asked for signs of life", || asked() >= 10).await;
    assert_eq!(etcd.calls("started", "Watch"), 1.0, "{:?}", proxy.calls());
    assert_eq!(
        watches(&etcd),
        (1.0, 1.0),
        "and nothing is left of the asking"
    );
    write(&store, "/w/k", "v").await;
    assert_eq!(told(&mut updates).await, "/w/k +v");
}

/// Writes `/w/k` if it is not written yet: a write may meet the moment in which there is no leader.
async fn put(store: &Etcd3, value: &'static str) {
    while let Err(error) = store.set(&key("/w/k"), value.into(), Expiry::Never).await {
        assert!(error.is_transient() || error.is_ambiguous(), "{error}");
        if let Ok(Some(node)) = store.node(&key("/w/k")).await
            && node.text() == Some(value)
        {
            return;
        }
    }
}

/// What members here take for an election (`Options::quick`).
const ELECTION: Duration = Duration::from_millis(100);

/// A server without a leader ends the streams of watches itself: one to two election timeouts until
/// it knows that it has none, and two to three more, by which it tells being cut off from an election.
#[tokio::test]
async fn a_member_that_is_cut_off_is_left_for_another() {
    let peers = Peers::default();
    let gates = peers.clone();
    let members = tokio::task::spawn_blocking(move || {
        Etcd::start_three_behind(|number, port| gates.gate(number, port))
    });
    let members = members.await.unwrap();
    let clock = Clock::boot();
    let watches = |n: usize| members[n].metric("etcd_debugging_mvcc_watcher_total") > 0.0;
    let mut fastest = [LONG; 2];
    for of_the_leader in [false, true, false, true] {
        let leads = |it: &Etcd| it.metric("etcd_server_is_leader") > 0.0;
        let leader = loop {
            if let Some(leader) = members.iter().position(leads) {
                break leader;
            }
        };
        let cut = if of_the_leader {
            leader
        } else {
            (leader + 1) % 3
        };
        let (next, third) = ((cut + 1) % 3, (cut + 2) % 3);
        let urls = format!("{},{}", members[cut].url(), members[next].url());
        let direct = Etcd3::new(members[third].url()).unwrap();
        let opening = clock.now();
        let (store, mut updates) = loop {
            let store = impatient(&urls).timeout(Duration::from_secs(3));
            let store = store.build().unwrap();
            let mut updates = store.watch(Watch::tree(key("/w")));
            opened(&mut updates).await;
            if watches(cut) && !watches(next) {
                break (store, updates);
            }
            // Just healed, it may not know its leader yet, and then another is asked.
            assert!(clock.now().since(opening) < LONG, "it is watched elsewhere");
            drop(updates);
            while (0..3).any(watches) {
                clock.sleep(Duration::from_millis(5)).await;
            }
        };
        let (_, about) = members[cut].http("/v2/stats/self").unwrap();
        let id = about.split("\"id\":\"").nth(1).unwrap();
        let id = id.split('"').next().unwrap().to_owned();
        peers.cut(cut, &id);
        let since = clock.now();
        while !watches(next) {
            assert!(clock.now().since(since) < LONG, "it never moved");
            clock.sleep(Duration::from_millis(5)).await;
        }
        let moved = clock.now().since(since);
        put(&direct, "after").await;
        assert_eq!(told(&mut updates).await, "/w/k +after");
        // Writes through the member that is cut off are refused by it, and done by another.
        put(&store, "more").await;
        assert_eq!(told(&mut updates).await, "/w/k +more");
        println!("leader: {of_the_leader}: moved within {moved:?}");
        // A busy machine takes its time.
        assert!(moved < ELECTION * 5 + Duration::from_secs(2), "{moved:?}");
        let fastest = &mut fastest[usize::from(of_the_leader)];
        *fastest = moved.min(*fastest);
        peers.heal();
        drop(updates);
        while (0..3).any(watches) {
            clock.sleep(Duration::from_millis(5)).await;
        }
    }
    // Not all of them are slow.
    let bound = ELECTION * 5 + Duration::from_millis(700);
    assert!(fastest.iter().all(|it| *it < bound), "{fastest:?}");
}

#[tokio::test]
async fn a_killed_member_costs_no_event_and_no_read() {
    let mut members = tokio::task::spawn_blocking(Etcd::start_three)
        .await
        .unwrap();
    let urls = members.iter().map(Etcd::url).collect::<Vec<_>>().join(",");
    let store = impatient(&urls)
        .timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    write(&store, "/w/k", "before").await;
    assert_eq!(told(&mut updates).await, "/w/k +before");
    members[0].stop();
    let node = store.node(&key("/w/k")).await.unwrap().unwrap();
    assert_eq!(node.text(), Some("before"));
    put(&store, "after").await;
    assert_eq!(told(&mut updates).await, "/w/k +after");
}

#[tokio::test]
async fn nobody_at_all_ends_the_watches_after_the_patience() {
    let mut etcd = quiet();
    let store = impatient(&etcd.url()).watch_patience(Duration::from_millis(500));
    let store = store.build().unwrap();
    let mut updates = store.watch(Watch::node(key("/k")));
    opened(&mut updates).await;
    etcd.stop();
    let error = next(&mut updates).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(error.operation(), Some("watch"));
    etcd.restart();
    let mut again = store.watch(Watch::node(key("/k")));
    opened(&mut again).await;
}

#[tokio::test]
async fn a_watch_that_nobody_reads_is_bounded_and_loses_nothing() {
    const MANY: usize = 12_000;
    let etcd = quiet();
    let store = Etcd3::new(etcd.url()).unwrap();
    let mut slow = store.watch(Watch::tree(key("/w")));
    let mut other = store.watch(Watch::node(key("/other")));
    opened(&mut slow).await;
    opened(&mut other).await;
    for from in (0..MANY).step_by(120) {
        let put = |at: usize| {
            Put::new(
                key(&format!("/w/{:03}", at % 120)),
                at.to_string(),
                Expiry::Never,
            )
        };
        let commit = (from..from + 120).fold(Commit::new(), |it, at| it.put(put(at)));
        store.commit(commit).await.unwrap();
    }
    write(&store, "/other", "x").await;
    assert_eq!(
        told(&mut other).await,
        "/other +x",
        "who is read is not held up"
    );
    until("the one that is not read is cancelled", || {
        watches(&etcd).1 == 1.0
    })
    .await;
    for at in 0..MANY {
        assert_eq!(told(&mut slow).await, format!("/w/{:03} +{at}", at % 120));
    }
    write(&store, "/w/last", "x").await;
    assert_eq!(told(&mut slow).await, "/w/last +x");
}

/// A server feeds watches from the past ten times a second: a line must not wait for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_waited_for_is_told_at_once_whatever_else_is_written() {
    const ROUNDS: usize = 21;
    let etcd = quiet();
    let store = Etcd3::new(etcd.url()).unwrap();
    let clock = Clock::boot();
    // The stream stays for as long as there is a watch.
    let mut other = store.watch(Watch::node(key("/other")));
    opened(&mut other).await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let at = key(&format!("/w/{round}"));
        let made = store
            .set(&at, "x".into(), Expiry::Never)
            .await
            .unwrap()
            .index();
        // The store moves on, so the watch begins in the past.
        write(&store, "/elsewhere", "x").await;
        let mut updates = store.watch(Watch::node(at.clone()).from(made.next()).deletes_only());
        opened(&mut updates).await;
        let since = clock.now();
        store.remove(&at).await.unwrap();
        assert_eq!(told(&mut updates).await, format!("/w/{round} -"));
        times.push(clock.now().since(since));
    }
    times.sort_unstable();
    println!(
        "told within {:?}, {:?} at most",
        times[ROUNDS / 2],
        times[ROUNDS - 1]
    );
    assert!(times[ROUNDS / 2] < Duration::from_millis(30), "{times:?}");
    // One that went in the past is told from the past.
    let at = key("/w/gone");
    let made = write(&store, "/w/gone", "x").await;
    store.remove(&at).await.unwrap();
    write(&store, "/w/gone", "again").await;
    let mut updates = store.watch(Watch::node(at).from(made.next()).deletes_only());
    opened(&mut updates).await;
    assert_eq!(told(&mut updates).await, "/w/gone -");
    assert_eq!(
        etcd.calls("started", "Watch"),
        1.0,
        "all of it on one stream"
    );
}

/// etcd#18089: a server that is compacted at the index of a deletion forgets it, and serves a watch
/// from that index as if there had been nothing.
#[tokio::test]
async fn a_deletion_that_was_compacted_away_is_history_lost() {
    let etcd = quiet();
    let (gate, direct) = (
        Gate::start(etcd.client_port()).await,
        Etcd3::new(etcd.url()).unwrap(),
    );
    let store = impatient(&gate.url()).build().unwrap();
    let before = write(&direct, "/w/k", "x").await;
    for watch in [
        Watch::tree(key("/w")),
        Watch::node(key("/w/k")).deletes_only(),
    ] {
        write(&direct, "/w/k", "x").await;
        let index = write(&direct, "/w/k", "y").await;
        assert!(index > before);
        let mut updates = store.watch(watch.from(index.next()));
        opened(&mut updates).await;
        gate.cut();
        gate.set(Pass::Nothing);
        let gone = direct.delete(Delete::new(key("/w/k"))).await.unwrap().index;
        etcd.compact(gone.get());
        gate.cut();
        gate.set(Pass::All);
        let error = next(&mut updates).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HistoryLost, "{error}");
        assert_eq!(
            error.index(),
            Some(gone),
            "what is read instead is no older"
        );
    }
}

/// Servers before 3.4.25 answer a request for progress with an index whose events are still to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_that_was_asked_for_moves_no_index() {
    const WRITERS: usize = 8;
    const WRITES: usize = 250;
    let etcd = quiet();
    // Each silence of a millisecond is asked about.
    let store = Etcd3::builder(etcd.url()).watchdog_period(Duration::from_millis(1));
    let store = store.build().unwrap();
    let writer = Etcd3::new(etcd.url()).unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    let mut known = opened(&mut updates).await;
    let writes = (0..WRITERS).map(|who| {
        let writer = writer.clone();
        tokio::spawn(async move {
            for _ in 0..WRITES {
                write(&writer, &format!("/w/{who}"), &"x".repeat(4_000)).await;
            }
        })
    });
    let writes: Vec<_> = writes.collect();
    let mut events = 0;
    while events < WRITERS * WRITES {
        let index = match next(&mut updates).await.unwrap() {
            Update::Event(event) => {
                events += 1;
                assert!(
                    event.index > known,
                    "an event at {} after {known}",
                    event.index
                );
                event.index
            }
            Update::Progress(index) => index,
            other => panic!("{other:?}"),
        };
        known = known.max(index);
    }
    for each in writes {
        each.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_watches_one_that_nobody_reads_holds_up_no_other() {
    const MANY: usize = 1_000;
    const ROUNDS: usize = 40;
    let etcd = quiet();
    let store = Etcd3::new(etcd.url()).unwrap();
    let mut slow = store.watch(Watch::tree(key("/flood")));
    opened(&mut slow).await;
    let mut all = Vec::new();
    for number in 0..MANY {
        all.push(store.watch(Watch::node(key(&format!("/w/{number:04}")))));
    }
    for updates in &mut all {
        opened(updates).await;
    }
    let flood = store.clone();
    let flood = tokio::spawn(async move {
        for round in 0.. {
            let put = |at: usize| {
                let value = format!("{round}").repeat(500);
                Put::new(key(&format!("/flood/{at:03}")), value, Expiry::Never)
            };
            let commit = (0..100).fold(Commit::new(), |it, at| it.put(put(at)));
            flood.commit(commit).await.unwrap();
        }
    });
    let clock = Clock::boot();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let number = round * 97 % MANY;
        let since = clock.now();
        write(&store, &format!("/w/{number:04}"), "x").await;
        assert_eq!(told(&mut all[number]).await, format!("/w/{number:04} +x"));
        times.push(clock.now().since(since));
    }
    flood.abort();
    times.sort_unstable();
    println!(
        "{MANY} watches, one of them flooded and not read: written and told within {:?}, {:?} at \
         most",
        times[ROUNDS / 2],
        times[ROUNDS - 1]
    );
    assert!(times[ROUNDS / 2] < Duration::from_millis(500), "{times:?}");
    let _ = flood.await;
    // What was not read is all there: each commit whole, one after the other.
    let end = write(&store, "/flood/end", "x").await;
    let (mut index, mut keys) = (None, 0);
    while index < Some(end) {
        if let Update::Event(event) = next(&mut slow).await.unwrap() {
            assert!(index.is_none_or(|it| event.index >= it));
            keys = if index == Some(event.index) {
                keys + 1
            } else {
                1
            };
            index = Some(event.index);
            assert!(
                event.more || keys == 100 || event.index == end,
                "{keys} keys"
            );
        }
    }
}

#[tokio::test]
async fn a_member_that_answers_late_is_left_for_another() {
    let members = tokio::task::spawn_blocking(Etcd::start_three)
        .await
        .unwrap();
    let gate = Gate::start(members[0].client_port()).await;
    let urls = format!("{},{}", gate.url(), members[1].url());
    let store = impatient(&urls).build().unwrap();
    let direct = Etcd3::new(members[2].url()).unwrap();
    let mut updates = store.watch(Watch::tree(key("/w")));
    opened(&mut updates).await;
    write(&direct, "/w/k", "before").await;
    assert_eq!(told(&mut updates).await, "/w/k +before");
    gate.set(Pass::Late(Duration::from_secs(20)));
    let clock = Clock::boot();
    let since = clock.now();
    let node = store.node(&key("/w/k")).await.unwrap().unwrap();
    assert_eq!(node.text(), Some("before"));
    let read = clock.now().since(since);
    write(&direct, "/w/k", "after").await;
    assert_eq!(told(&mut updates).await, "/w/k +after");
    let seen = clock.now().since(since);
    println!("read within {read:?}, the watch moved within {seen:?}");
    assert!(read < Duration::from_secs(2) && seen < Duration::from_secs(5));
}
