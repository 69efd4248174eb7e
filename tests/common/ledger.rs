//! A referee of a queue: follows its tree in the store and checks, event by event, what no
//! consumer can be asked about.
//!
//! * Nobody takes a claim from a consumer whose node is there, unless it has expired: a list leaves
//!   out what has, and etcd takes it away up to half a second later.
//! * A job is claimed for the first time only while fewer older ones of its lane than there are
//!   slots have never been claimed.
//! * What is done is claimed no more.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use tenure::runtime::Runtime;
use tenure::store::{Change, Event, Node, Scope};
use tenure::{Follow, Key, Store, Watcher};

/// What the referee knows of a queue.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The jobs that are there, by lane name and index of creation.
    jobs: BTreeMap<String, u64>,
    /// Those that were never claimed.
    fresh: BTreeSet<(u64, String)>,
    /// The registers, as text.
    registers: BTreeMap<String, String>,
    /// The consumers that are there, with their slots.
    consumers: BTreeMap<String, u64>,
    pub(crate) done: BTreeSet<String>,
    pub(crate) first_claims: usize,
    pub(crate) claims: usize,
    pub(crate) takeovers: usize,
    pub(crate) snapshots: usize,
    /// The most slots at any time.
    pub(crate) slots: u64,
    /// The most older jobs that were passed over.
    pub(crate) passed_over: usize,
    pub(crate) violations: Vec<String>,
    /// Jobs that were taken from consumers whose nodes were still there, by those.
    early: BTreeMap<String, Vec<String>>,
}

impl Ledger {
    /// Follows the queue at `root` until `stop` is done; everything that happened before is told
    /// by then if the store is quiet.
    pub(crate) async fn follow(
        store: Arc<dyn Store>,
        root: Key,
        stop: impl Future<Output = ()>,
    ) -> Self {
        let mut ledger = Self::default();
        let mut watcher = Watcher::new(store, root.clone(), Scope::Tree, &Runtime::default());
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                biased;
                item = watcher.next() => match item {
                    Some(Ok(Follow::Snapshot(view))) => ledger.snapshot(&root, &view.nodes),
                    Some(Ok(Follow::Event(event))) => ledger.event(&root, &event),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => panic!("the referee cannot see: {error}"),
                    None => panic!("the referee's watch ended"),
                },
                () = &mut stop => return ledger,
            }
        }
    }

    fn snapshot(&mut self, root: &Key, nodes: &[Node]) {
        self.snapshots += 1;
        self.jobs.clear();
        self.fresh.clear();
        self.registers.clear();
        self.consumers.clear();
        // What became of the others was not seen.
        let is_there = |name: &String| nodes.iter().any(|node| node.key.name() == name);
        self.early.retain(|name, _| is_there(name));
        // Registers first: a job that has one was claimed, or is about to be.
        for part in ["consumers", "state", "jobs"] {
            for node in nodes.iter().filter(|node| !node.is_dir) {
                if let Some((of, name)) = split(root, &node.key)
                    && of == part
                {
                    self.put(part, name, node, false);
                }
            }
        }
    }

    fn event(&mut self, root: &Key, event: &Event) {
        match &event.change {
            Change::Put(node) if !node.is_dir => {
                if let Some((part, name)) = split(root, &node.key) {
                    self.put(part, name, node, true);
                }
            }
            Change::Put(_) => {}
            Change::Delete { expired } => {
                if let Some((part, name)) = split(root, &event.key) {
                    if part == "consumers" && *expired {
                        self.early.remove(name);
                    }
                    self.delete(part, name);
                }
            }
            _ => {}
        }
    }

    fn put(&mut self, part: &str, name: &str, node: &Node, live: bool) {
        let value = String::from_utf8_lossy(&node.value).into_owned();
        match part {
            "jobs" => {
                let created = node.created.get();
                self.jobs.insert(name.to_owned(), created);
                let claimed = self
                    .registers
                    .get(name)
                    .is_some_and(|it| !it.starts_with("ready 0"));
                if !claimed && !self.done.contains(name) {
                    self.fresh.insert((created, name.to_owned()));
                }
            }
            "consumers" => {
                let json: serde_json::Value = serde_json::from_str(&value).unwrap();
                let slots = json
                    .get("slots")
                    .and_then(serde_json::Value::as_u64)
                    .unwrap();
                self.consumers.insert(name.to_owned(), slots);
                self.slots = self.slots.max(self.consumers.values().sum());
            }
            "state" => {
                if live {
                    self.moved(name, &value);
                }
                if value.starts_with("done") {
                    self.done.insert(name.to_owned());
                }
                self.registers.insert(name.to_owned(), value);
            }
            other => panic!("{other}/{name} has no place in a queue"),
        }
    }

    fn delete(&mut self, part: &str, name: &str) {
        match part {
            "jobs" => {
                if let Some(created) = self.jobs.remove(name) {
                    self.fresh.remove(&(created, name.to_owned()));
                }
            }
            "consumers" => drop(self.consumers.remove(name)),
            "state" => drop(self.registers.remove(name)),
            other => panic!("{other}/{name} has no place in a queue"),
        }
    }

    /// The register of a job has moved to `to`.
    fn moved(&mut self, job: &str, to: &str) {
        let Some(claimant) = claimant(to) else {
            return;
        };
        self.claims += 1;
        if self.early.contains_key(&claimant) {
            self.violations.push(format!(
                "{claimant}, from which jobs were taken, claims {job}"
            ));
        }
        if self.done.contains(job) {
            self.violations
                .push(format!("{job} was done, and is now {to}"));
        }
        match self.registers.get(job).and_then(|from| Self::holder(from)) {
            Some(before) if before == claimant => {
                self.violations
                    .push(format!("{job}: {before} claims what it holds"));
            }
            Some(before) => {
                self.takeovers += 1;
                if self.consumers.contains_key(&before) {
                    self.early.entry(before).or_default().push(job.to_owned());
                }
            }
            None => {}
        }
        let Some(created) = self.jobs.get(job).copied() else {
            return;
        };
        if self.fresh.remove(&(created, job.to_owned())) {
            self.first_claims += 1;
            let older = self.fresh.range(..(created, String::new())).count();
            self.passed_over = self.passed_over.max(older);
            if older as u64 >= self.slots {
                let slots = self.slots;
                self.violations.push(format!(
                    "{job} came before {older} older ones, with {slots} slots"
                ));
            }
        }
    }

    fn holder(register: &str) -> Option<String> {
        claimant(register)
    }

    /// Fails if anything was against the rules.
    pub(crate) fn check(&self) {
        let early = &self.early;
        assert!(
            early.is_empty(),
            "taken from consumers that live: {early:?}"
        );
        let first: Vec<_> = self.violations.iter().take(10).collect();
        assert!(
            first.is_empty(),
            "{} violations: {first:#?}",
            self.violations.len()
        );
    }
}

/// The consumer that a register names, if it is a claim.
fn claimant(register: &str) -> Option<String> {
    let mut words = register.split(' ');
    (words.next() == Some("claimed")).then(|| words.nth(1).unwrap_or_default().to_owned())
}

/// The part of the queue that a key lies in, and its name there.
fn split<'a>(root: &Key, key: &'a Key) -> Option<(&'a str, &'a str)> {
    key.below(root)?.split_once('/')
}
