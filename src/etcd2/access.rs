//! Why a server refuses: etcd v2 says "Insufficient credentials" to a guest, to a wrong password
//! and to a user whose roles do not suffice. What can be told apart is told apart here.
//!
//! A wrong password is refused wherever guests are not. So a read that this user has been granted
//! before is asked once more: if that still works, the password is right, and it is the roles.

use std::sync::OnceLock;

use http::{Method, StatusCode};

use super::driver::Driver;
use crate::error::{Error, ErrorKind};
use crate::runtime::Instant;
use crate::transport::{Call, Repeat};

/// A read that was granted.
#[derive(Debug, Default)]
pub(super) struct Accepted(OnceLock<Call>);

impl Accepted {
    /// Remembers the first read of a key that a server granted; the rest is open to all.
    pub(super) fn note(&self, call: &Call, status: StatusCode) {
        let granted = status.is_success() || status == StatusCode::NOT_FOUND;
        if self.0.get().is_some() || call.method != Method::GET || !granted {
            return;
        }
        let target = call.target.split('?').next().unwrap_or_default();
        if !target.contains("/keys/") {
            return;
        }
        let _ = self.0.set(Call {
            method: Method::GET,
            target: target.to_owned(),
            payload: None,
        });
    }
}

impl Driver {
    /// Says of a refusal whether it is about who asks or about what was asked.
    pub(super) async fn explained(&self, error: Error, deadline: Instant) -> Error {
        if error.kind() != ErrorKind::Unauthorized {
            return error;
        }
        let Some(user) = &self.options.user else {
            let note = "no user was given, and guests may not do this";
            return error.into_kind(ErrorKind::Unauthorized, note);
        };
        if self.is_known(deadline).await {
            let note = format!(
                "the password of user {user:?} is right, but none of its roles allows this"
            );
            return error.into_kind(ErrorKind::Forbidden, &note);
        }
        let note = format!(
            "user {user:?} does not exist, its password is wrong, or none of its roles allows \
             this: etcd v2 does not say which"
        );
        error.into_kind(ErrorKind::Unauthorized, &note)
    }

    /// Whether it is certain that these credentials are right.
    async fn is_known(&self, deadline: Instant) -> bool {
        let Some(call) = self.accepted.0.get() else {
            return false;
        };
        let again = self.transport.call(call, Repeat::Harmless, 0, deadline);
        again.await.is_ok_and(|answer| {
            answer.status.is_success() || answer.status == StatusCode::NOT_FOUND
        })
    }
}
