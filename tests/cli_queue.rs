//! `tenure queue` as a person at a shell meets it, on a real etcd, by v2 and by v3.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[macro_use]
#[path = "common/cli.rs"]
mod cli;
mod common;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cli::{
    Api, Directory, Place, children, code, ended, etcdctl, fed, lines, now, said, signal, tenure,
    under,
};
use common::wait::until_blocking as until;
use serde_json::{Value, json};

on_both! {
    jobs_are_pushed_from_the_line_from_input_and_line_by_line,
    each_job_is_done_once_in_order_with_its_payload_as_input,
    what_fails_is_tried_again_and_given_up_and_can_be_requeued_or_purged,
    an_interrupt_waits_for_what_runs_and_a_second_one_kills_it,
    a_job_of_a_worker_that_is_killed_is_another_s_when_its_command_is_dead,
    a_job_of_a_worker_that_is_stopped_is_another_s_when_its_command_is_dead,
    a_command_whose_claim_is_lost_is_killed,
    a_command_whose_guardian_stands_still_is_killed_from_above,
    a_raw_queue_is_fed_by_anybody,
    a_command_may_run_for_most_of_what_it_may_take_however_long_the_ttl,
}

fn queue(etcd: &Place, arguments: &[&str]) -> Command {
    let mut command = tenure(etcd);
    command.arg("queue").args(arguments);
    command
}

fn run(etcd: &Place, arguments: &[&str]) -> Output {
    queue(etcd, arguments).output().unwrap()
}

fn stats(etcd: &Place) -> Value {
    let output = run(etcd, &["stats", "q", "--format", "json"]);
    let mut stats: Value = serde_json::from_slice(&output.stdout).unwrap();
    let age = stats.as_object_mut().unwrap().remove("oldest_age_ms");
    assert!(age.is_some(), "{stats}");
    stats
}

fn counts(ready: u64, claimed: u64, delayed: u64, dead: u64) -> Value {
    json!({"ready": ready, "claimed": claimed, "delayed": delayed, "dead": dead})
}

/// `tenure queue work q options -- sh -c SCRIPT`.
fn work(etcd: &Place, options: &[&str], script: &str) -> Command {
    under(etcd, &["queue", "work", "q"], options, script)
}

fn jobs_are_pushed_from_the_line_from_input_and_line_by_line(api: Api) {
    let etcd = api.start();
    let pushed = run(&etcd, &["push", "q", "one"]);
    assert_eq!((code(&pushed), said(&pushed).len()), (0, 1), "{pushed:?}");
    let fed_ = fed(&mut queue(&etcd, &["push", "q"]), "two\nlines\n");
    assert_eq!(code(&fed_), 0);
    let many: String = (0..1_500).map(|number| format!("{number}\n")).collect();
    let fed_ = fed(&mut queue(&etcd, &["push", "q", "--lines"]), &many);
    assert_eq!((code(&fed_), said(&fed_).len()), (0, 1_500));
    let urgent = run(&etcd, &["push", "q", "zero", "--priority", "9"]);
    assert_eq!(code(&urgent), 0);
    let listed = said(&run(&etcd, &["ls", "q", "--format", "json"]));
    assert_eq!(listed.len(), 1_503);
    let first: Value = serde_json::from_str(&listed[0]).unwrap();
    assert_eq!(
        first["id"].as_str(),
        said(&urgent).first().map(String::as_str)
    );
    let ids: Vec<String> = listed[3..]
        .iter()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(ids, said(&fed_), "in their order");
    assert_eq!(stats(&etcd), counts(1_503, 0, 0, 0));
    // The same id twice, and what is to come.
    let first = run(
        &etcd,
        &["push", "q", "x", "--id", "order/1", "--delay", "1h"],
    );
    let again = run(
        &etcd,
        &["push", "q", "x", "--id", "order/1", "--format", "json"],
    );
    assert_eq!(said(&first), ["id.order%2F1"]);
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["duplicate"], true);
    assert_eq!(stats(&etcd), counts(1_503, 0, 1, 0));
    let table = said(&run(&etcd, &["stats", "q"]));
    assert!(
        table[0].starts_with("READY") && table[1].starts_with("1503"),
        "{table:?}"
    );
    // What is no text is refused where values must be text, and by which line.
    let mut lines = queue(&etcd, &["push", "q2", "--lines"]);
    lines
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    let mut lines = lines.spawn().unwrap();
    use std::io::Write as _;
    let mut stdin = lines.stdin.take().unwrap();
    stdin.write_all(b"good\n\xff\nafter\n").unwrap();
    drop(stdin);
    let output = lines.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if api == Api::V3 {
        assert_eq!((code(&output), said(&output).len()), (0, 3), "{told}");
        return;
    }
    assert_eq!((code(&output), said(&output).len()), (64, 1), "{told}");
    assert!(
        told.contains("line 2:") && told.contains("line 3:"),
        "{told}"
    );
}

