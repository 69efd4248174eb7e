//! Odd keys go to a real etcd and come back as they were; bad ones never leave.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/proxy.rs"]
#[allow(dead_code)]
mod proxy;

use std::collections::BTreeSet;

use common::etcd::Etcd;
use common::words::secs;
use futures_util::StreamExt;
use proxy::{Match, Proxy};
use tenure::etcd2::Client;
use tenure::etcd2::client::Change;
use tenure::{ErrorKind, Key};

const KEYS: usize = 2_000;
const SEED: u64 = 0x7e_0e;

/// What a segment is made of: everything that means something in a path, a query, a form or JSON,
/// and text that an encoder can get wrong.
const PIECES: &[&str] = &[
    "?",
    "#",
    "%",
    "+",
    ";",
    "&",
    "=",
    ":",
    "@",
    "\\",
    "\"",
    "'",
    "<",
    ">",
    " ",
    "%2F",
    "%2e",
    "%00",
    "%",
    "~",
    "!",
    "$",
    "*",
    "(",
    ")",
    ",",
    "[",
    "]",
    "{",
    "}",
    "|",
    "^",
    "`",
    "a",
    "Z",
    "0",
    "-",
    "_",
    ".",
    "..",
    "...",
    "a..b",
    "ü",
    "é",
    "e\u{301}",
    "日本",
    "🦀",
    "👩\u{200d}🚀",
    "\u{2028}",
    "\u{a0}",
    "\u{fffd}",
    "\u{feff}",
    "ﷺ",
    "null",
    "true",
    "wait=true",
    "nodes",
];

fn segment(random: &mut fastrand::Rng) -> String {
    let shape = random.u32(..20);
    let count = if shape == 0 {
        40
    } else {
        1 + random.usize(..6)
    };
    let mut text: String = (0..count)
        .map(|_| *random.choice(PIECES).unwrap())
        .collect();
    match shape {
        1 => text.insert(0, ' '),
        2 => text.push(' '),
        3 => text.insert(0, '_'),
        4 => text = "x".repeat(random.usize(200..400)),
        _ => {}
    }
    text
}

/// So many different keys below a directory, none a directory of another.
fn odd_keys(random: &mut fastrand::Rng, dir: &str) -> Vec<String> {
    let mut segments = BTreeSet::new();
    while segments.len() < KEYS {
        let segment = segment(random);
        if !matches!(&*segment, "." | "..") {
            segments.insert(segment);
        }
    }
    let nested = |(number, segment): (usize, String)| match number % 4 {
        // The same oddity one level down.
        0 => format!("{dir}/{segment} ?/{segment}"),
        _ => format!("{dir}/{segment}"),
    };
    let keys: BTreeSet<_> = segments.into_iter().enumerate().map(nested).collect();
    keys.into_iter().collect()
}

fn hidden(key: &str) -> bool {
    key.split('/').any(|segment| segment.starts_with('_'))
}

