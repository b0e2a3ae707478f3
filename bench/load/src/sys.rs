//! The kernel as the load needs it: epoll, sockets that never wait, bytes that are thrown away.
//!
//! All unsafe code is here, behind safe functions; nothing is allocated after a socket is made.
//! Own and small, because every cycle that the load takes is one that the proxy under test on
//! the same cores does not get.
#![allow(unsafe_code)] // the one place: each block says which invariant it rests on

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;
use std::time::Duration;

/// What an epoll instance reports.
pub const READ: u32 = libc::EPOLLIN as u32;
pub const WRITE: u32 = libc::EPOLLOUT as u32;

/// Events taken per wait: the 64 connections of most scenarios at once.
const EVENTS_PER_WAIT: usize = 128;

/// As the kernel takes it when it is to stay as it is: the socket's own queue, up to `somaxconn`.
const BACKLOG: libc::c_int = 65_535;

/// A level-triggered epoll instance and the room for what it reports.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointer is passed; the descriptor is new, and nobody else knows it.
        let epoll = unsafe { owned(libc::epoll_create1(libc::EPOLL_CLOEXEC))? };
        Ok(Poll { epoll, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_PER_WAIT] })
    }

    /// Watches `fd` until it is closed.
    pub fn add(&self, fd: RawFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    pub fn modify(&self, fd: RawFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    fn control(&self, what: libc::c_int, fd: RawFd, token: u64, interest: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token };
        // SAFETY: `event` lives across the call, which only reads it.
        done(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), what, fd, &raw mut event) }).map(drop)
    }

    /// Waits for at most `timeout` (to the nanosecond, as far as the thread's timer slack lets it);
    /// returns how many events can be read with [`Poll::token`].
    pub fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        let limit = libc::timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: `events` has room for EVENTS_PER_WAIT entries, `limit` lives across the call, and
        // the signal mask may be null. glibc older than 2.35 has no wrapper, so it is called by number.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_PER_WAIT,
                &raw const limit,
                null::<libc::sigset_t>(),
                0usize,
            )
        };
        match count {
            0.. => Ok(count.unsigned_abs() as usize),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            },
        }
    }

    pub fn token(&self, index: usize) -> u64 {
        self.events[index].u64
    }
}

/// Begins to connect. The source port is chosen together with the destination
/// (`IP_BIND_ADDRESS_NO_PORT`), so that one source port serves many destinations.
pub fn connect(from: SocketAddrV4, to: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = tcp_socket()?;
    set(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
    let (from, to) = (raw(from), raw(to));
    // SAFETY: both addresses are valid sockaddr_in of the length given, and live across the calls.
    unsafe {
        done(libc::bind(socket.as_raw_fd(), (&raw const from).cast(), ADDRESS_BYTES))?;
        match done(libc::connect(socket.as_raw_fd(), (&raw const to).cast(), ADDRESS_BYTES)) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    }
}

pub fn listen(at: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = tcp_socket()?;
    set(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    set_no_delay(&socket)?; // inherited by what is accepted
    let at = raw(at);
    // SAFETY: the address is a valid sockaddr_in of the length given, and lives across the call.
    done(unsafe { libc::bind(socket.as_raw_fd(), (&raw const at).cast(), ADDRESS_BYTES) })?;
    // SAFETY: no pointer is passed.
    done(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// Takes one client, non-blocking.
pub fn accept(listener: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel takes null where the address is not wanted; the descriptor is new.
    unsafe { owned(libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags)) }
}

pub fn set_no_delay(socket: &OwnedFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY)
}

/// Sends without raising SIGPIPE.
pub fn send(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is readable for its length.
    size(unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) })
}

pub fn receive(socket: RawFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `into` is writable for its length.
    size(unsafe { libc::recv(socket, into.as_mut_ptr().cast(), into.len(), 0) })
}

/// Receives up to `most` bytes without copying them anywhere: `MSG_TRUNC` on TCP, see tcp(7).
pub fn discard(socket: RawFd, most: usize) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC the kernel writes nothing, so null is as good as a buffer.
    size(unsafe { libc::recv(socket, std::ptr::null_mut(), most, libc::MSG_TRUNC) })
}

/// Sends the end of this direction (FIN) behind all that was sent.
pub fn end_sending(socket: RawFd) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    done(unsafe { libc::shutdown(socket, libc::SHUT_WR) }).map(drop)
}

/// Closes a connection whose number is all that the caller kept.
pub fn close(fd: RawFd) {
    // SAFETY: the callers keep no `OwnedFd` of the same number: see `serve`.
    unsafe { libc::close(fd) };
}

/// Raises the limit on open files as far as it goes.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives across both calls.
    unsafe {
        done(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        done(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))?;
    }
    Ok(limit.rlim_max)
}

/// Lets the calling thread wake when it asked to, not up to 50 µs later (prctl(2)).
pub fn wake_in_time() -> io::Result<()> {
    // SAFETY: no pointer is passed.
    done(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) }).map(drop)
}

/// Ends this process when the one that started it ends.
pub fn end_with_parent() -> io::Result<()> {
    // SAFETY: no pointer is passed.
    done(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// Ticks per second of the times in `/proc/PID/stat` and `/proc/stat`.
pub fn ticks_per_second() -> f64 {
    // SAFETY: no pointer is passed.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

fn raw(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn tcp_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointer is passed; the descriptor is new, and nobody else knows it.
    unsafe { owned(libc::socket(libc::AF_INET, kind, 0)) }
}

fn set(socket: &OwnedFd, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `on` is readable for `length` bytes and lives across the call.
    done(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), length) })
        .map(drop)
}

fn done(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// # Safety
/// A `result` that is not negative is a descriptor that nobody else holds.
unsafe fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    done(result)?;
    // SAFETY: as the caller promises.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}
