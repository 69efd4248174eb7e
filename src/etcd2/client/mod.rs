//! The complete keys client: what python-etcd's `Client` does, typed, and without its traps.
//!
//! | what | with |
//! |---|---|
//! | read | [`read`](Client::read), [`contains`](Client::contains) |
//! | write | [`write`](Client::write) and its shorthands [`set`](Client::set), [`create`](Client::create), [`replace`](Client::replace), [`append`](Client::append), [`make_dir`](Client::make_dir), [`refresh`](Client::refresh); [`update`](Client::update), [`test_and_set`](Client::test_and_set) |
//! | delete | [`delete`](Client::delete), [`pop`](Client::pop) |
//! | wait | [`watch`](Client::watch) for one change, [`eternal_watch`](Client::eternal_watch) for all |
//!
//! Each call is a small request with options as methods, sent when it is awaited.
//!
//! # What holds for every call
//! * **A bad key or a combination that etcd would ignore or turn into something else is refused
//!   before anything is sent**: `InvalidKey`, `InvalidOptions`.
//! * **A write is sent once**, and only sent again if it certainly was not. When no answer comes
//!   the error is [`Ambiguous`](crate::ErrorKind::Ambiguous): read back before trying again. That
//!   goes for a compare-and-swap too: its repetition would fail and not say whose write it met.
//! * **A time-to-live is never lost by accident**: see [`Lifetime`].
//! * **A key whose time has run out is not there**, even in the half second before etcd sweeps it:
//!   reads and listings leave it out. A previous node and an event show it as the server does.
//! * **Dropping** a request, or its future before it is polled, sends nothing. A write that is
//!   dropped later may have been done, or may still be.
//!
//! # Coming from python-etcd
//!
//! | python-etcd | here |
//! |---|---|
//! | `Client(host, port)` | [`Client::new`]`("http://host:port")`; the port defaults to 2379 (python-etcd: 4001, etcd's before 2.0) |
//! | `Client(host=((h1, p1), (h2, p2)), protocol='https')` | `Client::new("https://h1:p1,https://h2:p2")` |
//! | `srv_domain` | [`Builder::discover`](super::Builder::discover) (feature `srv`); a failing lookup is an error, never `localhost` |
//! | `version_prefix`, `read_timeout`, `allow_redirect`, `expected_cluster_id`, `per_host_pool_size` | [`version_prefix`](super::Builder::version_prefix), [`timeout`](super::Builder::timeout), [`allow_redirect`](super::Builder::allow_redirect), [`expected_cluster_id`](super::Builder::expected_cluster_id), [`max_idle_connections`](super::Builder::max_idle_connections) |
//! | `allow_reconnect=False` | [`allow_reconnect`](super::Builder::allow_reconnect), on by default |
//! | `use_proxies=False` | [`use_proxies`](super::Builder::use_proxies), on by default: only the given hosts are asked |
//! | `cert`, `ca_cert` | [`Builder::tls`](super::Builder::tls); without a CA the system's roots are trusted, not everybody |
//! | `username`, `password` | [`Builder::user`](super::Builder::user), or in the URL |
//! | `base_uri`, `host`, `port`, `protocol`, `key_endpoint`, … | the methods of the same names; [`timeout`](Client::timeout) for `read_timeout` |
//! | `machines`, `members`, `leader`, `stats`, `leader_stats`, `store_stats` | the methods of the same names |
//! | `version`, `cluster_version` | [`versions`](Client::versions) |
//! | `read(key, recursive, sorted, quorum, wait, waitIndex, timeout)`, `get` | [`read`](Client::read)`(key).recursive().sorted()…` |
//! | `key in client` | [`contains`](Client::contains) |
//! | `write(key, value, ttl, dir, append, prevValue, prevIndex, prevExist, refresh)` | [`write`](Client::write)`(key).value(value).ttl(ttl)…` |
//! | `set`, `test_and_set`, `update`, `refresh` | the methods of the same names; a time-to-live is kept unless [`permanent`](Write::permanent) is asked for |
//! | `write(key, dir=True)`, `write(dir, value, append=True)` | [`make_dir`](Client::make_dir), [`append`](Client::append) |
//! | `delete(key, recursive, dir, prevValue, prevIndex)`, `pop` | [`delete`](Client::delete)`(key).recursive()…`, [`pop`](Client::pop) |
//! | `watch(key, index, timeout, recursive)` | [`watch`](Client::watch)`(key).index(index)…` |
//! | `eternal_watch(key, index, recursive)` | [`eternal_watch`](Client::eternal_watch), which survives reconnects and lost history |
//! | `result.children`, `leaves`, `get_subtree()`, `newKey`, `etcd_index`, `_prev_node` | [`Node::leaves`] (an empty directory is none), [`Node::subtree`], [`Response::created`], [`Response::etcd_index`], [`Response::prev_node`] |
//! | `get_lock(name, ttl)`: `acquire`, `is_locked`, `renew`, `release`, `with lock` | [`get_lock`](Client::get_lock) with the same methods and [`scoped`](crate::recipes::by_hand::HandLock::scoped); the lock renews itself |
//! | `election` | gone from python-etcd 0.4 and etcd 2.0; a recipe of its own here, to come |
//! | `api_execute`, `api_execute_json` | [`api_execute`](Client::api_execute), [`api_execute_json`](Client::api_execute_json) |
//! | `EtcdUser`, `EtcdRole`, `Auth` | [`auth`](Client::auth) |
//! | `EtcdKeyNotFound`, `EtcdCompareFailed`, … | [`ErrorKind`](crate::ErrorKind), and each of etcd's numbers as [`Code`](super::Code) |
//! | `lock_prefix` | none: `/_locks`, as python-etcd's default |