fn each_job_is_done_once_in_order_with_its_payload_as_input(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let log = files.file("log");
    let many: String = (0..40).map(|number| format!("job {number}\n")).collect();
    assert_eq!(
        code(&fed(&mut queue(&etcd, &["push", "q", "--lines"]), &many)),
        0
    );
    // One that is larger than a pipe holds, and is not read.
    let large = "x".repeat(1024 * 1024);
    assert_eq!(
        code(&fed(
            &mut queue(&etcd, &["push", "q", "--id", "large"]),
            &large
        )),
        0
    );
    let script = format!(
        "read line; echo \"$line/$TENURE_NAME/$TENURE_JOB_ATTEMPT\" | cut -c 1-40 >> {}",
        log.display()
    );
    let output = work(&etcd, &["--until-empty"], &script).output().unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(
        output.stderr.is_empty(),
        "no progress where nobody looks: {output:?}"
    );
    let done = lines(&log, 41);
    let expected: Vec<String> = (0..40).map(|number| format!("job {number}/q/1")).collect();
    assert_eq!(done[..40], expected);
    assert_eq!(stats(&etcd), counts(0, 0, 0, 0));
    assert_eq!(children(&etcd, "/_queues/q/jobs"), [""; 0]);
    assert_eq!(children(&etcd, "/_queues/q/consumers"), [""; 0]);
}

fn what_fails_is_tried_again_and_given_up_and_can_be_requeued_or_purged(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let log = files.file("log");
    for id in ["good", "bad"] {
        run(&etcd, &["push", "q", id, "--id", id]);
    }
    let script = format!(
        "read it; echo $it $TENURE_JOB_ATTEMPT $TENURE_TOKEN >> {}; test $it = good || exit 7",
        log.display()
    );
    let options = [
        "--until-empty",
        "--max-attempts",
        "3",
        "--retry-delay",
        "50ms",
    ];
    assert_eq!(code(&work(&etcd, &options, &script).output().unwrap()), 0);
    let tried = lines(&log, 4);
    let bad: Vec<_> = tried.iter().filter(|it| it.starts_with("bad")).collect();
    assert_eq!((tried.len(), bad.len()), (4, 3), "{tried:?}");
    let token = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(
        bad.is_sorted_by(|one, two| token(one) < token(two)),
        "{bad:?}"
    );
    assert_eq!(stats(&etcd), counts(0, 0, 0, 1));
    let dead = said(&run(&etcd, &["dead", "q", "--format", "json"]));
    let dead: Value = serde_json::from_str(&dead[0]).unwrap();
    assert_eq!(
        (&dead["id"], &dead["attempts"]),
        (&"id.bad".into(), &3.into())
    );
    assert!(dead["reason"].as_str().unwrap().contains('7'), "{dead}");
    assert_eq!(
        code(&run(&etcd, &["requeue", "q", "id.good"])),
        1,
        "it is not dead"
    );
    let requeued = run(&etcd, &["requeue", "q", "--all"]);
    assert_eq!(said(&requeued), ["1 requeued"]);
    assert_eq!(stats(&etcd), counts(1, 0, 0, 0));
    let once = ["--until-empty", "--max-attempts", "1"];
    assert_eq!(code(&work(&etcd, &once, &script).output().unwrap()), 0);
    assert_eq!(lines(&log, 5).len(), 5);
    assert_eq!(code(&run(&etcd, &["purge", "q", "id.bad"])), 0);
    assert_eq!(stats(&etcd), counts(0, 0, 0, 0));
    assert_eq!(code(&run(&etcd, &["purge", "q"])), 64, "which?");
    for verb in ["requeue", "purge"] {
        for which in ["--all", "id.good"] {
            let late = run(&etcd, &[verb, "q", which, "--timeout", "0s"]);
            assert_eq!(code(&late), 69, "{late:?}");
            let said = String::from_utf8_lossy(&late.stderr).into_owned();
            assert!(said.contains("within 0ns; nothing was changed"), "{said}");
        }
    }
}

