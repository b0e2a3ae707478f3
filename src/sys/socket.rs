//! Options of the sockets that we listen on and dial with.
//!
//! Whatever an accepted socket needs is set on its listener and inherited (tcp(7)): it costs
//! nothing per connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};

/// Clients that the kernel may hold for us; it takes the smaller of this and `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// How a dead peer is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Silence before the first keepalive probe; `None` sends none.
    pub keepalive: Option<Duration>,
    /// How long sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}

/// A listening socket that others may share the address with (`SO_REUSEPORT`), for one worker.
///
/// # Errors
/// As socket(2), bind(2) and listen(2) give them.
pub fn listen_shared(at: SocketAddr, liveness: Liveness) -> io::Result<OwnedFd> {
    let socket = bound(at, true)?;
    socket.set_tcp_nodelay(true)?;
    set_liveness(socket.as_fd(), liveness)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Tells whether nobody listens at `at` yet. `SO_REUSEPORT` would let a second instance in
/// silently and give it a share of the clients.
///
/// # Errors
/// `AddrInUse` when somebody does; otherwise as bind(2) gives them.
pub fn probe_free(at: SocketAddr) -> io::Result<()> {
    bound(at, false).map(drop)
}

fn bound(at: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = tcp(at)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?; // so that `0.0.0.0` and `[::]` can stand side by side
    }
    socket.set_reuse_address(true)?; // connections in TIME_WAIT must not keep us from starting
    if is_shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&at.into())?;
    Ok(socket)
}

/// A socket to connect to `to` with. How it finds out a dead peer is left to [`set_liveness`]: most
/// connections end long before it would matter, and do not pay for it.
///
/// # Errors
/// As socket(2) gives them.
pub fn outgoing(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = tcp(to)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Sends a socket on its way. It becomes writable when the connection stands or has failed;
/// [`outcome`] says which.
///
/// # Errors
/// As connect(2) gives them, except EINPROGRESS, which is the usual success.
pub fn connect(socket: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// The address of the other side.
pub fn peer_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let address = SockRef::from(&socket).peer_addr()?;
    address.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

fn tcp(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// How a connection finds out that its peer is dead, or a listener's future clients do.
///
/// # Errors
/// As setsockopt(2) gives them.
pub fn set_liveness(socket: BorrowedFd<'_>, liveness: Liveness) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    match liveness.keepalive {
        Some(silence) => {
            // Three probes at a third of the silence each: a dead peer is found within twice `silence`.
            let pause = (silence / 3).max(Duration::from_secs(1));
            let keepalive = TcpKeepalive::new().with_time(silence).with_interval(pause).with_retries(3);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        None => socket.set_keepalive(false)?,
    }
    socket.set_tcp_user_timeout(liveness.user_timeout)
}

/// How a dial ended, once its socket is writable.
pub fn outcome(socket: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&socket).take_error()?.map_or(Ok(()), Err)
}

/// Reads what is there, up to the buffer's length; 0 is the end of the stream.
///
/// # Errors
/// As recv(2) gives them; `WouldBlock` when nothing is there.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), into, MsgFlags::empty())?)
}

/// Looks whether a byte is there and leaves it: 1, or 0 at the end of the stream.
///
/// # Errors
/// As recv(2) gives them; `WouldBlock` when nothing is there.
pub fn peek(socket: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK)?)
}

/// Bytes that are there to be read, up to an urgent mark; 0 also where that cannot be known.
pub fn unread(socket: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int (tcp(7), SIOCINQ), and `bytes` outlives the call. The descriptor is
    // borrowed, so that it is open.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if answer == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Sends as much as the kernel takes.
///
/// # Errors
/// As send(2) gives them; `WouldBlock` when the kernel takes nothing.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(nix::sys::socket::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
}

/// Closes with a reset instead of a clean end: the peer learns that something is missing.
pub fn reset(socket: OwnedFd) {
    reset_on_close(socket.as_fd());
    drop(socket);
}

