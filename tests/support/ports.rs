//! Ports that nobody else takes while a test runs.
//!
//! A listener binds the port that its file names, so a test must know a free one before. Asking
//! the kernel for any port and closing it again leaves a gap in which an outgoing connection
//! of another test can get it: there are tens of thousands of those here. So ports come from
//! below the range of outgoing connections, and each is claimed for the life of this process
//! by a UDP socket of the same number, which TCP does not mind.

use std::net::{Ipv4Addr, TcpListener, ToSocketAddrs, UdpSocket};
use std::sync::{Mutex, PoisonError};

use socket2::SockRef;

/// Below Linux's default `ip_local_port_range` (32768-60999), above well-known servers.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// Connections that may wait for a test's server to take them. The standard library asks for 128,
/// and when hundreds come at once on a busy machine, the kernel drops the rest of the SYNs: they
/// are sent again after 1 and 3 seconds, which is beyond the default `connect_timeout`.
const BACKLOG: i32 = 4096;

/// The claims of this process, and where to look for the next.
static CLAIMS: Mutex<Claims> = Mutex::new(Claims { held: Vec::new(), next: 0 });

struct Claims {
    held: Vec<UdpSocket>,
    next: u16,
}

/// A TCP port that is free on all IPv4 loopback addresses, and stays ours until the process ends.
pub fn free_port() -> u16 {
    let mut claims = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
    // Processes begin at different places, so that they seldom meet.
    if claims.next == 0 {
        claims.next = RANGE.start + (std::process::id() * 97 % RANGE.len() as u32) as u16;
    }
    for _ in RANGE {
        let port = claims.next;
        claims.next = if port + 1 == RANGE.end { RANGE.start } else { port + 1 };
        let Ok(claim) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            claims.held.push(claim);
            return port;
        }
    }
    panic!("no free port in {RANGE:?}");
}

/// A listening socket for a test's server, on which no crowd of clients is too much.
#[track_caller]
pub fn listen(at: impl ToSocketAddrs) -> TcpListener {
    let listener = TcpListener::bind(at).expect("a free address");
    SockRef::from(&listener).listen(BACKLOG).expect("a longer queue");
    listener
}

/// Several at once: `let [web, db] = free_ports();`
pub fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| free_port())
}
