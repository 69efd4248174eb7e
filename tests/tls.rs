//! TLS to a real etcd: whom the options and the system's roots vouch for is believed, and the
//! client shows who it is.
//!
//! The system's roots are those of a process, so for them the client is this test binary again,
//! told by its environment which file to trust.
#![cfg(all(feature = "etcd2", any(feature = "tls-ring", feature = "tls-aws-lc")))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;
use std::process::Command;

use tenure::etcd2::Etcd2;
use tenure::transport::Tls;
use tenure::{Client, ErrorKind};

mod common;
#[path = "common/tls.rs"]
mod tls;

use common::words::{value, write};
use tls::{Authority, Directory, Identity, etcd, url};

const URL: &str = "TENURE_TLS_URL";

/// Takes and gives back a lock, as a process that trusts this file; what it says.
fn client(url: &str, trusted: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "a_server_is_believed_if_the_roots_vouch_for_its_name",
        ])
        .env(URL, url)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let line = said.lines().find_map(|line| line.strip_prefix("CLIENT "));
    line.unwrap_or_else(|| panic!("the client said nothing: {said}"))
        .to_owned()
}

async fn take_a_lock(url: &str) -> tenure::Result<()> {
    let client = Client::connect(url).await?;
    client.lock("a").acquire().await?.release().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_believed_if_the_roots_vouch_for_its_name() {
    if let Ok(url) = std::env::var(URL) {
        let outcome = take_a_lock(&url).await;
        let outcome = outcome.map_err(|error| format!("{:?}: {error}", error.kind()));
        println!("\nCLIENT {outcome:?}");
        return;
    }
    let (ours, another) = (Authority::new(), Authority::new());
    let files = Directory::new();
    let (trusted, stranger) = (
        files.write("ours", &ours.pem),
        files.write("another", &another.pem),
    );
    for host in ["127.0.0.1", "10.9.8.7"] {
        let server = etcd(&files, &ours.vouch(host), None);
        let url = format!("etcd2s://{}", server.tls_host());
        let said = client(&url, &trusted);
        if host == "10.9.8.7" {
            assert!(said.contains("Untrusted"), "{said}");
            assert!(
                said.contains("is for 10.9.8.7, not for 127.0.0.1"),
                "{said}"
            );
            continue;
        }
        assert_eq!(said, "Ok(())");
        let said = client(&url, &stranger);
        assert!(said.contains("Untrusted"), "{said}");
        assert!(said.contains("an authority that is not trusted"), "{said}");
    }
}

/// Writes a value and reads it back.
async fn works(url: &str, tls: Tls, value_written: &str) {
    let store = Etcd2::builder(url).tls(tls).build().unwrap();
    write(&store, "/a", value_written).await;
    assert_eq!(value(&store, "/a").await.as_deref(), Some(value_written));
}

#[tokio::test]
async fn the_ca_comes_from_a_file_or_from_text() {
    let (ours, files) = (Authority::new(), Directory::new());
    let server = etcd(&files, &ours.vouch("127.0.0.1"), None);
    let ca = files.write("ca.pem", &ours.pem);
    works(&url(&server), Tls::new().ca_file(ca), "file").await;
    works(&url(&server), Tls::new().ca_pem(&*ours.pem), "text").await;
    // More than one may be given, for the time in which one replaces another.
    let both = format!("{}{}", Authority::new().pem, ours.pem);
    works(&url(&server), Tls::new().ca_pem(both), "both").await;
}

#[tokio::test]
async fn the_client_shows_its_certificate_from_one_text_or_two() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let files = Directory::new();
    let server = etcd(&files, &servers.vouch("127.0.0.1"), Some(&clients));
    let us = clients.vouch("us");
    let (cert, key) = (
        files.write("us.pem", &us.certificate),
        files.write("us.key", &us.key),
    );
    let combined = files.write("us-both.pem", &us.combined());
    let key_first = format!("{}{}", us.key, us.certificate);
    let base = Tls::new().ca_pem(&*servers.pem);
    for (tls, name) in [
        (base.clone().identity_files(cert, key), "two files"),
        (base.clone().identity_file(combined), "one file"),
        (base.clone().identity_pem(us.combined()), "one text"),
        (base.clone().identity_pem(key_first), "key first"),
        (base.identity_pems(us.certificate, us.key), "two texts"),
    ] {
        works(&url(&server), tls, name).await;
    }
}

