//! The keys verbs, `bench` and the pages of `tenure`, on a real etcd.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[macro_use]
#[path = "common/cli.rs"]
mod cli;
mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cli::{Api, Place, Reached, etcdctl, now};
use common::etcd::Etcd;
use serde_json::Value;

on_both! {
    a_key_is_written_read_listed_and_deleted,
    conditions_decide_and_say_so_in_the_exit_code,
    a_time_to_live_goes_only_when_asked_to,
    what_is_appended_comes_in_order,
    a_watch_tells_each_change_as_it_comes,
    a_cluster_tells_of_itself,
    the_password_comes_from_the_environment_or_a_file_and_shows_nowhere,
    a_bench_prints_one_object_with_all_that_is_promised,
    traces_go_to_standard_error_and_only_when_asked_for,
}

fn tenure(etcd: &Place) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=INT");
    command.arg(env!("CARGO_BIN_EXE_tenure"));
    command.env("TENURE_STORE", format!("{}/pre", etcd.store()));
    command.stdin(Stdio::null());
    command
}

fn run(etcd: &Place, arguments: &[&str]) -> Output {
    tenure(etcd).args(arguments).output().unwrap()
}

/// What it says, if it ends well.
fn said(etcd: &Place, arguments: &[&str]) -> String {
    let output = run(etcd, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn code(etcd: &Place, arguments: &[&str]) -> i32 {
    let output = run(etcd, arguments);
    let code = output.status.code().unwrap();
    assert_eq!(
        code == 0,
        output.stderr.is_empty(),
        "{arguments:?}: {output:?}"
    );
    code
}

fn json(etcd: &Place, arguments: &[&str]) -> Vec<Value> {
    let text = said(etcd, &[&["--format", "json"], arguments].concat());
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn a_key_is_written_read_listed_and_deleted(api: Api) {
    let etcd = api.start();
    assert_eq!(said(&etcd, &["set", "/a/b", "hello"]), "");
    assert_eq!(
        said(&etcd, &["get", "a/b"]),
        "hello\n",
        "the leading slash is optional"
    );
    let seen = match api {
        Api::V2 => etcd.http("/v2/keys/pre/a/b").unwrap().1,
        Api::V3 => etcdctl(&etcd, &["get", "/pre/a/b"]),
    };
    assert!(seen.contains("hello"), "below the prefix");
    said(&etcd, &["set", "/a/c/d", "deep"]);
    assert_eq!(said(&etcd, &["ls"]), "/a/\n");
    assert_eq!(said(&etcd, &["ls", "/a"]), "/a/b\n/a/c/\n");
    assert_eq!(said(&etcd, &["ls", "-r", "/a"]), "/a/b\n/a/c/\n/a/c/d\n");
    let node = &json(&etcd, &["get", "/a/b"])[0];
    assert_eq!(
        (&node["key"], &node["value"]),
        (&"/a/b".into(), &"hello".into())
    );
    assert!(
        node["modified"].as_u64() > Some(0) && node.get("ttl_s").is_none(),
        "{node}"
    );
    assert_eq!(code(&etcd, &["rm", "/a/b"]), 0);
    assert_eq!(code(&etcd, &["rm", "/a/b"]), 1);
    assert_eq!(code(&etcd, &["get", "/a/b"]), 1);
    assert_eq!(
        code(&etcd, &["rm", "/a"]),
        1,
        "a directory goes with -r only"
    );
    assert_eq!(code(&etcd, &["rm", "-r", "/a"]), 0);
    assert_eq!(said(&etcd, &["ls"]), "");
    for arguments in [&["ls", "/a"][..], &["ls", "-r", "/a"]] {
        assert_eq!(code(&etcd, arguments), 1, "{arguments:?}: it is not there");
    }
}

fn conditions_decide_and_say_so_in_the_exit_code(api: Api) {
    let etcd = api.start();
    assert_eq!(code(&etcd, &["update", "/k", "v"]), 1, "it is not there");
    assert_eq!(code(&etcd, &["create", "/k", "1"]), 0);
    assert_eq!(code(&etcd, &["create", "/k", "2"]), 1);
    assert_eq!(code(&etcd, &["update", "/k", "2", "--prev-value", "0"]), 1);
    assert_eq!(code(&etcd, &["update", "/k", "2", "--prev-value", "1"]), 0);
    let index = json(&etcd, &["get", "/k"])[0]["modified"].to_string();
    assert_eq!(
        code(&etcd, &["update", "/k", "3", "--prev-index", &index]),
        0
    );
    assert_eq!(
        code(&etcd, &["update", "/k", "4", "--prev-index", &index]),
        1
    );
    assert_eq!(code(&etcd, &["rm", "/k", "--prev-value", "2"]), 1);
    assert_eq!(code(&etcd, &["rm", "/k", "--prev-index", &index]), 1);
    assert_eq!(said(&etcd, &["get", "/k"]), "3\n");
    assert_eq!(code(&etcd, &["rm", "/k", "--prev-value", "3"]), 0);
}

fn a_time_to_live_goes_only_when_asked_to(api: Api) {
    let etcd = api.start();
    let ttl = |key: &str| {
        let node = &json(&etcd, &["get", key])[0];
        match node.get("lease").and_then(Value::as_str) {
            // v3 tells how long a lease has left, of keys only their lease.
            Some(lease) => {
                let told = etcdctl(&etcd, &["lease", "timetolive", lease]);
                let left = told.split("remaining(").nth(1).unwrap();
                Some(left.split('s').next().unwrap().parse().unwrap())
            }
            None => node.get("ttl_s").and_then(Value::as_f64),
        }
    };
    said(&etcd, &["set", "/k", "1", "--ttl", "100s"]);
    said(&etcd, &["set", "/k", "2"]);
    assert!(ttl("/k") > Some(90.0), "{:?}", ttl("/k"));
    said(&etcd, &["update", "/k", "3", "--prev-value", "2"]);
    assert!(ttl("/k") > Some(90.0), "{:?}", ttl("/k"));
    said(&etcd, &["set", "/k", "4", "--ttl", "1000s"]);
    assert!(ttl("/k") > Some(900.0), "{:?}", ttl("/k"));
    said(&etcd, &["set", "/k", "5", "--permanent"]);
    assert_eq!(ttl("/k"), None);
    said(&etcd, &["set", "/k", "6"]);
    assert_eq!(ttl("/k"), None);
    assert_eq!(code(&etcd, &["set", "/k", "7", "--ttl", "5"]), 64);
    assert_eq!(code(&etcd, &["set", "/k", "7", "--ttl", "1ms"]), 64);
}

fn what_is_appended_comes_in_order(api: Api) {
    let etcd = api.start();
    let first = said(&etcd, &["append", "/queue", "one"]);
    let mut append = tenure(&etcd);
    append
        .args(["append", "/queue", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut append = append.spawn().unwrap();
    append
        .stdin
        .take()
        .unwrap()
        .write_all(b"two\nlines")
        .unwrap();
    let second = String::from_utf8(append.wait_with_output().unwrap().stdout).unwrap();
    assert!(first < second, "{first} {second}");
    assert_eq!(said(&etcd, &["ls", "/queue"]), format!("{first}{second}"));
    assert_eq!(said(&etcd, &["get", second.trim()]), "two\nlines\n");
}

fn a_watch_tells_each_change_as_it_comes(api: Api) {
    let etcd = api.start();
    said(&etcd, &["set", "/w/a", "1"]);
    let from = json(&etcd, &["get", "/w/a"])[0]["modified"].to_string();
    let mut watch = tenure(&etcd);
    watch
        .args(["watch", "-r", "/w", "--from", &from])
        .stdout(Stdio::piped());
    let mut watch = watch.spawn().unwrap();
    let mut told = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || told.next().unwrap().unwrap();
    assert_eq!(next(), "put /w/a 1");
    said(&etcd, &["set", "/w/b", "2", "--ttl", "1s"]);
    assert_eq!(next(), "put /w/b 2");
    let gone = match api {
        Api::V2 => "expire /w/b",
        // v3 does not tell an expiry from a deletion.
        Api::V3 => "delete /w/b",
    };
    assert_eq!(next(), gone);
    said(&etcd, &["rm", "/w/a"]);
    assert_eq!(next(), "delete /w/a");
    assert!(
        Command::new("kill")
            .args(["-INT", &watch.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(watch.wait().unwrap().code(), Some(130));
    let two = json(
        &etcd,
        &["watch", "-r", "/w", "--from", &from, "--count", "2"],
    );
    assert_eq!(
        (&two[0]["change"], &two[1]["key"]),
        (&"put".into(), &"/w/b".into())
    );
    assert_eq!(two.len(), 2);
}

fn a_cluster_tells_of_itself(api: Api) {
    let mut members = Etcd::start_three();
    let urls: Vec<String> = members
        .iter()
        .map(|it| it.url().replace("http://", ""))
        .collect();
    let scheme = match api {
        Api::V2 => "etcd2",
        Api::V3 => "etcd",
    };
    let store = format!("{scheme}://{}", urls.join(","));
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
        let output = command
            .args(["--store", &store])
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, told) = ask(&["members"]);
    assert_eq!(
        (code, told.lines().count(), told.matches("leader").count()),
        (Some(0), 3, 1)
    );
    let (code, told) = ask(&["health"]);
    assert_eq!(
        (code, told.matches(" healthy").count()),
        (Some(0), 3),
        "{told}"
    );
    let (code, told) = ask(&["stats"]);
    let stats: Vec<Value> = told
        .lines()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    assert_eq!(code, Some(0));
    match api {
        Api::V2 => assert!(
            stats[0]["state"].is_string() && stats[1]["watchers"].is_u64(),
            "{told}"
        ),
        Api::V3 => {
            let leaders = stats.iter().filter(|it| it["leads"] == true).count();
            assert_eq!((stats.len(), leaders), (3, 1), "{told}");
            assert!(
                stats[0]["version"].as_str().unwrap().starts_with("3."),
                "{told}"
            );
            assert!(stats[0]["db_size"].as_u64() > Some(0), "{told}");
        }
    }
    members[2].stop();
    // If it led, the others need an election first.
    let start = now();
    loop {
        let (code, told) = ask(&["health", "--format", "json"]);
        assert_eq!(code, Some(69), "{told}");
        if told.matches(r#""healthy":true"#).count() == 2 {
            break;
        }
        assert!(now().since(start) < Duration::from_secs(30), "{told}");
    }
}

/// From now on nobody may do anything but root, whose password is `se cret`.
fn guard(etcd: &Place) {
    if etcd.api == Api::V3 {
        etcdctl(etcd, &["user", "add", "root:se cret"]);
        etcdctl(etcd, &["user", "grant-role", "root", "root"]);
        etcdctl(etcd, &["auth", "enable"]);
        return;
    }
    let user = r#"{"user":"root","password":"se cret"}"#;
    assert_eq!(
        etcd.json("PUT", "/v2/auth/users/root", user).unwrap().0,
        201
    );
    assert_eq!(etcd.json("PUT", "/v2/auth/enable", "").unwrap().0, 200);
    let revoke = r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#;
    let root = "cm9vdDpzZSBjcmV0";
    assert_eq!(
        etcd.json_as(root, "PUT", "/v2/auth/roles/guest", revoke)
            .unwrap()
            .0,
        200
    );
}

fn the_password_comes_from_the_environment_or_a_file_and_shows_nowhere(api: Api) {
    let etcd = api.start();
    guard(&etcd);
    assert_eq!(code(&etcd, &["set", "/k", "v"]), 77);
    let as_root = |password: &str| {
        let mut command = tenure(&etcd);
        command
            .args(["--user", "root", "set", "/k", "v"])
            .env("TENURE_PASSWORD", password);
        command.output().unwrap()
    };
    assert_eq!(as_root("se cret").status.code(), Some(0));
    let refused = as_root("guess work");
    assert_eq!(refused.status.code(), Some(77));
    assert!(
        !String::from_utf8(refused.stderr)
            .unwrap()
            .contains("guess work")
    );
    assert_eq!(
        code(&etcd, &["--user", "root", "get", "/k"]),
        64,
        "no password"
    );
    let file = std::env::temp_dir().join(format!("tenure-password-{}", std::process::id()));
    std::fs::write(&file, "se cret\n").unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(
        said(
            &etcd,
            &["--user", "root", "--password-file", path, "get", "/k"]
        ),
        "v\n"
    );
    std::fs::remove_file(&file).unwrap();
    assert_eq!(
        code(
            &etcd,
            &["--user", "root", "--password-file", path, "get", "/k"]
        ),
        64
    );
}

#[test]
fn what_would_be_lost_with_the_process_is_refused() {
    let tenure = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
        let output = command
            .args(["--store", "embedded:"])
            .args(arguments)
            .output();
        output.unwrap().status.code()
    };
    for arguments in [
        &["set", "/k", "v"][..],
        &["append", "/q", "v"],
        &["rm", "/k"],
        &["get", "/k"],
        &["lock", "n", "--", "true"],
    ] {
        assert_eq!(tenure(arguments), Some(64), "{arguments:?}");
    }
    assert_eq!(
        tenure(&["bench", "lock", "--clients", "1", "--secs", "1"]),
        Some(0)
    );
}

fn a_bench_prints_one_object_with_all_that_is_promised(api: Api) {
    let etcd = api.start();
    let name = match api {
        Api::V2 => "etcd2",
        Api::V3 => "etcd3",
    };
    let all = [
        "put",
        "get",
        "lock",
        "contend",
        "elect",
        "semaphore",
        "push",
        "queue",
    ];
    for what in all {
        let lines = json(&etcd, &["bench", what, "--clients", "3", "--secs", "1"]);
        let [line] = &lines[..] else {
            panic!("{lines:?}")
        };
        assert_eq!(
            (&line["what"], &line["clients"]),
            (&what.into(), &3.into()),
            "{line}"
        );
        assert!(
            line["ops"].as_u64() > Some(0) && line["ops_s"].as_f64() > Some(0.0),
            "{line}"
        );
        assert!(line["p50_us"].as_u64() <= line["p99_us"].as_u64(), "{line}");
        assert!(line["store"].as_str().unwrap().contains(name) && line["secs"].is_f64());
        if matches!(what, "contend" | "elect") {
            assert_eq!(line["violations"], 0, "{line}");
        }
        if what == "contend" {
            assert!(
                line["min"].as_u64() > Some(0),
                "everybody has a turn: {line}"
            );
            assert!(
                line["max"].as_u64() <= line["min"].as_u64().map(|it| 2 * it + 2),
                "{line}"
            );
        }
    }
    assert_eq!(
        said(&etcd, &["ls"]),
        "",
        "only empty lines of locks stay, which are hidden"
    );
}

fn traces_go_to_standard_error_and_only_when_asked_for(api: Api) {
    let etcd = api.start();
    let mut traced = tenure(&etcd);
    traced
        .args(["set", "/k", "v"])
        .env("TENURE_LOG", "tenure=trace");
    let output = traced.output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty());
    let told = String::from_utf8(output.stderr).unwrap();
    let what = match api {
        Api::V2 => "/k",
        Api::V3 => "/etcdserverpb.KV/Txn",
    };
    assert!(
        told.contains("tenure::transport") && told.contains(what),
        "{told}"
    );
    assert!(run(&etcd, &["set", "/k", "v"]).stderr.is_empty());
}

#[test]
fn the_binary_explains_itself() {
    let etcd = Api::V3.start();
    let help = said(&etcd, &["--help"]);
    for word in [
        "lock",
        "watch",
        "bench",
        "TENURE_STORE",
        "etcds://",
        "etcd2s://",
    ] {
        assert!(help.contains(word), "{word}");
    }
    assert!(said(&etcd, &["lock", "--help"]).contains("TENURE_TOKEN"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            said(&etcd, &["completions", shell]).contains("prev-value"),
            "{shell}"
        );
    }
    let page = said(&etcd, &["man"]);
    assert!(page.starts_with(".") && page.contains("tenure") && page.contains("lock"));
    assert_eq!(code(&etcd, &["no-such-verb"]), 64);
}
