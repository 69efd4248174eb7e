//! The servers that may be asked, and in which order.
//!
//! ```text
//! given, for ever and in their order │ advertised by the cluster, replaced by each refresh
//! ```
//!
//! * The one that works is kept. One that fails gives way, and for [`GRUDGE`] comes after those
//!   that did not fail; of those that did, the one whose failure is oldest comes first.
//! * Nothing is ever taken out because it failed: there is always somebody to ask.
//! * An endpoint is handed out by itself, never by its place in the list: a refresh changes places
//!   while calls are under way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::uri::Scheme;
use tokio::sync::watch;

use super::endpoint::{Credentials, Endpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Instant;

/// For how long an endpoint that failed comes after those that did not.
const GRUDGE: Duration = Duration::from_secs(5);

/// The servers, and the current one.
#[derive(Debug)]
pub(crate) struct Endpoints {
    given: Box<[Arc<Endpoint>]>,
    shared: Mutex<Shared>,
    /// How often the current one has changed.
    moves: watch::Sender<u64>,
}

#[derive(Debug)]
struct Shared {
    /// The given ones, then the advertised ones. Never empty.
    list: Arc<[Arc<Endpoint>]>,
    current: Arc<Endpoint>,
    /// When each of them last failed, if it has not answered since.
    failed: BTreeMap<Arc<str>, Instant>,
}

impl Endpoints {
    /// Parses `http(s)://[user:password@]host[:port]`, separated by commas.
    pub(crate) fn parse(text: &str) -> Result<(Self, Option<Credentials>)> {
        let mut given: Vec<Arc<Endpoint>> = Vec::new();
        let mut credentials: Option<Credentials> = None;
        let parts = text.split(',').map(str::trim).filter(|it| !it.is_empty());
        for (number, part) in (1..).zip(parts) {
            // A password may hold anything, a comma too: then no part of the text is shown.
            let shown = (!text.contains('@')).then_some(part);
            let name = shown.map_or(format!("endpoint {number}"), |it| {
                format!("the endpoint {it:?}")
            });
            let (endpoint, own) = Endpoint::parse(part, &name)?;
            if let (Some(own), Some(known)) = (&own, &credentials)
                && own != known
            {
                let detail = "two endpoints name different users or passwords";
                return Err(Error::new(ErrorKind::InvalidOptions, detail));
            }
            credentials = credentials.or(own);
            if !given.iter().any(|it| **it == endpoint) {
                given.push(Arc::new(endpoint));
            }
        }
        let Some(current) = given.first().cloned() else {
            let detail = "no endpoint: give at least one, like http://127.0.0.1:2379";
            return Err(Error::new(ErrorKind::InvalidOptions, detail));
        };
        Ok((Self::of(given, current), credentials))
    }

    fn of(given: Vec<Arc<Endpoint>>, current: Arc<Endpoint>) -> Self {
        let shared = Shared {
            list: given.clone().into(),
            current,
            failed: BTreeMap::new(),
        };
        Self {
            given: given.into(),
            shared: Mutex::new(shared),
            moves: watch::Sender::new(0),
        }
    }

    /// Only the first of them.
    pub(super) fn only_first(&self) -> Self {
        let first = self.current();
        Self::of(vec![first.clone()], first)
    }

    /// All that are known now, the given ones first.
    pub(crate) fn all(&self) -> Arc<[Arc<Endpoint>]> {
        self.lock().list.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().list.len()
    }

    /// What errors and traces call a driver of these: `etcd3 http://h1:2379,…`.
    pub(crate) fn name(&self, driver: &str) -> Arc<str> {
        let origins: Vec<&str> = self.given.iter().map(|it| &*it.origin).collect();
        format!("{driver} {}", origins.join(",")).into()
    }

    pub(crate) fn any_https(&self) -> bool {
        self.given.iter().any(|it| it.scheme == Scheme::HTTPS)
    }

    /// The one that is asked first.
    pub(crate) fn current(&self) -> Arc<Endpoint> {
        self.lock().current.clone()
    }

    /// How often another one has become the current one.
    pub(crate) fn moves(&self) -> u64 {
        *self.moves.borrow()
    }

    /// Tells of each move from now on.
    #[cfg(feature = "etcd3")]
    pub(crate) fn moved(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// All of them, in the order in which they are asked now.
    pub(crate) fn order(&self, now: Instant) -> Vec<Arc<Endpoint>> {
        self.lock().order(now)
    }

    /// The one that is known under this name, `http://host:port`.
    pub(super) fn known(&self, endpoint: &Endpoint) -> Option<Arc<Endpoint>> {
        let shared = self.lock();
        shared.list.iter().find(|it| ***it == *endpoint).cloned()
    }

    /// It did not answer, or not properly: it gives way to the next.
    pub(crate) fn failed(&self, endpoint: &Endpoint, now: Instant) {
        let mut shared = self.lock();
        if !shared.list.iter().any(|it| **it == *endpoint) {
            return;
        }
        shared.failed.insert(endpoint.origin.clone(), now);
        if *shared.current == *endpoint
            && let Some(next) = shared.order(now).into_iter().find(|it| **it != *endpoint)
        {
            shared.current = next;
            self.moves.send_modify(|moves| *moves += 1);
        }
    }

    /// It answered properly.
    pub(crate) fn answered(&self, endpoint: &Endpoint) {
        self.lock().failed.remove(&endpoint.origin);
    }

    /// Replaces those that the cluster advertises by those in this text, `url, url`. Those of
    /// another scheme than the given ones are left out, and so are those of this very machine (etcd
    /// advertises `localhost` unless told otherwise) if none of the given ones is on it: what runs
    /// here under that port is somebody else. Whether the text was well formed; if not, nothing
    /// changes.
    pub(crate) fn advertise(&self, text: &str) -> bool {
        let scheme = if self.any_https() { "https" } else { "http" };
        let here = self.given.iter().any(|it| it.is_local());
        let mut list: Vec<Arc<Endpoint>> = self.given.to_vec();
        for part in text.split(',').map(str::trim) {
            let Some((own, _)) = part.split_once("://") else {
                return false;
            };
            if own != scheme {
                continue;
            }
            let Ok((endpoint, None)) = Endpoint::parse(part, "an advertised address") else {
                return false;
            };
            let elsewhere = endpoint.is_local() && !here;
            if !elsewhere && !list.iter().any(|it| **it == endpoint) {
                list.push(Arc::new(endpoint));
            }
        }
        let mut shared = self.lock();
        shared
            .failed
            .retain(|origin, _| list.iter().any(|it| it.origin == *origin));
        if !list.contains(&shared.current)
            && let Some(first) = list.first()
        {
            shared.current = first.clone();
        }
        shared.list = list.into();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Around from the current one; those that failed lately last, the oldest failure first.
    fn order(&self, now: Instant) -> Vec<Arc<Endpoint>> {
        let mut order = self.list.to_vec();
        let at = order.iter().position(|it| *it == self.current);
        order.rotate_left(at.unwrap_or(0));
        let lately = |it: &Arc<Endpoint>| {
            let failed = self.failed.get(&it.origin).copied();
            failed.filter(|failed| now.since(*failed) < GRUDGE)
        };
        order.sort_by_key(lately);
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(text: &str) -> Endpoints {
        Endpoints::parse(text).unwrap().0
    }

    fn names(list: &[Arc<Endpoint>]) -> Vec<&str> {
        list.iter().map(|it| &*it.origin).collect()
    }

    fn at(millis: u64) -> Instant {
        Instant::new(Duration::from_millis(millis))
    }

    fn hosts(endpoints: &Endpoints, now: u64) -> String {
        let order = endpoints.order(at(now));
        order.iter().map(|it| it.authority.host()).collect()
    }

    fn fail(endpoints: &Endpoints, host: &str, now: u64) {
        let (endpoint, _) = Endpoint::parse(&format!("http://{host}"), "").unwrap();
        endpoints.failed(&endpoint, at(now));
    }

    #[test]
    fn endpoints_keep_their_order_and_get_a_default_port() {
        let text = "http://h2:1, https://h1/,http://[::1],http://[::1]:80,http://H2:1/";
        let endpoints = endpoints(text);
        assert_eq!(
            names(&endpoints.all()),
            [
                "http://h2:1",
                "https://h1:2379",
                "http://[::1]:2379",
                "http://[::1]:80"
            ]
        );
    }

    #[test]
    fn the_current_endpoint_is_kept_until_it_fails() {
        let endpoints = endpoints("http://a,http://b,http://c");
        assert_eq!(hosts(&endpoints, 0), "abc");
        fail(&endpoints, "b", 0);
        assert_eq!(endpoints.current().authority.host(), "a");
        fail(&endpoints, "a", 1);
        fail(&endpoints, "a", 2);
        assert_eq!(endpoints.current().authority.host(), "c");
        assert_eq!(endpoints.moves(), 1, "two that fail together leave once");
        assert_eq!(hosts(&endpoints, 9_000), "cab");
    }

    #[test]
    fn who_failed_lately_comes_last_and_nobody_is_left_out() {
        let endpoints = endpoints("http://a,http://b,http://c,http://d");
        fail(&endpoints, "a", 1_000);
        fail(&endpoints, "c", 2_000);
        assert_eq!(hosts(&endpoints, 3_000), "bdac");
        assert_eq!(hosts(&endpoints, 9_000), "bcda");
        fail(&endpoints, "b", 6_500);
        fail(&endpoints, "d", 6_600);
        assert_eq!(hosts(&endpoints, 6_700).len(), 4);
        for now in 0..50 {
            let current = endpoints.current();
            endpoints.failed(&current, at(7_000 + now));
            assert_eq!(endpoints.order(at(7_000 + now)).len(), 4);
        }
        assert_eq!(
            endpoints.moves(),
            53,
            "each failure of the current one moves on"
        );
    }

    #[test]
    fn an_answer_forgives() {
        let endpoints = endpoints("http://a,http://b,http://c");
        fail(&endpoints, "b", 0);
        assert_eq!(hosts(&endpoints, 1), "acb");
        let b = endpoints.order(at(1)).pop().unwrap();
        endpoints.answered(&b);
        assert_eq!(hosts(&endpoints, 1), "abc");
    }

    #[test]
    fn advertised_endpoints_come_after_the_given_and_are_replaced_by_each_refresh() {
        let endpoints = endpoints("http://a:1,http://b:1");
        assert!(endpoints.advertise("http://A:1/, http://c:1,http://c:1, https://d:1, unix://e:1"));
        assert_eq!(
            names(&endpoints.all()),
            ["http://a:1", "http://b:1", "http://c:1"]
        );
        fail(&endpoints, "a:1", 0);
        fail(&endpoints, "b:1", 0);
        assert_eq!(endpoints.current().authority.host(), "c");
        assert!(endpoints.advertise("http://f:1"));
        assert_eq!(
            names(&endpoints.all()),
            ["http://a:1", "http://b:1", "http://f:1"]
        );
        assert_eq!(endpoints.current().authority.host(), "a");
    }

    #[test]
    fn advertised_addresses_of_ones_own_machine_are_taken_by_who_asks_there_only() {
        let local = "http://localhost:1, http://127.0.0.1:1, http://0.0.0.0:1, http://[::1]:1";
        let far = endpoints("http://a:1");
        assert!(far.advertise(&format!("{local}, http://b:1")));
        assert_eq!(names(&far.all()), ["http://a:1", "http://b:1"]);
        let near = endpoints("http://127.0.0.1:9");
        assert!(near.advertise(local));
        assert_eq!(near.len(), 5);
    }

    #[test]
    fn a_malformed_advertisement_changes_nothing() {
        let endpoints = endpoints("http://a:1");
        assert!(endpoints.advertise("http://b:1"));
        for text in [
            "",
            "<html>",
            "http://c:1,",
            "http://c:1, nonsense",
            "http://c:1/path",
            "http://user:password@c:1",
            "http://c:99999",
        ] {
            assert!(!endpoints.advertise(text), "{text}");
            assert_eq!(names(&endpoints.all()), ["http://a:1", "http://b:1"]);
        }
    }

    #[test]
    fn plain_http_is_never_learned_by_who_was_given_https() {
        let endpoints = endpoints("https://a:1");
        assert!(endpoints.advertise("http://b:1, https://c:1"));
        assert_eq!(names(&endpoints.all()), ["https://a:1", "https://c:1"]);
    }
}
