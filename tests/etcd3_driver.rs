//! The etcd v3 driver against a real etcd: what things cost by the server's own counters, lines that
//! are shared with etcd's own tools, lost answers, late requests, and refusals in words.
#![cfg(feature = "etcd3")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/gate.rs"]
mod gate;

use std::time::Duration;

use common::etcd::{Etcd, Options};
use common::v3::quiet;
use common::words::{key, secs, value, write};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use gate::{Gate, Pass};
use tenure::etcd3::Etcd3;
use tenure::runtime::Clock;
use tenure::store::{
    Append, Commit, Condition, Delete, Expiry, Freshness, Get, Grant, Naming, Page, Put, Renew,
    Select, Withdraw,
};
use tenure::{Client, ErrorKind, Index, LeaseId, Loss, Store, StoreExt, Tag};

fn open(etcd: &Etcd) -> Etcd3 {
    Etcd3::new(etcd.url()).unwrap()
}

fn lease(number: u64) -> LeaseId {
    LeaseId::new(number).unwrap()
}

fn tag(nonce: u64) -> Tag {
    Tag::new(lease(0xabc), nonce)
}

/// What a server has done: proposals, and calls that began.
fn counts(etcd: &Etcd) -> (u64, u64) {
    let (_, body) = etcd.http("/metrics").unwrap();
    let calls = body
        .lines()
        .filter(|line| line.starts_with("grpc_server_started_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>();
    (etcd.metrics().proposals, calls as u64)
}

/// What `act` costs: proposals and calls.
async fn cost<T>(etcd: &Etcd, act: impl Future<Output = T>) -> (u64, u64) {
    let before = counts(etcd);
    act.await;
    let after = counts(etcd);
    (after.0 - before.0, after.1 - before.1)
}

#[tokio::test]
async fn what_things_cost() {
    let etcd = quiet();
    let store = open(&etcd);
    let index = write(&store, "/k", "v").await;
    let dir = key("/_locks/a");

    let grant = store.grant(Grant::new(lease(0xabc), secs(60)));
    assert_eq!(cost(&etcd, async { grant.await.unwrap() }).await, (1, 1));
    let append = Append::ticket(dir.clone(), tag(1), Expiry::With(lease(0xabc)));
    let mut appended = None;
    let act = async { appended = Some(store.append(append).await.unwrap()) };
    assert_eq!(cost(&etcd, act).await, (1, 1));
    let appended = appended.unwrap();
    assert_eq!(
        appended.before,
        Some(Vec::new()),
        "who is before is told in the same step"
    );

    // One stream for all renewals.
    let clock = Clock::boot();
    let renew = || store.renew(Renew::new(lease(0xabc), clock.now(), Vec::new()));
    assert_eq!(cost(&etcd, async { renew().await.unwrap() }).await, (0, 1));
    let many = async {
        for _ in 0..20 {
            renew().await.unwrap();
        }
    };
    assert_eq!(cost(&etcd, many).await, (0, 0));

    for freshness in [
        Freshness::Any,
        Freshness::AtLeast(index),
        Freshness::Linearizable,
    ] {
        for get in [
            Get::node(key("/k")),
            Get::children(key("/")),
            Get::tree(key("/")),
        ] {
            let read = async { store.get(get.fresh(freshness)).await.unwrap() };
            assert_eq!(cost(&etcd, read).await, (0, 1), "{freshness:?}");
        }
    }
    let check = Commit::new().check(key("/k"), Condition::Present);
    assert_eq!(
        cost(&etcd, async { store.commit(check).await.unwrap() }).await,
        (0, 1)
    );

    let withdraw = Withdraw::new(dir, tag(1), Naming::Ticket).node(appended.node);
    assert_eq!(
        cost(&etcd, async { store.withdraw(withdraw).await.unwrap() }).await,
        (1, 1)
    );
    assert!(
        store
            .children(&key("/_cancelled"))
            .await
            .unwrap()
            .is_empty(),
        "and leaves no mark"
    );
    let put = Put::new(key("/k"), "w", Expiry::Never).when(Condition::Index(index));
    assert_eq!(
        cost(&etcd, async { store.put(put).await.unwrap() }).await,
        (1, 1)
    );
    let delete = Delete::new(key("/k"));
    assert_eq!(
        cost(&etcd, async { store.delete(delete).await.unwrap() }).await,
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_costs_two_proposals_and_two_calls() {
    let etcd = quiet();
    let client = Client::new(open(&etcd));
    let lock = client.lock("a");
    lock.acquire().await.unwrap().release().await.unwrap();
    let cycles = async {
        for _ in 0..20 {
            lock.acquire().await.unwrap().release().await.unwrap();
        }
    };
    assert_eq!(cost(&etcd, cycles).await, (40, 40));
}

#[tokio::test]
async fn a_lease_that_is_granted_again_is_ours_and_lives_anew() {
    let etcd = quiet();
    let store = open(&etcd);
    let left = || {
        let (_, answer) = etcd
            .json("POST", "/v3/lease/timetolive", r#"{"ID":"7"}"#)
            .unwrap();
        let ttl = answer.split("\"TTL\":\"").nth(1).unwrap();
        ttl.split('"').next().unwrap().parse::<u64>().unwrap()
    };
    let grant = async || {
        let granted = store.grant(Grant::new(lease(7), secs(30))).await.unwrap();
        assert_eq!(
            granted.ttl,
            secs(30),
            "whole seconds, as the server granted"
        );
    };
    grant().await;
    let clock = Clock::boot();
    let deadline = clock.now() + Duration::from_secs(10);
    while left() > 28 {
        assert!(!clock.has_passed(deadline), "its term runs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    grant().await;
    assert!(
        left() > 28,
        "a term counts from the grant that was answered"
    );
    store.revoke(lease(7)).await.unwrap();
    let gone = Renew::new(lease(7), Clock::boot().now(), Vec::new());
    let error = store.renew(gone).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn a_write_that_is_refused_leaves_no_lease() {
    let etcd = quiet();
    let store = open(&etcd);
    write(&store, "/k", "v").await;
    let leases = || {
        etcd.metric("etcd_debugging_lease_granted_total")
            - etcd.metric("etcd_debugging_lease_revoked_total")
    };
    let before = leases();
    let put = Put::new(key("/k"), "w", Expiry::After(secs(60))).when(Condition::Absent);
    let error = store.put(put).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(leases(), before);
    let kept = store
        .set(&key("/k"), "w".into(), Expiry::After(secs(60)))
        .await
        .unwrap();
    assert!(kept.node.lease.is_some() && leases() == before + 1.0);
}

/// Appends are held back on their way until they were withdrawn.
#[tokio::test]
async fn a_write_that_is_not_polled_any_more_keeps_nobody_from_the_lease_they_share() {
    let etcd = quiet();
    let store = open(&etcd);
    let put = |name: &str| {
        let hour = Expiry::After(secs(3600));
        store.put(Put::new(key("/long").join(name).unwrap(), "", hour))
    };
    let mut first = put("first");
    // As beside a `select!` whose other branch takes long: it has asked for the lease.
    assert!((&mut first).now_or_never().is_none());
    let others = async {
        let outcomes = join_all(["a", "b", "c"].map(put)).await;
        let nodes = outcomes.into_iter().map(|it| it.unwrap().node);
        nodes.map(|it| it.lease.unwrap()).collect::<Vec<_>>()
    };
    let others = tokio::time::timeout(Duration::from_secs(4), others).await;
    let leases = others.expect("they wait for the one that is not polled");
    let theirs = first.await.unwrap().node.lease.unwrap();
    assert_eq!(leases, [theirs; 3]);

    // Nor does one that is dropped meanwhile.
    let day = |name: &str| {
        let day = Expiry::After(secs(86_400));
        store.put(Put::new(key("/long").join(name).unwrap(), "", day))
    };
    let mut dropped = day("d");
    assert!((&mut dropped).now_or_never().is_none());
    let mut waiting = day("e");
    assert!((&mut waiting).now_or_never().is_none());
    drop(dropped);
    assert!(waiting.await.is_ok());
}

#[tokio::test]
async fn a_late_append_of_what_was_withdrawn_makes_nothing() {
    let etcd = quiet();
    let gate = Gate::start(etcd.client_port()).await;
    let slow = Etcd3::builder(gate.url())
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    let direct = open(&etcd);
    let dir = key("/_locks/a");
    let expiry = Expiry::With(lease(0xabc));
    slow.grant(Grant::new(lease(0xabc), secs(60)))
        .await
        .unwrap();
    gate.set(Pass::Answers);
    let send = |append| {
        let slow = slow.clone();
        tokio::spawn(async move { slow.append(append).await })
    };
    let ticket = send(Append::ticket(dir.clone(), tag(1), expiry));
    let job = send(Append::tagged(key("/jobs"), tag(2), "x", Expiry::Never));
    let other = send(Append::ticket(dir.clone(), tag(3), expiry));
    let withdraw = Withdraw::new(dir.clone(), tag(1), Naming::Ticket).lease(lease(0xabc));
    let withdrawn = direct.withdraw(withdraw).await.unwrap();
    assert!(withdrawn.settled && !withdrawn.removed);
    let withdraw = Withdraw::new(key("/jobs"), tag(2), Naming::Tag);
    assert!(direct.withdraw(withdraw).await.unwrap().settled);
    assert!(!ticket.is_finished() && !job.is_finished() && !other.is_finished());
    gate.set(Pass::All);
    for late in [ticket, job] {
        let error = late.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConditionFailed, "{error}");
    }
    other.await.unwrap().unwrap();
    let line = direct.children(&dir).await.unwrap();
    let names: Vec<_> = line.iter().map(|node| node.key.name()).collect();
    assert_eq!(names, ["abc-3"]);
    assert!(direct.children(&key("/jobs")).await.unwrap().is_empty());
    // The ticket's mark goes with the ticket's lease, the other stays for ten minutes.
    direct.revoke(lease(0xabc)).await.unwrap();
    let marks = direct.children(&key("/_cancelled")).await.unwrap();
    let names: Vec<_> = marks
        .iter()
        .map(|node| node.key.name().to_owned())
        .collect();
    assert_eq!(names, [tag(2).to_string()]);
    assert!(marks[0].lease.is_some());
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_ambiguous_and_was_done_once() {
    let etcd = quiet();
    let gate = Gate::start(etcd.client_port()).await;
    let store = Etcd3::builder(gate.url())
        .timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let index = write(&store, "/k", "before").await;
    gate.set(Pass::Requests);
    let error = store
        .set(&key("/k"), "after".into(), Expiry::Never)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    // A read can be asked again, and nobody answers that either.
    let error = store.node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    gate.set(Pass::All);
    let node = store.node(&key("/k")).await.unwrap().unwrap();
    assert_eq!((node.text(), node.modified), (Some("after"), index.next()));
    gate.cut();
    assert_eq!(
        value(&store, "/k").await.as_deref(),
        Some("after"),
        "on a new connection"
    );
}

#[tokio::test]
async fn a_server_that_is_gone_is_unreachable_and_back_without_ado() {
    let mut etcd = quiet();
    let store = Etcd3::builder(etcd.url())
        .timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    write(&store, "/k", "v").await;
    etcd.stop();
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let error = store
            .set(&key("/k"), "w".into(), Expiry::Never)
            .await
            .unwrap_err();
        kinds.push(error.kind());
    }
    assert_eq!(kinds[1], ErrorKind::Unreachable, "{kinds:?}");
    etcd.restart();
    assert_eq!(value(&store, "/k").await.as_deref(), Some("v"));
    let clock = Clock::boot();
    let renew = Renew::new(lease(9), clock.now(), Vec::new());
    assert_eq!(
        store.renew(renew).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn another_cluster_behind_the_same_address_is_noticed() {
    let mut etcd = quiet();
    let store = open(&etcd);
    store.probe().await.unwrap();
    etcd.rebuild();
    let error = store.node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClusterChanged, "{error}");
}

#[tokio::test]
async fn what_was_taken_after_a_backup_is_lost_when_that_is_restored_and_can_be_taken_anew() {
    let mut etcd = quiet();
    let client = Client::new(open(&etcd));
    let lock = async |name: &str| client.lock(name).acquire().await;
    let early = lock("early").await.unwrap();
    etcd.back_up();
    // By another: a connection of before the backup would leave the first in doubt.
    let other = open(&etcd);
    for _ in 0..50 {
        write(&other, "/k", "v").await;
    }
    // The session is in the backup, and these are not.
    let (late, alone) = (lock("late").await.unwrap(), lock("alone").await.unwrap());
    let waiting = lock("late");
    let mut waiting = std::pin::pin!(waiting);
    // In line, and with the line's task.
    while client.lock("late").contenders().await.unwrap().len() < 2 {
        assert!((&mut waiting).now_or_never().is_none());
    }
    etcd.go_back();
    let soon = Duration::from_secs(12);
    let lost = tokio::time::timeout(soon, alone.lost()).await;
    assert_eq!(lost, Ok(Loss::Deleted), "held with nobody waiting");
    let error = tokio::time::timeout(soon, waiting).await.unwrap();
    let error = error.unwrap_err().kind();
    assert!(
        [ErrorKind::ClusterChanged, ErrorKind::Lost].contains(&error),
        "{error:?}"
    );
    let lost = tokio::time::timeout(soon, late.lost()).await;
    assert_eq!(lost, Ok(Loss::Deleted), "held with somebody waiting");
    assert!(early.is_held());
    // The line's task goes on: the guard of before is still there.
    let anew = tokio::time::timeout(soon, lock("late")).await.unwrap();
    assert!(anew.unwrap().token() < late.token(), "its index went back");
}

#[tokio::test]
async fn raw_appends_rise_whoever_makes_them() {
    let etcd = quiet();
    let stores = [open(&etcd), open(&etcd), open(&etcd)];
    let dir = key("/nodes/queue");
    write(&stores[0], "/elsewhere", "x").await;
    let append = async |store: &Etcd3, body: String| {
        let node = store
            .append(Append::raw(dir.clone(), body, Expiry::Never))
            .await
            .unwrap()
            .node;
        assert_eq!(node.key.name().len(), 20);
        node
    };
    let mut tasks = Vec::new();
    for (who, store) in stores.iter().enumerate() {
        tasks.push(async move {
            let mut nodes = Vec::new();
            for round in 0..20 {
                nodes.push(append(store, format!("{who} {round}")).await);
            }
            nodes
        });
    }
    let mut nodes: Vec<_> = futures_util::future::join_all(tasks).await.concat();
    nodes.sort_by_key(|node| node.created);
    let listed = stores[1].children(&dir).await.unwrap();
    assert_eq!(
        listed, nodes,
        "the order of the names is the order of the appends"
    );
    // Names that are no such numbers do not stand in the way.
    write(&stores[0], "/nodes/queue/7", "x").await;
    let after = append(&stores[0], "after".into()).await;
    assert!(after.key > nodes[59].key);
}

#[tokio::test]
async fn a_name_that_no_number_comes_after_does_not_end_raw_appends() {
    let etcd = quiet();
    let store = open(&etcd);
    for last in [u64::MAX.to_string(), "9".repeat(20)] {
        let dir = key(&format!("/nodes/{last}"));
        write(&store, &format!("{dir}/{last}"), "x").await;
        for _ in 0..3 {
            let append = Append::raw(dir.clone(), "beside", Expiry::Never);
            let node = store.append(append).await.unwrap().node;
            assert_eq!(node.key.name().len(), 20);
        }
    }
}

#[tokio::test]
async fn a_large_tree_is_read_at_one_index_and_jumps_over_what_is_not_shown() {
    let number = match std::env::var("TENURE_LARGE_TREE") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => 2_500,
    };
    let etcd = quiet();
    // To delete a hundred thousand keys at once takes a server seconds.
    let store = Etcd3::builder(etcd.url()).timeout(Duration::from_secs(60));
    let store = store.build().unwrap();
    for from in (0..number).step_by(100) {
        let put = |at: usize| Put::new(key(&format!("/big/d/{at:06}")), "x", Expiry::Never);
        let commit = (from..(from + 100).min(number)).fold(Commit::new(), |it, at| it.put(put(at)));
        store.commit(commit).await.unwrap();
    }
    write(&store, "/big/_hidden/x", "x").await;
    write(&store, "/big/z", "x").await;
    let tree = store.tree(&key("/big")).await.unwrap();
    assert_eq!(tree.iter().filter(|node| !node.is_dir).count(), number + 1);
    assert_eq!(
        tree.iter().filter(|node| node.is_dir).count(),
        2,
        "/big and /big/d"
    );
    let children = async { store.children(&key("/big")).await.unwrap() };
    let mut listed = Vec::new();
    let (proposals, calls) = cost(&etcd, async { listed = children.await }).await;
    let names: Vec<_> = listed
        .iter()
        .map(|node| (node.key.name(), node.is_dir))
        .collect();
    assert_eq!(names, [("d", true), ("z", false)]);
    assert_eq!(
        (proposals, calls),
        (0, 2),
        "the inside of a directory is not walked through"
    );

    // Pages are of one index, whatever is written in between.
    let limit = 1_500.try_into().unwrap();
    let get = Get::tree(key("/big")).keys_only();
    let first = store
        .get(get.clone().page(Page::first(limit)))
        .await
        .unwrap();
    assert!(first.more && first.nodes.len() == 1_500);
    store.delete(Delete::tree(key("/big"))).await.unwrap();
    let last = first.nodes.last().unwrap().key.clone();
    let next = Page::after(limit, last, first.index);
    let second = store.get(get.page(next)).await.unwrap();
    assert_eq!(second.index, first.index);
    assert_eq!(second.nodes.len(), 1_500.min(number + 1 - 1_500));
}

#[tokio::test]
async fn a_list_whose_index_is_compacted_away_meanwhile_begins_anew() {
    let etcd = quiet();
    let direct = open(&etcd);
    for from in (0..2_000).step_by(100) {
        let put = |at: usize| Put::new(key(&format!("/big/{at:06}")), "x", Expiry::Never);
        let commit = (from..from + 100).fold(Commit::new(), |it, at| it.put(put(at)));
        direct.commit(commit).await.unwrap();
    }
    let gate = Gate::start(etcd.client_port()).await;
    let slow = Etcd3::builder(gate.url()).timeout(Duration::from_secs(60));
    let slow = slow.build().unwrap();
    slow.probe().await.unwrap();
    gate.set(Pass::Requests);
    let before = etcd.calls("handled", "Range");
    let list = tokio::spawn({
        let slow = slow.clone();
        async move { slow.children(&key("/big")).await }
    });
    while etcd.calls("handled", "Range") <= before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The first page is on its way.
    direct.remove(&key("/big/000000")).await.unwrap();
    let last = write(&direct, "/big/after", "x").await;
    etcd.compact(last.get());
    gate.set(Pass::All);
    let listed = list.await.unwrap().unwrap();
    assert_eq!(listed, direct.children(&key("/big")).await.unwrap());
    assert_eq!(listed.len(), 2_000);
    let walks = etcd.calls("handled", "Range") - before;
    assert!(walks >= 4.0, "{walks} reads: no page was refused");
}

#[tokio::test]
async fn a_list_of_large_values_comes_in_pages_that_can_be_read() {
    const NUMBER: usize = 72;
    let etcd = quiet();
    let store = open(&etcd);
    let value = "x".repeat(1 << 20);
    for at in 0..NUMBER {
        write(&store, &format!("/large/{at:02}"), &value).await;
    }
    let before = etcd.calls("msg_sent", "Range");
    let listed = store.children(&key("/large")).await.unwrap();
    assert_eq!(listed.len(), NUMBER);
    assert!(listed.iter().all(|node| node.value.len() == 1 << 20));
    let pages = etcd.calls("msg_sent", "Range") - before;
    println!("{NUMBER} MiB in {pages} pages");
    assert!((10.0..40.0).contains(&pages), "{pages} pages");
}

#[tokio::test]
async fn a_compacted_index_is_history_lost() {
    let etcd = quiet();
    let store = open(&etcd);
    for round in 0..10 {
        write(&store, "/k", &round.to_string()).await;
    }
    let last = store.get(Get::node(key("/k"))).await.unwrap().index;
    let compact = format!("{{\"revision\":{}}}", last.get());
    let (status, _) = etcd.json("POST", "/v3/kv/compaction", &compact).unwrap();
    assert_eq!(status, 200);
    let limit = 2.try_into().unwrap();
    let page = Page::after(limit, key("/j"), Index::new(3).unwrap());
    let mut get = Get::children(key("/")).page(page);
    get.select = Select::Tree;
    let error = store.get(get).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HistoryLost, "{error}");
}

#[tokio::test]
async fn a_store_that_never_was_at_an_index_says_so() {
    let etcd = quiet();
    let future = Freshness::AtLeast(Index::new(1 << 40).unwrap());
    let get = Get::node(key("/k")).fresh(future);
    let error = open(&etcd).get(get).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClusterChanged);
}

#[tokio::test]
async fn space_that_is_used_up_is_said_in_words() {
    let etcd = Etcd::start_with(&Options {
        v2: false,
        args: vec!["--quota-backend-bytes".into(), (1 << 20).to_string()],
        ..Options::default()
    });
    let store = open(&etcd);
    let value = "x".repeat(200 << 10);
    let mut refused = None;
    // The server counts its pages now and then.
    for at in 0..1_000 {
        let outcome = store
            .set(&key(&format!("/{at}")), value.clone().into(), Expiry::Never)
            .await;
        if let Err(error) = outcome {
            refused = Some(error);
            break;
        }
    }
    let error = refused.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("NOSPACE"), "{error}");
    assert_eq!(
        store.node(&key("/0")).await.unwrap().unwrap().value.len(),
        200 << 10
    );
    let large = "x".repeat(2 << 20);
    let error = store
        .set(&key("/l"), large.into(), Expiry::Never)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue, "{error}");
}

#[tokio::test]
async fn who_is_no_etcd_is_found_out() {
    use tokio::io::AsyncWriteExt;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let page =
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(page).await;
        }
    });
    let store = Etcd3::builder(format!("http://{addr}")).timeout(Duration::from_secs(2));
    let error = store.build().unwrap().probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("etcd v3"), "{error}");
    server.abort();
}

