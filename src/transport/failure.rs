//! Why there is no answer, and what that tells: above all, whether the request was sent.

use std::error::Error as StdError;
#[cfg(feature = "etcd3")]
use std::fmt;
use std::io;
#[cfg(feature = "etcd3")]
use std::sync::Arc;

use super::distrust::{self, Moment};
use super::mistaken::Mistaken;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Whether the server may have seen the request. If not, nothing can have happened.
    pub(crate) maybe_sent: bool,
    /// Whether asking again will not help: something answered that does not speak HTTP, or too
    /// much.
    pub(crate) hopeless: bool,
    /// Whether TLS found no trust. Then nothing was sent.
    pub(crate) untrusted: bool,
    /// Whether the server closed the connection without a word.
    pub(super) hung_up: bool,
    pub(crate) reason: String,
    pub(crate) cause: Option<Box<dyn StdError + Send + Sync>>,
}

/// What is known of a request that failed, besides the error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Broken {
    pub(super) moment: Moment,
    /// Whether TLS had a certificate to show.
    pub(super) identity: bool,
    /// Whether it is certain that it was never written.
    pub(super) never_sent: bool,
    /// What is said of an answer that is not of the protocol.
    pub(super) stranger: &'static str,
}

/// The cause of a failure that several were told of.
#[cfg(feature = "etcd3")]
#[derive(Debug)]
struct Told(Arc<Failure>);

#[cfg(feature = "etcd3")]
impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.cause {
            Some(cause) => cause.fmt(f),
            None => f.write_str(&self.0.reason),
        }
    }
}

#[cfg(feature = "etcd3")]
impl StdError for Told {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_ref().and_then(|cause| cause.source())
    }
}

impl Failure {
    pub(crate) fn new(maybe_sent: bool, reason: String) -> Self {
        Self {
            maybe_sent,
            hopeless: false,
            untrusted: false,
            hung_up: false,
            reason,
            cause: None,
        }
    }

    pub(super) fn of(error: Box<dyn StdError + Send + Sync>, broken: Broken) -> Self {
        let Broken {
            moment,
            identity,
            never_sent,
            stranger,
        } = broken;
        let distrust = distrust::words(&*error, moment, identity);
        let hyper = innermost_hyper(&*error);
        let maybe_sent = moment == Moment::Connected && distrust.is_none() && !never_sent;
        let hopeless = hyper.is_some_and(hyper::Error::is_parse) || is_no_frame(&*error);
        let untrusted = distrust.is_some();
        let reason = if let Some(words) = distrust {
            words
        } else if hopeless {
            stranger.to_owned()
        } else {
            let what = if maybe_sent {
                "no answer"
            } else {
                "no connection"
            };
            format!("{what} ({})", root_cause(&*error))
        };
        Self {
            maybe_sent,
            hopeless,
            untrusted,
            hung_up: hung_up(&*error) || hyper.is_some_and(hyper::Error::is_incomplete_message),
            reason,
            cause: Some(error),
        }
    }
}

impl Failure {
    /// The same, for each of several who were waiting.
    #[cfg(feature = "etcd3")]
    pub(crate) fn shared(self: &Arc<Self>) -> Self {
        Self {
            maybe_sent: self.maybe_sent,
            hopeless: self.hopeless,
            untrusted: self.untrusted,
            hung_up: self.hung_up,
            reason: self.reason.clone(),
            cause: self
                .cause
                .is_some()
                .then(|| Box::new(Told(self.clone())) as _),
        }
    }

    /// TLS found no trust, so nobody has looked at the request.
    #[cfg(feature = "etcd3")]
    pub(super) fn distrusts(&mut self, words: String) {
        (self.maybe_sent, self.untrusted, self.reason) = (false, true, words);
    }

    /// Says why a server hung up, if that was found out.
    pub(super) fn amend(&mut self, found: Option<Mistaken>) {
        match found {
            None => {}
            Some(Mistaken::NoTls) => {
                self.untrusted = true;
                self.reason = "the server does not speak TLS but plain HTTP: is this an http:// \
                               endpoint? (In a store URL: etcd://, etcd2://)"
                    .into();
            }
            Some(Mistaken::Tls) => {
                self.hopeless = true;
                self.reason = "the server speaks TLS: is this an https:// endpoint? (In a store \
                               URL: etcds://, etcd2s://)"
                    .into();
            }
        }
    }
}

/// Whether HTTP/2 was answered with something else: to read that as frames is to meet one that is
/// far too large. (The library's own type for this is not named here: it comes and goes with
/// features.)
fn is_no_frame(error: &(dyn StdError + 'static)) -> bool {
    root_cause(error).contains("frame with invalid size")
}

/// hyper's own error inside the pool's.
pub(super) fn innermost_hyper<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a hyper::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        next = error.source();
    }
    None
}

/// Whether the connection ended before it stood.
fn hung_up(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let Some(io) = error.downcast_ref::<io::Error>() else {
            next = error.source();
            continue;
        };
        if matches!(
            io.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ) {
            return true;
        }
        // Its source is not what it wraps but the source of that.
        next = io.get_ref().map(|it| it as _);
    }
    false
}

/// The last link of the chain: `Connection refused` rather than `client error (Connect)`.
fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
