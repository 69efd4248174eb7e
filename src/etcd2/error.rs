//! What a refusal means.
//!
//! | etcd's code | kind |
//! |---|---|
//! | 100 key not found | `NotFound` |
//! | 101 compare failed | `ConditionFailed` |
//! | 102 not a file | `NotAFile` |
//! | 104 not a directory | `NotADirectory` |
//! | 105 key already exists | `AlreadyExists` |
//! | 107 root is read only | `RootReadOnly` |
//! | 108 directory not empty | `DirectoryNotEmpty` |
//! | 110 insufficient credentials | `Unauthorized` |
//! | 106 reserved key | `InvalidKey` |
//! | 201 empty prevValue, 210 invalid form (too large) | `InvalidValue` |
//! | 202 TTL is no number | `InvalidTtl` |
//! | 200, 203–209, 211, 212 | `InvalidOptions` |
//! | 300 raft, 301 election, any other HTTP 5xx | `Ambiguous` for a write, `Unavailable` for a read |
//! | 401 event index cleared (in an HTTP 400) | `HistoryLost` |
//! | 400 watcher cleared | `Unavailable` |
//! | anything else | `Protocol` |

use http::StatusCode;

use super::wire::Refusal;
use crate::error::{Error, ErrorKind};
use crate::key::Index;

/// Whether the request could have changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Access {
    /// The kind for a success that cannot be read: a write that somebody answered so may well
    /// have been done.
    pub(super) fn misunderstood(self) -> ErrorKind {
        match self {
            Self::Read => ErrorKind::Protocol,
            Self::Write => ErrorKind::Ambiguous,
        }
    }
}

/// The error for an answer that is not a success.
pub(super) fn refused(status: StatusCode, body: &[u8], access: Access) -> Error {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => stated(status, refusal, access),
        Err(_) => stranger(status, body, access),
    }
}

/// The error for a success that cannot be read.
pub(super) fn unreadable(body: &[u8], access: Access, cause: serde_json::Error) -> Error {
    let text = format!(
        "the answer is no etcd v2 reply but {}: is this an etcd v2 endpoint?",
        excerpt(body)
    );
    Error::new(access.misunderstood(), text).caused_by(cause)
}

fn stated(status: StatusCode, refusal: Refusal, access: Access) -> Error {
    let lost = match access {
        Access::Read => ErrorKind::Unavailable,
        Access::Write => ErrorKind::Ambiguous,
    };
    let kind = match refusal.code {
        Some(100) => ErrorKind::NotFound,
        Some(101) => ErrorKind::ConditionFailed,
        Some(102) => ErrorKind::NotAFile,
        Some(104) => ErrorKind::NotADirectory,
        Some(105) => ErrorKind::AlreadyExists,
        Some(106) => ErrorKind::InvalidKey,
        Some(107) => ErrorKind::RootReadOnly,
        Some(108) => ErrorKind::DirectoryNotEmpty,
        Some(110) => ErrorKind::Unauthorized,
        Some(201 | 210) => ErrorKind::InvalidValue,
        Some(202) => ErrorKind::InvalidTtl,
        Some(200..=212) => ErrorKind::InvalidOptions,
        Some(400) => ErrorKind::Unavailable,
        Some(401) => ErrorKind::HistoryLost,
        Some(300 | 301) => lost,
        _ if status.is_server_error() => lost,
        None => uncoded(status, &refusal.message),
        _ => ErrorKind::Protocol,
    };
    let message = refusal.message.to_lowercase();
    let text = match refusal.cause.as_str() {
        "" => message,
        cause => format!("{message}: {cause}"),
    };
    let mut error = Error::new(kind, text);
    if let Some(code) = refusal.code {
        error = error.with_code(code);
    }
    let error = match Index::new(refusal.index) {
        Some(index) => error.seen_at(index),
        None => error,
    };
    error.with_words(refusal.message, refusal.cause)
}

/// What a refusal of the auth, members or stats API means, which have no codes.
fn uncoded(status: StatusCode, message: &str) -> ErrorKind {
    match status.as_u16() {
        400 => ErrorKind::InvalidOptions,
        401 => ErrorKind::Unauthorized,
        403 => ErrorKind::Forbidden,
        404 => ErrorKind::NotFound,
        409 if message.contains("already exists") => ErrorKind::AlreadyExists,
        409 => ErrorKind::ConditionFailed,
        _ => ErrorKind::Protocol,
    }
}

