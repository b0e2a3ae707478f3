//! sock_diag(7): are clients on their way to a port whose handshake is not complete yet?
//!
//! Such a client has our answer and may think that it is connected, and no listener shows it. Any user may
//! ask. The answer costs a walk over all connections of this machine, and so is not for the daily round.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};

/// `struct nlmsghdr` of netlink(7).
const HEADER_BYTES: usize = 16;

/// The header and `struct inet_diag_req_v2`.
const REQUEST_BYTES: usize = HEADER_BYTES + 56;

/// A bit for the state of include/net/tcp_states.h.
const SYN_RECEIVED: u32 = 1 << 3;

/// The header and the number of an error, which is all that is looked at. The kernel cuts off the rest.
const ANSWER_BYTES: usize = HEADER_BYTES + 4;

/// The kind of both the question and the answer (linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// Whether somebody's handshake with that port is under way, at whichever of our addresses of its family.
///
/// # Errors
/// As netlink(7) gives them, where it is not to be had at all: in some containers and sandboxes.
pub fn are_under_way(to: SocketAddr) -> io::Result<bool> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.nonblocking(),
        Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    socket.send(&request(to))?;
    let mut answer = [0; ANSWER_BYTES];
    recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    judge(&answer)
}

/// All sockets of TCP in that state at that port, please.
fn request(to: SocketAddr) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(REQUEST_BYTES as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    put(HEADER_BYTES, &[family as u8, libc::IPPROTO_TCP as u8]);
    put(HEADER_BYTES + 4, &SYN_RECEIVED.to_ne_bytes());
    put(HEADER_BYTES + 8, &to.port().to_be_bytes());
    request
}

/// The first message of the answer is a socket, the end, or an error.
fn judge(answer: &[u8; ANSWER_BYTES]) -> io::Result<bool> {
    let number = |at: usize| i32::from_ne_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]]);
    match u16::from_ne_bytes([answer[4], answer[5]]) {
        SOCK_DIAG_BY_FAMILY => Ok(true),
        kind if i32::from(kind) == libc::NLMSG_DONE => Ok(false),
        kind if i32::from(kind) == libc::NLMSG_ERROR => {
            Err(io::Error::from_raw_os_error(-number(HEADER_BYTES)))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn who_is_connected_is_not_on_his_way_any_more() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let at = listener.local_addr().unwrap();
            let _queued = TcpStream::connect(at).unwrap();
            assert!(!are_under_way(at).unwrap());
        }
    }

    #[test]
    fn an_error_is_told_with_its_number() {
        let mut answer = [0; ANSWER_BYTES];
        answer[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        answer[HEADER_BYTES..].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(judge(&answer).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(judge(&[0; ANSWER_BYTES]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
