//! What etcd's refusals mean. gRPC's codes are too coarse, so etcd's own words are read; what is
//! not known is judged by its code, on the side of caution: it may have taken effect.

use tonic::{Code, Status};

use crate::error::{Error, ErrorKind};

/// What a refusal means for the request.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) error: Error,
    pub(super) next: Next,
}

/// What can be done about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: this is the answer.
    Final,
    /// Another server may do it. This one certainly has not.
    Elsewhere,
    /// Another server may do it. This one may have done it, or may still.
    Unknown,
    /// A new token will do. Nothing has been done.
    NewToken,
}

/// A part of etcd's words, what it means, and what to say.
type Row = (&'static str, Next, ErrorKind, &'static str);

/// The first row whose words are in the message counts.
const ROWS: &[Row] = {
    use ErrorKind as Kind;
    use Next::{Elsewhere, Final, NewToken, Unknown};
    &[
        (
            "requested lease not found",
            Final,
            Kind::NotFound,
            "the lease is gone",
        ),
        (
            "lease already exists",
            Final,
            Kind::AlreadyExists,
            "the lease is there already",
        ),
        (
            "too large lease TTL",
            Final,
            Kind::InvalidTtl,
            "the server grants no lease for so long",
        ),
        (
            "required revision has been compacted",
            Final,
            Kind::HistoryLost,
            "the index asked for has been compacted away",
        ),
        (
            "required revision is a future revision",
            Elsewhere,
            Kind::Unavailable,
            "the server has not reached the index asked for",
        ),
        (
            FULL,
            Final,
            Kind::Unavailable,
            "the server's space is used up (NOSPACE): compact, defragment, and disarm the alarm",
        ),
        (
            "too many requests",
            Elsewhere,
            Kind::Unavailable,
            "the server has too many requests under way",
        ),
        (
            "request is too large",
            Final,
            Kind::InvalidValue,
            "the request is larger than the server takes (--max-request-bytes)",
        ),
        (
            "received message larger than max",
            Final,
            Kind::InvalidValue,
            "the request is larger than the server takes (--max-request-bytes)",
        ),
        (
            "too many operations in txn",
            Final,
            Kind::InvalidOptions,
            "the server takes fewer operations in one transaction (--max-txn-ops)",
        ),
        (
            "duplicate key given in txn",
            Final,
            Kind::InvalidOptions,
            "two operations of one commit are at the same key",
        ),
        (
            "permission denied",
            Final,
            Kind::Forbidden,
            "this user's roles do not allow it",
        ),
        (
            "invalid auth token",
            NewToken,
            Kind::Unauthorized,
            "the server does not know our token",
        ),
        (
            "revision in auth store is old",
            NewToken,
            Kind::Unauthorized,
            "users or roles were changed",
        ),
        (
            "revision of auth store is old",
            NewToken,
            Kind::Unauthorized,
            "users or roles were changed",
        ),
        (
            "authentication failed",
            Final,
            Kind::Unauthorized,
            "the user or the password is wrong",
        ),
        (
            "user name is empty",
            Final,
            Kind::Unauthorized,
            "the server wants a user and a password, and none were given",
        ),
        (
            "user name not found",
            Final,
            Kind::Unauthorized,
            "the server does not know this user",
        ),
        (
            "authentication is not enabled",
            Final,
            Kind::InvalidOptions,
            "a user is given, and authentication is not enabled on the server: leave the user out, or enable it (etcdctl auth enable)",
        ),
        (
            "not supported for learner",
            Elsewhere,
            Kind::Unavailable,
            "the server is a learner",
        ),
        (
            "no leader",
            Elsewhere,
            Kind::Unavailable,
            "the server has no leader: it is cut off from the others, or they elect one",
        ),
        (
            "server stopped",
            Unknown,
            Kind::Unavailable,
            "the server is stopping",
        ),
        (
            "leader changed",
            Unknown,
            Kind::Unavailable,
            "the leader changed meanwhile",
        ),
        (
            "request timed out",
            Unknown,
            Kind::Unavailable,
            "the cluster did not agree in time",
        ),
        (
            "unhealthy cluster",
            Elsewhere,
            Kind::Unavailable,
            "the cluster is not healthy",
        ),
        (
            "corrupt cluster",
            Final,
            Kind::Unavailable,
            "the cluster is corrupt (alarm CORRUPT)",
        ),
        (
            "cluster ID mismatch",
            Final,
            Kind::ClusterChanged,
            "the members are not of one cluster",
        ),
        (
            "grpc-status header missing",
            Final,
            Kind::Protocol,
            "the answer is not gRPC: is this an etcd v3 endpoint?",
        ),
        (
            "invalid compression flag",
            Final,
            Kind::Protocol,
            "the answer is not gRPC: is this an etcd v3 endpoint?",
        ),
        (
            "decoded message length too large",
            Final,
            Kind::Protocol,
            TOO_LARGE,
        ),
    ]
};

