//! Several locks at once beside others who take the same ones: one inside the other in the order of
//! keys, by `lock_all`, by trying, and by hand. Nobody waits for ever, because nobody waits in one line
//! while his place in a later one keeps others out: an auditor who follows all lines sees to that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tenure::store::{
    Append, Change, Event, Expiry, Grant, Layout, Naming, Node, Update, Updates, Watch, Withdraw,
};
use tenure::{Client, Key, LeaseId, LockGuard, Position, Store, StoreExt, Tag, Ttl};
use tokio::task::{JoinHandle, JoinSet};

use super::{World, dir, nobody_stands_in, soon};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const ROUNDS: usize = 12;
/// Written when all is over, so that the auditor knows.
const END: &str = "/_locks/end";

/// Follows all lines, and writes down who stands where nobody may: *of the tickets of one client at
/// most one is not the first in its line, and that one has the greatest key.*
struct Auditor {
    layout: Layout,
    /// In each line the tickets in their order, and whose they are.
    lines: BTreeMap<Key, BTreeMap<Position, u64>>,
    tickets: usize,
    waited: usize,
    breaches: Vec<String>,
}

impl Auditor {
    /// Begins to follow.
    async fn start(store: Arc<dyn Store>) -> JoinHandle<Self> {
        let auditor = Self {
            layout: store.about().layout,
            lines: BTreeMap::new(),
            tickets: 0,
            waited: 0,
            breaches: Vec::new(),
        };
        let mut updates = store.watch(Watch::tree(Key::new("/_locks").unwrap()));
        let opened = updates.next().await.unwrap().unwrap();
        assert!(matches!(opened, Update::Open(_)));
        tokio::spawn(auditor.follow(updates))
    }

    async fn follow(mut self, mut updates: Updates) -> Self {
        let mut last: Option<Event> = None;
        loop {
            let update = updates.next().await.unwrap().unwrap();
            let Update::Event(event) = update else {
                continue;
            };
            // What happens in one step is looked at when it is over.
            let over = last.is_some_and(|it| !it.more && it.index != event.index);
            if over {
                self.audit();
            }
            if event.key.as_str() == END {
                return self;
            }
            self.take_in(&event);
            last = Some(event);
        }
    }

    fn take_in(&mut self, event: &Event) {
        let dir = event.key.parent().unwrap();
        let line = self.lines.entry(dir.clone()).or_default();
        match &event.change {
            Change::Put(node) => {
                if let Some(ticket) = self.layout.ticket(&dir, node) {
                    let session = ticket.tag.unwrap().session();
                    self.tickets += 1;
                    self.waited += usize::from(!line.is_empty());
                    line.insert(ticket.position, session);
                }
            }
            _ => line.retain(|position, _| position.key != event.key),
        }
    }

    fn audit(&mut self) {
        let mut clients: BTreeMap<u64, Vec<(&Key, bool)>> = BTreeMap::new();
        for (dir, line) in &self.lines {
            for (place, session) in line.values().enumerate() {
                let tickets = clients.entry(*session).or_default();
                tickets.push((dir, place == 0));
            }
        }
        for (session, tickets) in clients {
            let waits = tickets.iter().position(|(_, first)| !first);
            if waits.is_some_and(|at| at + 1 < tickets.len()) {
                self.breaches.push(format!("{session:x}: {tickets:?}"));
            }
        }
    }
}

/// Who has which of them, by a count that must never be two.
#[derive(Clone, Default)]
struct Inside(Arc<[AtomicUsize; 6]>);

