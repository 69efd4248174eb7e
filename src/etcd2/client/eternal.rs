//! Every change, for as long as somebody reads.
//!
//! ```text
//!            an event: Change::Event
//!           ┌────┐
//!           ▼    │     history lost
//!        Following ─────────────────▶ Resyncing
//!           ▲                             │ the tree was read at index i: Change::Resync,
//!           └─────────────────────────────┘ and on from i + 1
//! ```
//!
//! The snapshot is linearizable and so never older than what was told before it; the server tells
//! the index at which it is true, and what follows begins right behind that. So nothing is lost
//! except what the snapshot stands for, and nothing comes twice.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::{self, BoxStream, StreamExt};

use super::super::driver::Driver;
use super::super::watch::{Report, Target, follow};
use super::{Client, IntoKey, Node, Response};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};

impl Client {
    /// Follows all changes of a key, which need not be there yet.
    ///
    /// The stream survives broken connections, restarts of servers, proxies that cut what is idle,
    /// and a reader too slow for etcd's history of 1,000 events: then it hands out what is there
    /// now as [`Change::Resync`] and goes on behind it. It waits for servers for ever, unless
    /// [`patience`](EternalWatch::patience) says otherwise.
    ///
    /// Costs a connection, one request for each event and each
    /// [`Builder::poll_period`](super::super::Builder::poll_period), and one linearizable read for
    /// each resync.
    ///
    /// ```no_run
    /// # async fn example(client: tenure::etcd2::Client) -> tenure::Result<()> {
    /// use tenure::etcd2::client::Change;
    ///
    /// let mut changes = client.eternal_watch("/config").recursive().changes();
    /// while let Some(change) = changes.next().await {
    ///     match change? {
    ///         Change::Event(event) => println!("{} {}", event.action, event.node.key),
    ///         Change::Resync(now) => println!("start anew with {:?}", now.node),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn eternal_watch(&self, key: impl IntoKey) -> EternalWatch {
        EternalWatch {
            client: self.clone(),
            key: key.into_key(),
            index: None,
            recursive: false,
            patience: None,
        }
    }
}

/// The options of a stream of changes: see [`Client::eternal_watch`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent until its changes are read"]
pub struct EternalWatch {
    client: Client,
    key: Result<Key>,
    index: Option<Index>,
    recursive: bool,
    patience: Option<Duration>,
}

impl EternalWatch {
    /// Begins with the first change at or after this index; with a resync if that is no longer
    /// kept. Default: from now on, which is when the stream is first polled.
    pub fn index(mut self, index: Index) -> Self {
        self.index = Some(index);
        self
    }

    /// Follows everything below the key too, except what is hidden there (a name that begins with
    /// `_`).
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    /// How long to go on without reaching any server before the stream ends with the error.
    /// Default: for ever.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// The changes. A bad key is the first and last of them.
    pub fn changes(self) -> Changes {
        let driver = self.client.driver.clone();
        let machine = self.key.map(|key| {
            let target = Target {
                key,
                tree: self.recursive,
                from: self.index,
                patience: self.patience,
            };
            Machine {
                client: self.client,
                state: State::following(driver, &target),
                target,
            }
        });
        Changes(match machine {
            Ok(machine) => machine.run(),
            Err(error) => stream::iter([Err(error.during("watch"))]).boxed(),
        })
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// This.
    Event(Response),
    /// More than is known: everything told so far is void, and this is what is there.
    Resync(Snapshot),
}

/// What was there at one index.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The index at which it is true. What follows happened after it.
    pub index: Index,
    /// The key, with everything below it if the watch is recursive; `None` if there is nothing.
    pub node: Option<Node>,
}

/// The stream of changes. It ends only after an error, one that waiting does not mend: the user is
/// refused, another cluster answers, this is no etcd. Dropping it closes its connection.
pub struct Changes(BoxStream<'static, Result<Change>>);

impl Changes {
    /// The next change.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call goes on where this one was.
    pub async fn next(&mut self) -> Option<Result<Change>> {
        self.0.next().await
    }
}

impl Stream for Changes {
    type Item = Result<Change>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

struct Machine {
    client: Client,
    target: Target,
    state: State,
}

enum State {
    Following(BoxStream<'static, Result<Report>>),
    Resyncing,
}

impl State {
    fn following(driver: Arc<Driver>, target: &Target) -> Self {
        Self::Following(follow(driver, target.clone()))
    }
}

impl Machine {
    fn run(self) -> BoxStream<'static, Result<Change>> {
        stream::unfold(Some(self), |machine| async {
            let mut machine = machine?;
            loop {
                match machine.step().await {
                    Ok(Some(change)) => return Some((Ok(change), Some(machine))),
                    Ok(None) => {}
                    Err(error) => return Some((Err(error), None)),
                }
            }
        })
        .boxed()
    }

    async fn step(&mut self) -> Result<Option<Change>> {
        match &mut self.state {
            State::Following(reports) => match reports.next().await {
                Some(Ok(Report::Event(index, reply))) => {
                    Ok(Some(Change::Event(Response::event(index, *reply))))
                }
                Some(Ok(_)) => Ok(None),
                Some(Err(error)) if error.kind() == ErrorKind::HistoryLost => {
                    self.state = State::Resyncing;
                    Ok(None)
                }
                Some(Err(error)) => Err(error),
                // The machine ends in an error only.
                None => Err(Error::new(ErrorKind::Closed, "the watch has ended")),
            },
            State::Resyncing => {
                let snapshot = snapshot(&self.client, &self.target).await?;
                self.target.from = Some(snapshot.index.next());
                self.state = State::following(self.client.driver.clone(), &self.target);
                Ok(Some(Change::Resync(snapshot)))
            }
        }
    }
}

/// What is there now, asked for until somebody answers.
async fn snapshot(client: &Client, target: &Target) -> Result<Snapshot> {
    let clock = &client.driver.runtime.clock;
    let began = clock.now();
    let mut pauses = client.driver.transport.pauses();
    loop {
        let mut read = client.read(&target.key).quorum().sorted();
        if target.tree {
            read = read.recursive();
        }
        let error = match read.await {
            Ok(response) => {
                return Ok(Snapshot {
                    index: response.etcd_index,
                    node: Some(response.node),
                });
            }
            Err(error) => error,
        };
        let absent = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        if let Some(index) = error.index().filter(|_| absent) {
            return Ok(Snapshot { index, node: None });
        }
        let patient = target
            .patience
            .is_none_or(|patience| !clock.has_passed(began + patience));
        if !error.is_transient() || !patient {
            return Err(error);
        }
        tracing::debug!(target: "tenure::etcd2", key = %target.key, %error, "resync interrupted");
        let pause = pauses.next().unwrap_or(Duration::from_secs(1));
        clock.sleep(pause).await;
    }
}
