//! Does io_uring work here? Asked once, at the start, by doing what a worker does.
//!
//! A kernel may be too old, io_uring may be switched off (`kernel.io_uring_disabled`) or denied by
//! a container's seccomp filter. Each of these says no in a way of its own; a connection that
//! goes through says yes. [`WhyNot`] is what an operator makes of a no.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use super::driver::{Driver, Loop, Net};
use super::relay::{Patience, Tally};
use super::sock::Sock;
use crate::sys::socket::{self, Liveness};

/// For the whole test; it needs a millisecond.
const LIMIT: Duration = Duration::from_secs(2);

/// # Errors
/// Why io_uring cannot be used here.
pub fn io_uring() -> io::Result<()> {
    Loop::new(Driver::IoUring, None)?.run(|net| async move {
        let tested = std::pin::pin!(one_connection(&net));
        net.within(LIMIT, tested).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    })
}

/// Sets nothing.
const LIVENESS: Liveness = Liveness { keepalive: None, user_timeout: None };

/// Two connections to ourselves, joined by a relay, and ended.
async fn one_connection(net: &Net) -> io::Result<()> {
    let ends = match connect_to_ourselves(net).await {
        Err(error) if has_no_port(&error) => connect_without_ports(net),
        connected => connected,
    };
    let [(near, left), (right, far)] = ends?;
    near.close();
    far.close();
    let patience = Patience { idle: Some(LIMIT), half_closed: Some(LIMIT), server: LIVENESS };
    net.relay(left, right, patience, Rc::new(Tally::default())).await;
    Ok(())
}

type Ends = [(Sock, Sock); 2];

async fn connect_to_ourselves(net: &Net) -> io::Result<Ends> {
    let listener = net.listen(socket::listen_shared((Ipv4Addr::LOCALHOST, 0).into(), LIVENESS)?)?;
    let at = listener.local_address()?;
    let mut ends = Vec::new();
    for _ in 0..2 {
        let dialled = net.dial(at).await?;
        let accepted = loop {
            listener.ready().await;
            if let Some((accepted, _)) = listener.accept()? {
                break net.adopt(accepted)?;
            }
        };
        ends.push((dialled, accepted));
    }
    <[_; 2]>::try_from(ends).map_err(|_| io::ErrorKind::Other.into())
}

/// All ports of this machine are in use, which says nothing of io_uring.
fn has_no_port(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// The same without a listener: less of what a worker does, and all that can be done.
fn connect_without_ports(net: &Net) -> io::Result<Ends> {
    let pair = || -> io::Result<_> {
        let (one, other) = UnixStream::pair()?;
        one.set_nonblocking(true)?;
        other.set_nonblocking(true)?;
        Ok((net.adopt(one.into())?, net.adopt(other.into())?))
    };
    Ok([pair()?, pair()?])
}

/// Why there is no io_uring here, as far as the error tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// By a container's filter, or by the system's setting.
    Denied,
    /// The kernel does not know it, or is made to say so.
    Missing,
    TooOld,
    NoMemory,
    NoDescriptors,
    /// It is there, and does not do what it should.
    Broken,
}

impl WhyNot {
    pub const ALL: &[Self] =
        &[Self::Denied, Self::Missing, Self::TooOld, Self::NoMemory, Self::NoDescriptors, Self::Broken];

    /// By the errors of io_uring_setup(2) and io_uring_register(2).
    pub fn of(error: &io::Error) -> Self {
        use nix::libc::{EACCES, EINVAL, EMFILE, ENFILE, ENOMEM, ENOSYS, EPERM};
        match error.raw_os_error() {
            Some(EPERM | EACCES) => Self::Denied,
            Some(ENOSYS) => Self::Missing,
            Some(EINVAL) => Self::TooOld,
            None if error.kind() == io::ErrorKind::Unsupported => Self::TooOld,
            Some(ENOMEM) => Self::NoMemory,
            Some(EMFILE | ENFILE) => Self::NoDescriptors,
            _ => Self::Broken,
        }
    }

    /// For metrics: one word of a frozen list.
    pub fn word(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Missing => "missing",
            Self::TooOld => "too_old",
            Self::NoMemory => "no_memory",
            Self::NoDescriptors => "no_descriptors",
            Self::Broken => "broken",
        }
    }

    /// The end of a sentence that begins with "io_uring".
    pub fn clause(self) -> &'static str {
        match self {
            Self::Denied => "is denied here",
            Self::Missing => "is not in this kernel, or is hidden from us",
            Self::TooOld => "of this kernel is too old",
            Self::NoMemory => "gets too little memory here",
            Self::NoDescriptors => "gets too few descriptors here",
            Self::Broken => "is here and does not work",
        }
    }

    /// What to do to have it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Denied => {
                "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile, \
                 and set `sysctl kernel.io_uring_disabled=0`"
            }
            Self::Missing => {
                "use Linux 6.1 or later with CONFIG_IO_URING, and allow io_uring_setup, io_uring_enter and \
                 io_uring_register in the container's seccomp profile"
            }
            Self::TooOld => "use Linux 6.1 or later",
            Self::NoMemory => {
                "raise the limit of locked memory by 256 KiB for each worker (LimitMEMLOCK= in the systemd \
                 unit, or `ulimit -l`), or the memory limit of the container"
            }
            Self::NoDescriptors => {
                "raise the limit of open files (LimitNOFILE= in the systemd unit, or `ulimit -n`)"
            }
            Self::Broken => "tell the makers of Tidegate, with the version of the kernel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let mut words: Vec<_> = WhyNot::ALL.iter().map(|why| why.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), WhyNot::ALL.len());
    }

    #[test]
    fn what_the_kernel_says_is_told_apart_and_anything_else_is_broken() {
        let of = |errno| WhyNot::of(&io::Error::from_raw_os_error(errno));
        assert_eq!(of(nix::libc::EPERM), WhyNot::Denied);
        assert_eq!(of(nix::libc::ENOSYS), WhyNot::Missing);
        assert_eq!(
            WhyNot::of(&io::Error::new(io::ErrorKind::Unsupported, "no operation 13")),
            WhyNot::TooOld
        );
        assert_eq!(WhyNot::of(&io::ErrorKind::TimedOut.into()), WhyNot::Broken);
        assert_eq!(of(nix::libc::ECONNRESET), WhyNot::Broken);
    }
}