/// The error for an answer that etcd's keys API does not give.
fn stranger(status: StatusCode, body: &[u8], access: Access) -> Error {
    let number = status.as_u16();
    if number == 404 && body.trim_ascii() == b"404 page not found" {
        let text = "this server has no v2 keys API: etcd 3.4 and 3.5 need --enable-v2, \
                    3.6 and later no longer have it; the v3 API is etcd:// in a store URL";
        return Error::new(ErrorKind::Unsupported, text);
    }
    let (kind, hint) = match (number, access) {
        (500.., Access::Write) => (ErrorKind::Ambiguous, ""),
        (500.., Access::Read) => (ErrorKind::Unavailable, ""),
        (401 | 403 | 407, _) => (ErrorKind::Unauthorized, ""),
        _ => (ErrorKind::Protocol, ": is this an etcd v2 endpoint?"),
    };
    Error::new(kind, format!("HTTP {number} with {}{hint}", excerpt(body)))
}

/// The first 80 characters, as far as they can be printed.
fn excerpt(body: &[u8]) -> String {
    const SHOWN: usize = 80;
    if body.is_empty() {
        return "an empty body".into();
    }
    let text = String::from_utf8_lossy(body.get(..4 * SHOWN).unwrap_or(body));
    let mut shown: String = text
        .chars()
        .map(|it| if it.is_control() { ' ' } else { it })
        .take(SHOWN)
        .collect();
    if shown.len() < body.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str, access: Access) -> ErrorKind {
        refused(
            StatusCode::from_u16(status).unwrap(),
            body.as_bytes(),
            access,
        )
        .kind()
    }

    #[test]
    fn each_code_has_its_kind_and_keeps_its_number() {
        for (status, code, expected) in [
            (404, 100, ErrorKind::NotFound),
            (412, 101, ErrorKind::ConditionFailed),
            (403, 102, ErrorKind::NotAFile),
            (400, 104, ErrorKind::NotADirectory),
            (412, 105, ErrorKind::AlreadyExists),
            (400, 107, ErrorKind::RootReadOnly),
            (403, 108, ErrorKind::DirectoryNotEmpty),
            (401, 110, ErrorKind::Unauthorized),
            (400, 106, ErrorKind::InvalidKey),
            (400, 200, ErrorKind::InvalidOptions),
            (400, 201, ErrorKind::InvalidValue),
            (400, 202, ErrorKind::InvalidTtl),
            (400, 203, ErrorKind::InvalidOptions),
            (400, 209, ErrorKind::InvalidOptions),
            (400, 210, ErrorKind::InvalidValue),
            (400, 212, ErrorKind::InvalidOptions),
            (400, 404, ErrorKind::Protocol),
            (500, 300, ErrorKind::Ambiguous),
            (500, 301, ErrorKind::Ambiguous),
            (400, 401, ErrorKind::HistoryLost),
            (500, 999, ErrorKind::Ambiguous),
        ] {
            let body = format!(r#"{{"errorCode":{code},"message":"M","cause":"/c","index":33}}"#);
            let status = StatusCode::from_u16(status).unwrap();
            let error = refused(status, body.as_bytes(), Access::Write);
            assert_eq!(error.kind(), expected, "{code}");
            assert_eq!(error.code(), Some(code));
            assert_eq!(error.index(), Index::new(33));
            assert_eq!(error.server_message(), Some("M"));
            assert_eq!(error.server_cause(), Some("/c"));
            assert_eq!(error.to_string().matches("/c").count(), 1, "{error}");
        }
    }

    #[test]
    fn a_server_without_a_leader_is_unavailable_to_a_reader() {
        let body = r#"{"errorCode":300,"message":"Raft Internal Error","index":0}"#;
        assert_eq!(kind(500, body, Access::Read), ErrorKind::Unavailable);
    }

    #[test]
    fn a_message_without_a_code_is_understood() {
        let body = r#"{"message":"Insufficient credentials"}"#;
        assert_eq!(kind(401, body, Access::Read), ErrorKind::Unauthorized);
        assert_eq!(kind(409, body, Access::Read), ErrorKind::ConditionFailed);
        let body = r#"{"message":"auth: Role app already exists."}"#;
        assert_eq!(kind(409, body, Access::Write), ErrorKind::AlreadyExists);
        assert_eq!(kind(410, body, Access::Write), ErrorKind::Protocol);
    }

    #[test]
    fn a_stranger_is_quoted_and_doubted() {
        let page = format!("<html>\n<body>{}</body></html>", "welcome ".repeat(99));
        let status = StatusCode::from_u16(200).unwrap();
        let error = refused(status, page.as_bytes(), Access::Read);
        assert_eq!(error.kind(), ErrorKind::Protocol);
        let text = error.to_string();
        assert!(text.contains("<html> <body>welcome"), "{text}");
        assert!(text.contains("is this an etcd v2 endpoint?") && text.len() < 200);
        assert_eq!(kind(502, "<html>", Access::Write), ErrorKind::Ambiguous);
        assert_eq!(kind(502, "<html>", Access::Read), ErrorKind::Unavailable);
    }

    #[test]
    fn a_server_without_v2_is_told_from_a_missing_key() {
        let status = StatusCode::NOT_FOUND;
        let error = refused(status, b"404 page not found\n", Access::Read);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("--enable-v2"));
    }
}
