//! A connection to a server under check: every read is bounded, and its end is in good order.
//!
//! Knows no protocol. A socket that is closed with bytes unread sends a reset, which servers log
//! and some count against us (MySQL blocks hosts for it), so [`Line::leave`] says what the protocol
//! says at the end, ends our direction, and hears the server out for a while.

use std::borrow::Cow;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tls::{self, Shaken};
use crate::control::checks::Found;
use crate::sys::socket::{Liveness, set_liveness};
use crate::wire::{Halt, Parsed};

/// What one check may hear in all: the longest answer that is kept (an HTTP body of 64 KiB and its
/// head), with room for how it is wrapped.
const HEARD_MAX: usize = 128 * 1024;
/// One read.
const READ_BYTES: usize = 8 * 1024;
/// How long a server may take to end its side after we have ended ours. It needs one round trip;
/// a server that never does holds a descriptor for no longer.
const LEAVE_WITHIN: Duration = Duration::from_millis(500);
/// What is heard out and thrown away meanwhile: a download that nobody wanted has no end.
const THROWN_AWAY_MAX: usize = 1024 * 1024;

/// A connection that nobody waits for any more asks after its server so often. A host that has gone without a
/// word is found out within twice as long.
const QUIET_MAX: Duration = Duration::from_secs(30);

pub struct Line {
    stream: Stream,
    peer: SocketAddr,
    local: SocketAddr,
    /// How TLS is to be spoken, where it is.
    tls: Option<tls::Client>,
    /// Read, and not yet taken.
    heard: Vec<u8>,
    /// Bytes that may still be read.
    budget: usize,
    awaited: Awaited,
    goodbye: &'static [u8],
}

/// What is waited for, as in "no answer to PING within 1s".
#[derive(Clone)]
pub struct Awaited(Arc<Mutex<Cow<'static, str>>>);

impl Default for Awaited {
    fn default() -> Self {
        Awaited(Arc::new(Mutex::new("answer".into())))
    }
}

impl Awaited {
    pub fn word(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).to_string()
    }

    fn note(&self, what: impl Into<Cow<'static, str>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what.into();
    }
}

enum Stream {
    Plain(TcpStream),
    Tls {
        stream: Box<tls::TlsStream>,
        /// The server is who it must be.
        is_proven: bool,
    },
    /// Lost in a TLS handshake that came to no end.
    Gone,
}

/// Why a check is not passed.
#[derive(Debug)]
pub enum Fault {
    /// The server's; one clause.
    Theirs(String),
    /// Our own machine's, which says nothing of the server.
    Ours(String),
}

impl Fault {
    pub fn theirs(why: impl Into<String>) -> Self {
        Fault::Theirs(why.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Fault::Theirs(tls::said(error));
        }
        if is_ours(&error) { Fault::Ours(plain(&error)) } else { Fault::Theirs(plain(&error)) }
    }
}

impl From<Fault> for Found {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Theirs(why) => Found::Failed(why),
            Fault::Ours(why) => Found::Void(why),
        }
    }
}