/// Whenever this socket is closed, it will be with a reset.
pub fn reset_on_close(socket: BorrowedFd<'_>) {
    // A socket that cannot linger is not connected any more, and closing it is all there is to do.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Tells whether an urgent byte waits to be read or passed (tcp(7), RFC 6093).
pub fn has_urgent(socket: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::new(socket, PollFlags::POLLPRI)];
    let is_answered = poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
    is_answered && asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLPRI))
}

/// Says that nothing more will be sent.
pub fn finish(socket: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&socket).shutdown(std::net::Shutdown::Write)
}

/// The address on our side.
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let address = SockRef::from(&socket).local_addr()?;
    address.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// Lets the kernel drop new connection attempts at a listener, while those under way still
/// arrive: what is queued can then be accepted to the last one before the listener is closed.
/// A dropped attempt is repeated by its client after a second. Clients that are accepted from then on
/// are deaf, perhaps, until [`let_hear`].
///
/// # Errors
/// As setsockopt(2) gives them.
pub fn drop_new_attempts(listener: BorrowedFd<'_>) -> io::Result<()> {
    match drop_by_flag(listener) {
        // Kernels there are (6.18 is one) where TCP takes a filter from nobody but CAP_NET_ADMIN.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => drop_by_distance(listener, FARTHEST),
        done => done,
    }
}

/// Whoever was accepted after [`drop_new_attempts`] has inherited from its listener what makes that deaf.
pub fn let_hear(client: BorrowedFd<'_>) -> io::Result<()> {
    drop_by_distance(client, 0)
}

fn drop_by_flag(listener: BorrowedFd<'_>) -> io::Result<()> {
    const FLAGS_AT: u32 = 13; // the byte of the TCP header that holds the flags (RFC 9293, 3.1)
    const SYN: u32 = 0x02;
    let instruction = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    SockRef::from(&listener.as_fd()).attach_filter(&[
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS_AT),
        instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, SYN),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ])
}

/// As many hops as a packet may have to go when it comes: only a neighbour's that began with all of them has.
const FARTHEST: libc::c_int = 255;

/// Drops what comes with fewer hops to go than that (`IP_MINTTL` in ip(7)). On a listener that is new attempts:
/// the end of a handshake is for its own socket, which does not exist yet and asks nothing.
fn drop_by_distance(socket: BorrowedFd<'_>, least: libc::c_int) -> io::Result<()> {
    let (level, name) = match SockRef::from(&socket).domain()? {
        Domain::IPV6 => (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
        _ => (libc::IPPROTO_IP, libc::IP_MINTTL),
    };
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes at `least`, which is of that size and lives beyond the call.
    let outcome =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const least).cast(), size) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    const QUIET: Liveness = Liveness { keepalive: None, user_timeout: None };

    #[test]
    fn an_address_in_use_is_not_free_although_it_could_be_shared() {
        let any = "127.0.0.1:0".parse().unwrap();
        let first = listen_shared(any, QUIET).unwrap();
        let at = local_address(first.as_fd()).unwrap();
        assert!(listen_shared(at, QUIET).is_ok());
        assert_eq!(probe_free(at).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
    }

    #[test]
    fn what_was_queued_before_new_attempts_are_dropped_can_still_be_accepted() {
        let ways = [drop_new_attempts, |listener: BorrowedFd<'_>| drop_by_distance(listener, FARTHEST)];
        for (way, at) in ways.into_iter().flat_map(|way| [(way, "127.0.0.1:0"), (way, "[::1]:0")]) {
            let listener = TcpListener::bind(at).unwrap();
            let at = listener.local_addr().unwrap();
            let early = TcpStream::connect(at).unwrap();
            way(listener.as_fd()).unwrap();
            let late = TcpStream::connect_timeout(&at, Duration::from_millis(100));
            assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(listener.accept().unwrap().1, early.local_addr().unwrap());
        }
    }

    #[test]
    fn who_has_inherited_deafness_hears_what_was_said_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut taken = listener.accept().unwrap().0;
        drop_by_distance(taken.as_fd(), FARTHEST).unwrap();
        client.write_all(b"anybody there?").unwrap();
        taken.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert_eq!(taken.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        taken.set_read_timeout(None).unwrap();
        let_hear(taken.as_fd()).unwrap();
        taken.read_exact(&mut [0; 14]).unwrap();
    }
}