impl Inside {
    async fn work(&self, names: &[&str]) {
        let places = |name: &&str| usize::from(name.as_bytes()[0] - b'a');
        for place in names.iter().map(places) {
            assert_eq!(self.0[place].fetch_add(1, Ordering::SeqCst), 0, "two hold");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        for place in names.iter().map(places) {
            self.0[place].fetch_sub(1, Ordering::SeqCst);
        }
    }
}

async fn at_once(client: Client, names: [&'static str; 3], inside: Inside) {
    let locks = client.lock_all(names);
    for _ in 0..ROUNDS {
        let guard = soon("all", locks.acquire()).await.unwrap();
        inside.work(&names).await;
        guard.release().await.unwrap();
    }
}

async fn by_trying(client: Client, names: [&'static str; 3], inside: Inside) {
    let locks = client.lock_all(names);
    for round in 0..ROUNDS {
        let guard = match locks.try_acquire().await.unwrap() {
            Some(guard) => guard,
            None => soon("all", locks.acquire()).await.unwrap(),
        };
        inside.work(&names).await;
        // Sometimes it is left to the background.
        if round % 3 == 0 {
            drop(guard);
            client.idle().await;
        } else {
            guard.release().await.unwrap();
        }
    }
}

/// As `lock_all` does where it cannot do better: one inside the other.
async fn one_by_one(client: Client, names: [&'static str; 3], inside: Inside) {
    for _ in 0..ROUNDS {
        let mut held: Vec<LockGuard> = Vec::new();
        for name in names {
            let guard = soon(name, client.lock(name).acquire()).await;
            held.push(guard.unwrap());
        }
        inside.work(&names).await;
        while let Some(guard) = held.pop() {
            guard.release().await.unwrap();
        }
    }
}

/// A user of the same store who knows nothing of clients: appends, looks until it is the first, and
/// deletes.
struct Hand {
    store: Arc<dyn Store>,
    lease: LeaseId,
    nonce: u64,
}

impl Hand {
    async fn new(store: Arc<dyn Store>, number: u64) -> Self {
        let lease = LeaseId::new(number).unwrap();
        let ttl = Ttl::new(Duration::from_secs(600)).unwrap();
        store.grant(Grant::new(lease, ttl)).await.unwrap();
        Self {
            store,
            lease,
            nonce: 0,
        }
    }

    async fn append(&mut self, name: &str) -> (Tag, Node) {
        self.nonce += 1;
        let tag = Tag::new(self.lease, self.nonce);
        let append = Append::ticket(dir(name), tag, Expiry::With(self.lease));
        (tag, self.store.append(append).await.unwrap().node)
    }

    async fn is_first(&self, name: &str, node: &Node) -> bool {
        let (dir, layout) = (dir(name), self.store.about().layout);
        let line = self.store.children(&dir).await.unwrap();
        let places = line.iter().filter_map(|it| layout.ticket(&dir, it));
        let first = places.map(|it| it.position).min();
        first.is_some_and(|it| it.key == node.key)
    }

    async fn withdraw(&self, name: &str, tag: Tag, node: Node) {
        let withdraw = Withdraw::new(dir(name), tag, Naming::Ticket).node(node);
        self.store.withdraw(withdraw).await.unwrap();
    }
}

async fn by_hand(mut hand: Hand, names: [&'static str; 3], inside: Inside) {
    for _ in 0..ROUNDS {
        let mut held = Vec::new();
        for name in names {
            let (tag, node) = hand.append(name).await;
            soon(name, async {
                while !hand.is_first(name, &node).await {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
            held.push((name, tag, node));
        }
        inside.work(&names).await;
        for (name, tag, node) in held.into_iter().rev() {
            hand.withdraw(name, tag, node).await;
        }
    }
    hand.store.revoke(hand.lease).await.unwrap();
}

async fn end(store: &dyn Store, auditor: JoinHandle<Auditor>) -> Auditor {
    let end = Key::new(END).unwrap();
    store.set(&end, "x".into(), Expiry::Never).await.unwrap();
    let auditor = soon("the auditor", auditor).await.unwrap();
    store.remove(&end).await.unwrap();
    auditor
}

pub(crate) async fn whoever_takes_several_and_however_nobody_waits_for_ever(world: World) {
    let store = (world.open)();
    let auditor = Auditor::start(store.clone()).await;
    let (inside, mut tasks) = (Inside::default(), JoinSet::new());
    // Nothing is lost on a machine that stands still for a while.
    let ttl = Ttl::new(super::LONG).unwrap();
    let client = |_| {
        let store = (world.open)();
        let client = Client::builder(store).runtime(world.runtime.clone());
        client.ttl(ttl).build()
    };
    let clients: Vec<_> = (0..7).map(client).collect();
    let mut others = clients.iter().cloned();
    let mut client = || others.next().unwrap();
    for names in [["a", "b", "c"], ["f", "c", "a"], ["e", "b", "d"]] {
        tasks.spawn(at_once(client(), names, inside.clone()));
    }
    for names in [["a", "b", "d"], ["b", "c", "f"], ["a", "e", "f"]] {
        tasks.spawn(one_by_one(client(), names, inside.clone()));
    }
    tasks.spawn(by_trying(client(), ["f", "a", "b"], inside.clone()));
    let hand = Hand::new(store.clone(), 0x4a4d).await;
    tasks.spawn(by_hand(hand, ["b", "c", "e"], inside.clone()));
    while let Some(done) = soon("all of them", tasks.join_next()).await {
        done.unwrap();
    }
    for client in &clients {
        soon("the janitor", client.idle()).await;
    }
    nobody_stands_in(&clients[0], &NAMES, "afterwards").await;
    let audited = end(&*store, auditor).await;
    println!(
        "{} tickets, {} behind another",
        audited.tickets, audited.waited
    );
    assert!(audited.tickets >= 8 * 3 * ROUNDS, "{}", audited.tickets);
    assert!(audited.waited > ROUNDS, "{}", audited.waited);
    assert_eq!(audited.breaches, [""; 0]);
}

/// So the test above can fail: these two would wait for each other for ever.
pub(crate) async fn the_auditor_sees_who_waits_in_one_line_and_stands_in_a_later_one(world: World) {
    let store = (world.open)();
    let auditor = Auditor::start(store.clone()).await;
    let mut one = Hand::new(store.clone(), 1).await;
    let mut other = Hand::new(store.clone(), 2).await;
    let holds = one.append("a").await.1;
    let waits = other.append("a").await.1;
    let in_the_way = other.append("b").await.1;
    let stuck = one.append("b").await.1;
    assert!(one.is_first("a", &holds).await && !one.is_first("b", &stuck).await);
    assert!(!other.is_first("a", &waits).await && other.is_first("b", &in_the_way).await);
    let audited = end(&*store, auditor).await;
    assert_eq!((audited.tickets, audited.waited), (4, 2));
    // The second of them, from its second ticket on.
    assert_eq!(audited.breaches.len(), 2, "{:?}", audited.breaches);
    assert!(audited.breaches.iter().all(|it| it.starts_with("2:")));
}
