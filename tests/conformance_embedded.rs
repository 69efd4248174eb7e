//! The embedded store keeps every promise, bare, behind decorators, and on either clock.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tenure::embedded::Embedded;
use tenure::runtime::Runtime;
use tenure::store::{Layout, Prefixed};
use tenure::testkit::{Call, Faulty, Odds};
use tenure::{Key, Store, conformance};

fn on_paused_time() -> Embedded {
    let runtime = Runtime::on_tokio_time(1);
    Embedded::builder().runtime(runtime).build()
}

async fn conforms(store: impl Store) {
    let under = Key::new("/_conformance").unwrap();
    let report = conformance::run(Arc::new(store), &under).await;
    assert_eq!(
        report.passed().count(),
        conformance::all().count(),
        "{report}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_embedded_store_conforms() {
    conforms(on_paused_time()).await;
}

#[tokio::test(start_paused = true)]
async fn the_embedded_store_conforms_with_the_layout_of_etcd_v3() {
    let runtime = Runtime::on_tokio_time(1);
    let store = Embedded::builder().runtime(runtime).layout(Layout::Leased);
    conforms(store.build()).await;
}

#[tokio::test]
async fn the_embedded_store_conforms_on_the_real_clock() {
    conforms(Embedded::new()).await;
}

#[tokio::test(start_paused = true)]
async fn a_prefixed_store_conforms() {
    let prefix = Key::new("/team/a store").unwrap();
    let inner = on_paused_time();
    conforms(Prefixed::new(inner.clone(), prefix)).await;
    let twice = Prefixed::new(inner, Key::new("/other").unwrap());
    conforms(Prefixed::new(twice, Key::new("/_deeper").unwrap())).await;
}

#[tokio::test(start_paused = true)]
async fn a_faulty_store_on_which_nothing_goes_wrong_conforms() {
    conforms(Faulty::new(on_paused_time(), 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_conforms() {
    let store = Faulty::new(on_paused_time(), 1);
    let mut slow = Odds::none();
    (slow.delay, slow.slow_reply) = (0.3, 0.3);
    (slow.watch_delay, slow.longest) = (0.3, Duration::from_millis(20));
    store.set_all_odds(slow);
    conforms(store.clone()).await;
    assert!(
        Call::ALL.iter().all(|&call| store.calls(call) > 0),
        "every method is called"
    );
}

#[test]
fn the_suite_can_run_on_any_thread() {
    fn is_send(_: &impl Send) {}
    is_send(&conformance::run(Arc::new(Embedded::new()), &Key::root()));
}

#[test]
fn no_two_checks_share_a_name() {
    let names: BTreeSet<_> = conformance::all().map(conformance::Check::name).collect();
    assert_eq!(names.len(), conformance::all().count());
}
