//! HTTP to a few equal servers: which one to ask, for how long, and what may be asked again.
//!
//! Knows endpoints, failover, TLS and timeouts; knows nothing of keys. The rule everything rests
//! on: a request that was never sent may go to the next server; one that may have been sent may
//! only be repeated by whoever knows that repeating it is harmless.
//!
//! Public are the options of [`Tls`], and the seam for other networks: [`Dial`], and [`Tcp`], the
//! default.

mod attempts;
#[cfg(feature = "etcd3")]
mod channel;
mod connect;
#[cfg(feature = "etcd2")]
mod date;
mod dial;
mod discovery;
mod distrust;
mod endpoint;
#[cfg_attr(not(feature = "etcd2"), allow(dead_code))] // who discovers and redirects asks for more
mod endpoints;
#[cfg(feature = "etcd2")]
mod exchange;
mod executor;
mod failure;
mod hedge;
mod hope;
#[cfg(feature = "etcd2")]
mod http1;
mod last_words;
mod latency;
mod mistaken;
#[cfg(feature = "etcd3")]
mod overheard;
#[cfg(feature = "etcd2")]
mod redirect;
#[cfg(feature = "etcd2")]
mod skew;
#[cfg(feature = "srv")]
mod srv;
mod tls;
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
mod trust;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

#[cfg(feature = "etcd3")]
pub(crate) use attempts::Attempts;
#[cfg(feature = "etcd3")]
pub(crate) use channel::{Channel, Channels, SendError};
#[cfg(feature = "etcd2")]
pub(crate) use date::unix_seconds;
pub use dial::{Dial, Io, Tcp};
pub(crate) use discovery::{Discovery, PATIENCE};
pub(crate) use endpoint::{Credentials, Endpoint};
pub(crate) use endpoints::Endpoints;
#[cfg(feature = "etcd2")]
pub(crate) use exchange::{Answer, As, Call, Opened, Payload};
pub(crate) use failure::Failure;
#[cfg(feature = "etcd3")]
pub(crate) use hedge::{Who, hedged};
#[cfg(feature = "etcd3")]
pub(crate) use hope::Hope;
#[cfg(feature = "etcd2")]
pub(crate) use http1::{Config, Transport};
#[cfg(feature = "etcd3")]
pub(crate) use latency::{Latency, Limits};
#[cfg(feature = "etcd2")]
pub(crate) use skew::Spread;
#[cfg(feature = "srv")]
#[cfg_attr(docsrs, doc(cfg(feature = "srv")))]
pub use srv::{Service, Srv};
pub use tls::Tls;

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Entropy;

/// Whether a request may be sent again after it may have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or repeating it provably changes nothing more.
    Harmless,
    /// Only if it was never sent.
    NeverSent,
}

/// Delays between rounds: 20 ms doubling to 1 s, each cut at random to between half and all.
pub(crate) fn pauses(entropy: &Entropy) -> impl Iterator<Item = Duration> + Send + Sync + use<> {
    let entropy = entropy.clone();
    // backon adds its own jitter after its cap; ours stays below it.
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_factor(2.0)
        .with_max_delay(Duration::from_secs(1))
        .without_max_times()
        .build()
        .map(move |delay| entropy.jitter(delay))
}

/// Refuses options of a driver by which nothing could ever be done in time.
pub(crate) fn check_durations(options: &[(&str, Duration)]) -> Result<()> {
    for (name, duration) in options {
        if *duration < Duration::from_millis(1) {
            let text = format!("{name} is {duration:?}: it must be at least 1 ms");
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
    }
    Ok(())
}

/// The error for a request that may have been sent.
pub(crate) fn ambiguous(failure: Failure, server: &str) -> Error {
    let error = Error::new(ErrorKind::Ambiguous, failure.reason).on(server);
    match failure.cause {
        Some(cause) => error.caused_by(cause),
        None => error,
    }
}
