//! The command `tenure` as a person at a shell meets it.
#![allow(dead_code, unreachable_pub)] // each test crate uses a part

use std::fs;
use std::io::Write as _;
use std::ops::Deref;
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

/// Which of etcd's APIs the command is told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    V2,
    V3,
}

/// An etcd, and the API by which the command reaches it.
pub struct Place {
    pub etcd: Etcd,
    pub api: Api,
}

impl Api {
    pub fn start(self) -> Place {
        let etcd = Etcd::start();
        Place { etcd, api: self }
    }
}

impl Deref for Place {
    type Target = Etcd;

    fn deref(&self) -> &Etcd {
        &self.etcd
    }
}

/// Makes of each function of an [`Api`] a test on v2 and one on v3.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod etcd2 {
            $(#[test] fn $name() { super::$name(super::cli::Api::V2); })+
        }
        mod etcd3 {
            $(#[test] fn $name() { super::$name(super::cli::Api::V3); })+
        }
    };
}

/// What the command and its referees need to know of a server. A plain [`Etcd`] is one by v2.
pub trait Reached {
    /// The store's URL.
    fn store(&self) -> String;
    /// What is directly below a key, in the order of creation.
    fn children(&self, key: &str) -> Vec<String>;
}

impl Reached for Etcd {
    fn store(&self) -> String {
        self.url().replace("http", "etcd2")
    }

    fn children(&self, key: &str) -> Vec<String> {
        let path = format!("/v2/keys{key}?sorted=true&quorum=true");
        let (_, body) = self.http(&path).unwrap();
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
}

impl Reached for Place {
    fn store(&self) -> String {
        match self.api {
            Api::V2 => self.etcd.store(),
            Api::V3 => self.url().replace("http", "etcd"),
        }
    }

    fn children(&self, key: &str) -> Vec<String> {
        if self.api == Api::V2 {
            return self.etcd.children(key);
        }
        let below = format!("{key}/");
        let all = etcdctl(
            &self.etcd,
            &["get", &below, "--prefix", "--keys-only", "--sort-by=CREATE"],
        );
        let mut children: Vec<String> = Vec::new();
        for found in all.lines().filter_map(|it| it.strip_prefix(&below)) {
            let child = format!("{below}{}", found.split('/').next().unwrap());
            if !children.contains(&child) {
                children.push(child);
            }
        }
        children
    }
}

/// What etcd's own command says, on the v3 API.
pub fn etcdctl(etcd: &Etcd, arguments: &[&str]) -> String {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &etcd.url()])
        .args(arguments)
        .output();
    let output = output.unwrap_or_else(|error| {
        panic!("no etcdctl here ({error}): run ./scripts/test, which fetches what the tests need")
    });
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn tenure(etcd: &impl Reached) -> Command {
    // What whoever runs the tests ignores, `nohup` for one, is not what they are about.
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,QUIT,TERM");
    command.arg(env!("CARGO_BIN_EXE_tenure"));
    command.env("TENURE_STORE", etcd.store());
    command.stdin(Stdio::null());
    command
}

/// `tenure lock NAME options -- sh -c SCRIPT`.
pub fn lock(etcd: &impl Reached, arguments: &[&str], script: &str) -> Command {
    under(etcd, &["lock"], arguments, script)
}

/// `tenure VERB options -- sh -c SCRIPT`.
pub fn under(etcd: &impl Reached, verb: &[&str], arguments: &[&str], script: &str) -> Command {
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
pub fn tickets(etcd: &impl Reached, name: &str) -> Vec<String> {
    children(etcd, &format!("/_locks/{name}"))
}

/// What is directly below a key, in the order of creation.
pub fn children(etcd: &impl Reached, key: &str) -> Vec<String> {
    etcd.children(key)
}

pub fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
}
