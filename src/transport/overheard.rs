//! A connection that remembers why TLS ended it.
//!
//! HTTP/2 keeps only the text of an error of its connection, and whether a server refuses our
//! certificate is told by the error itself. So that is looked at here, where it comes by.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::distrust::{self, Moment};

/// What TLS said, if it found no trust.
pub(super) type Words = Arc<OnceLock<String>>;

/// A connection.
pub(super) struct Overheard<T> {
    io: T,
    words: Words,
    /// Whether TLS had a certificate to show.
    identity: bool,
}

impl<T> Overheard<T> {
    pub(super) fn new(io: T, words: Words, identity: bool) -> Self {
        Self {
            io,
            words,
            identity,
        }
    }

    fn listen<R>(&self, outcome: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if let Poll::Ready(Err(error)) = &outcome
            && let Some(words) = distrust::words(error, Moment::Connected, self.identity)
        {
            self.words.get_or_init(|| words);
        }
        outcome
    }
}

impl<T: Read + Unpin> Read for Overheard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_read(cx, buf);
        self.listen(outcome)
    }
}

impl<T: Write + Unpin> Write for Overheard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.listen(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.listen(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(cx);
        self.listen(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.listen(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
