//! The user: a password is shown once, for a token that goes with every request until the server
//! forgets it.
//!
//! ```text
//! nothing ──Authenticate──▶ token ──"invalid auth token"──▶ nothing
//! ```
//!
//! One request at a time asks for a token; the others wait for that one. A request whose token was
//! refused has not been done, so it is sent again with the next.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Next;
use super::proto::AuthenticateRequest;
use super::rpc::{Token, Trouble, Wire};
use crate::error::{Error, ErrorKind};
use crate::transport::{Credentials, Endpoint, Failure, Limits};

/// The credentials, and the token that they brought.
pub(super) struct Auth {
    credentials: Option<Credentials>,
    token: Mutex<Option<Token>>,
    /// Held while a token is being asked for.
    asking: tokio::sync::Mutex<()>,
}

impl Auth {
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            token: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// Whether there is a user.
    pub(super) fn is_asked_for(&self) -> bool {
        self.credentials.is_some()
    }

    /// Names the user in a refusal that is about who asks: etcd does not.
    pub(super) fn named(&self, error: Error) -> Error {
        let kind = error.kind();
        match &self.credentials {
            Some(Credentials { user, .. })
                if matches!(kind, ErrorKind::Forbidden | ErrorKind::Unauthorized) =>
            {
                error.into_kind(kind, &format!("the user is {user:?}"))
            }
            _ => error,
        }
    }

    /// This token was refused: the next request gets another.
    pub(super) fn forget(&self, refused: Option<&Token>) {
        let mut token = self.lock();
        if token.as_ref() == refused {
            *token = None;
        }
    }

    /// The next request gets another token.
    pub(super) fn forget_any(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Token>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    /// The token to send; `None` without a user.
    pub(super) async fn token(
        &self,
        endpoint: &Arc<Endpoint>,
        limits: Limits,
    ) -> Result<Option<Token>, Trouble> {
        let Some(Credentials { user, password }) = &self.auth.credentials else {
            return Ok(None);
        };
        let known = self.auth.lock().clone();
        if known.is_some() {
            return Ok(known);
        }
        let _asking = tokio::select! {
            biased;
            asking = self.auth.asking.lock() => asking,
            () = self.runtime.clock.sleep_until(limits.connect) => {
                let reason = "no token came in time".to_owned();
                return Err(Trouble::Failure(Failure::new(false, reason)));
            }
        };
        let known = self.auth.lock().clone();
        if known.is_some() {
            return Ok(known);
        }
        let request = AuthenticateRequest {
            name: user.clone(),
            password: password.clone(),
        };
        // That this may have been sent says nothing of what the token is for.
        let never_sent = |trouble| match trouble {
            Trouble::Failure(mut failure) => {
                failure.maybe_sent = false;
                Trouble::Failure(failure)
            }
            Trouble::Refused(mut judged) => {
                if judged.next == Next::Unknown {
                    judged.next = Next::Elsewhere;
                }
                Trouble::Refused(judged)
            }
        };
        let answer = self.bare(&request, endpoint, true, None, limits).await;
        let text = answer.map_err(never_sent)?.token;
        let mut token = Token::try_from(text).map_err(|_| {
            let reason = "the server gave a token that cannot be sent".to_owned();
            Trouble::Failure(Failure::new(false, reason))
        })?;
        token.set_sensitive(true);
        *self.auth.lock() = Some(token.clone());
        Ok(Some(token))
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("user", &self.is_asked_for())
            .finish_non_exhaustive()
    }
}
