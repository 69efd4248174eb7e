//! What the members' wall clocks do to a time-to-live.
//!
//! The member that receives a write stamps its end by its own wall clock, and the leader ends it
//! by its own. So their difference shortens a term, and a deadline must leave that much. The
//! configured [`max_skew`](super::Builder::max_skew) is a promise; what answers prove is a fact,
//! and wins when it is more.
//!
//! A member shows its clock with each write that has a time-to-live (`expiration` less what was
//! asked for), and to the second with the `Date` of every answer. Those that have not been heard
//! of for a minute are asked before a lease is granted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use super::driver::Driver;
use super::members::get;
use super::wire::Body;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Ttl;
use crate::transport::{Answer, As, Call, Payload, Spread};

/// How long what a member's clock says is taken to stay true.
const FRESH: Duration = Duration::from_secs(60);
/// How long a grant waits for the members' clocks at most.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether the operator has been told.
#[derive(Debug, Default)]
pub(super) struct Warned(AtomicBool);

impl Driver {
    /// Remembers what the answer to a write with a time-to-live tells of the member's clock.
    pub(super) fn note_expiration(&self, call: &Call, answer: &Answer, body: &Body) {
        let ttl = match &call.payload {
            Some(Payload::Form(form)) => ttl_of(form),
            _ => None,
        };
        let end = ttl.and_then(|ttl| body.node.expiration()?.checked_sub(ttl));
        if let Some(stamped) = end {
            let clocks = self.transport.clocks();
            clocks.told(&answer.server, stamped, Duration::ZERO, answer.span);
        }
    }

    /// Asks those members for their time that have not told it for a minute: each once,
    /// all together, for at most half a second.
    pub(super) async fn ask_the_time(&self) {
        let endpoints = self.transport.endpoints().all();
        if endpoints.len() < 2 {
            return;
        }
        let now = self.runtime.clock.now();
        let clocks = self.transport.clocks();
        let call = get("/version".into());
        let silent = endpoints
            .iter()
            .filter(|it| clocks.ask(&it.origin, FRESH, now));
        let asking = silent.map(|endpoint| {
            self.transport
                .once(&call, endpoint, As::Nobody, now + PATIENCE)
        });
        // The transport notes the dates. Who does not answer proves nothing.
        drop(join_all(asking).await);
    }

    /// What a deadline leaves for the difference between the members' clocks.
    pub(super) fn skew(&self) -> Duration {
        let proven = self.proven_spread();
        if let Some(spread) = &proven
            && spread.by > self.max_skew
            && !self.warned.0.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                target: "tenure::etcd2", spread = ?spread.by, ahead = %spread.ahead,
                behind = %spread.behind, max_skew = ?self.max_skew,
                "the members' clocks differ by more than max_skew: time-to-lives are unsafe"
            );
        }
        proven.map_or(self.max_skew, |it| it.by.max(self.max_skew))
    }

    /// By how much the members' clocks differ at least, as recent answers prove.
    pub(super) fn proven_spread(&self) -> Option<Spread> {
        let clocks = self.transport.clocks();
        clocks.spread(self.runtime.clock.now())
    }

    /// Refuses a time-to-live of which the proven difference would eat half.
    pub(super) fn check_ttl(&self, ttl: Ttl) -> Result<()> {
        match self.proven_spread() {
            Some(spread) if spread.by > self.max_skew && spread.by >= ttl.get() / 2 => {
                let Spread { by, ahead, behind } = spread;
                let behind = if ahead == behind {
                    "itself a few minutes ago: it was set".to_owned()
                } else {
                    behind.to_string()
                };
                let text = format!(
                    "a TTL of {ttl} is not safe while the members' clocks differ by {by:?}: \
                     {ahead} is ahead of {behind}; synchronize the clocks, or use a TTL of more \
                     than twice that"
                );
                Err(Error::new(ErrorKind::InvalidTtl, text))
            }
            _ => Ok(()),
        }
    }
}

/// The time-to-live in a form. Values in it are escaped, so nothing else looks like it.
fn ttl_of(form: &[u8]) -> Option<Duration> {
    let mut parameters = form.split(|it| *it == b'&');
    let digits = parameters.find_map(|it| it.strip_prefix(b"ttl="))?;
    let seconds = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_live_is_found_in_the_form() {
        for (form, seconds) in [
            ("ttl=5", Some(5)),
            ("value=a%26ttl%3D7&refresh=true&ttl=10", Some(10)),
            ("value=ttl", None),
            ("value=x&ttl=", None),
            ("", None),
        ] {
            assert_eq!(
                ttl_of(form.as_bytes()),
                seconds.map(Duration::from_secs),
                "{form}"
            );
        }
    }
}
