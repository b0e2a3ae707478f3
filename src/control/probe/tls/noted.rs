//! A connection that remembers how the other side began: what is no TLS says so in its first bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Enough to know a protocol by: "HTTP/1.1 400 Bad Request" has as many.
const BEGINNING_BYTES: usize = 24;

pub struct Noted {
    stream: TcpStream,
    beginning: [u8; BEGINNING_BYTES],
    length: usize,
}

impl Noted {
    pub fn new(stream: TcpStream) -> Self {
        Noted { stream, beginning: [0; BEGINNING_BYTES], length: 0 }
    }

    pub fn beginning(&self) -> &[u8] {
        &self.beginning[..self.length]
    }

    pub fn into_inner(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Noted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let (read, from) = (&buffer.filled()[before..], self.length);
        let more = read.len().min(BEGINNING_BYTES - from);
        self.beginning[from..from + more].copy_from_slice(&read[..more]);
        self.length += more;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    /// An alert goes out behind another record in one last write, which must be for both.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
