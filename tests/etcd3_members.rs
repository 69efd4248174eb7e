//! The etcd v3 driver and its servers: who they are, how they are, the addresses that they
//! advertise, and a second one that is asked when the first takes long.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::etcd::{Etcd, Options};
use common::words::{key, value, write};
use tenure::etcd3::{Builder, Etcd3};
use tenure::runtime::Clock;
use tenure::store::{Expiry, Freshness, Get};
use tenure::{ErrorKind, Store, StoreExt};

fn given(members: &[Etcd]) -> Builder {
    let urls: Vec<String> = members.iter().map(Etcd::url).collect();
    Etcd3::builder(urls.join(","))
}

fn open(members: &[Etcd]) -> Etcd3 {
    given(members).build().unwrap()
}

#[tokio::test]
async fn a_cluster_tells_who_and_how_its_members_are() {
    let mut members = Etcd::start_three();
    let store = open(&members);
    assert_eq!(store.cluster_id(), None);
    write(&store, "/k", "v").await;
    let told = store.members().await.unwrap();
    let mut names: Vec<&str> = told.iter().map(|it| &*it.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["one", "three", "two"]);
    for member in &told {
        assert!(!member.is_learner && member.peer_urls.len() == 1);
        let advertised = &member.client_urls[0];
        assert!(members.iter().any(|it| it.url() == *advertised));
    }
    assert!(store.cluster_id().is_some());

    let all = store.status().await;
    let status: Vec<_> = all.iter().map(|it| it.status.as_ref().unwrap()).collect();
    let leaders: Vec<u64> = status
        .iter()
        .filter(|it| it.leads())
        .map(|it| it.member)
        .collect();
    assert_eq!((status.len(), leaders.len()), (3, 1), "{status:?}");
    for (one, server) in status.iter().zip(&all) {
        assert!(told.iter().any(|it| it.id == one.member));
        assert_eq!(one.leader, Some(leaders[0]));
        let at = members.iter().find(|it| it.url() == server.server).unwrap();
        let (_, version) = at.http("/version").unwrap();
        assert!(version.contains(&format!("\"etcdserver\":\"{}\"", one.version)));
        assert!(one.db_size >= one.db_size_in_use && one.db_size_in_use > 0);
        assert!(one.raft_term > 0 && one.raft_index >= one.raft_applied_index);
        assert!(one.errors.is_empty(), "{one:?}");
    }
    assert!(store.health().await.iter().all(|it| it.healthy.is_ok()));

    members[1].stop();
    let gone = members[1].url();
    let ill = |server: &str| server == gone;
    for it in store.status().await {
        assert_eq!(it.status.is_err(), ill(&it.server), "{it:?}");
    }
    for it in store.health().await {
        if let Err(error) = &it.healthy
            && ill(&it.server)
        {
            assert_eq!(error.kind(), ErrorKind::Unreachable);
            assert!(error.to_string().contains(&gone), "{error}");
        } else {
            assert!(!ill(&it.server), "{it:?}");
        }
    }
    assert_eq!(store.members().await.unwrap().len(), 3);
}

#[tokio::test]
async fn an_alarm_is_no_health() {
    let etcd = Etcd::start();
    let store = open(std::slice::from_ref(&etcd));
    assert!(store.health().await[0].healthy.is_ok());
    let id = store.members().await.unwrap()[0].id;
    let alarm = format!(r#"{{"action":"ACTIVATE","memberID":"{id}","alarm":"NOSPACE"}}"#);
    let (status, _) = etcd.json("POST", "/v3/maintenance/alarm", &alarm).unwrap();
    assert_eq!(status, 200);
    let error = store.health().await.remove(0).healthy.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(
        text.contains("NOSPACE") && text.contains(&etcd.url()),
        "{text}"
    );
}

#[tokio::test]
async fn advertised_servers_serve_when_the_given_one_is_gone_and_only_if_wanted() {
    let mut members = Etcd::start_three();
    // An alias of one of them: etcd advertises it under another name.
    let alias = members[0].url().replace("127.0.0.1", "localhost");
    let builder = || Etcd3::builder(&alias).timeout(Duration::from_secs(3));
    let (learning, faithful) = (
        builder().discover_members(true).build().unwrap(),
        builder().build().unwrap(),
    );
    write(&learning, "/k", "v").await;
    write(&faithful, "/k", "v").await;
    assert_eq!(faithful.status().await.len(), 1);
    let known = learning.status().await;
    assert_eq!(known.len(), 4, "the given one, and all that are advertised");
    assert_eq!(known[0].server, alias);
    assert!(known.iter().all(|it| it.status.is_ok()));
    members[0].stop();
    assert_eq!(value(&learning, "/k").await.as_deref(), Some("v"));
    write(&learning, "/k", "w").await;
    let error = faithful.node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}

#[tokio::test]
async fn a_read_that_takes_long_is_asked_of_a_second_server_and_a_write_is_not() {
    let members = Etcd::start_three();
    let store = open(&members);
    for _ in 0..20 {
        write(&store, "/k", "v").await;
    }
    let clock = Clock::boot();
    members[0].pause();
    let began = clock.now();
    let get = Get::node(key("/k")).fresh(Freshness::Any);
    let view = store.get(get).await.unwrap();
    let took = clock.now().since(began);
    // One attempt alone has a second.
    assert!(took < Duration::from_millis(700), "{took:?}");
    assert_eq!(view.nodes[0].text(), Some("v"));
    members[0].resume();

    let store = open(&members);
    for _ in 0..20 {
        write(&store, "/k", "v").await;
    }
    members[0].pause();
    let outcome = store.set(&key("/k"), "w".into(), Expiry::Never).await;
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    assert_eq!(error.server(), Some(&*members[0].url()));
    members[0].resume();
}

#[tokio::test]
async fn a_cluster_that_is_not_the_expected_one_is_refused() {
    let etcd = Etcd::start();
    let store = open(std::slice::from_ref(&etcd));
    store.probe().await.unwrap();
    let id = store.cluster_id().unwrap();
    let expecting = |id| {
        let builder = Etcd3::builder(etcd.url()).expected_cluster_id(id);
        builder.build().unwrap()
    };
    write(&expecting(id), "/k", "v").await;
    let error = expecting(id ^ 1).node(&key("/k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClusterChanged);
    let text = error.to_string();
    for word in [&format!("{id:x}"), &format!("{:x}", id ^ 1), &etcd.url()] {
        assert!(text.contains(word), "{text}");
    }
    let error = expecting(id ^ 1).members().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ClusterChanged);
}

#[tokio::test]
async fn whoever_has_a_user_sees_the_cluster_with_it() {
    let etcd = Etcd::start_with(&Options {
        v2: false,
        ..Options::default()
    });
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"secret"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("enable", "{}"),
    ] {
        let path = format!("/v3/auth/{path}");
        assert_eq!(etcd.json("POST", &path, body).unwrap().0, 200, "{path}");
    }
    let builder = Etcd3::builder(etcd.url()).user("root", "secret");
    let store = builder.discover_members(true).build().unwrap();
    assert_eq!(store.members().await.unwrap().len(), 1);
    assert!(store.status().await[0].status.is_ok());
    assert!(store.health().await[0].healthy.is_ok());
    let nobody = Etcd3::new(etcd.url()).unwrap();
    let error = nobody.health().await.remove(0).healthy.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
}
