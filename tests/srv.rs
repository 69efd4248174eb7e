//! The cluster's servers by DNS SRV, from a name server of our own.
#![cfg(feature = "srv")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use tenure::etcd2::{Builder, Etcd2, Service, Srv};
use tenure::runtime::{Entropy, Runtime};
use tenure::{Error, ErrorKind};

mod common;
#[path = "common/dns.rs"]
mod dns;

use common::etcd::Etcd;
use common::words::{value, write};
use dns::{Dns, Tell};

const SSL: &str = "_etcd-client-ssl._tcp.example.test";
const PLAIN: &str = "_etcd-client._tcp.example.test";
const OLD_SSL: &str = "_etcd-ssl._tcp.example.test";
const OLD: &str = "_etcd._tcp.example.test";

fn asking(dns: &Dns) -> Srv {
    Srv::new().name_server(dns.address())
}

/// The endpoints that are found.
async fn found(dns: &Dns) -> tenure::Result<String> {
    let builder = Builder::discover_with("example.test", &asking(dns)).await?;
    Ok(builder.build()?.name().replace("etcd2 ", ""))
}

async fn refused(dns: &Dns) -> Error {
    found(dns).await.unwrap_err()
}

fn one(target: &'static str) -> Tell {
    Tell::Records(vec![(1, 1, 2379, target)])
}

#[tokio::test]
async fn the_first_service_that_has_records_wins_and_says_the_scheme() {
    let services = [
        (SSL, "https"),
        (PLAIN, "http"),
        (OLD_SSL, "https"),
        (OLD, "http"),
    ];
    for at in 0..services.len() {
        let script = services[at..]
            .iter()
            .map(|(name, _)| (*name, one("h1.test.")));
        let dns = Dns::new(script).await;
        let (name, scheme) = services[at];
        assert_eq!(
            found(&dns).await.unwrap(),
            format!("{scheme}://h1.test:2379")
        );
        assert_eq!(dns.asked().last().map(String::as_str), Some(name));
        assert_eq!(dns.asked().len(), at + 1, "nothing is asked for beyond it");
    }
}

#[tokio::test]
async fn servers_come_by_priority_and_lose_their_dot() {
    let records = vec![
        (20, 5, 1001, "b.test"),
        (10, 5, 1002, "a.test"),
        (30, 5, 1003, "c_d.test"),
    ];
    let dns = Dns::new([(PLAIN, Tell::Records(records))]).await;
    assert_eq!(
        found(&dns).await.unwrap(),
        "http://a.test:1002,http://b.test:1001,http://c_d.test:1003"
    );
}

#[tokio::test]
async fn the_given_entropy_draws_among_equals() {
    let records = vec![(1, 1, 1, "a.test"), (1, 1, 1, "b.test")];
    let dns = Dns::new([(SSL, Tell::Records(records))]).await;
    let mut first = Vec::new();
    for seed in 0..40 {
        let mut runtime = Runtime::default();
        runtime.entropy = Entropy::seeded(seed);
        let options = asking(&dns).runtime(runtime);
        let builder = Builder::discover_with("example.test.", &options).await;
        let name = builder.unwrap().build().unwrap().name().to_owned();
        first.push(name.contains("https://a.test:1,"));
    }
    // Never all of 40 on one side, except once in 2^39; and the seeds are the same each time.
    assert!(first.contains(&true) && first.contains(&false), "{first:?}");
}

#[tokio::test]
async fn a_domain_without_records_is_not_found_and_every_name_was_asked_for() {
    let dns = Dns::new([(SSL, Tell::Code(0))]).await;
    let error = refused(&dns).await;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    for name in [SSL, PLAIN, OLD_SSL, OLD] {
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(dns.asked(), [SSL, PLAIN, OLD_SSL, OLD]);
}

#[tokio::test]
async fn a_failing_dns_is_an_error_and_never_another_service() {
    for (tell, words) in [
        (Tell::Code(2), "Server Failure"),
        (Tell::Code(5), "Refused"),
        (Tell::Silence, "no answer in time"),
        (Tell::Garbage, ""),
    ] {
        let case = format!("{tell:?}");
        let dns = Dns::new([(SSL, tell), (PLAIN, one("h1.test"))]).await;
        let options = asking(&dns).timeout(Duration::from_secs(1));
        let built = Builder::discover_with("example.test", &options).await;
        let error = built.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{case}: {error}");
        for part in [SSL, words, &dns.address().to_string()] {
            let text = error.to_string().to_lowercase();
            assert!(text.contains(&part.to_lowercase()), "{case}: {error}");
        }
        assert_eq!(dns.asked(), [SSL], "{case}");
    }
}

#[tokio::test]
async fn a_single_dot_says_that_there_decidedly_is_no_such_service() {
    let dot = Tell::Records(vec![(0, 0, 0, ".")]);
    let dns = Dns::new([(SSL, dot), (PLAIN, one("h1.test"))]).await;
    let error = refused(&dns).await;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(
        error.to_string().contains("decidedly not available"),
        "{error}"
    );
    assert_eq!(dns.asked(), [SSL]);
}

#[tokio::test]
async fn plain_http_is_not_even_asked_for_when_it_is_not_allowed() {
    let dns = Dns::new([(PLAIN, one("h1.test"))]).await;
    let options = asking(&dns).allow_http(false);
    let built = Builder::discover_with("example.test", &options).await;
    assert_eq!(built.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(dns.asked(), [SSL, OLD_SSL]);
}

#[tokio::test]
async fn other_services_can_be_named() {
    let name = "_etcd-client-blue._tcp.example.test";
    let dns = Dns::new([(name, one("h1.test"))]).await;
    let services = [Service::https("x"), Service::http("etcd-client-blue")];
    let options = asking(&dns).services(services);
    let builder = Builder::discover_with("example.test", &options).await;
    let store = builder.unwrap().build().unwrap();
    assert_eq!(store.name(), "etcd2 http://h1.test:2379");
}

#[tokio::test]
async fn what_is_no_domain_is_refused_before_anything_is_asked() {
    let dns = Dns::new([]).await;
    for domain in ["", ".", "a..b", &"x".repeat(64)] {
        let built = Builder::discover_with(domain, &asking(&dns)).await;
        let error = built.unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::InvalidOptions,
            "{domain:?}: {error}"
        );
    }
    assert_eq!(dns.asked(), [""; 0]);
}

#[tokio::test]
async fn a_real_etcd_is_found_and_used() {
    let etcd = Etcd::start();
    let records = vec![(1, 1, etcd.client_port(), "localhost")];
    let dns = Dns::new([(PLAIN, Tell::Records(records))]).await;
    let builder = Builder::discover_with("example.test", &asking(&dns)).await;
    let store = builder.unwrap().build().unwrap();
    write(&store, "/a", "found").await;
    let direct = Etcd2::new(etcd.url()).unwrap();
    assert_eq!(value(&direct, "/a").await.as_deref(), Some("found"));
}

#[tokio::test]
async fn a_real_etcd_is_found_and_used_by_v3() {
    let etcd = Etcd::start();
    let records = vec![(1, 1, etcd.client_port(), "localhost")];
    let dns = Dns::new([(PLAIN, Tell::Records(records))]).await;
    let builder = tenure::etcd3::Builder::discover_with("example.test", &asking(&dns)).await;
    let store = builder.unwrap().build().unwrap();
    write(&store, "/a", "found").await;
    let direct = tenure::etcd3::Etcd3::new(etcd.url()).unwrap();
    assert_eq!(value(&direct, "/a").await.as_deref(), Some("found"));
}
