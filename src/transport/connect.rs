//! The dialer as hyper's pool wants it, with TLS on top where an endpoint asks for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tower_service::Service;

use super::dial::Dial;
use super::last_words::LastWords;
use super::tls::Tls;
use crate::error::Result;

/// Which version of HTTP is spoken: TLS negotiates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // each driver speaks one of them
pub(super) enum Speaks {
    Http1,
    Http2,
}

/// Adapts a [`Dial`].
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    dial: Arc<dyn Dial>,
    /// Where sockets live, if not where the request is made.
    thread: Option<Handle>,
}

impl Dialer {
    pub(super) fn new(dial: Arc<dyn Dial>, thread: Option<Handle>) -> Self {
        Self { dial, thread }
    }
}

impl Service<Uri> for Dialer {
    type Response = Link;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Link>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let dialing = self.dial.dial(host, uri.port_u16().unwrap_or_default());
        let thread = self.thread.clone();
        Box::pin(async move {
            let io = match thread {
                // A socket belongs to the runtime in which it was opened.
                Some(thread) => {
                    let dialing = AbortOnDropHandle::new(thread.spawn(dialing));
                    dialing.await.map_err(io::Error::other)??
                }
                None => dialing.await?,
            };
            Ok(Link(TokioIo::new(LastWords::new(io))))
        })
    }
}

/// A connection that a [`Dial`] made.
pub(super) struct Link(TokioIo<LastWords>);

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
pub(super) type Connector = Dialer;

/// Makes the connector; `tls` if any endpoint needs it.
#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
pub(super) fn connector(dialer: Dialer, tls: Option<&Tls>, _: Speaks) -> Result<Connector> {
    use crate::error::{Error, ErrorKind};

    if tls.is_some() {
        let detail = "an https:// endpoint needs the feature `tls-ring` or `tls-aws-lc`";
        return Err(Error::new(ErrorKind::InvalidOptions, detail));
    }
    Ok(dialer)
}

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
pub(super) type Connector = hyper_rustls::HttpsConnector<Dialer>;

/// Makes the connector; `tls` if any endpoint needs it.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
pub(super) fn connector(dialer: Dialer, tls: Option<&Tls>, speaks: Speaks) -> Result<Connector> {
    use super::trust;

    let mut config = trust::config(tls)?;
    if speaks == Speaks::Http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    Ok(match tls.map(trust::server_name).transpose()?.flatten() {
        Some(name) => {
            let name = hyper_rustls::FixedServerNameResolver::new(name);
            Connector::new(dialer, config, false, Arc::new(name))
        }
        None => (dialer, config).into(),
    })
}
