//! Pipes between two sockets: bytes move inside the kernel and are never copied to us.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};

/// A non-blocking pipe.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// What the kernel granted, in bytes.
    size: usize,
}

impl Pipe {
    /// A pipe of `size` bytes, or of less where the kernel grants no more: above
    /// `fs.pipe-user-pages-soft` an unprivileged user gets one or two pages (pipe(7)).
    ///
    /// # Errors
    /// EMFILE and ENFILE when descriptors have run out.
    pub fn new(size: usize) -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let wanted = i32::try_from(size).unwrap_or(i32::MAX);
        let granted = match fcntl(&write, FcntlArg::F_SETPIPE_SZ(wanted)) {
            Ok(granted) => granted,
            Err(_) => fcntl(&write, FcntlArg::F_GETPIPE_SZ)?,
        };
        Ok(Pipe { read, write, size: usize::try_from(granted).unwrap_or(0) })
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Moves up to `most` bytes from a socket into the pipe; 0 is the end of its stream.
    /// `WouldBlock` comes from an empty socket and from a full pipe alike: only with an empty
    /// pipe does it prove that the socket is empty.
    pub fn fill_from(&self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        Ok(splice(socket, None, &self.write, None, most, flags())?)
    }

    /// Moves up to `most` bytes from the pipe into a socket.
    pub fn drain_into(&self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        Ok(splice(self.read.as_fd(), None, socket, None, most, flags())?)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}