/// What etcdctl prints when it has the lock: the key.
async fn etcdctl_lock(etcd: &Etcd, name: &str) -> (tokio::process::Child, String) {
    use tokio::io::{AsyncBufReadExt, BufReader};

    let mut child = tokio::process::Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &etcd.url(), "lock", name])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut key = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut key).await.unwrap();
    (child, key.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_shared_with_etcdctl() {
    let etcd = quiet();
    let client = Client::new(open(&etcd));
    let lock = client.lock("shared");
    let (mut theirs, at) = etcdctl_lock(&etcd, "/_locks/shared").await;
    assert!(at.starts_with("/_locks/shared/"), "{at}");
    assert!(lock.try_acquire().await.unwrap().is_none(), "they have it");
    let waiting = tokio::spawn(async move { lock.acquire().await });
    let pid = theirs.id().unwrap().to_string();
    let interrupted = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(interrupted.unwrap().success());
    theirs.wait().await.unwrap();
    let ours = waiting.await.unwrap().unwrap();
    assert!(ours.key().name().contains('-'), "{}", ours.key());
    // And the other way round: they wait until we have given it back.
    let next = async {
        let (child, _) = etcdctl_lock(&etcd, "/_locks/shared").await;
        drop(child);
    };
    tokio::pin!(next);
    let early = tokio::time::timeout(Duration::from_millis(500), &mut next).await;
    assert!(early.is_err(), "they have it while we do");
    ours.release().await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), next)
        .await
        .unwrap();
}
