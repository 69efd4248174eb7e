//! One line with etcd's own programs: `etcdctl lock` and `elect`, Go programs on its `concurrency`
//! package, the command `tenure` and clients in this process contend on one etcd, for a lock and an
//! election of ours and for those of a Go program's own names; some are killed while they hold or
//! wait. A referee (`common/referee.rs`) lets nobody in out of turn, or beside another.
//!
//! For a minute; `TENURE_PEERS_SECS` says another time.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "common/go.rs"]
mod go;
#[path = "common/referee.rs"]
#[allow(dead_code)]
mod referee;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::etcd::Etcd;
use common::wait::until_blocking as until;
use futures_util::StreamExt as _;
use referee::Referee;
use tenure::etcd3::Etcd3;
use tenure::runtime::{Clock, Instant};
use tenure::store::{Expiry, Get};
use tenure::{Client, Election, ErrorKind, Key, Lock, StoreExt as _};

/// How long somebody in a loop holds.
const HOLD: Duration = Duration::from_millis(3);
/// How long those that are killed would hold.
const AN_HOUR: Duration = Duration::from_secs(3_600);
/// Of the sessions of those that are killed, in seconds.
const SHORT: u32 = 5;
/// Only a hang takes so long.
const LONG: Duration = Duration::from_secs(90);

fn now() -> Instant {
    Clock::boot().now()
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Lock,
    Election,
}

/// One line, and who stands in it.
struct Part {
    kind: Kind,
    /// What others call it.
    theirs: &'static str,
    /// What we call it; `None` if as they do.
    ours: Option<&'static str>,
    etcd: Arc<Etcd>,
    referee: Referee,
    end: Instant,
}

impl Part {
    fn new(
        kind: Kind,
        theirs: &'static str,
        ours: Option<&'static str>,
        etcd: &Arc<Etcd>,
        end: Instant,
    ) -> Self {
        Self {
            kind,
            theirs,
            ours,
            etcd: etcd.clone(),
            referee: Referee::new(etcd, theirs),
            end,
        }
    }

    /// Also when something is wrong: what is wrong would be waited for in vain.
    fn is_over(&self) -> bool {
        now() >= self.end || !self.referee.wrong().is_empty()
    }

    fn lock(&self, client: &Client) -> Lock {
        match self.ours {
            Some(name) => client.lock(name),
            None => client.raw_lock(self.theirs),
        }
    }

    fn election(&self, client: &Client) -> Election {
        match self.ours {
            Some(name) => client.election(name),
            None => client.raw_election(self.theirs),
        }
    }

    fn etcdctl(&self) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3");
        command.args(["--endpoints", &self.etcd.url()]);
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    /// `etcdctl lock`, and what runs under it.
    fn etcdctl_lock(&self, who: &str, ttl: u32, hold: Duration) -> Command {
        let mut command = self.etcdctl();
        command.args(["lock", "--ttl", &ttl.to_string(), self.theirs]);
        let script = self.referee.script(who, "ETCD_LOCK_KEY", "NONE", hold);
        command.args(["--", "bash", "-c", &script]);
        command
    }

    /// `tenure lock` or `tenure elect`, and what runs under it.
    fn tenure(&self, who: &str, ttl: u32, hold: Duration) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
        command.args(["--store", &self.etcd.url().replace("http", "etcd")]);
        command.arg(match self.kind {
            Kind::Lock => "lock",
            Kind::Election => "elect",
        });
        match self.ours {
            Some(name) => command.arg(name),
            None => command.args(["--raw", self.theirs]),
        };
        command.args(["--ttl", &format!("{ttl}s"), "--", "bash", "-c"]);
        command.arg(self.referee.script(who, "TENURE_KEY", "TENURE_TOKEN", hold));
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    /// A Go program on `concurrency.Mutex` or `concurrency.Election`.
    fn go(&self, who: &str, ttl: u32, hold: Duration, length: Duration) -> Command {
        let mut command = Command::new(go::peers());
        command.arg(match self.kind {
            Kind::Lock => "mutex",
            Kind::Election => "elect",
        });
        let port = self.etcd.client_port();
        command.args(["-endpoint", &format!("127.0.0.1:{port}")]);
        command.args(["-who", who, "-name", self.theirs, "-ttl", &ttl.to_string()]);
        command.args(["-referee", &format!("127.0.0.1:{}", self.referee.port)]);
        command.args(["-hold", &format!("{}ms", hold.as_millis())]);
        command.args(["-length", &format!("{}ms", length.as_millis())]);
        command.stdin(Stdio::null()).process_group(0);
        command
    }

