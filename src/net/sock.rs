//! A connected socket outside a relay: waited for, or closed.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::driver::Net;
use crate::sys::socket;

/// A socket that this thread's loop watches. Dropping it resets the connection: whoever has
/// nothing more to say on purpose calls [`Sock::close`].
pub struct Sock {
    net: Net,
    /// `None` once it has been moved on.
    slot: Option<u32>,
}

impl Sock {
    pub(super) fn new(net: Net, slot: usize) -> Self {
        Sock { net, slot: Some(u32::try_from(slot).expect("descriptors are fewer than 2^32")) }
    }

    /// Ends when the peer has reset the connection or both sides have closed it. A peer that
    /// only ended its own direction may still be waiting for an answer.
    pub async fn hung_up(&self) -> io::Error {
        poll_fn(|cx| self.net.poll_broken(self.slot(), cx)).await;
        let pending = self.net.with(self.slot(), socket::outcome);
        pending.err().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
    }

    /// Ends when the peer has said something, which stays to be read, or has ended its direction without a
    /// word (`false`).
    ///
    /// # Errors
    /// As recv(2) gives them, when the peer has reset or vanished.
    pub async fn has_spoken(&self) -> io::Result<bool> {
        loop {
            poll_fn(|cx| self.net.poll_readable(self.slot(), cx)).await;
            match self.net.peek(self.slot()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {} // woken in vain
                peeked => return peeked.map(|length| length > 0),
            }
        }
    }

    /// The address on our side.
    ///
    /// # Errors
    /// As getsockname(2) gives them.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.net.with(self.slot(), socket::local_address)
    }

    /// Closes cleanly. What was sent before is still delivered.
    pub fn close(mut self) {
        if let Some(slot) = self.slot.take() {
            drop(self.net.unwatch(slot as usize));
        }
    }

    /// Closes with a reset. The same as dropping, said aloud.
    pub fn reset(self) {
        drop(self);
    }

    pub(super) fn net(&self) -> &Net {
        &self.net
    }

    pub(super) fn slot(&self) -> usize {
        self.slot.expect("a Sock is used until it is moved on") as usize
    }

    pub(super) fn into_slot(mut self) -> usize {
        self.slot.take().expect("a Sock is moved on once") as usize
    }
}

impl Drop for Sock {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            socket::reset(self.net.unwatch(slot as usize));
        }
    }
}

/// A socket, and what is known of it.
pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    pub(super) ready: Ready,
}

/// What the kernel has said of a socket and no system call has disproved since.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ready {
    pub(super) to_read: bool,
    pub(super) to_write: bool,
    /// The peer has ended its direction: a short read no longer means that all is read.
    pub(super) is_read_closed: bool,
    /// Reset, or closed in both directions.
    pub(super) is_broken: bool,
    /// Urgent data may cut a read short at its mark: a short read means nothing.
    pub(super) has_urgent: bool,
}