#[tokio::test]
async fn a_server_may_be_known_by_another_name() {
    let (ours, files) = (Authority::new(), Directory::new());
    let server = etcd(&files, &ours.vouch("etcd.example"), None);
    let base = Tls::new().ca_pem(&*ours.pem);
    works(&url(&server), base.clone().server_name("etcd.example"), "x").await;
    let wrong = base.server_name("other.example");
    let store = Etcd2::builder(url(&server)).tls(wrong).build().unwrap();
    let error = store.probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
    assert!(error.to_string().contains("other.example"), "{error}");
}

#[test]
fn options_of_tls_that_make_no_sense_are_refused_with_the_file_and_the_reason() {
    let (ours, files) = (Authority::new(), Directory::new());
    let (us, other) = (ours.vouch("us"), ours.vouch("other"));
    let missing = files.path().join("missing.pem");
    let empty = files.write("empty.pem", "");
    let cut = &ours.pem[..ours.pem.len() / 2];
    let cut = files.write("cut.pem", cut);
    let cert = files.write("cert.pem", &us.certificate);
    let their_key = files.write("their.key", &other.key);
    let locked = us.key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let locked = files.write("locked.key", &locked);
    let no_ca = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let swapped = Identity {
        certificate: us.certificate.clone(),
        key: other.key.clone(),
    };
    let tls = Tls::new;
    for (tls, expected) in [
        (
            tls().ca_file(&missing),
            vec!["missing.pem", "cannot be read"],
        ),
        (
            tls().ca_file(&empty),
            vec!["the CA in", "empty.pem", "no certificate"],
        ),
        (tls().ca_file(&cut), vec!["cut.pem", "damaged"]),
        (
            tls().ca_pem("nothing"),
            vec!["the CA (PEM text)", "no certificate"],
        ),
        (
            tls().ca_pem(no_ca),
            vec!["certificate 1", "cannot be an authority"],
        ),
        (
            tls().identity_file(&cert),
            vec!["cert.pem", "no private key"],
        ),
        (
            tls().identity_file(&their_key),
            vec!["their.key", "no certificate"],
        ),
        (
            tls().identity_files(&missing, &their_key),
            vec!["missing.pem", "cannot be read"],
        ),
        (
            tls().identity_files(&cert, &missing),
            vec!["missing.pem", "cannot be read"],
        ),
        (
            tls().identity_files(&cert, &locked),
            vec!["locked.key", "encrypted"],
        ),
        (
            tls().identity_files(&cert, &their_key),
            vec!["their.key", "not that of", "cert.pem"],
        ),
        (
            tls().identity_pem(swapped.combined()),
            vec!["the key in it is not"],
        ),
        (
            tls().server_name("no name"),
            vec!["\"no name\"", "neither a host name"],
        ),
    ] {
        let built = Etcd2::builder("https://127.0.0.1:1").tls(tls).build();
        let error = built.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
        for part in expected {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        let shown = format!("{error} {error:?}");
        for line in [&us.key, &other.key].iter().flat_map(|key| key.lines()) {
            assert!(
                line.starts_with("-----") || !shown.contains(line),
                "{shown}"
            );
        }
    }
}

#[test]
fn options_of_tls_without_an_https_endpoint_are_refused() {
    let tls = Tls::new().server_name("etcd.example");
    let error = Etcd2::builder("http://127.0.0.1:1").tls(tls).build();
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
    assert!(error.to_string().contains("https://"), "{error}");
}
