//! The servers that may be asked, and which one is asked first.
//!
//! All of them stay in the list for ever. The one that works is kept; one that cannot be reached
//! or does not answer in time gives way to the next.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::uri::{Authority, Scheme};

use crate::error::{Error, ErrorKind, Result};

/// etcd's client port.
const DEFAULT_PORT: u16 = 2379;

/// One server: scheme, host and port.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    /// `http://host:port`, for errors and traces.
    pub(crate) origin: Arc<str>,
}

/// A user and a password, which never show.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// The servers in the order given, and the current one.
#[derive(Debug)]
pub(crate) struct Endpoints {
    list: Box<[Endpoint]>,
    current: AtomicUsize,
}

impl Endpoints {
    /// Parses `http(s)://[user:password@]host[:port]`, separated by commas.
    pub(crate) fn parse(text: &str) -> Result<(Self, Option<Credentials>)> {
        let mut list: Vec<Endpoint> = Vec::new();
        let mut credentials: Option<Credentials> = None;
        let parts = text.split(',').map(str::trim).filter(|it| !it.is_empty());
        for (number, part) in (1..).zip(parts) {
            // A password may hold anything, a comma too: then no part of the text is shown.
            let shown = (!text.contains('@')).then_some(part);
            let name = shown.map_or(format!("endpoint {number}"), |it| {
                format!("the endpoint {it:?}")
            });
            let (endpoint, given) = Endpoint::parse(part, &name)?;
            if let (Some(given), Some(known)) = (&given, &credentials)
                && given != known
            {
                let detail = "two endpoints name different users or passwords";
                return Err(Error::new(ErrorKind::InvalidOptions, detail));
            }
            credentials = credentials.or(given);
            if !list.contains(&endpoint) {
                list.push(endpoint);
            }
        }
        if list.is_empty() {
            let detail = "no endpoint: give at least one, like http://127.0.0.1:2379";
            return Err(Error::new(ErrorKind::InvalidOptions, detail));
        }
        let current = AtomicUsize::new(0);
        let list = list.into();
        Ok((Self { list, current }, credentials))
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.list.iter()
    }

    pub(crate) fn any_https(&self) -> bool {
        self.iter().any(|it| it.scheme == Scheme::HTTPS)
    }

    /// The number of the current endpoint.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// The endpoint with this number, counted around.
    pub(crate) fn at(&self, number: usize) -> &Endpoint {
        #[allow(clippy::indexing_slicing)] // never empty, and the number is taken modulo its length
        &self.list[number % self.list.len()]
    }

    /// Moves on, unless somebody else has moved on from this one already.
    pub(crate) fn leave(&self, number: usize) {
        let number = number % self.len();
        let next = (number + 1) % self.len();
        let (ok, other) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.current.compare_exchange(number, next, ok, other);
    }
}

impl Endpoint {
    fn parse(text: &str, name: &str) -> Result<(Self, Option<Credentials>)> {
        let invalid = |why: &str| Error::new(ErrorKind::InvalidOptions, format!("{name} {why}"));
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Scheme::HTTP, rest),
            Some(("https", rest)) => (Scheme::HTTPS, rest),
            _ => return Err(invalid("does not begin with http:// or https://")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(Credentials::parse(user)), place),
            None => (None, rest),
        };
        if place.contains(['/', '?', '#']) {
            return Err(invalid("has more than scheme, host and port"));
        }
        let authority: Authority = place
            .parse()
            .map_err(|_| invalid("holds no valid host and port"))?;
        let host = authority.host();
        if host.is_empty() {
            return Err(invalid("holds no host"));
        }
        // `http` accepts `host:` and `host:99999`; a port that was written must be one.
        let port = match place.strip_prefix(host) {
            Some("") | None => DEFAULT_PORT,
            Some(port) => port
                .trim_start_matches(':')
                .parse()
                .map_err(|_| invalid("holds no valid port"))?,
        };
        let authority: Authority = format!("{host}:{port}")
            .parse()
            .map_err(|_| invalid("holds no valid host and port"))?;
        let origin = format!("{scheme}://{authority}").into();
        let endpoint = Self {
            scheme,
            authority,
            origin,
        };
        Ok((endpoint, credentials))
    }
}

impl Credentials {
    fn parse(text: &str) -> Self {
        let decode = |part: &str| {
            percent_encoding::percent_decode_str(part)
                .decode_utf8_lossy()
                .into_owned()
        };
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        Self {
            user: decode(user),
            password: decode(password),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(text: &str) -> Vec<String> {
        let (endpoints, _) = Endpoints::parse(text).unwrap();
        endpoints.iter().map(|it| it.origin.to_string()).collect()
    }

    #[test]
    fn endpoints_keep_their_order_and_get_a_default_port() {
        assert_eq!(
            origins("http://h2:1, https://h1/,http://[::1],http://[::1]:80,http://h2:1"),
            [
                "http://h2:1",
                "https://h1:2379",
                "http://[::1]:2379",
                "http://[::1]:80"
            ]
        );
    }

    #[test]
    fn an_endpoint_that_makes_no_sense_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no endpoint"),
            (" , ", "no endpoint"),
            ("h1:2379", "http://"),
            ("ftp://h1", "http://"),
            ("http://h1/path", "more than"),
            ("http://h1?x", "more than"),
            ("http://", "host"),
            ("http://h1:99999", "port"),
            ("http://h1:", "port"),
            ("http://a:b@h1,http://c:d@h2", "different users"),
        ] {
            let error = Endpoints::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{text}");
            assert!(error.to_string().contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_taken_and_never_shown() {
        let (endpoints, credentials) = Endpoints::parse("http://me:se%40cret@h1:1").unwrap();
        let credentials = credentials.unwrap();
        assert_eq!(
            (credentials.user.as_str(), credentials.password.as_str()),
            ("me", "se@cret")
        );
        assert!(!format!("{endpoints:?}{credentials:?}").contains("cret"));
        let error = Endpoints::parse("http://me:secret@h1:port").unwrap_err();
        assert!(!format!("{error:?}{error}").contains("secret"), "{error}");
    }

    #[test]
    fn the_current_endpoint_is_kept_until_it_is_left() {
        let (endpoints, _) = Endpoints::parse("http://a,http://b").unwrap();
        assert_eq!(endpoints.current(), 0);
        endpoints.leave(1);
        assert_eq!(endpoints.current(), 0, "only the current one can be left");
        endpoints.leave(0);
        endpoints.leave(0);
        assert_eq!(endpoints.current(), 1, "two that fail together leave once");
        endpoints.leave(1);
        assert_eq!(endpoints.current(), 0);
    }
}
