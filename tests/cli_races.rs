//! `tenure lock` at awkward moments and in awkward surroundings, on a real etcd.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[macro_use]
#[path = "common/cli.rs"]
mod cli;
mod common;

use std::fs;
use std::io::{IoSlice, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cli::{
    Api, Directory, PATIENCE, Place, Reached, code, ended, is_alive, lines, lock, now, signal,
    tenure, tickets,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tenure::runtime::Clock;

on_both! {
    a_healthy_command_is_never_asked_to_end_however_short_the_ttl,
    what_a_command_left_behind_has_its_grace_once_though_the_lock_is_renewed,
    a_command_is_asked_once_to_end_and_in_time,
    a_signal_to_all_processes_of_a_service_is_the_commands_to_heed,
    a_stopped_command_heeds_a_signal,
    what_is_ignored_at_the_start_stays_ignored,
    a_binary_that_is_replaced_while_it_waits_still_runs_its_command,
    a_lock_inside_a_lock_passes_the_code_and_both_end_with_the_outer_one,
    a_password_is_not_in_the_commands_environment,
    a_command_without_standard_input_or_with_any_bytes_for_arguments_runs,
    a_process_whose_first_thread_has_ended_is_found_and_ended_too,
}

fn guardian(holder: &Child) -> String {
    let output = Command::new("pgrep")
        .args(["-P", &holder.id().to_string()])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn kill(signal: &str, pid: &str) {
    let status = Command::new("kill").args([signal, pid]).status().unwrap();
    assert!(status.success(), "kill {signal} {pid}");
}

fn state(pid: &str) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

/// A server that takes so long for a write is not healthy, nor is a machine that takes so long to
/// wake who sleeps 10 ms and writes: a command that is stopped meanwhile is stopped rightly, and is
/// tried again.
const SLOW: Duration = Duration::from_millis(100);

/// Runs a command, and tells how long the slowest of many writes beside it took, the pause before
/// it included.
fn beside_probes(
    etcd: &Place,
    run: impl FnOnce() -> std::io::Result<Output>,
) -> (Output, Duration) {
    let (clock, over) = (Clock::boot(), AtomicBool::new(false));
    thread::scope(|scope| {
        let probes = scope.spawn(|| {
            let (mut slowest, mut begun) = (Duration::ZERO, clock.now());
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(10));
                let probe = r#"{"key":"cHJvYmU=","value":"cHJvYmU="}"#;
                etcd.json("POST", "/v3/kv/put", probe).unwrap();
                let ended = clock.now();
                slowest = slowest.max(ended.since(begun));
                begun = ended;
            }
            slowest
        });
        let output = run();
        over.store(true, Ordering::Relaxed);
        (output.unwrap(), probes.join().unwrap())
    })
}

fn a_healthy_command_is_never_asked_to_end_however_short_the_ttl(api: Api) {
    let etcd = api.start();
    thread::scope(|scope| {
        for options in [
            &["1", "--ttl", "1s"][..],
            &["2", "--ttl", "2s", "--grace", "500ms"],
            &["3", "--ttl", "3s", "--grace", "1s"],
        ] {
            let etcd = &etcd;
            scope.spawn(move || {
                let (output, slowest) = (0..3)
                    .map(|_| beside_probes(etcd, || lock(etcd, options, "sleep 3").output()))
                    .find(|(output, slowest)| code(output) == 0 || *slowest < SLOW)
                    .expect("a server that is healthy for three seconds");
                assert_eq!(code(&output), 0, "{options:?}, {slowest:?}: {output:?}");
            });
        }
    });
    let output = lock(&etcd, &["n", "--ttl", "2s", "--grace", "1s"], "true").output();
    let output = output.unwrap();
    assert_eq!(code(&output), 64, "it would be asked while all is well");
    assert!(String::from_utf8(output.stderr).unwrap().contains("500ms"));
}

fn what_a_command_left_behind_has_its_grace_once_though_the_lock_is_renewed(api: Api) {
    let etcd = api.start();
    let script = "setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & sleep 0.2";
    let start = now();
    let output = lock(&etcd, &["n", "--ttl", "3s", "--grace", "1s"], script).output();
    assert_eq!(code(&output.unwrap()), 0);
    assert!(
        now().since(start) < Duration::from_secs(5),
        "a renewal a second"
    );
}

fn a_command_is_asked_once_to_end_and_in_time(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let log = files.file("log");
    let script = format!(
        "import os, signal, time\n\
         log = lambda word: os.write(fd, word + b'\\n')\n\
         fd = os.open('{}', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
         signal.signal(signal.SIGTERM, lambda *_: log(b'asked %d' % time.time_ns()))\n\
         while True: log(b'at %d' % time.time_ns()); time.sleep(0.01)\n",
        log.display()
    );
    let mut command = tenure(&etcd);
    command.args(["lock", "n", "--ttl", "3s", "--grace", "1s", "--"]);
    let holder = command.args(["python3", "-c", &script]).spawn().unwrap();
    lines(&log, 3);
    etcd.pause();
    let end = ended(holder);
    etcd.resume();
    assert_eq!(end, Some(76));
    let log = fs::read_to_string(log).unwrap();
    let times = |word: &str| -> Vec<u64> {
        let lines = log.lines().filter_map(|it| it.strip_prefix(word));
        lines.filter_map(|it| it.trim().parse().ok()).collect()
    };
    let (asked, last) = (times("asked"), *times("at").last().unwrap());
    assert_eq!(asked.len(), 1, "{asked:?}");
    let grace = Duration::from_nanos(last - asked[0]);
    assert!(
        grace > Duration::from_millis(700) && grace < Duration::from_millis(1500),
        "{grace:?}"
    );
}

fn a_signal_to_all_processes_of_a_service_is_the_commands_to_heed(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let (ready, done) = (files.file("ready"), files.file("done"));
    for name in ["-TERM", "-INT", "-HUP", "-QUIT"] {
        let script = format!(
            "trap 'sleep 0.2; echo clean >> {}; exit 9' TERM INT HUP QUIT; \
             echo up >> {}; while :; do sleep 0.01; done",
            done.display(),
            ready.display()
        );
        let holder = lock(&etcd, &["n"], &script).spawn().unwrap();
        lines(&ready, 1);
        kill(name, &guardian(&holder));
        signal(&holder, name);
        assert_eq!(ended(holder), Some(9), "{name}");
        lines(&done, 1);
        fs::remove_file(&ready).unwrap();
        fs::remove_file(&done).unwrap();
    }
}

fn a_stopped_command_heeds_a_signal(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let ready = files.file("ready");
    let script = format!("echo $$ >> {}; exec sleep 1000", ready.display());
    let holder = lock(&etcd, &["n"], &script).spawn().unwrap();
    let pid = lines(&ready, 1)[0].clone();
    kill("-STOP", &pid);
    let start = now();
    while state(&pid) != 'T' {
        assert!(now().since(start) < PATIENCE);
    }
    signal(&holder, "-TERM");
    assert_eq!(ended(holder), Some(143));
    assert_eq!(tickets(&etcd, "n"), [""; 0]);
}

fn what_is_ignored_at_the_start_stays_ignored(api: Api) {
    let etcd = api.start();
    let mut command = Command::new("sh");
    command.env("TENURE_STORE", etcd.store());
    // Signals 1, 2 and 3: as under `nohup`, and behind the `&` of a script.
    let script = r#"trap "" HUP INT QUIT; exec "$0" lock n -- grep SigIgn /proc/self/status"#;
    let output = command
        .args(["-c", script, env!("CARGO_BIN_EXE_tenure")])
        .output();
    let said = String::from_utf8(output.unwrap().stdout).unwrap();
    let mask = said.split_whitespace().last().unwrap();
    assert_eq!(
        u64::from_str_radix(mask, 16).unwrap() & 0b111,
        0b111,
        "{said}"
    );
    let output = tenure(&etcd)
        .args(["lock", "n", "--", "grep", "SigIgn", "/proc/self/status"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.trim().ends_with("00000"),
        "and nothing else is: {said}"
    );
}

fn a_binary_that_is_replaced_while_it_waits_still_runs_its_command(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let (binary, ready) = (files.file("tenure"), files.file("ready"));
    fs::copy(env!("CARGO_BIN_EXE_tenure"), &binary).unwrap();
    let script = format!("echo up >> {}; read wait", ready.display());
    let mut holder = lock(&etcd, &["n"], &script)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    lines(&ready, 1);
    let waiter = Command::new(&binary)
        .env("TENURE_STORE", etcd.store())
        .args(["lock", "n", "--", "sh", "-c", "exit 5"])
        .spawn()
        .unwrap();
    let start = now();
    while tickets(&etcd, "n").len() < 2 {
        assert!(now().since(start) < PATIENCE);
    }
    fs::remove_file(&binary).unwrap();
    drop(holder.stdin.take());
    ended(holder);
    assert_eq!(ended(waiter), Some(5));
}

#[test]
fn a_command_is_not_started_after_its_deadline() {
    let files = Directory::new();
    let mark = files.file("mark");
    let run = |deadline: u128| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guardian = Command::new(env!("CARGO_BIN_EXE_tenure"))
            .args(["__guardian", "0", "touch"])
            .arg(&mark)
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let nothing = fs::File::open("/dev/null").unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut files = SendAncillaryBuffer::new(&mut space);
        let nothing = [nothing.as_fd()];
        files.push(SendAncillaryMessage::ScmRights(&nothing));
        let line = format!("deadline {deadline}\n");
        let line = [IoSlice::new(line.as_bytes())];
        sendmsg(&ours, &line, &mut files, SendFlags::NOSIGNAL).unwrap();
        let mut report = String::new();
        (&ours).read_to_string(&mut report).unwrap();
        (ended(guardian), report)
    };
    let boot = now()
        .since(tenure::runtime::Instant::new(Duration::ZERO))
        .as_nanos();
    assert_eq!(run(boot), (Some(76), String::new()));
    assert!(!mark.exists());
    let (code, report) = run(boot + 60_000_000_000);
    assert_eq!((code, &report[..]), (Some(0), "ended code 0\n"));
    assert!(mark.exists());
}

fn a_lock_inside_a_lock_passes_the_code_and_both_end_with_the_outer_one(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let binary = env!("CARGO_BIN_EXE_tenure");
    let inner = |script: &str| format!("exec {binary} lock in -- sh -c '{script}'");
    let output = lock(&etcd, &["out"], &inner("echo $TENURE_NAME; exit 9")).output();
    let output = output.unwrap();
    assert_eq!((code(&output), &output.stdout[..]), (9, &b"in\n"[..]));
    let (ready, done) = (files.file("ready"), files.file("done"));
    let script = format!(
        "trap \"echo clean >> {}; exit 0\" TERM; echo $$ >> {}; while :; do sleep 0.01; done",
        done.display(),
        ready.display()
    );
    let options = ["out", "--ttl", "3s", "--grace", "1s"];
    let holder = lock(&etcd, &options, &inner(&script)).spawn().unwrap();
    let pid = lines(&ready, 1)[0].clone();
    // The outer one's renewals end; the inner command is asked first.
    signal(&holder, "-STOP");
    lines(&done, 1);
    signal(&holder, "-CONT");
    assert_eq!(ended(holder), Some(76));
    assert!(!is_alive(&pid));
    let start = now();
    while !tickets(&etcd, "in").is_empty() {
        assert!(now().since(start) < Duration::from_secs(20));
    }
}

fn a_password_is_not_in_the_commands_environment(api: Api) {
    let etcd = api.start();
    let mut command = lock(&etcd, &["n"], "env; cat /proc/$PPID/environ");
    let output = command.env("TENURE_PASSWORD", "se-cret").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("TENURE_TOKEN") && !said.contains("se-cret"),
        "{said}"
    );
}

