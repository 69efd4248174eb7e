//! `tenure lock`: the command as a person at a shell meets it, on a real etcd.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[macro_use]
#[path = "common/cli.rs"]
mod cli;
mod common;

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use cli::{
    Api, Directory, PATIENCE, code, ended, is_alive, lines, lock, now, signal, tenure, tickets,
};

on_both! {
    two_shells_hold_one_at_a_time_with_rising_tokens,
    exit_codes_tell_what_happened,
    a_lock_that_is_taken_is_not_waited_for_longer_than_asked,
    the_command_finds_name_key_and_token_and_nothing_of_what_it_left_stays,
    a_signal_is_passed_on_and_the_lock_given_back_when_the_command_has_ended,
    who_is_told_to_end_while_waiting_leaves_the_line,
    a_command_that_outlasts_many_terms_is_left_alone,
    a_raw_name_is_the_line_itself,
    an_interrupt_at_any_moment_leaves_no_ticket_and_no_process,
}

fn two_shells_hold_one_at_a_time_with_rising_tokens(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
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

fn exit_codes_tell_what_happened(api: Api) {
    let etcd = api.start();
    let run = |arguments: &[&str]| code(&tenure(&etcd).args(arguments).output().unwrap());
    assert_eq!(run(&["lock", "n", "--", "sh", "-c", "exit 7"]), 7);
    assert_eq!(run(&["lock", "n", "--", "sh", "-c", "kill -9 $$"]), 137);
    assert_eq!(run(&["lock", "n", "--", "no-such-command-anywhere"]), 127);
    assert_eq!(run(&["lock", "n", "--", "/etc/passwd"]), 126);
    assert_eq!(run(&["lock", "", "--", "true"]), 64);
    // On etcd v3 a Go program's own name is taken letter by letter.
    let verbatim = if api == Api::V3 { 0 } else { 64 };
    assert_eq!(run(&["lock", "--raw", "no/slash", "--", "true"]), verbatim);
    assert_eq!(run(&["lock", "n"]), 64);
    assert_eq!(run(&["lock", "n", "--ttl", "5", "--", "true"]), 64);
    assert_eq!(run(&["lock", "n", "--ttl", "10ms", "--", "true"]), 64);
    assert_eq!(run(&["lock", "n", "--grace", "9s", "--", "true"]), 64);
    assert_eq!(
        run(&["--store", "etcd2://127.0.0.1:1", "lock", "n", "--", "true"]),
        69
    );
    assert_eq!(
        run(&["--store", "etcd://127.0.0.1:1", "lock", "n", "--", "true"]),
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
        said.contains(" etcd://") && said.contains("etcd2://") && said.contains("embedded:"),
        "{said}"
    );
    assert_eq!(tickets(&etcd, "n"), [""; 0]);
}

fn a_lock_that_is_taken_is_not_waited_for_longer_than_asked(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
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

fn the_command_finds_name_key_and_token_and_nothing_of_what_it_left_stays(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
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
    assert!(words[1].starts_with("/_locks/jobs%2F7/"), "{said}");
    match api {
        Api::V2 => assert!(words[1].ends_with(&format!("/{token:020}")), "{said}"),
        // `<lease>-<nonce>`; the token is the revision of its creation.
        Api::V3 => assert!(words[1].contains('-') && token > 1, "{said}"),
    }
    let pid = fs::read_to_string(left).unwrap();
    assert!(
        !is_alive(pid.trim()),
        "what the command left behind is gone before the lock is"
    );
}

fn a_signal_is_passed_on_and_the_lock_given_back_when_the_command_has_ended(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
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

fn who_is_told_to_end_while_waiting_leaves_the_line(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
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

fn a_command_that_outlasts_many_terms_is_left_alone(api: Api) {
    let etcd = api.start();
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

fn a_raw_name_is_the_line_itself(api: Api) {
    let etcd = api.start();
    let script = "echo $TENURE_KEY";
    let output = lock(&etcd, &["/elsewhere/line", "--raw"], script)
        .output()
        .unwrap();
    let key = String::from_utf8(output.stdout).unwrap();
    let begin = match api {
        Api::V2 => "/elsewhere/line/000",
        Api::V3 => "/elsewhere/line/",
    };
    assert!(
        key.starts_with(begin) && key.matches('/').count() == 3,
        "{key}"
    );
}

fn an_interrupt_at_any_moment_leaves_no_ticket_and_no_process(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
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