fn an_interrupt_waits_for_what_runs_and_a_second_one_kills_it(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let (begun, done) = (files.file("begun"), files.file("done"));
    let script = format!(
        "trap '' TERM INT; read it; echo $it >> {}; sleep $it; echo $it >> {}",
        begun.display(),
        done.display()
    );
    for seconds in ["0.5", "1000", "0.1"] {
        run(&etcd, &["push", "q", seconds]);
    }
    let worker = work(&etcd, &[], &script).spawn().unwrap();
    lines(&begun, 1);
    signal(&worker, "-INT");
    assert_eq!(ended(worker), Some(0), "drained");
    assert_eq!(lines(&done, 1), ["0.5"]);
    assert_eq!(lines(&begun, 1).len(), 1, "no other was begun");
    assert_eq!(stats(&etcd), counts(2, 0, 0, 0));
    let worker = work(&etcd, &["--concurrency", "2"], &script)
        .spawn()
        .unwrap();
    lines(&done, 2);
    signal(&worker, "-TERM");
    let start = now();
    until("it goes on until then", || {
        now().since(start) > Duration::from_millis(500)
    });
    signal(&worker, "-TERM");
    assert_eq!(ended(worker), Some(143));
    let left = stats(&etcd);
    assert_eq!(
        left["ready"].as_u64().unwrap() + left["delayed"].as_u64().unwrap(),
        1,
        "{left}"
    );
    assert_eq!(lines(&done, 2), ["0.5", "0.1"]);
    let sleeping = Command::new("pgrep")
        .args(["-fx", "sleep 1000"])
        .output()
        .unwrap();
    for pid in String::from_utf8(sleeping.stdout).unwrap().lines() {
        let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(!environment.contains(&etcd.url()), "{pid} lives on");
    }
}

/// What is done to a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    /// Its process is killed.
    Killed,
    /// It stands still for longer than its time-to-live.
    Stopped,
    /// Somebody deletes its node.
    Deleted,
    /// The same, while the guardian of the command stands still.
    GuardianStopped,
}

/// The job's command is dead before the job is delivered again, with a larger token.
fn overlap_after(api: Api, blow: Blow) {
    let (etcd, files) = (api.start(), Directory::new());
    let (marks, next) = (files.file("marks"), files.file("next"));
    run(&etcd, &["push", "q", "job"]);
    let beat = format!(
        "trap '' TERM; echo $TENURE_TOKEN >> {0}; while :; do date +%s%N >> {0}; sleep 0.01; done",
        marks.display()
    );
    let options = ["--ttl", "3s", "--grace", "300ms"];
    let elder = work(&etcd, &options, &beat)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let token: u64 = lines(&marks, 10)[0].parse().unwrap();
    let consumer = children(&etcd, "/_queues/q/consumers")[0].clone();
    let script = format!(
        "date +%s%N >> {0}; echo $TENURE_TOKEN >> {0}",
        next.display()
    );
    let options = ["--ttl", "3s", "--until-empty"];
    let other = work(&etcd, &options, &script).spawn().unwrap();
    match blow {
        Blow::Killed => signal(&elder, "-KILL"),
        Blow::Stopped => signal(&elder, "-STOP"),
        Blow::Deleted | Blow::GuardianStopped => {
            if blow == Blow::GuardianStopped {
                let own = elder.id().to_string();
                let found = Command::new("pgrep").args(["-P", &own]).output().unwrap();
                let guardian = String::from_utf8(found.stdout).unwrap();
                let stop = ["-STOP", guardian.trim()];
                assert!(Command::new("kill").args(stop).status().unwrap().success());
            }
            until("the other is there", || {
                children(&etcd, "/_queues/q/consumers").len() == 2
            });
            let path = format!("/v2/keys{consumer}");
            match api {
                Api::V2 => drop(etcd.request("DELETE", &path, "").unwrap()),
                Api::V3 => drop(etcdctl(&etcd, &["del", &consumer])),
            }
        }
    }
    let told = lines(&next, 2);
    let (began, its): (u128, u64) = (told[0].parse().unwrap(), told[1].parse().unwrap());
    assert!(its > token, "{blow:?}: token {its} after {token}");
    let last = || {
        let text = fs::read_to_string(&marks).unwrap();
        text.lines()
            .filter_map(|it| it.parse::<u128>().ok())
            .max()
            .unwrap()
    };
    // A deletion by force frees the job at once; then the loss is known a moment later.
    let notice = match blow {
        Blow::Deleted | Blow::GuardianStopped => Duration::from_secs(1),
        Blow::Killed | Blow::Stopped => Duration::ZERO,
    };
    until("its command is dead", || {
        let (start, before) = (now(), last());
        while now().since(start) < Duration::from_millis(200) {}
        last() == before
    });
    assert!(
        last() <= began + notice.as_nanos(),
        "{blow:?}: {} is after {began}",
        last()
    );
    assert_eq!(ended(other), Some(0));
    signal_end(elder, blow);
    assert_eq!(stats(&etcd), counts(0, 0, 0, 0));
}