    /// One after the other, each of which has to end well.
    fn in_a_loop(&self, command: impl Fn() -> Command) {
        while !self.is_over() {
            let output = command().output().unwrap();
            assert!(output.status.success(), "{}: {output:?}", self.theirs);
        }
    }

    fn go_all_the_time(&self) {
        let rest = self.end.since(now());
        let output = self.go("go", 30, HOLD, rest).output().unwrap();
        assert!(output.status.success(), "{}: {output:?}", self.theirs);
    }

    /// `etcdctl elect` runs no command: it says that it leads, and resigns when interrupted.
    fn etcdctl_elect(&self) {
        while !self.is_over() {
            let mut command = self.etcdctl();
            command.args(["elect", self.theirs, "by etcdctl"]);
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
            let key = said.next().unwrap().unwrap();
            assert!(self.referee.held("etcdctl", &key, None, HOLD), "{key}");
            signal(&child, "-INT");
            // Interrupted before it listens for that it dies of it: the key is its session's then.
            child.wait().unwrap();
        }
    }

    /// A client of this process, which also gives up now and then while it waits.
    fn ours(&self, who: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::new(Etcd3::new(self.etcd.url()).unwrap());
            let (lock, election) = (self.lock(&client), self.election(&client));
            for round in 0.. {
                if self.is_over() {
                    break;
                }
                let patience = Duration::from_millis(round % 7);
                let impatient = round % 3 == 0;
                match self.kind {
                    Kind::Lock if impatient => drop(lock.acquire().timeout(patience).await),
                    Kind::Lock => {
                        let guard = lock.acquire().await.unwrap();
                        self.hold(who, guard.key(), guard.token()).await;
                        guard.release().await.unwrap();
                    }
                    Kind::Election if impatient => {
                        drop(election.campaign("nobody").timeout(patience).await);
                    }
                    Kind::Election => {
                        let leadership = election.campaign("one of us").await.unwrap();
                        leadership.proclaim("still one of us").await.unwrap();
                        self.hold(who, leadership.key(), leadership.token()).await;
                        leadership.resign().await.unwrap();
                    }
                }
            }
            client.shutdown(LONG).await;
        });
    }

    async fn hold(&self, who: &str, key: &Key, token: u64) {
        let (referee, who, key) = (self.referee.clone(), who.to_owned(), key.to_string());
        let held = move || referee.held(&who, &key, Some(token), HOLD);
        assert!(
            tokio::task::spawn_blocking(held).await.unwrap(),
            "{}",
            self.theirs
        );
    }

    /// Programs that are killed, of each kind in turn, while they hold and while they wait.
    fn mortals(&self) -> u64 {
        let mut killed = 0;
        while !self.is_over() {
            let who = format!("mortal{killed}");
            let (mut command, with_child) = match (killed % 3, self.kind) {
                (0, _) => (self.tenure(&who, SHORT, AN_HOUR), false),
                (1, Kind::Lock) => (self.etcdctl_lock(&who, SHORT, AN_HOUR), true),
                _ => (self.go(&who, SHORT, AN_HOUR, AN_HOUR), true),
            };
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut mortal = Mortal(command.spawn().unwrap());
            let (waiting, begun) = (killed % 2 == 1, now());
            until("a mortal's turn", || {
                let ended = mortal.0.try_wait().unwrap();
                let wrong = self.referee.wrong();
                assert_eq!(ended, None, "{who} in {}: {wrong:?}", self.theirs);
                let waited = waiting && now().since(begun) > Duration::from_millis(300);
                waited || !wrong.is_empty() || self.referee.inside().as_deref() == Some(&who)
            });
            if !with_child {
                // tenure's guardian sees to the rest.
                mortal.0.kill().unwrap();
                mortal.0.wait().unwrap();
            }
            drop(mortal);
            killed += 1;
            // Meanwhile the others have the line to themselves.
            thread::sleep(Duration::from_secs(6));
        }
        killed
    }

    /// All at once, until the time is over.
    fn run(&self) {
        let observers = (self.kind == Kind::Election).then(|| Observers::of(self));
        let lanes = || {
            thread::scope(|scope| {
                scope.spawn(|| self.go_all_the_time());
                scope.spawn(|| self.in_a_loop(|| self.tenure("tenure", 30, HOLD)));
                scope.spawn(|| match self.kind {
                    Kind::Lock => self.in_a_loop(|| self.etcdctl_lock("etcdctl", 30, HOLD)),
                    Kind::Election => self.etcdctl_elect(),
                });
                scope.spawn(|| self.ours("here"));
                scope.spawn(|| self.ours("there"));
                scope.spawn(|| self.mortals()).join().unwrap()
            })
        };
        let killed = catch_unwind(AssertUnwindSafe(lanes));
        assert_eq!(
            self.referee.wrong(),
            Vec::<String>::new(),
            "{}",
            self.theirs
        );
        let killed = killed.unwrap();
        let turns = self.referee.turns();
        let (mortals, others): (BTreeMap<_, _>, BTreeMap<_, _>) = { turns }
            .into_iter()
            .partition(|(who, _)| who.starts_with("mortal"));
        // Each that was in did not come out: it was killed. A guardian needs a moment for it.
        let died = mortals.len() as u64;
        until("the killed are gone", || self.referee.died() == died);
        println!(
            "{}: turns {others:?}, {killed} killed, {died} of them as holders",
            self.theirs
        );
        for who in ["go", "tenure", "etcdctl", "here", "there"] {
            let turns = others.get(who).copied().unwrap_or(0);
            assert!(turns >= 2, "{who} had {turns} turns: {}", self.theirs);
        }
        assert!(
            killed > died && died > 0,
            "{killed} killed, {died} of them as holders"
        );
        if let Some(observers) = observers {
            observers.agree(self);
        }
        until("nothing left", || self.referee.line().is_empty());
    }
}

