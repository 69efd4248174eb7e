//! `tenure lock`: the command as a person at a shell meets it, on a real etcd.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use common::etcd::Etcd;
use tenure::runtime::{Clock, Instant};

fn now() -> Instant {
    Clock::boot().now()
}

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that goes away with its value.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tenure-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tenure(etcd: &Etcd) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    command.env("TENURE_STORE", etcd.url().replace("http", "etcd2"));
    command.stdin(Stdio::null());
    command
}

/// `tenure lock NAME options -- sh -c SCRIPT`.
fn lock(etcd: &Etcd, arguments: &[&str], script: &str) -> Command {
    let mut command = tenure(etcd);
    command
        .arg("lock")
        .args(arguments)
        .args(["--", "sh", "-c", script]);
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// Waits until a file has so many lines.
fn lines(file: &Path, number: usize) -> Vec<String> {
    let start = now();
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if text.ends_with('\n') && text.lines().count() >= number {
            return text.lines().map(str::to_owned).collect();
        }
        assert!(now().since(start) < PATIENCE, "{number} lines in {text:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the end; killed if that takes too long.
fn ended(mut child: Child) -> Option<i32> {
    let start = now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if now().since(start) > PATIENCE {
            let _ = child.kill();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([signal, &pid])
            .status()
            .unwrap()
            .success()
    );
}

/// The tickets in the line of a lock.
fn tickets(etcd: &Etcd, name: &str) -> Vec<String> {
    let (_, body) = etcd
        .http(&format!("/v2/keys/_locks/{name}?sorted=true"))
        .unwrap();
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let nodes = body["node"]["nodes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    nodes
        .iter()
        .map(|it| it["key"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn two_shells_hold_one_at_a_time_with_rising_tokens() {
    let (etcd, files) = (Etcd::start(), Directory::new());
    let log = files.file("log");
    let script = format!(
        "echo begin $TENURE_TOKEN >> {log}; echo end $TENURE_TOKEN >> {log}",
        log = log.display()
    );
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..30 {
                    let output = lock(&etcd, &["shell"], &script).output().unwrap();
                    assert_eq!(code(&output), 0, "{output:?}");
                }
            });
        }
    });
    let log = fs::read_to_string(log).unwrap();
    let entries: Vec<(&str, u64)> = log
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(word, token)| (word, token.parse().unwrap()))
        .collect();
    assert_eq!(entries.len(), 120);
    for pair in entries.chunks(2) {
        assert_eq!((pair[0].0, pair[1].0), ("begin", "end"), "{log}");
        assert_eq!(pair[0].1, pair[1].1, "{log}");
    }
    assert!(
        entries.chunks(2).is_sorted_by(|a, b| a[0].1 < b[0].1),
        "{log}"
    );
    assert_eq!(tickets(&etcd, "shell"), [""; 0]);
}

#[test]
fn exit_codes_tell_what_happened() {
    let etcd = Etcd::start();
    let run = |arguments: &[&str]| code(&tenure(&etcd).args(arguments).output().unwrap());
    assert_eq!(run(&["lock", "n", "--", "sh", "-c", "exit 7"]), 7);
    assert_eq!(run(&["lock", "n", "--", "sh", "-c", "kill -9 $$"]), 137);
    assert_eq!(run(&["lock", "n", "--", "no-such-command-anywhere"]), 127);
    assert_eq!(run(&["lock", "n", "--", "/etc/passwd"]), 126);
    assert_eq!(run(&["lock", "", "--", "true"]), 64);
    assert_eq!(run(&["lock", "--raw", "no/slash", "--", "true"]), 64);
    assert_eq!(run(&["lock", "n"]), 64);
    assert_eq!(run(&["lock", "n", "--ttl", "5", "--", "true"]), 64);
    assert_eq!(run(&["lock", "n", "--ttl", "10ms", "--", "true"]), 64);
    assert_eq!(run(&["lock", "n", "--grace", "9s", "--", "true"]), 64);
    assert_eq!(
        run(&["--store", "etcd2://127.0.0.1:1", "lock", "n", "--", "true"]),
        69
    );
    assert_eq!(run(&["--store", "nonsense", "lock", "n", "--", "true"]), 64);
    assert_eq!(run(&["lock", "--help"]), 0);
    let no_store = tenure(&etcd)
        .env_remove("TENURE_STORE")
        .args(["lock", "n", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(code(&no_store), 64);
    let said = String::from_utf8_lossy(&no_store.stderr).into_owned();
    assert!(
        said.contains("etcd2://") && said.contains("embedded:"),
        "{said}"
    );
    assert_eq!(tickets(&etcd, "n"), [""; 0]);
}

#[test]
fn a_lock_that_is_taken_is_not_waited_for_longer_than_asked() {
    let (etcd, files) = (Etcd::start(), Directory::new());
    let ready = files.file("ready");
    let script = format!("echo up >> {}; read wait", ready.display());
    let mut holder = lock(&etcd, &["n"], &script)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    lines(&ready, 1);
    let held = tickets(&etcd, "n");
    for arguments in [&["n", "--try"][..], &["n", "--timeout", "200ms"]] {
        let output = lock(&etcd, arguments, "true").output().unwrap();
        assert_eq!(code(&output), 75, "{output:?}");
        assert!(!output.stderr.is_empty());
        assert_eq!(tickets(&etcd, "n"), held, "no ticket stays behind");
    }
    // Its input is the command's: the end of it ends the command.
    drop(holder.stdin.take());
    assert_eq!(ended(holder), Some(1));
    assert_eq!(
        code(&lock(&etcd, &["n", "--try"], "true").output().unwrap()),
        0
    );
}

#[test]
fn the_command_finds_name_key_and_token_and_nothing_of_what_it_left_stays() {
    let (etcd, files) = (Etcd::start(), Directory::new());
    let left = files.file("left");
    let script = format!(
        "echo $TENURE_NAME $TENURE_KEY $TENURE_TOKEN; \
         setsid sh -c 'trap \"\" TERM; echo $$ > {}; sleep 1000' & \
         while ! test -s {0}; do sleep 0.01; done",
        left.display()
    );
    let output = lock(
        &etcd,
        &["jobs/7", "--ttl", "5s", "--grace", "100ms"],
        &script,
    )
    .output();
    let output = output.unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words[0], "jobs/7");
    let token: u64 = words[2].parse().unwrap();
    assert!(words[1].ends_with(&format!("/{token:020}")), "{said}");
    let pid = fs::read_to_string(left).unwrap();
    assert!(
        !is_alive(pid.trim()),
        "what the command left behind is gone before the lock is"
    );
}

fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
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
fn overlap_after(blow: Blow) {
    let (etcd, files) = (Etcd::start(), Directory::new());
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
    let token: u64 = ticket.rsplit('/').next().unwrap().parse().unwrap();
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
            etcd.request("DELETE", &format!("/v2/keys{ticket}"), "")
                .unwrap();
        }
        Blow::Cut => etcd.pause(),
        Blow::GuardianKilled => kill(&guardian(), "-KILL"),
        Blow::GuardianStopped => {
            kill(&guardian(), "-STOP");
            etcd.request("DELETE", &format!("/v2/keys{ticket}"), "")
                .unwrap();
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

#[test]
fn a_command_is_dead_before_another_holds_when_its_holder_is_stopped() {
    overlap_after(Blow::Stopped);
}

#[test]
fn a_command_is_dead_before_another_holds_when_its_holder_is_killed() {
    overlap_after(Blow::Killed);
}

#[test]
fn a_command_is_killed_when_its_ticket_is_deleted_by_hand() {
    overlap_after(Blow::Deleted);
}

#[test]
fn a_command_is_dead_before_the_deadline_when_etcd_is_away() {
    overlap_after(Blow::Cut);
}

#[test]
fn a_command_does_not_outlive_its_guardian() {
    overlap_after(Blow::GuardianKilled);
}

#[test]
fn a_command_is_killed_from_above_when_its_guardian_is_stopped() {
    overlap_after(Blow::GuardianStopped);
}

#[test]
fn a_signal_is_passed_on_and_the_lock_given_back_when_the_command_has_ended() {
    let (etcd, files) = (Etcd::start(), Directory::new());
    let (ready, order) = (files.file("ready"), files.file("order"));
    for (name, number) in [("-TERM", 15), ("-INT", 2), ("-HUP", 1), ("-QUIT", 3)] {
        let _ = fs::remove_file(&ready);
        let script = format!(
            "trap 'sleep 0.3; echo ended >> {order}; exit 9' {number}; \
             echo up >> {ready}; while :; do sleep 0.01; done",
            order = order.display(),
            ready = ready.display()
        );
        let holder = lock(&etcd, &["n"], &script).spawn().unwrap();
        lines(&ready, 1);
        let next = format!("echo next >> {}", order.display());
        let next = lock(&etcd, &["n"], &next).spawn().unwrap();
        signal(&holder, name);
        assert_eq!(ended(holder), Some(9), "{name}: its handler decides");
        assert_eq!(ended(next), Some(0));
        assert_eq!(lines(&order, 2), ["ended", "next"], "{name}");
        fs::remove_file(&order).unwrap();
    }
    assert_eq!(tickets(&etcd, "n"), [""; 0]);
}

#[test]
fn who_is_told_to_end_while_waiting_leaves_the_line() {
    let (etcd, files) = (Etcd::start(), Directory::new());
    let ready = files.file("ready");
    let script = format!("echo up >> {}; read wait", ready.display());
    let mut holder = lock(&etcd, &["n"], &script)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    lines(&ready, 1);
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let waiter = lock(&etcd, &["n"], "echo never")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let start = now();
        while tickets(&etcd, "n").len() < 2 {
            assert!(now().since(start) < PATIENCE);
            thread::sleep(Duration::from_millis(5));
        }
        signal(&waiter, name);
        let output = waiter.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.len()),
            (Some(code), 0),
            "{name}"
        );
        assert_eq!(tickets(&etcd, "n").len(), 1, "{name}");
    }
    drop(holder.stdin.take());
    assert_eq!(ended(holder), Some(1));
}

