//! The seam to the network: how a connection comes to be.
//!
//! Everything above works on any byte stream, so that a simulation or an in-memory pipe can stand
//! in for TCP. TLS is put on top of what a dialer returns.

use std::fmt;
use std::io;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection: any byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Makes connections.
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// Connects to a host (a name or an address, IPv6 without brackets) and a port.
    ///
    /// An error means that nothing was sent, so the request is tried on the next endpoint. The
    /// future is dropped when the caller's time is up.
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;
}

/// Dials TCP: no delay for small packets, a bounded connect, and keepalive probes, so that a dead
/// peer ends a silent long poll (on Linux within about 20 s).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tcp {
    /// How long connecting may take. Default: 1 s, more than one lost first packet costs.
    pub connect_timeout: Duration,
}

impl Tcp {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            connect_timeout: Duration::from_millis(1_000),
        }
    }

    /// Changes how long connecting may take.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }
}

impl Default for Tcp {
    fn default() -> Self {
        Self::new()
    }
}

impl Dial for Tcp {
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        let (host, limit) = (host.to_owned(), self.connect_timeout);
        Box::pin(async move {
            let connecting = TcpStream::connect((host.as_str(), port));
            let stream = tokio::time::timeout(limit, connecting)
                .await
                .map_err(|_| {
                    let text = format!("no connection within {limit:?}");
                    io::Error::new(io::ErrorKind::TimedOut, text)
                })??;
            stream.set_nodelay(true)?;
            keep_alive(&stream)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

#[cfg(target_os = "linux")]
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;

    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn keep_alive(_: &TcpStream) -> io::Result<()> {
    Ok(())
}