mod auth;
mod cluster;
mod delete;
mod eternal;
mod key;
mod lifetime;
mod node;
mod raw;
mod read;
mod response;
mod send;
mod watch;
mod write;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use auth::{Auth, Permissions, Role, User};
pub use cluster::{
    Counts, FollowerStats, Health, Latency, LeaderInfo, LeaderStats, Member, SelfStats, StoreStats,
    Versions,
};
pub use delete::Delete;
pub use eternal::{Change, Changes, EternalWatch, Snapshot};
pub use key::IntoKey;
pub use lifetime::Lifetime;
pub use node::{Leaves, Node, Subtree};
pub use raw::{Method, Raw, RawAnswer};
pub use read::Read;
pub use response::{Action, Response};
pub use watch::Watch;
pub use write::Write;

use super::driver::Driver;
use super::{Builder, Etcd2};
use crate::error::Result;
use crate::runtime::Instant;
use crate::runtime::Runtime;

/// A client of the etcd v2 API. Cloning is cheap and shares connections.
#[derive(Clone)]
pub struct Client {
    driver: Arc<Driver>,
}

impl Client {
    /// A client of these endpoints, `http(s)://host:port` separated by commas, with the default
    /// options. Does not connect.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new(endpoints: impl Into<String>) -> Result<Self> {
        Self::builder(endpoints).build_client()
    }

    /// The options of a client of these endpoints.
    pub fn builder(endpoints: impl Into<String>) -> Builder {
        Etcd2::builder(endpoints)
    }

    pub(super) fn of(driver: Arc<Driver>) -> Self {
        Self { driver }
    }

    /// When a call that may take this long must have ended.
    fn deadline(&self, timeout: Option<Duration>) -> Instant {
        match timeout {
            Some(timeout) => self.driver.runtime.clock.now() + timeout,
            None => self.driver.deadline(),
        }
    }

    /// The [`Store`](crate::Store) on the same connections, for recipes.
    pub fn store(&self) -> Etcd2 {
        Etcd2(self.driver.clone())
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.driver.runtime
    }

    /// The server that is asked first now: `http://host:port`.
    pub fn base_uri(&self) -> String {
        self.driver
            .transport
            .endpoints()
            .current()
            .origin
            .to_string()
    }

    /// Its host: a name, or an address without brackets.
    pub fn host(&self) -> String {
        let endpoint = self.driver.transport.endpoints().current();
        let host = endpoint.authority.host();
        host.trim_matches(['[', ']']).to_owned()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        let endpoint = self.driver.transport.endpoints().current();
        endpoint.authority.port_u16().unwrap_or_default()
    }

    /// `http` or `https`.
    pub fn protocol(&self) -> String {
        self.driver
            .transport
            .endpoints()
            .current()
            .scheme
            .to_string()
    }

    /// How long an operation may take: [`Builder::timeout`].
    pub fn timeout(&self) -> Duration {
        self.driver.options.timeout
    }

    /// The path before `/keys`: [`Builder::version_prefix`].
    pub fn version_prefix(&self) -> &str {
        &self.driver.options.version_prefix
    }

    /// The path before the keys: `/v2/keys`.
    pub fn key_endpoint(&self) -> String {
        format!("{}/keys", self.version_prefix())
    }

    /// Whether a server that fails gives way to the next: [`Builder::allow_reconnect`].
    pub fn allow_reconnect(&self) -> bool {
        self.driver.options.allow_reconnect
    }

    /// Whether redirects are followed: [`Builder::allow_redirect`].
    pub fn allow_redirect(&self) -> bool {
        self.driver.options.allow_redirect
    }

    /// Whether only the given endpoints are asked: [`Builder::use_proxies`].
    pub fn use_proxies(&self) -> bool {
        self.driver.options.use_proxies
    }

    /// The user, if one was given. The password is not told.
    pub fn username(&self) -> Option<&str> {
        self.driver.options.user.as_deref()
    }

    /// How many idle connections are kept for each endpoint: [`Builder::max_idle_connections`].
    pub fn max_idle_connections(&self) -> usize {
        self.driver.options.max_idle
    }

    /// By how much the members' wall clocks differ at least, as the answers of the last ten
    /// minutes prove; zero if they prove nothing. Sends nothing: see [`Builder::max_skew`] for
    /// what it does to leases.
    pub fn clock_spread(&self) -> Duration {
        self.driver
            .proven_spread()
            .map_or(Duration::ZERO, |it| it.by)
    }

    /// The id that the cluster must have: the one [expected](Builder::expected_cluster_id), else
    /// that of the first answer; `None` before.
    pub fn cluster_id(&self) -> Option<&str> {
        self.driver.cluster.get().map(|id| &**id)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.driver.name).finish()
    }
}