fn signal_end(elder: std::process::Child, blow: Blow) {
    if blow == Blow::Killed {
        assert_eq!(ended(elder), None);
        return;
    }
    signal(&elder, "-CONT");
    signal(&elder, "-INT");
    assert_eq!(ended(elder), Some(0));
}

fn a_job_of_a_worker_that_is_killed_is_another_s_when_its_command_is_dead(api: Api) {
    overlap_after(api, Blow::Killed);
}

fn a_job_of_a_worker_that_is_stopped_is_another_s_when_its_command_is_dead(api: Api) {
    overlap_after(api, Blow::Stopped);
}

fn a_command_whose_claim_is_lost_is_killed(api: Api) {
    overlap_after(api, Blow::Deleted);
}

fn a_command_whose_guardian_stands_still_is_killed_from_above(api: Api) {
    overlap_after(api, Blow::GuardianStopped);
}

fn a_raw_queue_is_fed_by_anybody(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let log = files.file("log");
    match api {
        Api::V2 => {
            let posted = etcd.request("POST", "/v2/keys/nodes/queue", "value=test");
            assert_eq!(posted.unwrap().0, 201);
        }
        Api::V3 => drop(etcdctl(
            &etcd,
            &["put", "/nodes/queue/from-elsewhere", "test"],
        )),
    }
    run(&etcd, &["push", "/nodes/queue", "--raw", "mine"]);
    assert_eq!(said(&run(&etcd, &["ls", "/nodes/queue", "--raw"])).len(), 3);
    let script = format!("cat >> {0}; echo >> {0}", log.display());
    let worker = ["queue", "work", "/nodes/queue", "--raw"];
    let output = under(&etcd, &worker, &["--until-empty"], &script)
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(lines(&log, 2), ["test", "mine"]);
    assert_eq!(children(&etcd, "/nodes/queue"), [""; 0]);
}

fn a_command_may_run_for_most_of_what_it_may_take_however_long_the_ttl(api: Api) {
    let (etcd, files) = (api.start(), Directory::new());
    let log = files.file("log");
    assert_eq!(code(&run(&etcd, &["push", "q", "job"])), 0);
    let script = format!("sleep 1; echo $TENURE_JOB_ATTEMPT >> {}", log.display());
    // A fifth of the TTL is all of it, and longer.
    let options = ["--ttl", "20s", "--max-run", "3s", "--until-empty"];
    let output = work(&etcd, &options, &script).output().unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(lines(&log, 1), ["1"]);
    let options = ["--max-run", "3s", "--grace", "1400ms"];
    let output = work(&etcd, &options, "true").output().unwrap();
    assert_eq!(code(&output), 64, "{output:?}");
}
