//! No secret shows: not in `Debug`, `Display` or any error, and not in what this crate, hyper or
//! rustls trace at their most talkative. Nor does this crate trace the values of keys.
#![cfg(all(feature = "etcd2", any(feature = "tls-ring", feature = "tls-aws-lc")))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::error::Error as StdError;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use tenure::etcd2::{Builder, Client, Etcd2};
use tenure::store::{Condition, Expiry, Put};
use tenure::transport::Tls;
use tenure::{Error, ErrorKind, Store, StoreExt};

mod common;
#[path = "common/tls.rs"]
mod tls;

use common::etcd::Etcd;
use common::fake::{Fake, Say};
use common::words::key;
use tls::{Authority, Directory, Identity, etcd, url};

const USER: &str = "root";
const PASSWORD: &str = "hush-9f3b1c";
const WRONG: &str = "wrong-7ad2e0";
/// `root:` and the passwords, in base64 as far as the padding.
const ENCODED: [&str; 2] = ["cm9vdDpodXNoLTlmM2IxY", "cm9vdDp3cm9uZy03YWQyZT"];
/// Begins every value that a test writes or compares with.
const VALUE: &str = "confidential-51c8";

/// All that was traced or logged since the process began.
static TOLD: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn told() -> MutexGuard<'static, Vec<u8>> {
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Listener;

impl Write for Listener {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        told().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("TRACE {}: {}\n", record.target(), record.args());
        told().extend_from_slice(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Hears everything from now on.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(|| Listener)
            .init();
        log::set_boxed_logger(Box::new(Listener)).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

/// What was heard of these targets; there is something of each.
fn heard(targets: &[&str]) -> String {
    let all = String::from_utf8(told().clone()).unwrap();
    for target in targets {
        let mut of_it = all
            .lines()
            .filter(|line| line.contains(&format!(" {target}")));
        assert!(of_it.next().is_some(), "nothing heard of {target}");
    }
    all
}

fn hides(text: &str, secrets: &[&str]) {
    for secret in secrets {
        assert!(
            !text.contains(secret),
            "{secret} in {}",
            around(text, secret)
        );
    }
}

fn around<'a>(text: &'a str, secret: &str) -> &'a str {
    text.lines()
        .find(|line| line.contains(secret))
        .unwrap_or(text)
}

/// Neither a password nor, in this crate's own traces, a value was ever told.
fn nothing_was_given_away(targets: &[&str]) {
    let all = heard(targets);
    hides(&all, &[PASSWORD, WRONG, ENCODED[0], ENCODED[1]]);
    for line in all.lines().filter(|line| line.contains(" tenure")) {
        hides(line, &[VALUE]);
    }
}

/// Everything that an error and its causes say.
fn whole(error: &Error) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text} {error} {error:?} {error:#?}");
        cause = error.source();
    }
    text
}

fn discreet(error: &Error) {
    hides(&whole(error), &[PASSWORD, WRONG, ENCODED[0], ENCODED[1]]);
}

fn shown(builder: &Builder) -> String {
    let store = builder.clone().build().unwrap();
    let client: Client = store.client();
    let name = store.name();
    format!("{builder:?} {builder:#?} {store:?} {store:#?} {client:?} {client:#?} {name}")
}

