//! Every example runs, and ends well: on the embedded store, and on a real etcd.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tenure::runtime::Clock;

mod common;

use common::etcd::Etcd;

/// Far more than any of them takes.
const LONG: Duration = Duration::from_secs(60);
const EXAMPLES: [&str; 6] = [
    "config",
    "election",
    "queue",
    "semaphore",
    "shutdown",
    "workers",
];

/// Where cargo puts it: beside the directory of this test. Built first, because a test alone does not
/// bring it up to date.
fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--all-features", "--examples"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.unwrap().success(), "the examples do not build");
    });
    let here = std::env::current_exe().unwrap();
    let dir = here.parent().unwrap().parent().unwrap().join("examples");
    dir.join(name)
}

fn runs(name: &str, url: Option<&str>) {
    let mut child = Command::new(example(name))
        .args(url)
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("the example {name}: {error}"));
    let clock = Clock::boot();
    let limit = clock.now() + LONG;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if clock.has_passed(limit) {
            child.kill().unwrap();
            panic!("the example {name} does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "the example {name}: {status}");
}

#[test]
fn every_example_runs_on_the_embedded_store() {
    EXAMPLES.iter().for_each(|name| runs(name, None));
}

#[test]
fn every_example_runs_on_etcd() {
    let etcd = Etcd::start();
    let url = etcd.url().replace("http", "etcd");
    EXAMPLES.iter().for_each(|name| runs(name, Some(&url)));
}

#[test]
fn no_example_is_left_out() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = std::fs::read_dir(dir).unwrap();
    let names = files.map(|it| {
        it.unwrap()
            .path()
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .into_owned()
    });
    for name in names {
        // That one has tests of its own.
        assert!(
            EXAMPLES.contains(&&*name) || name == "python_etcd",
            "{name}"
        );
    }
}