/// A program that is killed when this is dropped, with what runs under it, which etcdctl would leave
/// behind.
struct Mortal(Child);

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let group = format!("-{}", self.0.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = self.0.wait();
        }
    }
}

/// Whom an observer was told of: the key of the leader, or `None`.
type Told = Arc<Mutex<Vec<Option<String>>>>;

/// Those who only look on, from each side, and the history of the line itself.
struct Observers {
    told: [(&'static str, Told); 3],
    programs: Vec<Child>,
    runtime: tokio::runtime::Runtime,
    history: Arc<Mutex<Vec<serde_json::Value>>>,
}

impl Observers {
    fn of(part: &Part) -> Self {
        let told = ["tenure", "go", "etcdctl"].map(|who| (who, Told::default()));
        let history = Arc::<Mutex<Vec<_>>>::default();
        let mut watch = part.etcdctl();
        watch.args(["watch", "--prefix", "--rev", "1", "-w", "json"]);
        watch.arg(format!("{}/", part.theirs));
        let changes = history.clone();
        let watch = listen(watch, move |_, line| {
            let answer: serde_json::Value = serde_json::from_str(line).unwrap();
            let events = answer["Events"].as_array().cloned();
            changes.lock().unwrap().extend(events.unwrap_or_default());
        });
        let mut go = Command::new(go::peers());
        go.args(["observe", "-name", part.theirs, "-endpoint"]);
        go.arg(format!("127.0.0.1:{}", part.etcd.client_port()));
        let by_go = told[1].1.clone();
        let go = listen(go, move |_, line| {
            let key = line.split(' ').nth(1).unwrap();
            by_go.lock().unwrap().push(Some(key.to_owned()));
        });
        let mut etcdctl = part.etcdctl();
        etcdctl.args(["elect", "-l", part.theirs]);
        let by_etcdctl = told[2].1.clone();
        // A key, then its value.
        let etcdctl = listen(etcdctl, move |number, line| {
            if number % 2 == 0 {
                by_etcdctl.lock().unwrap().push(Some(line.to_owned()));
            }
        });
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let by_us = told[0].1.clone();
        runtime.block_on(async {
            let client = Client::new(Etcd3::new(part.etcd.url()).unwrap());
            let mut leaders = part.election(&client).observe();
            tokio::spawn(async move {
                while let Some(leader) = leaders.next().await {
                    let key = leader.unwrap().map(|it| it.key().to_string());
                    by_us.lock().unwrap().push(key);
                }
            });
        });
        Self {
            told,
            runtime,
            programs: vec![watch, go, etcdctl],
            history,
        }
    }

    /// All were told of leaders only, in their order, and of the last one.
    fn agree(mut self, part: &Part) {
        self.runtime.block_on(async {
            let client = Client::new(Etcd3::new(part.etcd.url()).unwrap());
            let leadership = part.election(&client).campaign("the last").await.unwrap();
            let last = Some(leadership.key().to_string());
            let told_by_all = |last| {
                let is_last = |told: &Told| told.lock().unwrap().last() == Some(last);
                self.told.iter().all(|(_, told)| is_last(told))
            };
            until("the same leader for all", || told_by_all(&last));
            leadership.resign().await.unwrap();
            // The others never say that nobody leads.
            until("nobody leads", || {
                self.told[0].1.lock().unwrap().last() == Some(&None)
            });
            client.shutdown(LONG).await;
        });
        let leaders = self.leaders();
        assert!(leaders.len() > 5, "{leaders:?}");
        for (who, told) in &self.told {
            let told: Vec<_> = told.lock().unwrap().iter().flatten().cloned().collect();
            let mut rest = leaders.iter();
            let mut before = None;
            for key in &told {
                let again = before.replace(key) == Some(key);
                let in_order = again || rest.any(|it| it == key);
                assert!(in_order, "{who} was told of {key}: {told:?} of {leaders:?}");
            }
        }
        for program in &mut self.programs {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

impl Observers {
    /// Who led, one after the other, as the history of the line tells.
    fn leaders(&self) -> Vec<String> {
        let changes = self.history.lock().unwrap();
        let (mut live, mut leaders) = (BTreeMap::new(), Vec::new());
        for (at, change) in changes.iter().enumerate() {
            let revision = |it: &serde_json::Value, what: &str| it["kv"][what].as_u64();
            let key = referee::decode(change["kv"]["key"].as_str().unwrap());
            match revision(change, "create_revision") {
                Some(created) if change["type"] != 1 && created > 0 => {
                    live.insert(created, key);
                }
                _ => live.retain(|_, it| *it != key),
            }
            let next = changes
                .get(at + 1)
                .and_then(|it| revision(it, "mod_revision"));
            if next != revision(change, "mod_revision")
                && let Some(leader) = live.values().next()
                && leaders.last() != Some(leader)
            {
                leaders.push(leader.clone());
            }
        }
        leaders
    }
}

/// Starts a program, and hands on each line that it says, with its number.
fn listen(mut command: Command, mut hear: impl FnMut(usize, &str) + Send + 'static) -> Child {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || {
        for (number, line) in said.lines().map_while(Result::ok).enumerate() {
            hear(number, &line);
        }
    });
    child
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    let _ = Command::new("kill").args([signal, &pid]).status();
}

#[test]
fn for_a_minute_all_stand_in_one_line_and_never_two_hold() {
    let secs = std::env::var("TENURE_PEERS_SECS").ok();
    let secs = secs.and_then(|it| it.parse().ok()).unwrap_or(60);
    let etcd = Arc::new(Etcd::start());
    go::peers();
    let end = now() + Duration::from_secs(secs);
    let part = |kind, theirs, ours| Part::new(kind, theirs, ours, &etcd, end);
    let parts = [
        part(Kind::Lock, "/_locks/jobs", Some("jobs")),
        part(Kind::Lock, "my/app/lock", None),
        part(Kind::Election, "/_elections/chief", Some("chief")),
        part(Kind::Election, "/my-election/", None),
    ];
    thread::scope(|scope| {
        let runs: Vec<_> = parts.iter().map(|it| scope.spawn(|| it.run())).collect();
        let results: Vec<_> = runs
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        assert!(results.iter().all(Result::is_ok), "see above");
    });
    // No ticket, no mark, nobody who is who: and no session of ours.
    until("an empty store", || referee::keys(&etcd, "").is_empty());
    let leases = referee::ask(&etcd, "/v3/lease/leases", &serde_json::json!({}));
    for lease in leases["leases"].as_array().cloned().unwrap_or_default() {
        // Those of etcdctl's sessions end by themselves: it does not revoke them.
        let question = serde_json::json!({ "ID": lease["ID"], "keys": true });
        let answer = referee::ask(&etcd, "/v3/lease/timetolive", &question);
        assert!(answer["keys"].is_null(), "{answer}");
    }
}

/// `etcdctl lock` or `elect` that has what it wants, and its key.
fn etcdctl(etcd: &Etcd, verb: &[&str]) -> (Child, std::sync::mpsc::Receiver<String>) {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3");
    command.args(["--endpoints", &etcd.url()]).args(verb);
    let (said, heard) = std::sync::mpsc::channel();
    let child = listen(command, move |number, line| {
        if number == 0 {
            let _ = said.send(line.to_owned());
        }
    });
    (child, heard)
}

fn finish(mut child: Child) {
    signal(&child, "-INT");
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lines_of_others_are_reached_under_their_very_names() {
    let etcd = Etcd::start();
    let client = Client::new(Etcd3::new(etcd.url()).unwrap());
    for name in [
        "my/app/lock",
        "/my-lock/",
        "lock",
        "/a//b",
        "/a/../b",
        "-/ü x",
    ] {
        let lock = client.raw_lock(name);
        // Ours is alone there: a line of a similar name is another.
        let similar = client.raw_lock(format!("/{name}/"));
        let elsewhere = similar.acquire().await.unwrap();
        let (child, heard) = etcdctl(&etcd, &["lock", "--", name]);
        let theirs = heard.recv_timeout(LONG).unwrap();
        assert!(lock.try_acquire().await.unwrap().is_none(), "{name}");
        assert_eq!(lock.owner().await.unwrap().unwrap().key().as_str(), theirs);
        let waiter = tokio::spawn(lock.acquire().into_future());
        until("ours waits", || {
            referee::keys(&etcd, &format!("{name}/")).len() == 2
        });
        assert!(!waiter.is_finished(), "{name}");
        finish(child);
        let guard = tokio::time::timeout(LONG, waiter).await.unwrap();
        let guard = guard.unwrap().unwrap();
        let line = referee::keys(&etcd, &format!("{name}/"));
        assert_eq!(line, [(guard.key().to_string(), guard.token())]);
        // A request reaches who holds it, and stands in nobody's line.
        assert_eq!(
            lock.request_release("please").await.unwrap(),
            Some(guard.token())
        );
        assert_eq!(guard.revocation().await.unwrap().reason(), "please");
        let (child, heard) = etcdctl(&etcd, &["lock", "--", name]);
        until("theirs waits", || {
            referee::keys(&etcd, &format!("{name}/")).len() == 2
        });
        assert!(heard.try_recv().is_err(), "{name}");
        guard.release().await.unwrap();
        let theirs = heard.recv_timeout(LONG).unwrap();
        assert!(theirs.starts_with(&format!("{name}/")), "{theirs}");
        finish(child);
        elsewhere.release().await.unwrap();

        let election = client.raw_election(name);
        let (child, heard) = etcdctl(&etcd, &["elect", "--", name, "they"]);
        let theirs = heard.recv_timeout(LONG).unwrap();
        let leader = election.leader().await.unwrap().unwrap();
        assert_eq!(
            (leader.key().as_str(), &leader.proposal()[..]),
            (&*theirs, &b"they"[..])
        );
        finish(child);
        let leadership = election.campaign("we").await.unwrap();
        leadership.proclaim("we still").await.unwrap();
        let (mut observer, heard) = etcdctl(&etcd, &["elect", "-l", "--", name]);
        assert_eq!(heard.recv_timeout(LONG).unwrap(), leadership.key().as_str());
        observer.kill().unwrap();
        observer.wait().unwrap();
        leadership.resign().await.unwrap();
    }
    client.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_breaks_the_rules_is_refused_where_there_is_no_such_key() {
    let etcd = Etcd::start();
    let hosts = etcd.url().replace("http", "etcd");
    for url in [&format!("{hosts}/team"), "embedded:"] {
        let client = Client::connect(url).await.unwrap();
        for name in ["my/app/lock", "/my-lock/", "/a//b"] {
            let error = client.raw_lock(name).acquire().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{url} {name}");
            let error = client.raw_election(name).campaign("x").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{url} {name}");
        }
    }
    let client = Client::connect(&hosts).await.unwrap();
    for name in ["", "/", "a\nb"] {
        let error = client.raw_lock(name).acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey, "{name:?}");
    }
    // What is asked for by a key of ours shows nothing of what breaks the rules.
    let theirs = client.raw_lock("/a//b").acquire().await.unwrap();
    let ours = client.raw_lock("/a/b").acquire().await.unwrap();
    let tree = Get::tree(Key::new("/a").unwrap());
    let seen = client.store().get(tree).await.unwrap().nodes;
    let files = seen.iter().filter(|it| !it.is_dir).map(|it| &it.key);
    assert_eq!(files.collect::<Vec<_>>(), [ours.key()]);
    theirs.release().await.unwrap();
    ours.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_ticket_keeps_etcdctl_waiting_and_not_us() {
    let etcd = Etcd::start();
    let client = Client::new(Etcd3::new(etcd.url()).unwrap());
    // A stranger, and the line of a lock whose name goes on.
    let strange = Key::new("/_locks/a/readme").unwrap();
    let store = client.store();
    store
        .set(&strange, "x".into(), Expiry::Never)
        .await
        .unwrap();
    let deeper = client.raw_lock("/_locks/a/b").acquire().await.unwrap();
    let guard = client.lock("a").try_acquire().await.unwrap();
    guard.expect("nobody is before it").release().await.unwrap();
    let (child, heard) = etcdctl(&etcd, &["lock", "/_locks/a"]);
    until("theirs waits", || {
        referee::keys(&etcd, "/_locks/a/").len() == 3
    });
    deeper.release().await.unwrap();
    assert!(heard.try_recv().is_err(), "it counts the stranger");
    // It stands in line nevertheless, before whoever comes now.
    assert!(client.lock("a").try_acquire().await.unwrap().is_none());
    store.remove(&strange).await.unwrap();
    heard.recv_timeout(LONG).unwrap();
    finish(child);
    // What we say about a line, and about ourselves, is never in it.
    let guard = client.lock("a").acquire().await.unwrap();
    client.lock("a").request_release("please").await.unwrap();
    assert_eq!(referee::keys(&etcd, "/_locks/").len(), 1);
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_on_a_negative_lease_stands_in_line() {
    let etcd = Etcd::start();
    let client = Client::new(Etcd3::new(etcd.url()).unwrap());
    // Go writes its key with a sign: `%x` of -255.
    let lease = serde_json::json!({ "ID": "-255", "TTL": "600" });
    referee::ask(&etcd, "/v3/lease/grant", &lease);
    let key = referee::encode(b"/_locks/a/-ff");
    let put = serde_json::json!({ "key": key, "lease": "-255" });
    referee::ask(&etcd, "/v3/kv/put", &put);
    let lock = client.lock("a");
    assert!(lock.try_acquire().await.unwrap().is_none());
    let owner = lock.owner().await.unwrap().unwrap();
    assert_eq!(
        (owner.key().as_str(), owner.session()),
        ("/_locks/a/-ff", None)
    );
    let waiter = tokio::spawn(lock.acquire().into_future());
    until("ours waits", || {
        referee::keys(&etcd, "/_locks/a/").len() == 2
    });
    let revoke = serde_json::json!({ "ID": "-255" });
    referee::ask(&etcd, "/v3/lease/revoke", &revoke);
    let guard = tokio::time::timeout(LONG, waiter).await.unwrap();
    guard.unwrap().unwrap().release().await.unwrap();
}
