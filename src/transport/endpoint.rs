//! One server, in one spelling: the scheme and the host in small letters, the port always there.

use std::fmt;
use std::sync::Arc;

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

impl Endpoint {
    /// Parses `http(s)://[user:password@]host[:port]`; errors call it `name`.
    pub(super) fn parse(text: &str, name: &str) -> Result<(Self, Option<Credentials>)> {
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
        let endpoint =
            Self::of(scheme, host, port).ok_or_else(|| invalid("holds no valid host and port"))?;
        Ok((endpoint, credentials))
    }

    /// The server at this place; an IPv6 address in brackets.
    pub(super) fn of(scheme: Scheme, host: &str, port: u16) -> Option<Self> {
        let host = host.to_ascii_lowercase();
        let authority: Authority = format!("{host}:{port}").parse().ok()?;
        let origin = format!("{scheme}://{authority}").into();
        Some(Self {
            scheme,
            authority,
            origin,
        })
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
    use super::super::Endpoints;
    use super::*;

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
}
