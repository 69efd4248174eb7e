//! The embedded store and an etcd of its own, in step: what the one does the other does too, and
//! both count their indexes alike.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use futures_util::StreamExt;
use tenure::embedded::{Builder, Embedded};
use tenure::etcd2::Etcd2;
use tenure::store::{Delete, Event, Expiry, Freshness, Get, Update, Watch};
use tenure::{Index, Key, Store, StoreExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::common::etcd::Etcd;
use crate::script::{At, Follow, Script, Step, Text, When};
use crate::told::{Memory, Request, Told, is_from_above, show_event, whole_tree};

/// How long a watch may keep silent about something that has happened.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) embedded: Embedded,
    pub(crate) etcd: Etcd2,
    runs: u64,
    /// How often each kind of step came to which end.
    pub(crate) ends: Ends,
    _server: Etcd,
}

/// How often something came to an end, by its name.
pub(crate) type Ends = BTreeMap<String, usize>;

/// How the two differ.
#[derive(Debug)]
pub(crate) struct Difference {
    /// At which step; `None` after the last.
    pub(crate) step: Option<usize>,
    /// What was compared.
    pub(crate) what: String,
    pub(crate) embedded: String,
    pub(crate) etcd: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            embedded,
            etcd,
            ..
        } = self;
        write!(f, "{what}\nembedded: {embedded}\netcd:     {etcd}")
    }
}

type Same<T = ()> = Result<T, Difference>;

impl Pair {
    pub(crate) fn start() -> Self {
        let server = Etcd::start();
        Self {
            embedded: Embedded::new(),
            etcd: Etcd2::new(server.url()).unwrap(),
            runs: 0,
            ends: Ends::new(),
            _server: server,
        }
    }

    /// Runs a script on both; says at how many steps, closing ones included, they were compared.
    pub(crate) async fn run(&mut self, script: &Script) -> Same<usize> {
        self.runs += 1;
        let start = self.align().await;
        let mut run = Run {
            pair: self,
            memory: Memory::new(self.runs, start),
            step: Some(0),
            steps: 0,
            watched: Vec::new(),
            ends: Ends::new(),
        };
        let outcome = run.all(script, start).await;
        let (steps, ends) = (run.steps, run.ends);
        let top = run.memory.key(At::Top);
        for (end, times) in ends {
            *self.ends.entry(end).or_default() += times;
        }
        if outcome.is_err() {
            for store in [&self.embedded as &dyn Store, &self.etcd] {
                drop(store.delete(Delete::tree(top.clone())).await);
            }
        }
        outcome.map(|()| steps)
    }

    /// Begins with a new embedded store, so that what earlier runs have spoilt in it is gone.
    pub(crate) fn renew(&mut self) {
        self.embedded = Embedded::new();
    }

    /// Writes to the store whose index is behind until both are at the same. etcd writes a little
    /// by itself, in its first seconds; a store that counts wrongly is behind or ahead, too.
    pub(crate) async fn align(&self) -> Index {
        let pad = Key::new("/_pad").unwrap();
        loop {
            let (embedded, etcd) = (index(&self.embedded).await, index(&self.etcd).await);
            let behind: &dyn Store = match embedded.cmp(&etcd) {
                std::cmp::Ordering::Less => &self.embedded,
                std::cmp::Ordering::Equal => return etcd,
                std::cmp::Ordering::Greater => &self.etcd,
            };
            behind.set(&pad, "".into(), Expiry::Never).await.unwrap();
        }
    }
}

async fn index(store: &dyn Store) -> Index {
    let get = Get::node(Key::new("/_pad").unwrap()).fresh(Freshness::Linearizable);
    store.get(get).await.unwrap().index
}

impl Pair {
    /// Writes more than both remember, and watches from each index around the end of their
    /// memory.
    pub(crate) async fn compare_memories(&mut self) -> Same {
        self.runs += 1;
        let start = self.align().await;
        let mut run = Run {
            pair: self,
            memory: Memory::new(self.runs, start),
            step: None,
            steps: 0,
            watched: Vec::new(),
            ends: Ends::new(),
        };
        let mut last = start;
        for _ in 0..Builder::HISTORY_LIMIT + 5 {
            let put = Step::Put {
                at: At::Key("a"),
                text: Text::Empty,
                when: When::Any,
                hours: None,
            };
            last = run.step(&put).await?.unwrap();
        }
        for back in (0..2).chain(997..1_004) {
            let from = Index::new(last.get() - back).unwrap();
            let watch = Watch::tree(run.memory.key(At::Top)).from(from);
            let mut watched = run.watch(watch).await?;
            // Of what opened, all until now is told.
            watched.compare(last).await?;
        }
        Ok(())
    }
}

