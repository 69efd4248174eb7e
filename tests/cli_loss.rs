//! `tenure lock` when it is hit: what it runs is dead before another holds the lock.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[macro_use]
#[path = "common/cli.rs"]
mod cli;
mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use cli::{
    Api, Directory, PATIENCE, Place, code, ended, etcdctl, lines, lock, now, signal, tickets,
};
use tenure::runtime::Clock;

on_both! {
    a_command_is_dead_before_another_holds_when_its_holder_is_stopped,
    a_command_is_dead_before_another_holds_when_its_holder_is_killed,
    a_command_is_killed_when_its_ticket_is_deleted_by_hand,
    a_command_is_dead_before_the_deadline_when_etcd_is_away,
    a_command_does_not_outlive_its_guardian,
    a_command_is_killed_from_above_when_its_guardian_is_stopped,
}

/// What is done to a holder.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    Stopped,
    Killed,
    Deleted,
    Cut,
    GuardianKilled,
    GuardianStopped,
}

/// A command that ignores TERM, with a grandchild in a session of its own that does so too; both
/// leave their marks. Another waits for the lock, and marks when it has it.
fn overlap_after(api: Api, blow: Blow) {
    let (etcd, files) = (api.start(), Directory::new());
    let (marks, next) = (files.file("marks"), files.file("next"));
    let beat = format!(
        "trap '' TERM INT HUP; while :; do date +%s%N >> {}; sleep 0.01; done",
        marks.display()
    );
    let script = format!("trap '' TERM INT HUP; setsid sh -c \"{beat}\" & {beat}");
    let options = ["n", "--ttl", "3s", "--grace", "300ms"];
    let holder = lock(&etcd, &options, &script)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    lines(&marks, 10);
    let script = format!(
        "date +%s%N >> {0}; echo $TENURE_TOKEN >> {0}",
        next.display()
    );
    let waiter = lock(&etcd, &options, &script).spawn().unwrap();
    let start = now();
    while tickets(&etcd, "n").len() < 2 {
        assert!(now().since(start) < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
    let ticket = tickets(&etcd, "n")[0].clone();
    let token = token_of(&etcd, &ticket);
    let guardian = || {
        let own = holder.id().to_string();
        let output = Command::new("pgrep").args(["-P", &own]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let kill = |pid: &str, signal: &str| {
        assert!(
            Command::new("kill")
                .args([signal, pid])
                .status()
                .unwrap()
                .success()
        );
    };
    match blow {
        Blow::Stopped => signal(&holder, "-STOP"),
        Blow::Killed => signal(&holder, "-KILL"),
        Blow::Deleted => {
            delete(&etcd, &ticket);
        }
        Blow::Cut => etcd.pause(),
        Blow::GuardianKilled => kill(&guardian(), "-KILL"),
        Blow::GuardianStopped => {
            kill(&guardian(), "-STOP");
            delete(&etcd, &ticket);
        }
    }
    if blow == Blow::Cut {
        // Both lose their tickets; what the first did must end before its own could be another's.
        let output = holder.wait_with_output().unwrap();
        let last = last_mark(&marks);
        assert_eq!(code(&output), 76, "{output:?}");
        etcd.resume();
        drop(waiter.wait_with_output());
        assert!(silent_since(&marks, last), "{blow:?}");
        let output = lock(&etcd, &options, "echo $TENURE_TOKEN")
            .output()
            .unwrap();
        let its: u64 = String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(its > token, "{blow:?}: token {its} after {token}");
        return;
    }
    let safe = (blow == Blow::Stopped).then(|| safe_until(&etcd, &ticket));
    let told = lines(&next, 2);
    let (began, its): (u128, u64) = (told[0].parse().unwrap(), told[1].parse().unwrap());
    assert!(its > token, "{blow:?}: token {its} after {token}");
    if blow == Blow::Stopped {
        signal(&holder, "-CONT");
    }
    let code = ended(holder);
    let expected = match blow {
        Blow::Killed => None,
        Blow::GuardianKilled => Some(70),
        _ => Some(76),
    };
    assert_eq!(code, expected, "{blow:?}");
    assert_eq!(ended(waiter), Some(0));
    // A deletion by force frees the lock at once; then the loss is known a moment later.
    let notice = match blow {
        Blow::Deleted | Blow::GuardianStopped => Duration::from_secs(1),
        _ => Duration::ZERO,
    };
    let last = last_mark(&marks);
    assert!(
        last <= began + notice.as_nanos(),
        "{blow:?}: {last} is after {began}"
    );
    assert!(silent_since(&marks, last), "{blow:?}");
    if let Some(safe) = safe {
        assert!(
            last < safe,
            "the last mark {last} is not before the safe deadline {safe}"
        );
    }
}

fn delete(etcd: &Place, ticket: &str) {
    match etcd.api {
        Api::V2 => {
            let path = format!("/v2/keys{ticket}");
            etcd.request("DELETE", &path, "").unwrap();
        }
        Api::V3 => assert_eq!(etcdctl(etcd, &["del", ticket]), "1\n"),
    }
}

fn token_of(etcd: &Place, ticket: &str) -> u64 {
    match etcd.api {
        Api::V2 => ticket.rsplit('/').next().unwrap().parse().unwrap(),
        Api::V3 => field(
            &etcdctl(etcd, &["get", ticket, "-w", "fields"]),
            "CreateRevision",
        ),
    }
}

/// A number of `etcdctl -w fields`.
fn field(fields: &str, name: &str) -> u64 {
    let begin = format!("\"{name}\" : ");
    let line = fields.lines().find_map(|it| it.strip_prefix(&begin));
    line.unwrap().parse().unwrap()
}

/// The safe deadline of a ticket that is renewed no more, by the wall clock: its end at the server,
/// which counts from the last renewal, less the margin of a TTL of 3 s.
fn safe_until(etcd: &Place, ticket: &str) -> u128 {
    let margin = Duration::from_millis(500 + 20 + 15).as_nanos();
    if etcd.api == Api::V3 {
        let fields = etcdctl(etcd, &["get", ticket, "-w", "fields"]);
        let lease = format!("{:x}", field(&fields, "Lease"));
        let fields = etcdctl(etcd, &["lease", "timetolive", &lease, "-w", "fields"]);
        let now = Clock::boot().wall();
        // In whole seconds, cut off; the lease is revoked up to half a second late.
        return (now + Duration::from_secs(field(&fields, "TTL") + 1)).as_nanos();
    }
    let (_, body) = etcd.http(&format!("/v2/keys{ticket}")).unwrap();
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let end = body["node"]["expiration"].as_str().unwrap();
    let output = Command::new("date").args(["+%s%N", "-d", end]).output();
    let end = String::from_utf8(output.unwrap().stdout).unwrap();
    end.trim().parse::<u128>().unwrap() - margin
}

fn last_mark(marks: &Path) -> u128 {
    let text = fs::read_to_string(marks).unwrap();
    text.lines().filter_map(|it| it.parse().ok()).max().unwrap()
}

/// Nobody writes any more: each wrote every 10 ms or so.
fn silent_since(marks: &Path, last: u128) -> bool {
    thread::sleep(Duration::from_millis(300));
    last_mark(marks) == last
}

fn a_command_is_dead_before_another_holds_when_its_holder_is_stopped(api: Api) {
    overlap_after(api, Blow::Stopped);
}

fn a_command_is_dead_before_another_holds_when_its_holder_is_killed(api: Api) {
    overlap_after(api, Blow::Killed);
}

fn a_command_is_killed_when_its_ticket_is_deleted_by_hand(api: Api) {
    overlap_after(api, Blow::Deleted);
}

fn a_command_is_dead_before_the_deadline_when_etcd_is_away(api: Api) {
    overlap_after(api, Blow::Cut);
}

fn a_command_does_not_outlive_its_guardian(api: Api) {
    overlap_after(api, Blow::GuardianKilled);
}

fn a_command_is_killed_from_above_when_its_guardian_is_stopped(api: Api) {
    overlap_after(api, Blow::GuardianStopped);
}