impl Line {
    /// In clear, for now; see [`Line::secure`].
    pub async fn open(target: SocketAddr, tls: Option<&tls::Client>) -> Result<Line, Fault> {
        let stream = TcpStream::connect(target).await?;
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        // On loopback a connect to a free port of the ephemeral range can meet itself: TCP allows
        // both ends to be one socket. Nobody listens there.
        if local == peer {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        }
        let _ = stream.set_nodelay(true); // at worst the answer comes later
        Ok(Line {
            stream: Stream::Plain(stream),
            peer,
            local,
            tls: tls.cloned(),
            heard: Vec::new(),
            budget: HEARD_MAX,
            awaited: Awaited::default(),
            goodbye: b"",
        })
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether TLS is to be spoken.
    pub fn wants_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether what is said now is said within TLS, to whomever.
    pub fn speaks_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls { .. })
    }

    /// Whether a secret may be said in clear words: nobody listens in, and the server has proven
    /// who it is.
    pub fn is_private(&self) -> bool {
        matches!(self.stream, Stream::Tls { is_proven: true, .. })
    }

    /// From here on TLS, where it is wanted. Where it fails by a certificate alone, a check of MySQL
    /// can still take its leave within TLS: see [`Line::speaks_tls`].
    pub async fn secure(&mut self) -> Result<(), Fault> {
        let Some(tls) = &self.tls else { return Ok(()) };
        if !self.heard.is_empty() {
            // Whoever sits in between may have said it, to be taken for the server's own words.
            return Err(Fault::theirs("said more than was asked before TLS began"));
        }
        self.awaited.note("end of the TLS handshake");
        let Stream::Plain(stream) = mem::replace(&mut self.stream, Stream::Gone) else {
            return Err(Fault::theirs("speaks TLS already"));
        };
        match tls.shake_hands(stream).await {
            Ok(Shaken { stream, doubt }) => {
                let is_proven = tls.verifies() && doubt.is_none();
                self.stream = Stream::Tls { stream, is_proven };
                doubt.map_or(Ok(()), Err)
            }
            Err((fault, stream)) => {
                self.stream = Stream::Plain(stream);
                self.goodbye = b"";
                Err(fault)
            }
        }
    }

    /// What was waited for last, also while somebody else has the line.
    pub fn awaited(&self) -> Awaited {
        self.awaited.clone()
    }

    /// It may be waited on for hours, and must end when the other host has gone.
    pub fn outlives_its_time(&self) {
        if let Stream::Plain(stream) = &self.stream {
            let liveness = Liveness { keepalive: Some(QUIET_MAX), user_timeout: Some(2 * QUIET_MAX) };
            let _ = set_liveness(stream.as_fd(), liveness); // at worst it is held until its last bound
        }
    }

    /// What the server is to hear at the end, once it would understand it.
    pub fn will_say(&mut self, goodbye: &'static [u8]) {
        self.goodbye = goodbye;
    }

    pub async fn say(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        Ok(self.stream.write(bytes).await?)
    }

    /// Hears what `parse` finds; `what` is its name, such as "answer to PING".
    pub async fn hear<T>(
        &mut self,
        what: &'static str,
        parse: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Result<T, Fault> {
        self.awaited.note(what);
        loop {
            match parse(&self.heard) {
                Ok((value, used)) => {
                    self.heard.drain(..used);
                    return Ok(value);
                }
                Err(Halt::Malformed(why)) => return Err(Fault::theirs(why)),
                Err(Halt::NeedMore) if self.more().await? => {}
                Err(Halt::NeedMore) => {
                    return Err(Fault::theirs(format!("closed the connection, and sent no {what}")));
                }
            }
        }
    }

    /// Hears the next bytes, whatever they are; nothing at the end of the connection.
    pub async fn hear_some(&mut self, what: impl Into<Cow<'static, str>>) -> Result<Vec<u8>, Fault> {
        self.awaited.note(what);
        if self.heard.is_empty() {
            self.more().await?;
        }
        Ok(std::mem::take(&mut self.heard))
    }

    /// Reads once. `false`: the server has ended.
    async fn more(&mut self) -> Result<bool, Fault> {
        if self.budget == 0 {
            return Err(Fault::theirs(format!("sent more than {HEARD_MAX} bytes")));
        }
        let mut chunk = [0; READ_BYTES];
        let room = self.budget.min(READ_BYTES);
        let read = self.stream.read(&mut chunk[..room]).await?;
        self.budget -= read;
        self.heard.extend_from_slice(&chunk[..read]);
        Ok(read > 0)
    }

    /// Ends the connection in good order. How the server takes it does not matter.
    pub async fn leave(mut self) {
        let _ = timeout(LEAVE_WITHIN, self.hear_out()).await;
    }

    async fn hear_out(&mut self) -> io::Result<()> {
        self.stream.write(self.goodbye).await?;
        self.stream.shutdown().await?;
        let mut chunk = [0; READ_BYTES];
        let mut thrown_away = 0;
        while thrown_away < THROWN_AWAY_MAX {
            match self.stream.read(&mut chunk).await? {
                0 => break,
                read => thrown_away += read,
            }
        }
        Ok(())
    }
}

impl Stream {
    /// All of it, as far as the socket.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.write_all(bytes).await,
            Stream::Tls { stream, .. } => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Stream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// 0 at the end, with or without the goodbye of TLS: what was heard is judged for itself.
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.read(buffer).await,
            Stream::Tls { stream, .. } => match stream.read(buffer).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                read => read,
            },
            Stream::Gone => Ok(0),
        }
    }

    /// Ends our direction; in TLS with its goodbye.
    async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.shutdown().await,
            Stream::Tls { stream, .. } => stream.shutdown().await,
            Stream::Gone => Ok(()),
        }
    }
}

/// Errors of our own machine, which say nothing of the server: no descriptors, ports or memory.
fn is_ours(error: &io::Error) -> bool {
    const OURS: [i32; 5] = [libc::EMFILE, libc::ENFILE, libc::EADDRNOTAVAIL, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|errno| OURS.contains(&errno))
}

/// "connection refused" for "Connection refused (os error 111)".
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_shortages_are_not_the_servers_fault() {
        for errno in [libc::EMFILE, libc::EADDRNOTAVAIL] {
            assert!(is_ours(&io::Error::from_raw_os_error(errno)));
        }
        assert!(!is_ours(&io::Error::from_raw_os_error(libc::ECONNREFUSED)));
        assert_eq!(plain(&io::Error::from_raw_os_error(libc::EHOSTUNREACH)), "no route to host");
    }
}
