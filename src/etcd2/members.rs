//! The cluster's members: which there are, and whether one is cut off from the others.
//!
//! * **Discovery**: `GET {prefix}/machines`, whenever [`Discovery`] says so.
//! * **Watchdog**: a watch on a member that has lost its leader never fails and never speaks, and
//!   `stats/self` goes on claiming a leader. `GET {prefix}/members/leader` tells: 503 without one.
//!   It costs no proposal. All watches on one endpoint share one request a period.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::Method;

use super::driver::Driver;
use crate::runtime::Instant;
use crate::transport::{As, Call, Discovery, Endpoint, PATIENCE};

/// What is remembered about members between operations.
#[derive(Debug, Default)]
pub(super) struct Members {
    discovery: Discovery,
    checks: Mutex<BTreeMap<Arc<str>, Arc<Check>>>,
}

/// When an endpoint was last asked for its leader, and what came of it. Locked while it is being
/// asked.
type Check = tokio::sync::Mutex<Option<(Instant, Health)>>;

/// How an endpoint's server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// It has a leader, or cannot be asked.
    Led,
    /// It answers that it has none, or is of another cluster.
    Leaderless,
    /// It does not answer.
    Silent,
}

impl Members {
    fn check(&self, endpoint: &Endpoint, all: &[Arc<Endpoint>]) -> Arc<Check> {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if !checks.contains_key(&endpoint.origin) {
            // Members come and go.
            checks.retain(|origin, _| all.iter().any(|it| it.origin == *origin));
        }
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
        if !self.members.discovery.claim(endpoints.moves(), now) {
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
                self.members.discovery.came();
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
        if self.health(endpoint).await == Health::Led {
            return endpoint.clone();
        }
        let (clock, endpoints) = (&self.runtime.clock, self.transport.endpoints());
        endpoints.failed(endpoint, clock.now());
        for other in endpoints.order(clock.now()) {
            if other != *endpoint && self.health(&other).await == Health::Led {
                return other;
            }
        }
        endpoint.clone()
    }

    /// Returns once this endpoint's server is cut off from the others, or does not answer: whether
    /// it answers.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn cut_off(&self, endpoint: &Arc<Endpoint>) -> bool {
        loop {
            self.runtime.clock.sleep(self.watchdog_period).await;
            match self.health(endpoint).await {
                Health::Led => {}
                Health::Leaderless => return true,
                Health::Silent => return false,
            }
        }
    }

    /// How this endpoint's server was within the last period. One that does not know the question
    /// counts as led, and so does the only one there is.
    async fn health(&self, endpoint: &Arc<Endpoint>) -> Health {
        let all = self.transport.endpoints().all();
        if all.len() < 2 {
            return Health::Led;
        }
        let check = self.members.check(endpoint, &all);
        // Whoever else asks meanwhile waits for the same answer; but not for a watch that is not
        // read any more and stands still half-way.
        let mut last = tokio::select! {
            biased;
            last = check.lock() => last,
            () = self.runtime.clock.sleep(self.watchdog_period) => {
                return self.ask_for_leader(endpoint).await;
            }
        };
        let now = self.runtime.clock.now();
        if let Some((at, health)) = *last
            && now.since(at) < self.watchdog_period
        {
            return health;
        }
        let health = self.ask_for_leader(endpoint).await;
        *last = Some((now, health));
        health
    }

    async fn ask_for_leader(&self, endpoint: &Arc<Endpoint>) -> Health {
        let call = get(format!("{}/members/leader", self.options.version_prefix));
        let until = self.transport.attempt_deadline();
        // Without credentials, which etcd would check for 60 ms and not need.
        let answer = self
            .transport
            .once(&call, endpoint, As::Nobody, until)
            .await;
        match answer {
            Err(_) => Health::Silent,
            Ok(answer) if answer.status.is_server_error() => Health::Leaderless,
            Ok(answer) if self.check_cluster(&answer.headers).is_err() => Health::Leaderless,
            Ok(_) => Health::Led,
        }
    }
}

pub(super) fn get(target: String) -> Call {
    Call {
        method: Method::GET,
        target,
        payload: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::transport::Endpoints;

    #[test]
    fn members_that_have_left_are_not_remembered() {
        let members = Members::default();
        for number in 0..50 {
            let (endpoints, _) = Endpoints::parse(&format!("http://a,http://b:{number}")).unwrap();
            for endpoint in endpoints.all().iter() {
                members.check(endpoint, &endpoints.all());
            }
        }
        assert_eq!(members.checks.lock().unwrap().len(), 2);
    }
}
