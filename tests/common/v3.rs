//! An etcd that serves v3 only, what it has done, and what an operator does to it.
#![allow(dead_code, unreachable_pub)] // each test crate uses a part

use std::sync::Arc;
use std::time::Duration;

use tenure::etcd3::Etcd3;
use tenure::{Client, LeaseId, Store, Ttl};

use super::etcd::{Etcd, Options};

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
