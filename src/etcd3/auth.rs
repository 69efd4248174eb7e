//! The user: a password is shown once, for a token that goes with every request until the server
//! forgets it.
//!
//! ```text
//! nothing ──Authenticate──▶ token ──"invalid auth token"──▶ nothing
//! ```
//!
//! One request at a time asks for a token; the others wait for that one, and can carry it on: one
//! who began it and is not polled any more must not keep them waiting. A request whose token was
//! refused has not been done, so it is sent again with the next.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::error::{Judged, Next};
use super::proto::AuthenticateRequest;
use super::rpc::{Token, Trouble, Wire};
use crate::error::{Error, ErrorKind};
use crate::transport::{Credentials, Endpoint, Failure, Limits};

/// The credentials, and the token that they brought.
pub(super) struct Auth {
    credentials: Option<Credentials>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// One that is being asked for, as long as somebody waits for it.
    asking: Option<WeakShared<Asking>>,
}

type Asking = BoxFuture<'static, Result<Token, NoToken>>;

/// Why there is none, for all who waited.
#[derive(Clone)]
enum NoToken {
    Failure(Arc<Failure>),
    Refused(Box<Judged>),
}

impl Auth {
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            state: Mutex::default(),
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
        let mut state = self.lock();
        if state.token.as_ref() == refused {
            state.token = None;
        }
    }

    /// The next request gets another token.
    pub(super) fn forget_any(&self) {
        self.lock().token = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    /// The token to send; `None` without a user.
    pub(super) async fn token(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        limits: Limits,
    ) -> Result<Option<Token>, Trouble> {
        let Some(credentials) = &self.auth.credentials else {
            return Ok(None);
        };
        loop {
            let (asking, until) = {
                let mut state = self.auth.lock();
                if state.token.is_some() {
                    return Ok(state.token.clone());
                }
                let under_way = state.asking.as_ref().and_then(WeakShared::upgrade);
                // One that has failed is there until all who waited have been told.
                match under_way.filter(|it| it.peek().is_none()) {
                    Some(asking) => (asking, Some(limits.connect)),
                    None => {
                        let asking = self.clone().ask(credentials, endpoint.clone(), limits);
                        state.asking = asking.downgrade();
                        (asking, None)
                    }
                }
            };
            tokio::select! {
                biased;
                outcome = asking => match (outcome, until) {
                    (Ok(token), _) => return Ok(Some(token)),
                    (Err(none), None) => return Err(none.into()),
                    // That was another server, or another's time: it asks itself.
                    (Err(_), Some(_)) => {}
                },
                () = self.runtime.clock.sleep_until(until.unwrap_or(limits.answer)) => {
                    let reason = "no token came in time".to_owned();
                    return Err(Trouble::Failure(Failure::new(false, reason)));
                }
            }
        }
    }

    /// Shows the password, for a token that is kept.
    fn ask(
        self: Arc<Self>,
        credentials: &Credentials,
        endpoint: Arc<Endpoint>,
        limits: Limits,
    ) -> Shared<Asking> {
        let Credentials { user, password } = credentials;
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
        let asking = async move {
            let answer = self.bare(&request, &endpoint, true, None, limits).await;
            let text = answer.map_err(never_sent)?.token;
            let mut token = Token::try_from(text).map_err(|_| {
                let reason = "the server gave a token that cannot be sent".to_owned();
                Trouble::Failure(Failure::new(false, reason))
            })?;
            token.set_sensitive(true);
            self.auth.lock().token = Some(token.clone());
            Ok(token)
        };
        asking.boxed().shared()
    }
}

impl From<Trouble> for NoToken {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Failure(failure) => Self::Failure(Arc::new(failure)),
            Trouble::Refused(judged) => Self::Refused(judged),
        }
    }
}

impl From<NoToken> for Trouble {
    fn from(none: NoToken) -> Self {
        match none {
            NoToken::Failure(failure) => Self::Failure(failure.shared()),
            NoToken::Refused(judged) => Self::Refused(judged),
        }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("user", &self.is_asked_for())
            .finish_non_exhaustive()
    }
}
