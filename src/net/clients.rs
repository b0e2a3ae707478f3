//! Takes clients from a listening socket, without waiting and without a call too many.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;

use super::sock::Sock;
use crate::sys::handshakes;
use crate::sys::socket::{self, Liveness};

/// Clients taken before other tasks and open connections get their turn.
const BATCH: u32 = 64;

/// A listening socket of this worker.
pub struct Listener {
    sock: Option<Sock>,
    /// Clients taken since the last wait.
    taken: Cell<u32>,
    /// New attempts are dropped, and who is taken now may have inherited what does that.
    is_last: Cell<bool>,
}

impl Listener {
    pub(super) fn new(sock: Sock) -> Self {
        Listener { sock: Some(sock), taken: Cell::new(0), is_last: Cell::new(false) }
    }

    /// Waits until a client may be waiting; every 64 clients it lets others have a turn.
    pub async fn ready(&self) {
        self.give_way().await;
        let sock = self.sock();
        poll_fn(|cx| sock.net().poll_acceptable(sock.slot(), cx)).await;
    }

    /// After 64 clients, lets others have a turn: for whoever takes clients without waiting for them.
    pub async fn give_way(&self) {
        if self.taken.get() >= BATCH {
            self.taken.set(0);
            yield_once().await;
        }
    }

    /// Takes one client, for [`Net::adopt`](super::Net::adopt) of this thread's loop or of another's;
    /// `None` when nobody waits after all.
    ///
    /// # Errors
    /// As accept4(2) gives them, except those that concern one client which is already gone;
    /// of these the last, when there is no end of them.
    pub fn accept(&self) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
        let sock = self.sock();
        let mut gone = 0;
        loop {
            match sock.net().accept(sock.slot()) {
                Ok((socket, peer)) => {
                    self.taken.set(self.taken.get() + 1);
                    if self.is_last.get() {
                        socket::let_hear(socket.as_fd())?;
                    }
                    return Ok(Some((socket, peer)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.taken.set(0);
                    return Ok(None);
                }
                // So many in a row are no accident of one client: the caller backs off.
                Err(error) if is_of_one_client(&error) && gone < BATCH => gone += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The address that we listen on.
    ///
    /// # Errors
    /// As getsockname(2) gives them.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.sock().local_address()
    }

    /// New liveness for clients to come.
    pub fn set_liveness(&self, liveness: Liveness) -> io::Result<()> {
        let sock = self.sock();
        sock.net().with(sock.slot(), |fd| socket::set_liveness(fd, liveness))
    }

    /// Lets in nobody new, while whoever is in the kernel's queue can still be accepted.
    pub fn drop_new_attempts(&self) -> io::Result<()> {
        let sock = self.sock();
        self.is_last.set(true);
        sock.net().with(sock.slot(), socket::drop_new_attempts)
    }

    /// Is somebody on the way to this address or another with its port, and not in the queue yet. `false` also
    /// where that cannot be known. For the end of a listener: the answer is a walk over all connections.
    pub fn has_handshakes_under_way(&self) -> bool {
        self.local_address().and_then(handshakes::are_under_way).unwrap_or(false)
    }

    fn sock(&self) -> &Sock {
        self.sock.as_ref().expect("a Listener holds its socket until it is dropped")
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(sock) = self.sock.take() {
            sock.close(); // a listener has no connection to reset
        }
    }
}

/// Errors that accept4(2) passes on from a connection that failed while it waited; and ENOTCONN, which
/// getpeername(2) says of a client that reset before io_uring's clients were asked for their address.
fn is_of_one_client(error: &io::Error) -> bool {
    use nix::libc::{
        ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, ENOTCONN,
        EOPNOTSUPP, EPERM, EPROTO, ETIMEDOUT,
    };
    let of_one_client = [
        ECONNABORTED,
        EHOSTDOWN,
        EHOSTUNREACH,
        EINTR,
        ENETDOWN,
        ENETUNREACH,
        ENONET,
        ENOPROTOOPT,
        ENOTCONN,
        EOPNOTSUPP,
        EPERM,
        EPROTO,
        ETIMEDOUT,
    ];
    error.raw_os_error().is_some_and(|number| of_one_client.contains(&number))
}

async fn yield_once() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if has_yielded {
            return Poll::Ready(());
        }
        has_yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
