//! The command `tenure` as a person at a shell meets it.
#![allow(dead_code, unreachable_pub)] // each test crate uses a part

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use tenure::runtime::{Clock, Instant};

use crate::common::etcd::Etcd;

/// By the boot clock.
pub fn now() -> Instant {
    Clock::boot().now()
}

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that goes away with its value.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tenure-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn tenure(etcd: &Etcd) -> Command {
    // What whoever runs the tests ignores, `nohup` for one, is not what they are about.
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,QUIT,TERM");
    command.arg(env!("CARGO_BIN_EXE_tenure"));
    command.env("TENURE_STORE", etcd.url().replace("http", "etcd2"));
    command.stdin(Stdio::null());
    command
}

/// `tenure lock NAME options -- sh -c SCRIPT`.
pub fn lock(etcd: &Etcd, arguments: &[&str], script: &str) -> Command {
    under(etcd, &["lock"], arguments, script)
}

/// `tenure VERB options -- sh -c SCRIPT`.
pub fn under(etcd: &Etcd, verb: &[&str], arguments: &[&str], script: &str) -> Command {
    let mut command = tenure(etcd);
    command
        .args(verb)
        .args(arguments)
        .args(["--", "sh", "-c", script]);
    command
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// Waits until a file has so many lines.
pub fn lines(file: &Path, number: usize) -> Vec<String> {
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

/// Waits until something is so.
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = now();
    while !is_so() {
        assert!(now().since(start) < PATIENCE, "{what}: not so");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs it, gives it this on standard input, and waits for its end.
pub fn fed(command: &mut Command, input: &str) -> Output {
    let command = command.stdin(Stdio::piped());
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// What was written on standard output, line by line.
pub fn said(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

/// Waits for the end; killed if that takes too long.
pub fn ended(mut child: Child) -> Option<i32> {
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

pub fn signal(child: &Child, signal: &str) {
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
pub fn tickets(etcd: &Etcd, name: &str) -> Vec<String> {
    children(etcd, &format!("/_locks/{name}"))
}

/// What is directly below a key.
pub fn children(etcd: &Etcd, key: &str) -> Vec<String> {
    let path = format!("/v2/keys{key}?sorted=true&quorum=true");
    let (_, body) = etcd.http(&path).unwrap();
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

pub fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
}
