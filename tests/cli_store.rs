//! What the command says and where it goes: TLS by the URL, readers that go away.
#![cfg(all(feature = "cli", any(feature = "tls-ring", feature = "tls-aws-lc")))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[macro_use]
#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "common/tls.rs"]
mod tls;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use cli::{Api, code, ended, tenure};
use common::etcd::Etcd;

on_both! {
    a_url_brings_its_authority_certificate_and_key,
    a_watch_ends_when_nobody_reads_it_and_a_value_is_one_line,
}

fn a_url_brings_its_authority_certificate_and_key(api: Api) {
    let files = tls::Directory::new();
    let (servers, clients) = (tls::Authority::new(), tls::Authority::new());
    let etcd = tls::etcd(&files, &servers.vouch("127.0.0.1"), Some(&clients));
    let me = clients.vouch("me");
    let ca = files.write("ca.pem", &servers.pem);
    let other = files.write("other.pem", &clients.pem);
    let cert = files.write("me.pem", &me.certificate);
    let key = files.write("me.key", &me.key);
    let both = files.write("both.pem", &me.combined());
    let host = match api {
        Api::V2 => format!("etcd2s://{}/p", etcd.tls_host()),
        Api::V3 => format!("etcds://{}/p", etcd.tls_host()),
    };
    let run = |options: String| {
        let url = format!("{host}?{options}");
        let mut command = tenure(&etcd);
        let output = command
            .args(["--store", &url, "lock", "n", "--", "true"])
            .output();
        code(&output.unwrap())
    };
    let by_options = |options: &[&Path]| {
        let mut command = tenure(&etcd);
        command.args(["--store", &host, "lock", "n", "--cacert"]);
        for (name, value) in ["", "--cert", "--key"].iter().zip(options) {
            command.args((!name.is_empty()).then_some(name)).arg(value);
        }
        code(&command.args(["--", "true"]).output().unwrap())
    };
    assert_eq!(by_options(&[&ca, &cert, &key]), 0);
    assert_eq!(by_options(&[&ca, &both]), 0);
    assert_ne!(by_options(&[&ca]), 0, "it wants a certificate");
    assert_ne!(by_options(&[&other, &both]), 0);
    let plain = tenure(&etcd)
        .args(["--cacert", "x", "ls"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(code(&plain) == 64 && told.contains("etcds://"), "{told}");
    let (ca, other) = (ca.display(), other.display());
    let (cert, key, both) = (cert.display(), key.display(), both.display());
    assert_eq!(run(format!("ca={ca}&cert={cert}&key={key}")), 0);
    assert_eq!(run(format!("ca={ca}&cert={both}")), 0);
    assert_ne!(run(format!("ca={other}&cert={cert}&key={key}")), 0);
    assert_ne!(run(format!("ca={ca}")), 0, "it wants a certificate");
    assert_ne!(run(format!("ca={ca}&cert={cert}")), 0, "without its key");
    assert_ne!(
        run(format!("cert={cert}&key={key}")),
        0,
        "nobody vouches for it"
    );
    assert_ne!(
        run(format!("ca={ca}&cert={cert}&key={key}&server_name=db")),
        0
    );
}

fn a_watch_ends_when_nobody_reads_it_and_a_value_is_one_line(api: Api) {
    let etcd = api.start();
    let write = |value: &str| {
        let output = tenure(&etcd).args(["set", "/k", value]).output().unwrap();
        assert_eq!(code(&output), 0, "{output:?}");
    };
    write("one\ndelete /k\u{1b}");
    let mut watch = tenure(&etcd)
        .args(["watch", "/k", "--from", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut reader = BufReader::new(watch.stdout.take().unwrap());
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "put /k one\\ndelete /k\\u{1b}\n");
    drop(reader);
    write("two");
    assert_eq!(ended(watch), Some(0));
}

#[test]
fn a_directory_is_not_shown_as_an_empty_value() {
    let etcd = Etcd::start();
    let run = |arguments: &[&str]| tenure(&etcd).args(arguments).output().unwrap();
    assert_eq!(code(&run(&["set", "/d/k", "v"])), 0);
    let output = run(&["get", "/d"]);
    assert_eq!((code(&output), output.stdout.len()), (1, 0), "{output:?}");
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("directory")
    );
    let output = run(&["set", "/d", "v"]);
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(
        said.contains("/d") && said.contains("not a file") && said.contains("http"),
        "{said}"
    );
}