struct Run<'a> {
    pair: &'a Pair,
    memory: Memory,
    step: Option<usize>,
    steps: usize,
    watched: Vec<Watched>,
    ends: Ends,
}

/// A watch on both stores.
struct Watched {
    watch: Watch,
    embedded: Events,
    etcd: Events,
    /// The deletions of directories above the key at a time when nothing was there.
    ghosts: BTreeSet<Index>,
}

impl Run<'_> {
    async fn all(&mut self, script: &Script, start: Index) -> Same {
        for follow in &script.follow {
            let watch = self.memory.watch(follow);
            let watched = self.watch(watch).await?;
            self.watched.push(watched);
        }
        for (number, step) in script.steps.iter().enumerate() {
            self.step = Some(number);
            self.step(step).await?;
        }
        self.step = None;
        self.compare_trees().await?;
        // Should the top be a file: nothing could be written below it.
        self.delete(At::Top, false).await?;
        for (number, follow) in script.follow.iter().enumerate() {
            let last = self.close(follow).await?;
            let from_start = self.watched[number].watch.clone().from(start.next());
            let mut late = self.watch(from_start).await?;
            late.ghosts = self.watched[number].ghosts.clone();
            self.watched[number].compare(last).await?;
            late.compare(last).await?;
        }
        let top = Step::Delete {
            at: At::Top,
            when: When::Any,
            recursive: true,
        };
        self.step(&top).await.map(drop)
    }

    async fn step(&mut self, step: &Step) -> Same<Option<Index>> {
        let Some(request) = self.memory.request(step) else {
            return Ok(None);
        };
        self.steps += 1;
        let absent = match &request {
            Request::Delete(delete) if delete.recursive => self.absent().await,
            _ => Vec::new(),
        };
        let embedded = Told::by(&self.pair.embedded, request.clone()).await;
        let etcd = Told::by(&self.pair.etcd, request).await;
        if !embedded.agrees(&etcd) {
            return Err(self.differ(format!("{step:?}"), embedded, etcd));
        }
        *self.ends.entry(step.end(&etcd)).or_default() += 1;
        self.memory.learn(step, &etcd);
        let Told::Done { index, .. } = etcd else {
            return Ok(None);
        };
        for number in absent {
            self.watched[number].ghosts.insert(index);
        }
        Ok(Some(index))
    }

    /// The watches at whose key there is nothing now.
    async fn absent(&self) -> Vec<usize> {
        let mut absent = Vec::new();
        for (number, watched) in self.watched.iter().enumerate() {
            let found = self.pair.embedded.node(&watched.watch.key).await;
            if found.unwrap().is_none() {
                absent.push(number);
            }
        }
        absent
    }

    async fn compare_trees(&self) -> Same {
        let top = self.memory.key(At::Top);
        let embedded = whole_tree(&self.pair.embedded, &top).await.unwrap();
        let etcd = whole_tree(&self.pair.etcd, &top).await.unwrap();
        if embedded != etcd {
            let shown = |tree| format!("\n{tree}");
            return Err(self.differ("the whole tree", shown(embedded), shown(etcd)));
        }
        Ok(())
    }

    /// Makes room, writes and deletes at the key of a watch, so that whatever it follows there is
    /// a last event to wait for: the one with the index that this gives back.
    async fn close(&mut self, follow: &Follow) -> Same<Index> {
        let at = match follow.at {
            At::Key(path) => {
                let first = path.split('/').next().unwrap_or(path);
                self.delete(At::Key(first), true).await?;
                follow.at
            }
            _ => At::Key("a"),
        };
        self.delete(at, true).await?;
        let put = Step::Put {
            at,
            text: Text::Short('x'),
            when: When::Any,
            hours: None,
        };
        self.step(&put).await?;
        let last = self.delete(at, false).await?;
        Ok(last.expect("something was deleted"))
    }

    async fn delete(&mut self, at: At, recursive: bool) -> Same<Option<Index>> {
        let delete = Step::Delete {
            at,
            when: When::Any,
            recursive,
        };
        self.step(&delete).await
    }

    async fn watch(&self, watch: Watch) -> Same<Watched> {
        let (embedded, embedded_at) = Events::open(&self.pair.embedded, watch.clone()).await;
        let (etcd, etcd_at) = Events::open(&self.pair.etcd, watch.clone()).await;
        if embedded_at != etcd_at {
            let open = |at| format!("opens at {at:?}");
            let what = format!("{watch:?}");
            return Err(self.differ(what, open(embedded_at), open(etcd_at)));
        }
        Ok(Watched {
            watch,
            embedded,
            etcd,
            ghosts: BTreeSet::new(),
        })
    }

    fn differ(
        &self,
        what: impl Into<String>,
        embedded: impl fmt::Display,
        etcd: impl fmt::Display,
    ) -> Difference {
        Difference {
            step: self.step,
            what: what.into(),
            embedded: embedded.to_string(),
            etcd: etcd.to_string(),
        }
    }
}