#[tokio::test]
async fn two_thousand_odd_keys_come_back_from_every_call_as_they_were() {
    let etcd = Etcd::start();
    let client = Client::new(etcd.url()).unwrap();
    let mut random = fastrand::Rng::with_seed(SEED);
    let keys = odd_keys(&mut random, "/odd");
    assert!(keys.len() > KEYS * 9 / 10 && keys.iter().any(|it| hidden(it)));
    let start = client.set("/first", "").permanent().await.unwrap().node;
    let at = start.modified_index.next();
    // Fewer than etcd keeps events for, so that a watch can replay each lot.
    for lot in keys.chunks(250) {
        let mut written = futures_util::stream::iter(lot)
            .map(|key| {
                let client = &client;
                async move {
                    let written = client.set(key, key.as_str()).permanent().await;
                    written
                        .unwrap_or_else(|error| panic!("{key:?}: {error}"))
                        .node
                }
            })
            .buffer_unordered(8)
            .collect::<Vec<_>>()
            .await;
        written.sort_by_key(|it| it.modified_index);
        let told: BTreeSet<_> = written.iter().map(|it| &it.key).collect();
        assert_eq!(told, lot.iter().collect());
        for key in lot {
            let read = client.read(key).await.unwrap().node;
            assert_eq!((&read.key, read.value.as_ref()), (key, Some(key)));
        }
        let some = &written[random.usize(..written.len())];
        let seen = client.watch(some).index(some.modified_index).await.unwrap();
        assert_eq!(&seen.node, some);
        let from = written[0].modified_index.max(at);
        let mut changes = client
            .eternal_watch("odd")
            .recursive()
            .index(from)
            .changes();
        for node in written.iter().filter(|it| !hidden(&it.key)) {
            match changes.next().await.unwrap().unwrap() {
                Change::Event(event) => assert_eq!(&event.node, node),
                other => panic!("{other:?}"),
            }
        }
    }
    let listing = client.read("/odd").recursive().await.unwrap().node;
    let listed: BTreeSet<_> = listing.leaves().map(|it| it.key.clone()).collect();
    let expected = keys.iter().filter(|it| !hidden(it)).cloned();
    assert_eq!(listed, expected.collect());
    for key in &keys {
        let deleted = client.delete(key).prev_value(key.as_str()).await;
        let before = deleted
            .unwrap_or_else(|error| panic!("{key:?}: {error}"))
            .prev_node;
        assert_eq!(before.unwrap().key, *key);
    }
    let listing = client.read("/odd").recursive().await.unwrap().node;
    assert_eq!(listing.leaves().count(), 0);
}

#[tokio::test]
async fn a_bad_key_is_refused_by_every_call_before_anything_is_sent() {
    let etcd = Etcd::start();
    let upstream = ([127, 0, 0, 1], etcd.client_port()).into();
    let proxy = Proxy::start(upstream).await.unwrap();
    let client = Client::new(proxy.url()).unwrap();
    let long = format!("/{}", "x".repeat(Key::MAX_LEN));
    // Short enough for a key, and too long for a request line once it is escaped.
    let wide = format!("/{}", "日".repeat(650));
    let mut bad = vec![
        "/a//b".to_owned(),
        "//a".to_owned(),
        "/a/".to_owned(),
        "/./a".to_owned(),
        "/a/.".to_owned(),
        "../up".to_owned(),
        "/a/../../members".to_owned(),
        long,
        wide,
    ];
    bad.extend(
        ('\0'..'\u{20}')
            .chain('\u{7f}'..'\u{a0}')
            .map(|it| format!("/a{it}b")),
    );
    for key in &bad {
        for (call, error) in [
            ("read", client.read(key).await.err()),
            ("contains", client.contains(key).await.err()),
            ("set", client.set(key, "x").await.err()),
            ("create", client.create(key, "x").await.err()),
            ("append", client.append(key, "x").await.err()),
            ("make_dir", client.make_dir(key).await.err()),
            ("refresh", client.refresh(key, secs(9)).await.err()),
            (
                "test_and_set",
                client.test_and_set(key, "x", "y").await.err(),
            ),
            ("delete", client.delete(key).await.err()),
            ("pop", client.pop(key).await.err()),
            ("watch", client.watch(key).await.err()),
        ] {
            let error = error.unwrap_or_else(|| panic!("{call} took {key:?}"));
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{call} {key:?}");
            assert_eq!(error.operation(), Some(call), "{key:?}");
        }
        let mut changes = client.eternal_watch(key).changes();
        let error = changes.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey, "{key:?}");
    }
    assert_eq!(proxy.count(&Match::any()), 0);
}

#[tokio::test]
async fn a_key_of_the_greatest_length_round_trips() {
    let etcd = Etcd::start();
    let client = Client::new(etcd.url()).unwrap();
    let key = format!("/{}", "k".repeat(Key::MAX_LEN - 1));
    client.set(&key, "x").await.unwrap();
    assert_eq!(client.pop(&key).await.unwrap().key, key);
}