fn a_command_without_standard_input_or_with_any_bytes_for_arguments_runs(api: Api) {
    let etcd = api.start();
    let mut command = Command::new("sh");
    command.env("TENURE_STORE", etcd.store());
    let script = r#"exec "$0" lock n -- sh -c 'cat; printf %s "$0"' "$(printf '\377')" <&-"#;
    let output = command
        .args(["-c", script, env!("CARGO_BIN_EXE_tenure")])
        .output();
    let output = output.unwrap();
    assert_eq!(
        (code(&output), &output.stdout[..]),
        (0, &[0xff][..]),
        "{output:?}"
    );
}

fn a_process_whose_first_thread_has_ended_is_found_and_ended_too(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let left = files.file("left");
    // It looks like a process that has ended, and another of its threads lives on.
    let program = "import ctypes, os, sys, threading, time\n\
                   def live():\n    \
                       open(sys.argv[1], 'w').write(f'{os.getpid()}\\n')\n    \
                       time.sleep(1000)\n\
                   threading.Thread(target=live).start()\n\
                   ctypes.CDLL(None).syscall(60, 0)\n";
    let script = format!(
        "setsid /usr/bin/python3 -c \"$PROGRAM\" {0} & while ! test -s {0}; do sleep 0.01; done",
        left.display()
    );
    let mut holder = lock(&etcd, &["n", "--ttl", "5s", "--grace", "100ms"], &script);
    let holder = holder.env("PROGRAM", program).spawn().unwrap();
    assert_eq!(ended(holder), Some(0));
    let pid = lines(&left, 1)[0].clone();
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "{pid} lives on"
    );
}
