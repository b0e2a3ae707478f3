//! The server side: an echo on some ports, an endless stream on others.
//!
//! It keeps no state per connection: what epoll reports is the number of the socket and what it
//! is for, and that is enough to answer. Each thread has ports of its own, so connections that
//! are spread over the ports are spread over the threads.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::Duration;

use crate::sys::{self, Poll, READ, WRITE};

/// Larger than any message of the scenarios, so that each is answered in one piece.
const ECHO_BYTES: usize = 64 << 10;

/// One write of the stream: in the cache, and large enough that system calls do not count.
const BULK_BYTES: usize = 256 << 10;

/// What the stream consists of.
pub const STREAM_BYTE: u8 = 0x5a;

/// Clients accepted in a row, so that those who are connected are not kept waiting.
const ACCEPTS_IN_A_ROW: usize = 16;

/// The ports of a thread, alternating: the first ports echo, the same number of ports after them
/// streams. Thread `n` of `threads` has every port whose index is `n` modulo `threads`.
pub struct Ports {
    pub first_echo: u16,
    pub first_bulk: u16,
    pub count: u16,
}

/// What a reported socket is for; the upper half of its token.
#[derive(Clone, Copy)]
enum Role {
    EchoListener,
    BulkListener,
    Echo,
    Bulk,
}

/// Serves until the process is ended. Prints one line when all ports accept.
pub fn run(address: Ipv4Addr, ports: &Ports, threads: usize) -> io::Result<()> {
    let mut servers: Vec<Server> = (0..threads).map(|_| Server::new()).collect::<io::Result<_>>()?;
    for index in 0..ports.count {
        let server = &mut servers[usize::from(index) % threads];
        server.listen(SocketAddrV4::new(address, ports.first_echo + index), Role::EchoListener)?;
        server.listen(SocketAddrV4::new(address, ports.first_bulk + index), Role::BulkListener)?;
    }
    println!("ready");
    let threads: Vec<_> = servers.into_iter().map(|server| thread::spawn(move || server.run())).collect();
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a thread of the server panicked"))??;
    }
    Ok(())
}

struct Server {
    poll: Poll,
    listeners: Vec<OwnedFd>, // held open; used by number
    echo: Vec<u8>,
    bulk: Vec<u8>,
}

impl Server {
    fn new() -> io::Result<Self> {
        let (echo, bulk) = (vec![0; ECHO_BYTES], vec![STREAM_BYTE; BULK_BYTES]);
        Ok(Server { poll: Poll::new()?, listeners: Vec::new(), echo, bulk })
    }

    fn listen(&mut self, at: SocketAddrV4, role: Role) -> io::Result<()> {
        let listener = sys::listen(at)?;
        self.poll.add(listener.as_raw_fd(), token(role, listener.as_raw_fd()), READ)?;
        self.listeners.push(listener);
        Ok(())
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            for index in 0..self.poll.wait(Duration::from_secs(3600))? {
                let (role, fd) = parted(self.poll.token(index));
                match role {
                    Role::EchoListener => self.accept(fd, Role::Echo, READ),
                    Role::BulkListener => self.accept(fd, Role::Bulk, WRITE),
                    Role::Echo => self.echo(fd),
                    Role::Bulk => self.stream(fd),
                }
            }
        }
    }

    /// What cannot be accepted or watched is dropped, and the client counts it as an error.
    fn accept(&mut self, listener: RawFd, role: Role, interest: u32) {
        for _ in 0..ACCEPTS_IN_A_ROW {
            let Ok(client) = sys::accept(listener) else { return };
            let number = client.as_raw_fd();
            if self.poll.add(number, token(role, number), interest).is_ok() {
                let _ = client.into_raw_fd(); // from here on its number in epoll holds it
            }
        }
    }

    fn echo(&mut self, fd: RawFd) {
        let got = match sys::receive(fd, &mut self.echo) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) | Ok(0) => return sys::close(fd),
            Ok(got) => got,
        };
        // A client that takes no answers is not one of ours: no queue for it.
        if !sys::send(fd, &self.echo[..got]).is_ok_and(|sent| sent == got) {
            sys::close(fd);
        }
    }

    fn stream(&mut self, fd: RawFd) {
        match sys::send(fd, &self.bulk) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => sys::close(fd),
            _ => {}
        }
    }
}

fn token(role: Role, fd: RawFd) -> u64 {
    (role as u64) << 32 | u64::from(fd.unsigned_abs())
}

fn parted(token: u64) -> (Role, RawFd) {
    let role = match token >> 32 {
        0 => Role::EchoListener,
        1 => Role::BulkListener,
        2 => Role::Echo,
        _ => Role::Bulk,
    };
    (role, (token as u32).cast_signed())
}
