//! A connection whose peer is heard out.
//!
//! A server that refuses a client's certificate says so and hangs up, maybe while a request is
//! still being written. The write would fail first, and what the server said stay unread. So a
//! write that fails because the peer is gone seems to succeed, and the reader gets what is left,
//! and then the error.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::dial::Io;

/// A connection that a [`Dial`](super::Dial) made.
pub(super) struct LastWords {
    io: Box<dyn Io>,
    peer: Peer,
}

enum Peer {
    There,
    /// Nothing can be written any more, and the reader does not know why yet.
    Gone(io::Error),
    Buried,
}

impl LastWords {
    pub(super) fn new(io: Box<dyn Io>) -> Self {
        let peer = Peer::There;
        Self { io, peer }
    }

    fn is_gone(&self) -> bool {
        !matches!(self.peer, Peer::There)
    }
}

impl AsyncRead for LastWords {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        if self.is_gone()
            && (read.is_err() || buf.filled().len() == before)
            && let Peer::Gone(error) = std::mem::replace(&mut self.peer, Peer::Buried)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for LastWords {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};

        if self.is_gone() {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        match written {
            Err(error)
                if [BrokenPipe, ConnectionAborted, ConnectionReset].contains(&error.kind()) =>
            {
                self.peer = Peer::Gone(error);
                Poll::Ready(Ok(buf.len()))
            }
            written => Poll::Ready(written),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_gone() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_gone() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Says a word and hangs up without having listened.
    struct Rude(&'static [u8]);

    impl AsyncRead for Rude {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            buf.put_slice(std::mem::take(&mut self.0));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Rude {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    #[tokio::test]
    async fn what_was_said_is_read_and_then_the_error_comes() {
        let mut link = LastWords::new(Box::new(Rude(b"no")));
        link.write_all(b"may I?").await.unwrap();
        link.flush().await.unwrap();
        let mut word = [0; 2];
        link.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"no");
        let error = link.read(&mut word).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn other_failures_of_a_write_are_its_own() {
        struct Full;

        impl AsyncRead for Full {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Pending
            }
        }

        impl AsyncWrite for Full {
            fn poll_write(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &[u8],
            ) -> Poll<io::Result<usize>> {
                Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()))
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }

        let mut link = LastWords::new(Box::new(Full));
        let mut cx = Context::from_waker(Waker::noop());
        let written = Pin::new(&mut link).poll_write(&mut cx, b"x");
        assert!(matches!(written, Poll::Ready(Err(_))), "{written:?}");
    }
}
