//! How requests are written: paths, queries and forms.
//!
//! The traps: PUT and POST take their parameters from a form, and silently store an empty value
//! when its content type is missing; DELETE takes them from the query, and silently deletes
//! unconditionally when they are in a body; a connection's first request line must fit in about
//! 4,096 bytes, or the connection is reset.

use std::fmt::Write;

use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Index, Key};
use crate::transport::{Call, Payload};

/// The longest request line that is sent, in bytes.
const LINE_LIMIT: usize = 4_000;
/// What parameters other than a value take of it, at most.
const ROOM: usize = 80;
/// The largest form that the server reads, in bytes.
const FORM_LIMIT: usize = 10 << 20;

/// What need not be escaped anywhere.
pub(super) const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// What need not be escaped in a path; `+` is literal there and a space in a form.
const IN_PATH: &AsciiSet = &UNRESERVED
    .remove(b'+')
    .remove(b':')
    .remove(b'@')
    .remove(b'=');

/// Parameters, in the form encoding.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(String);

impl Params {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{name}={}", utf8_percent_encode(value, UNRESERVED));
        self
    }

    pub(super) fn flag(self, name: &str) -> Self {
        self.with(name, "true")
    }

    pub(super) fn number(self, name: &str, number: u64) -> Self {
        self.with(name, &number.to_string())
    }

    /// As they are sent.
    pub(super) fn encoded(self) -> String {
        self.0
    }

    /// These and those.
    pub(super) fn and(mut self, more: &Self) -> Self {
        if !self.0.is_empty() && !more.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(&more.0);
        self
    }

    /// Adds `prevValue` and `prevIndex`. An empty value cannot be sent: the caller pins it down by
    /// an index.
    pub(super) fn previous(mut self, value: Option<&str>, index: Option<Index>) -> Self {
        if let Some(value) = value.filter(|it| !it.is_empty()) {
            self = self.with("prevValue", value);
        }
        match index {
            Some(index) => self.number("prevIndex", index.get()),
            None => self,
        }
    }
}

/// A GET or DELETE.
pub(super) fn query(prefix: &str, method: Method, key: &Key, params: &Params) -> Result<Call> {
    let mut target = path(prefix, key);
    if !params.0.is_empty() {
        target.push('?');
        target.push_str(&params.0);
    }
    check_line(&method, &target)?;
    Ok(Call {
        method,
        target,
        payload: None,
    })
}

/// A PUT or POST.
pub(super) fn form(prefix: &str, method: Method, key: &Key, params: Params) -> Result<Call> {
    let target = path(prefix, key);
    check_line(&method, &target)?;
    if params.0.len() > FORM_LIMIT {
        let text = format!(
            "encoded the request has {} bytes; etcd v2 takes at most 10 MiB",
            params.0.len()
        );
        return Err(Error::new(ErrorKind::InvalidValue, text));
    }
    Ok(Call {
        method,
        target,
        payload: Some(Payload::Form(params.0.into())),
    })
}

/// The call, or `None` if only its length speaks against it.
pub(super) fn fitting(call: Result<Call>) -> Result<Option<Call>> {
    match call {
        Ok(call) => Ok(Some(call)),
        Err(error) if error.kind() == ErrorKind::InvalidValue => Ok(None),
        Err(error) => Err(error),
    }
}

/// The value as text: etcd v2 keeps nothing else.
pub(super) fn text(value: &[u8]) -> Result<&str> {
    std::str::from_utf8(value).map_err(|cause| {
        let text = "etcd v2 stores only UTF-8: encode binary values, for instance as base64";
        Error::new(ErrorKind::InvalidValue, text).caused_by(cause)
    })
}

fn path(prefix: &str, key: &Key) -> String {
    let mut path = format!("{prefix}/keys");
    if key.is_root() {
        path.push('/');
    }
    for segment in key.segments() {
        path.push('/');
        path.extend(utf8_percent_encode(segment, IN_PATH));
    }
    path
}

fn check_line(method: &Method, target: &str) -> Result<()> {
    let around = method.as_str().len() + "  HTTP/1.1\r\n".len();
    let length = around + target.len();
    if length <= LINE_LIMIT {
        return Ok(());
    }
    // Only a deletion has a value in its query. If the key leaves room for all else, it is that.
    let path = target.split('?').next().unwrap_or_default();
    let kind = if *method == Method::DELETE && around + path.len() <= LINE_LIMIT - ROOM {
        ErrorKind::InvalidValue
    } else {
        ErrorKind::InvalidKey
    };
    let text = format!(
        "escaped, the request line has {length} bytes; etcd resets connections above about 4,096"
    );
    Err(Error::new(kind, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_segment_by_segment() {
        for (key, expected) in [
            ("/", "/v2/keys/"),
            ("/a b/c", "/v2/keys/a%20b/c"),
            ("/a?x=1#f", "/v2/keys/a%3Fx=1%23f"),
            ("/p%41", "/v2/keys/p%2541"),
            ("/a+b", "/v2/keys/a+b"),
            ("/ü", "/v2/keys/%C3%BC"),
            ("/...", "/v2/keys/..."),
            ("/a;b&c", "/v2/keys/a%3Bb%26c"),
        ] {
            assert_eq!(path("/v2", &Key::new(key).unwrap()), expected);
        }
    }

    #[test]
    fn forms_escape_everything_that_means_something_there() {
        let params = Params::new().with("value", "a+b c&d=e;f%").flag("refresh");
        assert_eq!(params.0, "value=a%2Bb%20c%26d%3De%3Bf%25&refresh=true");
    }

    #[test]
    fn an_empty_previous_value_is_never_sent() {
        let index = Index::new(7);
        assert_eq!(Params::new().previous(Some(""), index).0, "prevIndex=7");
    }

    #[test]
    fn a_request_line_that_would_reset_the_connection_is_refused() {
        let long = Key::new(format!("/{}", " ".repeat(1_500))).unwrap();
        let error = form("/v2", Method::PUT, &long, Params::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey);
        let quorum = Params::new().flag("quorum");
        let error = query("/v2", Method::GET, &long, &quorum).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey);
        let error = query("/v2", Method::DELETE, &long, &quorum).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey);
        let key = Key::new("/a").unwrap();
        let params = Params::new().with("prevValue", &"x".repeat(4_000));
        let error = query("/v2", Method::DELETE, &key, &params).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
        assert!(fitting(Err(error)).unwrap().is_none());
    }

    #[test]
    fn a_form_larger_than_the_server_reads_is_refused() {
        let key = Key::new("/a").unwrap();
        let params = Params::new().with("value", &"x".repeat(FORM_LIMIT));
        let error = form("/v2", Method::PUT, &key, params).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
    }
}
