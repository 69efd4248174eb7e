//! python-etcd's examples, as `examples/python_etcd.rs` has them: on a real etcd, and on the
//! embedded store.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "../examples/python_etcd.rs"]
#[allow(dead_code)]
mod example;

use common::etcd::Etcd;
use tenure::Client;

#[tokio::test]
async fn every_example_works_on_a_real_etcd_and_once_more() -> tenure::Result<()> {
    let etcd = Etcd::start();
    example::on_etcd(&etcd.url()).await?;
    example::on_etcd(&etcd.url()).await
}

#[tokio::test]
async fn every_example_works_on_the_embedded_store() -> tenure::Result<()> {
    example::anywhere(&Client::connect("embedded:").await?).await
}

#[tokio::test]
async fn the_common_verbs_do_the_same_on_a_real_etcd() -> tenure::Result<()> {
    let etcd = Etcd::start();
    let url = etcd.url().replace("http", "etcd2");
    example::anywhere(&Client::connect(url).await?).await
}
