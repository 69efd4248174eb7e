//! python-etcd's lock and `tenure lock` in one line on one etcd.
//!
//! For a minute; `TENURE_PYTHON_SECS` says another time.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::etcd::Etcd;
use tenure::runtime::{Clock, Instant};

fn now() -> Instant {
    Clock::boot().now()
}

/// The python that has python-etcd.
fn python() -> &'static str {
    let has_it = |python: &&str| {
        let output = Command::new(python).args(["-c", "import etcd"]).output();
        output.is_ok_and(|it| it.status.success())
    };
    let found = ["/usr/bin/python3", "python3"].into_iter().find(has_it);
    found.expect("no python-etcd here: run ./scripts/test, which fetches what the tests need")
}

#[test]
fn python_and_tenure_stand_in_one_line_and_never_hold_together() {
    let (etcd, python) = (Etcd::start(), python());
    let secs = std::env::var("TENURE_PYTHON_SECS")
        .ok()
        .and_then(|it| it.parse().ok());
    let secs: u64 = secs.unwrap_or(60);
    let log = std::env::temp_dir().join(format!("tenure-python-{}", std::process::id()));
    let path = log.to_str().unwrap();
    let mut children = Vec::new();
    for _ in 0..3 {
        let mut contender = Command::new(python);
        contender.arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/python/contender.py"
        ));
        contender.args([
            &etcd.client_port().to_string(),
            "shared",
            path,
            &secs.to_string(),
        ]);
        children.push(
            contender
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
    }
    let script = format!(
        "echo begin $TENURE_TOKEN tenure >> {path}; sleep 0.002; echo end $TENURE_TOKEN tenure >> {path}"
    );
    let ours: u64 = thread::scope(|scope| {
        let lanes: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let end = now() + Duration::from_secs(secs);
                    let mut rounds = 0;
                    while now() < end {
                        let mut lock = Command::new(env!("CARGO_BIN_EXE_tenure"));
                        lock.args(["--store", &etcd.url().replace("http", "etcd2")]);
                        lock.args(["lock", "shared", "--ttl", "30s", "--", "sh", "-c", &script]);
                        let output = lock.output().unwrap();
                        assert!(output.status.success(), "{output:?}");
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).sum()
    });
    let mut theirs: u64 = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        theirs += String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap();
    }
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|it| it.split(' ').collect()).collect();
    assert_eq!(lines.len() as u64, 2 * (ours + theirs));
    let mut last = 0;
    for pair in lines.chunks(2) {
        assert_eq!(
            (pair[0][0], pair[1][0]),
            ("begin", "end"),
            "two held at once: {pair:?}"
        );
        assert_eq!(pair[0][1..], pair[1][1..], "two held at once: {pair:?}");
        let token: u64 = pair[0][1].parse().unwrap();
        assert!(last < token, "{token} after {last}: out of order");
        last = token;
    }
    // Each waited for its turn among six: nobody was left out.
    assert!(
        ours > 2 * secs && theirs > 2 * secs,
        "{ours} and {theirs} holds in {secs} s"
    );
    let (status, body) = etcd.http("/v2/keys/_locks/shared").unwrap();
    assert!(
        status == 200 && !body.contains("nodes"),
        "nothing is left: {body}"
    );
    println!("{ours} holds by tenure and {theirs} by python in {secs} s");
}
