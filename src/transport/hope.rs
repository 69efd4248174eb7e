//! What is asked and not answered yet.

use super::endpoint::Endpoint;
use super::endpoints::Endpoints;
use super::latency::Latency;
use crate::runtime::{Clock, Instant};

/// A request that is not answered yet. Whoever asks may have less time than an attempt may take: a
/// renewal of a short term, or a caller with a timeout of its own. So who gives it up counts too, or
/// all tries would go to a server that hangs. That is about whom the next request goes to: this one
/// is repeated nowhere.
pub(crate) struct Hope<'a> {
    endpoints: &'a Endpoints,
    latency: &'a Latency,
    clock: &'a Clock,
    endpoint: &'a Endpoint,
    since: Instant,
    over: bool,
}

impl<'a> Hope<'a> {
    pub(crate) fn new(
        (endpoints, latency, clock): (&'a Endpoints, &'a Latency, &'a Clock),
        endpoint: &'a Endpoint,
        since: Instant,
    ) -> Self {
        Self {
            endpoints,
            latency,
            clock,
            endpoint,
            since,
            over: false,
        }
    }

    /// It was answered, or has failed.
    pub(crate) fn over(mut self) {
        self.over = true;
    }
}

impl Drop for Hope<'_> {
    fn drop(&mut self) {
        let now = self.clock.now();
        if !self.over && self.latency.is_unusual(now.since(self.since)) {
            self.endpoints.failed(self.endpoint, now);
        }
    }
}
