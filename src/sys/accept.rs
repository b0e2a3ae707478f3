//! accept4(2) that returns the peer's address with the socket: one call instead of three.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use socket2::{SockAddr, SockAddrStorage};

/// Takes one client from the queue of `listener`, non-blocking and close-on-exec.
///
/// # Errors
/// As accept4(2) gives them; `WouldBlock` when nobody waits.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut storage = SockAddrStorage::zeroed();
    let mut length = storage.size_of();
    // SAFETY: `storage` is valid for writes of `length` bytes, which is its own size, and both live
    // beyond the call. The kernel writes a socket address of at most that size and its length.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::from_mut(&mut storage).cast(),
            &raw mut length,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the kernel filled `storage` with an address of `length` bytes.
    let address = unsafe { SockAddr::new(storage, length) };
    match address.as_socket() {
        Some(peer) => Ok((socket, peer)),
        None => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    }
}
