//! Whether a server that hangs up speaks the other protocol: TLS where `http://` was given, or
//! plain HTTP where `https://` was.
//!
//! Both kinds just close the connection, which as such could as well be a server that stops. So a
//! server that has never answered is asked once more, in the other protocol; without credentials.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use http::Uri;
use http::uri::Scheme;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_service::Service;

use super::connect::Connector;
use super::distrust;
use super::endpoint::Endpoint;

/// How many names are kept.
const KEPT: usize = 1_000;

/// Who has answered so far: they are not suspected.
#[derive(Debug, Default)]
pub(super) struct Known(RwLock<BTreeSet<Arc<str>>>);

impl Known {
    pub(super) fn has(&self, endpoint: &Endpoint) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.contains(&endpoint.origin)
    }

    pub(super) fn add(&self, endpoint: &Endpoint) {
        if !self.has(endpoint) {
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= KEPT {
                // Redirects may lead anywhere. Who is forgotten may be asked twice, no more.
                known.clear();
            }
            known.insert(endpoint.origin.clone());
        }
    }
}

/// What was found out about a server that hung up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mistaken {
    /// It speaks plain HTTP, and TLS was expected.
    NoTls,
    /// It speaks TLS, and plain HTTP was expected.
    Tls,
}

/// Asks in the protocol that the endpoint does not name. Costs a connection.
///
/// Cancel safe: dropping the future closes the connection.
pub(super) async fn look_closer(connector: Connector, endpoint: &Endpoint) -> Option<Mistaken> {
    let found = if endpoint.scheme == Scheme::HTTPS {
        Mistaken::NoTls
    } else {
        Mistaken::Tls
    };
    speaks_the_other(connector, endpoint).await.then_some(found)
}

async fn speaks_the_other(mut connector: Connector, endpoint: &Endpoint) -> bool {
    if !cfg!(any(feature = "tls-ring", feature = "tls-aws-lc")) {
        return false;
    }
    let wants_tls = endpoint.scheme == Scheme::HTTPS;
    let other = if wants_tls {
        Scheme::HTTP
    } else {
        Scheme::HTTPS
    };
    let uri = Uri::builder()
        .scheme(other)
        .authority(endpoint.authority.clone())
        .path_and_query("/")
        .build();
    let Ok(uri) = uri else {
        return false;
    };
    let connected = connector.call(uri).await;
    if !wants_tls {
        // That nobody trusts its certificate here says that it has one.
        return connected.map_or_else(|error| distrust::is_tls(&*into_box(error)), |_| true);
    }
    let Ok(stream) = connected else {
        return false;
    };
    let mut stream = TokioIo::new(stream);
    let asked =
        stream.write_all(b"OPTIONS * HTTP/1.1\r\nHost: tenure\r\nConnection: close\r\n\r\n");
    let mut head = [0; 5];
    asked.await.is_ok() && stream.read_exact(&mut head).await.is_ok() && head == *b"HTTP/"
}

fn into_box(
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Box<dyn std::error::Error + Send + Sync> {
    error.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn however_many_places_redirects_lead_to_only_so_many_are_kept() {
        let known = Known::default();
        for port in 1..=3_000 {
            let endpoint = Endpoint::of(Scheme::HTTP, "a", port).unwrap();
            known.add(&endpoint);
            assert!(known.has(&endpoint));
        }
        assert!(known.0.read().unwrap().len() <= KEPT);
    }
}
