//! The cluster's members: which there are, and whether one is cut off from the others.
//!
//! * **Discovery**: `GET {prefix}/machines` with the first operation, once a minute, and after a
//!   failover. One operation does it, those beside it do not wait, and what becomes of it does not
//!   concern them: a list that cannot be had, or read, changes nothing.
//! * **Watchdog**: a watch on a member that has lost its leader never fails and never speaks, and
//!   `stats/self` goes on claiming a leader. `GET {prefix}/members/leader` tells: 503 without one.
//!   It costs no proposal. All watches on one endpoint share one request a period.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;

use super::driver::Driver;
use crate::runtime::Instant;
use crate::transport::{As, Call, Endpoint};

/// How old the list of members gets.
const REFRESH: Duration = Duration::from_secs(60);
/// The least time between two attempts to get one.
const RETRY: Duration = Duration::from_secs(5);
/// The most that an operation waits for it.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is remembered about members between operations.
#[derive(Debug, Default)]
pub(super) struct Members {
    discovery: Mutex<Discovery>,
    checks: Mutex<BTreeMap<Arc<str>, Arc<Check>>>,
}

#[derive(Debug, Default)]
struct Discovery {
    /// When the list was last asked for.
    tried: Option<Instant>,
    /// Whether it came.
    came: bool,
    /// How often the current endpoint had changed by then.
    moves: u64,
}

/// When an endpoint was last asked for its leader, and whether it had one. Locked while it is
/// being asked.
type Check = tokio::sync::Mutex<Option<(Instant, bool)>>;

impl Members {
    /// Whether it is the caller who asks for the list now.
    fn claim(&self, moves: u64, now: Instant) -> bool {
        let mut it = self
            .discovery
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let due = it.tried.is_none_or(|tried| {
            let wait = if it.came && it.moves == moves {
                REFRESH
            } else {
                RETRY
            };
            now.since(tried) >= wait
        });
        if due {
            // Who drops its operation half-way leaves it to one of the next.
            (it.tried, it.came, it.moves) = (Some(now), false, moves);
        }
        due
    }

    fn came(&self) {
        let mut it = self
            .discovery
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        it.came = true;
    }

    fn check(&self, endpoint: &Endpoint) -> Arc<Check> {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.entry(endpoint.origin.clone()).or_default().clone()
    }
}

impl Driver {
    /// Learns which members the cluster advertises, if that is wanted and due. Never fails, and
    /// takes at most half a second and a quarter of the time that is left.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the list as it is, for the next five seconds.
    pub(super) async fn refresh_members(&self, deadline: Instant) {
        let options = &self.options;
        if options.use_proxies || !options.allow_reconnect {
            return;
        }
        let (clock, endpoints) = (&self.runtime.clock, self.transport.endpoints());
        let now = clock.now();
        if !self.members.claim(endpoints.moves(), now) {
            return;
        }
        let until = now + PATIENCE.min(deadline.since(now) / 4);
        let call = get(format!("{}/machines", options.version_prefix));
        for endpoint in endpoints.order(now) {
            // Half of what is left, so that one that hangs is not the only one that is asked.
            let part = clock.now() + until.since(clock.now()) / 2;
            let answer = self.transport.once(&call, &endpoint, As::User, part).await;
            if let Ok(answer) = answer
                && answer.status.is_success()
                && self.check_cluster(&answer.headers).is_ok()
                && let Ok(text) = std::str::from_utf8(&answer.body)
                && endpoints.advertise(text)
            {
                self.members.came();
                return;
            }
            if clock.has_passed(until) {
                return;
            }
        }
    }

    /// This endpoint, or another one if its server is cut off from the others; then this one
    /// counts as failed. With nobody better it stays.
    pub(super) async fn connected(&self, endpoint: &Arc<Endpoint>) -> Arc<Endpoint> {
        if self.has_leader(endpoint).await {
            return endpoint.clone();
        }
        let (clock, endpoints) = (&self.runtime.clock, self.transport.endpoints());
        endpoints.failed(endpoint, clock.now());
        for other in endpoints.order(clock.now()) {
            if other != *endpoint && self.has_leader(&other).await {
                return other;
            }
        }
        endpoint.clone()
    }

    /// Returns once this endpoint's server is cut off from the others, or does not answer.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn cut_off(&self, endpoint: &Arc<Endpoint>) {
        loop {
            self.runtime.clock.sleep(self.watchdog_period).await;
            if !self.has_leader(endpoint).await {
                return;
            }
        }
    }

    /// Whether this endpoint's server had a leader within the last period. A server that does not
    /// know the question counts as healthy, and so does the only one there is.
    async fn has_leader(&self, endpoint: &Arc<Endpoint>) -> bool {
        if self.transport.endpoints().len() < 2 {
            return true;
        }
        let check = self.members.check(endpoint);
        // Whoever else asks meanwhile waits for the same answer.
        let mut last = check.lock().await;
        let now = self.runtime.clock.now();
        if let Some((at, healthy)) = *last
            && now.since(at) < self.watchdog_period
        {
            return healthy;
        }
        let call = get(format!("{}/members/leader", self.options.version_prefix));
        let until = self.transport.attempt_deadline();
        // Without credentials, which etcd would check for 60 ms and not need.
        let answer = self
            .transport
            .once(&call, endpoint, As::Nobody, until)
            .await;
        let healthy = answer.is_ok_and(|answer| {
            !answer.status.is_server_error() && self.check_cluster(&answer.headers).is_ok()
        });
        *last = Some((now, healthy));
        healthy
    }
}

pub(super) fn get(target: String) -> Call {
    Call {
        method: Method::GET,
        target,
        payload: None,
    }
}