/// An etcd whose root has the password, and guests no rights.
fn guarded() -> Etcd {
    let etcd = Etcd::start();
    let user = format!(r#"{{"user":"{USER}","password":"{PASSWORD}"}}"#);
    let created = etcd.json("PUT", "/v2/auth/users/root", &user);
    assert_eq!(created.unwrap().0, 201);
    assert_eq!(etcd.json("PUT", "/v2/auth/enable", "").unwrap().0, 200);
    let revoke = r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#;
    let credentials = format!("{}w==", ENCODED[0]);
    let revoked = etcd.json_as(&credentials, "PUT", "/v2/auth/roles/guest", revoke);
    assert_eq!(revoked.unwrap().0, 200);
    etcd
}

fn text(name: &str) -> String {
    format!("{VALUE}-{name}")
}

#[tokio::test]
async fn a_password_and_values_stay_untold_while_all_goes_well_and_when_it_is_refused() {
    listen();
    let etcd = guarded();
    let builder = Etcd2::builder(etcd.url()).user(USER, PASSWORD);
    hides(&shown(&builder), &[PASSWORD, ENCODED[0]]);
    let store = builder.build().unwrap();
    let a = key("/a");
    store
        .set(&a, text("one").into(), Expiry::Never)
        .await
        .unwrap();
    // Conditions go as forms and as queries, met and unmet.
    let value = |name: &str| Condition::Value(text(name).into());
    let put = Put::new(a.clone(), text("two"), Expiry::Never);
    store.put(put.when(value("one"))).await.unwrap();
    let unmet = store.remove_if(&a, value("one")).await.unwrap_err();
    assert_eq!(unmet.kind(), ErrorKind::ConditionFailed, "{unmet}");
    discreet(&unmet);
    store.remove_if(&a, value("two")).await.unwrap();

    let wrong = Etcd2::builder(etcd.url()).user(USER, WRONG).build();
    let refused = wrong
        .unwrap()
        .set(&a, text("three").into(), Expiry::Never)
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{refused}");
    discreet(&refused);

    let host = etcd.url().replace("http://", "");
    let connected = tenure::Client::connect(&format!("etcd2://{USER}:{WRONG}@{host}")).await;
    discreet(&connected.unwrap_err());
    let in_url = Etcd2::builder(format!("http://{USER}:{PASSWORD}@{host}"));
    hides(&shown(&in_url), &[PASSWORD, ENCODED[0]]);
    in_url.build().unwrap().probe().await.unwrap();
    nothing_was_given_away(&["tenure::transport", "hyper"]);
}

#[tokio::test]
async fn a_password_and_values_stay_untold_when_nobody_answers_or_answers_strangely() {
    listen();
    let redirect = "HTTP/1.1 301 X\r\nLocation: http://127.0.0.1:1/v2/keys/a\r\n\
                    Connection: close\r\nContent-Length: 0\r\n\r\n";
    let says = [
        Say::Raw(redirect.into()),
        Say::Raw("garbage\r\n\r\n".into()),
        Say::Raw("HTTP/1.1 500 X\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno".into()),
        Say::Close,
        Say::Nothing,
    ];
    let mut urls = vec!["http://127.0.0.1:1".to_owned()];
    let mut fakes = Vec::new();
    for say in says {
        let fake = Fake::new(move |_, _| say.clone()).await;
        urls.push(fake.url());
        fakes.push(fake);
    }
    for url in urls {
        let store = Etcd2::builder(&url).user(USER, PASSWORD);
        let store = store.timeout(Duration::from_millis(400)).build().unwrap();
        let a = key("/a");
        let put = store.set(&a, text("four").into(), Expiry::Never).await;
        discreet(&put.unwrap_err());
        let condition = Condition::Value(text("five").into());
        let removed = store.remove_if(&a, condition).await;
        discreet(&removed.unwrap_err());
        discreet(&store.node(&a).await.unwrap_err());
    }
    for fake in &fakes {
        let sent = fake.requests().join("\n");
        assert!(sent.contains(ENCODED[0]), "it was sent at all: {sent}");
    }
    nothing_was_given_away(&["tenure::transport", "hyper"]);
}

/// The lines of a private key, and its bytes as `Debug` prints them.
fn traces_of(identity: &Identity) -> Vec<String> {
    let lines = identity.key.lines().filter(|it| !it.starts_with("---"));
    let mut traces: Vec<String> = lines.map(str::to_owned).collect();
    let raw = identity.key.as_bytes();
    let raw = format!("{:?}", &raw[40..60]);
    traces.push(raw.trim_matches(['[', ']']).to_owned());
    traces
}

#[tokio::test]
async fn a_private_key_and_a_password_stay_untold_when_tls_stands_and_when_it_does_not() {
    listen();
    let (ours, files) = (Authority::new(), Directory::new());
    let server = etcd(&files, &ours.vouch("127.0.0.1"), Some(&ours));
    let (us, stranger) = (ours.vouch("us"), Authority::new().vouch("us"));
    let mut secrets = traces_of(&us);
    secrets.extend(traces_of(&stranger));
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    let another = Authority::new().pem;
    let base = Tls::new().ca_pem(&*ours.pem);
    for (tls, trusted) in [
        (base.clone().identity_pem(us.combined()), true),
        (base.clone().identity_pem(stranger.combined()), false),
        (base.identity_pems(&*us.certificate, &*stranger.key), false),
        (
            Tls::new().ca_pem(another).identity_pem(us.combined()),
            false,
        ),
    ] {
        hides(&format!("{tls:?} {tls:#?}"), &secrets);
        let builder = Etcd2::builder(url(&server)).tls(tls).user(USER, PASSWORD);
        hides(&format!("{builder:?} {builder:#?}"), &secrets);
        let probed = match builder.build() {
            Ok(store) => {
                hides(&format!("{store:?} {store:#?}"), &secrets);
                store.probe().await
            }
            Err(error) => Err(error),
        };
        match probed {
            Ok(()) => assert!(trusted),
            Err(error) => {
                assert!(!trusted, "{error}");
                hides(&whole(&error), &secrets);
                discreet(&error);
            }
        }
    }
    hides(&heard(&[]), &secrets);
    nothing_was_given_away(&["tenure::transport", "hyper", "rustls"]);
}