impl Watched {
    /// Both have told the same, up to `last`.
    async fn compare(&mut self, last: Index) -> Same {
        let embedded = self.embedded.until(last).await;
        let etcd = self.etcd.until(last).await;
        let (embedded, etcd) = (self.story(embedded), self.story(etcd));
        if embedded != etcd {
            return Err(Difference {
                step: None,
                what: format!("{:?}", self.watch),
                embedded: format!("tells\n{embedded}"),
                etcd: format!("tells\n{etcd}"),
            });
        }
        Ok(())
    }

    fn story(&self, events: Result<Vec<Event>, String>) -> String {
        let events = match events {
            Ok(events) => events,
            Err(error) => return error,
        };
        // That a directory went tells nothing to those who watch a key in it that is not there.
        // The trait leaves open whether they hear of it: the embedded store and etcd's history
        // tell them, a waiting poll of etcd does not.
        let events = events.iter().filter(|event| {
            !(self.ghosts.contains(&event.index) && is_from_above(event, &self.watch))
        });
        events
            .map(|event| format!("  {}\n", show_event(event)))
            .collect()
    }
}

/// The events of one watch, taken down as they come.
struct Events {
    told: mpsc::UnboundedReceiver<tenure::Result<Event>>,
    _reader: AbortOnDropHandle<()>,
}

impl Events {
    /// Also where the watch opened, or why it did not.
    async fn open(store: &dyn Store, watch: Watch) -> (Self, Result<Index, String>) {
        let mut updates = store.watch(watch);
        let opened = match tokio::time::timeout(PATIENCE, updates.next()).await {
            Ok(Some(Ok(Update::Open(index)))) => Ok(index),
            Ok(Some(Err(error))) => Err(format!("{:?}", error.kind())),
            other => Err(format!("{other:?}")),
        };
        let (tell, told) = mpsc::unbounded_channel();
        let reader = tokio::spawn(async move {
            while let Some(update) = updates.next().await {
                let told = match update {
                    Ok(Update::Event(event)) => tell.send(Ok(event)),
                    Err(error) => tell.send(Err(error)),
                    Ok(_) => Ok(()),
                };
                if told.is_err() {
                    return;
                }
            }
        });
        let events = Self {
            told,
            _reader: AbortOnDropHandle::new(reader),
        };
        (events, opened)
    }

    /// The events up to the one at `last`, which must come.
    async fn until(&mut self, last: Index) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        let reading = async {
            loop {
                match self.told.recv().await {
                    Some(Ok(event)) => events.push(event),
                    Some(Err(error)) => return Err(format!("it ends: {:?}", error.kind())),
                    None => return Err("it ends".to_owned()),
                }
                if events.last().is_some_and(|event| event.index >= last) {
                    return Ok(());
                }
            }
        };
        let ended = match tokio::time::timeout(PATIENCE, reading).await {
            Ok(ended) => ended,
            Err(_) => Err(format!("silence before {last}")),
        };
        let told: String = events
            .iter()
            .map(|it| format!("  {}\n", show_event(it)))
            .collect();
        ended
            .map(|()| events)
            .map_err(|why| format!("{told}  {why}\n"))
    }
}
