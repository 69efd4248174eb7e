//! An etcd that serves v3 only, what it has done, and what an operator does to it.
#![allow(dead_code, unreachable_pub)] // each test crate uses a part

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd3::Etcd3;
use tenure::{Client, Contender, LeaseId, Store, Ttl};

use super::etcd::{Etcd, Options};
use super::wait::LONG;

/// A term that no test reaches by accident.
pub const TTL: Duration = Duration::from_secs(10);

/// Without v2, whose clock proposes twice a second.
pub fn quiet() -> Etcd {
    Etcd::start_with(&Options {
        v2: false,
        ..Options::default()
    })
}

/// A client of its own connection.
pub fn client(url: &str, ttl: Duration) -> Client {
    let store: Arc<dyn Store> = Arc::new(Etcd3::new(url).unwrap());
    Client::builder(store).ttl(Ttl::new(ttl).unwrap()).build()
}

/// What makes clients' stores, each with a connection of its own.
pub fn stores(etcd: &Etcd) -> impl Fn() -> Arc<dyn Store> + Send + Sync + use<> {
    let url = etcd.url();
    move || Arc::new(Etcd3::new(&url).unwrap())
}

/// Returns once so many are in line.
pub async fn line_of(number: usize, line: impl AsyncFn() -> Vec<Contender>) -> Vec<Contender> {
    let reached = async {
        loop {
            let line = line().await;
            if line.len() == number {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(LONG, reached).await;
    reached.unwrap_or_else(|_| panic!("never {number} in line"))
}

/// Returns once a client has said whose its session is, so that it writes nothing more by itself.
pub async fn announced(client: &Client, session: u64) {
    while client.who(session).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a server has done: proposals, and calls that began.
pub fn counts(etcd: &Etcd) -> (u64, u64) {
    let (_, body) = etcd.http("/metrics").unwrap();
    let calls = body
        .lines()
        .filter(|line| line.starts_with("grpc_server_started_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>();
    (etcd.metrics().proposals, calls as u64)
}

/// What `act` costs, proposals and calls, and what it comes to.
pub async fn cost<T>(etcd: &Etcd, act: impl Future<Output = T>) -> ((u64, u64), T) {
    let before = counts(etcd);
    let outcome = act.await;
    let after = counts(etcd);
    ((after.0 - before.0, after.1 - before.1), outcome)
}

/// Writes are exact. Of calls there may be a few more: a slow read is asked for once more.
pub fn assert_cost(what: &str, spent: (u64, u64), expected: (u64, u64)) {
    let most = expected.1 + expected.1.div_ceil(5);
    let right = spent.0 == expected.0 && (expected.1..=most).contains(&spent.1);
    assert!(right, "{what}: {spent:?}, and not {expected:?}");
}

fn call(etcd: &Etcd, path: &str, body: &str) -> String {
    let (status, answer) = etcd.json("POST", path, body).unwrap();
    assert_eq!(status, 200, "{path} {body}: {answer}");
    answer
}

/// Ends a lease behind everybody's back, as `etcdctl lease revoke` does.
pub fn revoke(etcd: &Etcd, lease: LeaseId) {
    let id = format!("{{\"ID\":\"{}\"}}", lease.get());
    call(etcd, "/v3/lease/revoke", &id);
}

/// Forgets all history, as an operator or etcd's own timer does.
pub fn compact(etcd: &Etcd) {
    let answer = call(etcd, "/v3/kv/range", "{\"key\":\"AA==\"}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let now = answer.pointer("/header/revision").unwrap();
    let now = now.as_str().unwrap();
    let revision = format!("{{\"revision\":\"{now}\"}}");
    call(etcd, "/v3/kv/compaction", &revision);
}
