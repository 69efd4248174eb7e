//! `tenure elect`, `leader`, `semaphore`, `status` and `watch --cache` as a person at a shell meets
//! them, through both APIs of a real etcd.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[macro_use]
#[path = "common/cli.rs"]
mod cli;
mod common;

use std::fs;
use std::process::Stdio;

use cli::{
    Api, Directory, children, code, ended, is_alive, lines, lock, said, signal, tenure, under,
};
use common::etcd::Etcd;
use common::wait::until_blocking as until;
use serde_json::Value;

on_both! {
    a_leader_runs_its_command_and_others_see_who_it_is,
    what_a_leader_runs_is_dead_before_another_leads,
    what_holds_the_last_permit_is_dead_before_another_has_it,
    as_many_commands_run_as_there_are_permits,
    status_tells_who_holds_and_who_waits,
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

fn a_leader_runs_its_command_and_others_see_who_it_is(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let ready = files.file("ready");
    let script = format!(
        "echo $TENURE_NAME $TENURE_VALUE $TENURE_TOKEN $TENURE_KEY >> {}; read wait; exit 3",
        ready.display()
    );
    let leader = |arguments: &[&str]| tenure(&etcd).arg("leader").args(arguments).output();
    assert_eq!(code(&leader(&["e"]).unwrap()), 1, "nobody yet");
    let first = ["e", "--value", "first one"];
    let mut first = under(&etcd, &["elect"], &first, &script);
    let mut first = first.stdin(Stdio::piped()).spawn().unwrap();
    let told = lines(&ready, 1);
    let words: Vec<&str> = told[0].split(' ').collect();
    assert_eq!(words[..3], ["e", "first", "one"]);
    let token: u64 = words[3].parse().unwrap();
    assert!(words[4].starts_with("/_elections/e/"), "{told:?}");
    let seen = said(&leader(&["e"]).unwrap());
    assert!(
        seen[0].starts_with(&format!("first one  {token}  20")),
        "{seen:?}"
    );
    let seen = json(&said(&leader(&["e", "--format", "json"]).unwrap())[0]);
    assert_eq!(
        (&seen["value"], &seen["token"]),
        (&"first one".into(), &token.into())
    );
    assert!(seen["since_ms"].as_u64().unwrap() > 1_700_000_000_000);
    // Taken, for who will not wait.
    for option in [&["--try"][..], &["--timeout", "200ms"]] {
        let arguments = [&["e"], option].concat();
        let output = under(&etcd, &["elect"], &arguments, "true")
            .output()
            .unwrap();
        assert_eq!(code(&output), 75, "{output:?}");
    }
    let watched = files.file("watched");
    let out = fs::File::create(&watched).unwrap();
    let mut watch = tenure(&etcd);
    let mut watch = watch
        .args(["leader", "e", "--watch"])
        .stdout(out)
        .spawn()
        .unwrap();
    lines(&watched, 1);
    drop(first.stdin.take());
    assert_eq!(ended(first), Some(3), "the command's own code");
    assert!(lines(&watched, 2)[1].starts_with("no leader"));
    let output = under(
        &etcd,
        &["elect"],
        &["e"],
        "echo $TENURE_TOKEN $TENURE_VALUE",
    )
    .output();
    let next = said(&output.unwrap());
    let (its, value) = next[0].split_once(' ').unwrap();
    assert!(
        its.parse::<u64>().unwrap() > token,
        "{next:?} after {token}"
    );
    assert!(!value.is_empty(), "the host's name");
    assert!(lines(&watched, 3)[2].starts_with(value));
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(children(&etcd, "/_elections/e"), [""; 0]);
}

/// The elder is stopped, so nothing of it renews; the next leads only when the elder's command is
/// dead.
fn overlap_when_stopped(api: Api, verb: &[&str], options: &[&str]) {
    let (etcd, files) = (api.start(), Directory::new());
    let (marks, next) = (files.file("marks"), files.file("next"));
    let beat = format!(
        "trap '' TERM; echo $TENURE_TOKEN >> {0}; while :; do date +%s%N >> {0}; sleep 0.01; done",
        marks.display()
    );
    let options = [options, &["--ttl", "3s", "--grace", "300ms"]].concat();
    let elder = under(&etcd, verb, &options, &beat).spawn().unwrap();
    let token: u64 = lines(&marks, 10)[0].parse().unwrap();
    let script = format!(
        "date +%s%N >> {0}; echo $TENURE_TOKEN >> {0}",
        next.display()
    );
    let waiter = under(&etcd, verb, &options, &script).spawn().unwrap();
    signal(&elder, "-STOP");
    let told = lines(&next, 2);
    let (began, its): (u128, u64) = (told[0].parse().unwrap(), told[1].parse().unwrap());
    assert!(its > token, "token {its} after {token}");
    let last: u128 = fs::read_to_string(&marks)
        .unwrap()
        .lines()
        .filter_map(|it| it.parse().ok())
        .max()
        .unwrap();
    assert!(last < began, "{last} is after {began}");
    assert_eq!(ended(waiter), Some(0));
    signal(&elder, "-CONT");
    assert_eq!(ended(elder), Some(76));
}

fn what_a_leader_runs_is_dead_before_another_leads(api: Api) {
    overlap_when_stopped(api, &["elect"], &["e"]);
}

fn what_holds_the_last_permit_is_dead_before_another_has_it(api: Api) {
    let options = ["s", "--permits", "2", "--weight", "2"];
    overlap_when_stopped(api, &["semaphore"], &options);
}

fn as_many_commands_run_as_there_are_permits(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let ready = files.file("ready");
    let script = format!(
        "echo $TENURE_NAME $TENURE_TOKEN >> {}; read wait",
        ready.display()
    );
    let semaphore = |options: &[&str]| under(&etcd, &["semaphore"], options, &script);
    let run = |options: &[&str]| code(&semaphore(options).output().unwrap());
    assert_eq!(run(&["s"]), 1, "no limit is stored");
    let start = |options: &[&str]| {
        let mut command = semaphore(options);
        command.stdin(Stdio::piped()).spawn().unwrap()
    };
    let mut one = start(&["s", "--permits", "3"]);
    let told = lines(&ready, 1);
    assert!(told[0].starts_with("s "), "{told:?}");
    let mut two = start(&["s", "--weight", "2"]);
    lines(&ready, 2);
    assert_eq!(run(&["s", "--try"]), 75);
    assert_eq!(run(&["s", "--timeout", "200ms"]), 75);
    assert_eq!(run(&["s", "--weight", "4"]), 64, "more than there can be");
    assert_eq!(run(&["s", "--permits", "2"]), 64, "another limit");
    let status = ["status", "s", "--semaphore", "--format", "json"];
    let told = said(&tenure(&etcd).args(status).output().unwrap());
    let weights: Vec<_> = told
        .iter()
        .map(|line| json(line)["weight"].clone())
        .collect();
    assert_eq!(weights, [1, 2], "{told:?}");
    let waiter = semaphore(&["s", "--weight", "3"]).spawn().unwrap();
    drop(one.stdin.take());
    assert_eq!(ended(one), Some(1));
    assert_eq!(lines(&ready, 2).len(), 2, "two of three are not enough");
    drop(two.stdin.take());
    assert_eq!(ended(two), Some(1));
    assert_eq!(ended(waiter), Some(1), "its input is at its end");
    assert_eq!(lines(&ready, 3).len(), 3);
    assert_eq!(children(&etcd, "/_semaphores/s/line"), [""; 0]);
}

fn status_tells_who_holds_and_who_waits(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let status = |arguments: &[&str]| tenure(&etcd).arg("status").args(arguments).output();
    assert_eq!(code(&status(&["n"]).unwrap()), 1, "nobody");
    let ready = files.file("ready");
    let script = format!("echo $TENURE_TOKEN >> {}; read wait", ready.display());
    let start = || {
        let mut command = lock(&etcd, &["n"], &script);
        command.stdin(Stdio::piped()).spawn().unwrap()
    };
    let mut holder = start();
    let token = lines(&ready, 1)[0].clone();
    let mut waiter = start();
    // They say who they are once they have stood there for a while.
    until("both are known", || {
        let told = said(&status(&["n", "--format", "json"]).unwrap());
        told.len() == 2 && told.iter().all(|line| json(line)["pid"].is_u64())
    });
    let told = said(&status(&["n", "--format", "json"]).unwrap());
    let (first, second) = (json(&told[0]), json(&told[1]));
    assert_eq!(
        (&first["state"], &second["state"]),
        (&"holds".into(), &"waits".into())
    );
    assert_eq!(first["token"].to_string(), token);
    let pids = [first["pid"].as_u64(), second["pid"].as_u64()];
    assert_eq!(
        pids,
        [holder.id(), waiter.id()].map(|it| Some(u64::from(it)))
    );
    assert_eq!(first["app"], "tenure");
    let table = said(&status(&["n"]).unwrap());
    assert!(
        table[0].starts_with("STATE") && table[1].starts_with("holds"),
        "{table:?}"
    );
    assert!(
        table[1].contains(&format!("process {}", holder.id())),
        "{table:?}"
    );
    drop(holder.stdin.take());
    assert_eq!(ended(holder), Some(1));
    drop(waiter.stdin.take());
    assert_eq!(ended(waiter), Some(1));
    let elect = under(&etcd, &["elect"], &["e", "--value", "v"], &script);
    let mut elect = { elect }.stdin(Stdio::piped()).spawn().unwrap();
    lines(&ready, 3);
    let told = said(&status(&["e", "--election", "--format", "json"]).unwrap());
    assert_eq!(json(&told[0])["value"], "v");
    drop(elect.stdin.take());
    assert_eq!(ended(elect), Some(1));
}

#[test]
fn a_cached_watch_tells_what_is_there_and_then_each_change_and_when_it_is_stale() {
    let (mut etcd, files) = (Etcd::start(), Directory::new());
    let set = |etcd: &Etcd, key: &str, value: &str| {
        let path = format!("/v2/keys/config{key}");
        etcd.request("PUT", &path, &format!("value={value}"))
            .unwrap();
    };
    set(&etcd, "/a", "1");
    set(&etcd, "/b/c", "2");
    let watched = files.file("watched");
    let out = fs::File::create(&watched).unwrap();
    let mut watch = tenure(&etcd);
    watch.args(["watch", "--cache", "/config", "--format", "json"]);
    let mut watch = watch.stdout(out).spawn().unwrap();
    let told = lines(&watched, 3);
    let has: Vec<_> = told.iter().map(|line| json(line)).collect();
    assert_eq!(
        (&has[0]["key"], &has[0]["value"]),
        (&"/config/a".into(), &"1".into())
    );
    assert_eq!(
        (&has[1]["key"], &has[1]["change"]),
        (&"/config/b/c".into(), &"has".into())
    );
    assert_eq!(has[2]["change"], "synced");
    set(&etcd, "/a", "3");
    etcd.request("DELETE", "/v2/keys/config/b/c", "").unwrap();
    let told = lines(&watched, 5);
    assert_eq!(json(&told[3])["value"], "3");
    assert_eq!(json(&told[4])["change"], "delete");
    etcd.stop();
    assert_eq!(json(&lines(&watched, 6)[5])["change"], "stale");
    etcd.restart();
    until("it is live again", || {
        let told = lines(&watched, 6);
        told.iter().any(|line| json(line)["change"] == "live")
    });
    signal(&watch, "-INT");
    assert_eq!(watch.wait().unwrap().code(), Some(130));
    let mut counted = tenure(&etcd);
    counted.args(["watch", "--cache", "/config", "--count", "1"]);
    let counted = counted.stdout(Stdio::piped()).spawn().unwrap();
    let pid = counted.id().to_string();
    until("it has ended", || {
        set(&etcd, "/a", "again");
        !is_alive(&pid)
    });
    let told = said(&counted.wait_with_output().unwrap());
    assert!(
        told.contains(&"has /config/a 3".to_owned()) || told[0].contains("again"),
        "{told:?}"
    );
}
