//! What the keys client says of a cluster, one real member or three of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::etcd::{Etcd, Options};
use tenure::ErrorKind;
use tenure::etcd2::Client;

fn client(members: &[Etcd]) -> Client {
    let urls: Vec<String> = members.iter().map(Etcd::url).collect();
    Client::new(urls.join(",")).unwrap()
}

#[tokio::test]
async fn a_member_tells_of_itself_its_cluster_and_its_store() {
    let etcd = Etcd::start();
    let client = Client::new(etcd.url()).unwrap();
    assert_eq!(client.machines().await.unwrap(), [etcd.url()]);
    let members = client.members().await.unwrap();
    let [member] = &members[..] else {
        panic!("{members:?}")
    };
    assert_eq!(
        (&member.name[..], &member.client_urls[0]),
        ("one", &etcd.url())
    );
    assert_eq!(client.leader().await.unwrap(), *member);
    let stats = client.stats().await.unwrap();
    assert_eq!((&stats.id, &stats.state[..]), (&member.id, "StateLeader"));
    assert_eq!(stats.leader_info.leader, member.id);
    assert_eq!(client.leader_stats().await.unwrap().leader, member.id);
    let before = client.store_stats().await.unwrap();
    assert_eq!(etcd.request("PUT", "/v2/keys/a", "value=b").unwrap().0, 201);
    let after = client.store_stats().await.unwrap();
    assert_eq!(after.sets_success, before.sets_success + 1);
    let versions = client.versions().await.unwrap();
    assert!(versions.server.starts_with("3."), "{versions:?}");
    assert!(versions.cluster.starts_with("3."), "{versions:?}");
    let health = client.health().await;
    assert_eq!(health[0].server, etcd.url());
    assert!(
        matches!(health[..], [ref it] if *it.healthy.as_ref().unwrap()),
        "{health:?}"
    );
}

#[tokio::test]
async fn the_leader_is_found_whichever_member_is_asked_first() {
    let members = Etcd::start_three();
    let leader = client(&members).leader().await.unwrap();
    for first in 0..3 {
        let mut urls: Vec<String> = members.iter().map(Etcd::url).collect();
        urls.rotate_left(first);
        let client = Client::new(urls.join(",")).unwrap();
        let stats = client.leader_stats().await.unwrap();
        assert_eq!(stats.leader, leader.id);
        assert_eq!(stats.followers.len(), 2, "{stats:?}");
        let mut machines = client.machines().await.unwrap();
        machines.sort();
        urls.sort();
        assert_eq!(machines, urls);
    }
}

#[tokio::test]
async fn a_follower_alone_says_where_the_leader_is() {
    let members = Etcd::start_three();
    let leader = client(&members).leader().await.unwrap();
    let follower = members.iter().find(|it| leader.client_urls[0] != it.url());
    let client = Client::new(follower.unwrap().url()).unwrap();
    let error = client.leader_stats().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        error.to_string().contains(&leader.client_urls[0]),
        "{error}"
    );
    assert_ne!(
        client.stats().await.unwrap().id,
        leader.id,
        "it speaks for itself"
    );
}

#[tokio::test]
async fn without_a_majority_there_is_no_leader_and_no_health() {
    let mut members = Etcd::start_three();
    members[1].stop();
    members[2].stop();
    let options = Client::builder(format!("{},{}", members[0].url(), members[1].url()));
    let client = options
        .timeout(Duration::from_secs(3))
        .build_client()
        .unwrap();
    let error = loop {
        match client.leader().await {
            // It takes the one that is left an election to notice.
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let health = client.health().await;
    assert!(!health[0].healthy.as_ref().unwrap(), "{health:?}");
    let error = health[1].healthy.as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn versions_and_health_need_no_v2() {
    let etcd = Etcd::start_with(&Options {
        v2: false,
        ..Options::default()
    });
    let client = Client::new(etcd.url()).unwrap();
    assert!(client.versions().await.unwrap().server.starts_with("3."));
    assert!(client.health().await[0].healthy.as_ref().unwrap());
    let error = client.members().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[tokio::test]
async fn every_option_can_be_read_back() {
    let client = Client::builder("http://[::1]:4001,https://h2")
        .user("me", "secret")
        .timeout(Duration::from_secs(7))
        .version_prefix("/etcd/v2/")
        .expected_cluster_id("cdf818194e3a8c32")
        .allow_redirect(false)
        .allow_reconnect(false)
        .use_proxies(false)
        .max_idle_connections(3)
        .build_client()
        .unwrap();
    assert_eq!(client.base_uri(), "http://[::1]:4001");
    assert_eq!((&client.host()[..], client.port()), ("::1", 4001));
    assert_eq!(client.protocol(), "http");
    assert_eq!(client.timeout(), Duration::from_secs(7));
    assert_eq!(client.version_prefix(), "/etcd/v2");
    assert_eq!(client.key_endpoint(), "/etcd/v2/keys");
    assert_eq!(client.cluster_id(), Some("cdf818194e3a8c32"));
    assert_eq!(client.username(), Some("me"));
    assert_eq!(client.max_idle_connections(), 3);
    assert!(!client.allow_redirect() && !client.allow_reconnect() && !client.use_proxies());
    let client = Client::new("http://127.0.0.1").unwrap();
    assert_eq!(client.base_uri(), "http://127.0.0.1:2379");
    assert_eq!((client.cluster_id(), client.username()), (None, None));
    assert!(client.allow_redirect() && client.allow_reconnect() && client.use_proxies());
}

#[test]
fn a_version_prefix_that_is_no_path_is_refused() {
    for prefix in ["v2", "/v2?x", "/a b", "//v2", "/../v2", "/%2e"] {
        let built = Client::builder("http://h")
            .version_prefix(prefix)
            .build_client();
        let error = built.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{prefix}");
    }
}