/// What a server says that takes no more puts and grants. At the edge of its quota it says so of
/// what it has done.
const FULL: &str = "database space exceeded";

/// Whether a server without space has refused this.
pub(super) fn is_full(error: &Error) -> bool {
    error.kind() == ErrorKind::Unavailable && error.detail().contains(FULL)
}

/// What is said of an answer that is not read.
pub(super) const TOO_LARGE: &str = "the answer is larger than 64 MiB";

/// Judges a status that came from a server.
pub(super) fn judge(status: &Status) -> Judged {
    let message = status.message();
    let known = ROWS.iter().find(|(words, ..)| message.contains(words));
    let (next, kind, text) = match known {
        Some((_, next, kind, text)) => (*next, *kind, *text),
        None => by_code(status.code()),
    };
    let text = format!("{text} ({:?}: {message})", status.code());
    let code = u16::try_from(i32::from(status.code())).unwrap_or(0);
    let error = Error::new(kind, text).with_code(code);
    Judged { error, next }
}

fn by_code(code: Code) -> (Next, ErrorKind, &'static str) {
    use ErrorKind as Kind;
    match code {
        Code::InvalidArgument => (
            Next::Final,
            Kind::InvalidOptions,
            "the server refuses the request",
        ),
        Code::NotFound => (
            Next::Final,
            Kind::NotFound,
            "there is no such thing on the server",
        ),
        Code::AlreadyExists => (Next::Final, Kind::AlreadyExists, "it is there already"),
        Code::PermissionDenied => (Next::Final, Kind::Forbidden, "the server forbids it"),
        Code::Unauthenticated => (
            Next::NewToken,
            Kind::Unauthorized,
            "the server does not accept who we are",
        ),
        Code::FailedPrecondition | Code::OutOfRange => (
            Next::Final,
            Kind::Unavailable,
            "the server cannot do this now",
        ),
        Code::ResourceExhausted => (
            Next::Elsewhere,
            Kind::Unavailable,
            "the server has no room for the request",
        ),
        Code::Unimplemented => (
            Next::Final,
            Kind::Unsupported,
            "the server does not know this call: is this an etcd v3 endpoint?",
        ),
        _ => (Next::Unknown, Kind::Unavailable, "the server failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_words_decide_before_grpcs_codes() {
        for (code, message, kind, next) in [
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                ErrorKind::NotFound,
                Next::Final,
            ),
            (
                Code::Unavailable,
                "etcdserver: no leader",
                ErrorKind::Unavailable,
                Next::Elsewhere,
            ),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
                ErrorKind::Unavailable,
                Next::Unknown,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                ErrorKind::Unavailable,
                Next::Final,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                ErrorKind::Unavailable,
                Next::Elsewhere,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                ErrorKind::Unauthorized,
                Next::NewToken,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                ErrorKind::Unauthorized,
                Next::Final,
            ),
            (
                Code::FailedPrecondition,
                "etcdserver: authentication is not enabled",
                ErrorKind::InvalidOptions,
                Next::Final,
            ),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
                ErrorKind::HistoryLost,
                Next::Final,
            ),
            (
                Code::Unimplemented,
                "unknown service",
                ErrorKind::Unsupported,
                Next::Final,
            ),
        ] {
            let judged = judge(&Status::new(code, message));
            assert_eq!(
                (judged.error.kind(), judged.next),
                (kind, next),
                "{message}"
            );
            assert!(
                judged.error.to_string().contains(message),
                "the server's own words"
            );
        }
    }

    #[test]
    fn what_nobody_knows_may_have_happened() {
        for code in [
            Code::Unknown,
            Code::Internal,
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::DataLoss,
        ] {
            assert_eq!(
                judge(&Status::new(code, "?")).next,
                Next::Unknown,
                "{code:?}"
            );
        }
    }
}