#[test]
fn a_command_that_outlasts_many_terms_is_left_alone() {
    let etcd = Etcd::start();
    // Each second a term is renewed; without that it would be dead after two.
    let output = lock(&etcd, &["n", "--ttl", "3s"], "sleep 7; echo done")
        .output()
        .unwrap();
    assert_eq!(
        (code(&output), &output.stdout[..]),
        (0, &b"done\n"[..]),
        "{output:?}"
    );
}

#[test]
fn a_raw_name_is_the_line_itself() {
    let etcd = Etcd::start();
    let script = "echo $TENURE_KEY";
    let output = lock(&etcd, &["/elsewhere/line", "--raw"], script)
        .output()
        .unwrap();
    let key = String::from_utf8(output.stdout).unwrap();
    assert!(key.starts_with("/elsewhere/line/000"), "{key}");
}

#[test]
fn an_interrupt_at_any_moment_leaves_no_ticket_and_no_process() {
    let (etcd, files) = (Etcd::start(), Directory::new());
    let pids = files.file("pids");
    let script = format!("echo $$ >> {}; sleep 0.05", pids.display());
    let random = fastrand::Rng::with_seed(7);
    thread::scope(|scope| {
        for lane in 0..4 {
            let (etcd, script) = (&etcd, &script);
            let mut random = random.clone();
            random.seed(lane);
            scope.spawn(move || {
                for _ in 0..50 {
                    let command = lock(etcd, &["n"], script)
                        .stderr(Stdio::null())
                        .spawn()
                        .unwrap();
                    // Not to let anything settle: the moment is what is tried out.
                    thread::sleep(Duration::from_micros(random.u64(0..250_000)));
                    signal(&command, "-INT");
                    let code = ended(command);
                    // Before it listens for signals, by the signal itself.
                    assert!(matches!(code, None | Some(0 | 130)), "{code:?}");
                }
            });
        }
    });
    for pid in fs::read_to_string(pids).unwrap().lines() {
        assert!(!is_alive(pid), "{pid} lives on");
    }
    let start = now();
    while !tickets(&etcd, "n").is_empty() {
        // Those killed before they listened had sent nothing.
        assert!(
            now().since(start) < Duration::from_secs(1),
            "{:?}",
            tickets(&etcd, "n")
        );
    }
}
