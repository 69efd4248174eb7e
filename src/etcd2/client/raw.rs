//! Calls of the HTTP API as it is, for what this client has no method for.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::etcd2::driver::etcd_index;
use crate::etcd2::error::{Access, unreadable};
use crate::etcd2::request::{Params, check_line};
use crate::key::Index;
use crate::transport::{Call, Payload, Repeat};

/// What to do with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Method {
    /// Reads. Asked again elsewhere when nobody answers.
    Get,
    /// Writes. Sent once.
    Put,
    /// Appends. Sent once.
    Post,
    /// Deletes. Sent once.
    Delete,
}

/// A pending [`Client::api_execute`] or [`Client::api_execute_json`]. Does nothing until awaited.
#[must_use = "a call does nothing until awaited"]
pub struct Raw {
    client: Client,
    method: Method,
    path: String,
    params: Params,
    json: Option<Value>,
    timeout: Option<Duration>,
}

/// A success.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The body as it came.
    pub body: Bytes,
    /// `X-Etcd-Index`, where the answer has one.
    pub etcd_index: Option<Index>,
    /// `X-Raft-Index`, where the answer has one.
    pub raft_index: Option<u64>,
    /// `X-Raft-Term`, where the answer has one.
    pub raft_term: Option<u64>,
    /// Who answered: `http://host:port`.
    pub server: String,
}

impl Client {
    /// Calls the HTTP API: `path` begins with `/` and is taken as it is, so it must be escaped;
    /// the parameters go to the query of a GET or DELETE and to the form of a PUT or POST, where
    /// etcd looks for them. 1 request.
    ///
    /// # Errors
    /// `InvalidOptions`: a path that is none, or brings a query of its own. Otherwise as the
    /// server refuses, with its [code](Error::code); [`Ambiguous`](ErrorKind::Ambiguous) for all
    /// but a GET when no answer comes.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown, except of a GET.
    pub fn api_execute<'a>(
        &self,
        method: Method,
        path: impl Into<String>,
        params: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Raw {
        let params = params.into_iter();
        let params = params.fold(Params::new(), |all, (name, value)| all.with(name, value));
        Raw {
            params,
            ..self.raw(method, path.into())
        }
    }

    /// Calls a part of the HTTP API that takes JSON: users, roles, members. 1 request.
    ///
    /// # Errors
    /// As [`api_execute`](Self::api_execute); `InvalidOptions` also for a body with a GET.
    ///
    /// # Cancel safety
    /// As [`api_execute`](Self::api_execute).
    pub fn api_execute_json(
        &self,
        method: Method,
        path: impl Into<String>,
        body: Option<Value>,
    ) -> Raw {
        Raw {
            json: body,
            ..self.raw(method, path.into())
        }
    }

    fn raw(&self, method: Method, path: String) -> Raw {
        Raw {
            client: self.clone(),
            method,
            path,
            params: Params::new(),
            json: None,
            timeout: None,
        }
    }
}

impl Raw {
    /// How long it may take. Default: the client's [timeout](super::super::Builder::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(super) async fn run(self) -> Result<RawAnswer> {
        let driver = &self.client.driver;
        let call = self.call()?;
        let (access, repeat) = match self.method {
            Method::Get => (Access::Read, Repeat::Harmless),
            Method::Put | Method::Post | Method::Delete => (Access::Write, Repeat::NeverSent),
        };
        let deadline = match self.timeout {
            Some(timeout) => driver.runtime.clock.now() + timeout,
            None => driver.deadline(),
        };
        let answer = driver.ask(&call, access, repeat, 0, deadline).await?;
        let number = |name: &str| answer.headers.get(name)?.to_str().ok()?.parse().ok();
        Ok(RawAnswer {
            status: answer.status.as_u16(),
            etcd_index: etcd_index(&answer.headers),
            raft_index: number("x-raft-index"),
            raft_term: number("x-raft-term"),
            server: answer.server.to_string(),
            body: answer.body,
        })
    }

    fn call(&self) -> Result<Call> {
        let invalid = |text: &str| {
            let text = format!("the path {:?} {text}", self.path);
            Err(Error::new(ErrorKind::InvalidOptions, text))
        };
        let is_plain = |it: char| it.is_ascii_graphic() && !"<>\"{}|\\^`".contains(it);
        if !self.path.starts_with('/') {
            return invalid("does not begin with `/`");
        }
        if self.path.contains(['?', '#']) {
            return invalid(
                "has a query or a fragment: give parameters apart, and escape the rest",
            );
        }
        if !self.path.chars().all(is_plain) {
            return invalid("is not escaped");
        }
        let takes_form = matches!(self.method, Method::Put | Method::Post);
        let mut target = self.path.clone();
        let payload = match &self.json {
            Some(_) if self.method == Method::Get => {
                return invalid("is read: a GET has no body");
            }
            Some(json) => Some(Payload::Json(json.to_string().into())),
            None if takes_form => Some(Payload::Form(self.params.clone().encoded().into())),
            None => {
                let query = self.params.clone().encoded();
                if !query.is_empty() {
                    target = format!("{target}?{query}");
                }
                None
            }
        };
        let method = self.method.into();
        check_line(&method, &target).map_err(|it| it.of_kind(ErrorKind::InvalidOptions))?;
        Ok(Call {
            method,
            target,
            payload,
        })
    }
}

impl From<Method> for http::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Get => Self::GET,
            Method::Put => Self::PUT,
            Method::Post => Self::POST,
            Method::Delete => Self::DELETE,
        }
    }
}

impl IntoFuture for Raw {
    type Output = Result<RawAnswer>;
    type IntoFuture = BoxFuture<'static, Result<RawAnswer>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let what = format!(
                "asked was {} {}",
                http::Method::from(self.method),
                self.path
            );
            let outcome = self.run().await;
            outcome.map_err(|it| {
                let kind = it.kind();
                it.into_kind(kind, &what).during("api call")
            })
        })
    }
}

impl RawAnswer {
    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// `Protocol`: it is something else.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|cause| unreadable(&self.body, Access::Read, cause).on(&*self.server))
    }
}

impl fmt::Debug for Raw {
    /// Without parameters and body: a password may be among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw")
            .field("method", &self.method)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RawAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawAnswer")
            .field("status", &self.status)
            .field("body", &self.text())
            .field("etcd_index", &self.etcd_index)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
