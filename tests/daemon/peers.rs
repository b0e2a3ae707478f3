//! Scripted servers and clients.
//!
//! A `Greeter` says its name on one line and then sends back whatever it gets, so that a client
//! knows who serves it and that bytes pass in both directions.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::support::{PATIENCE, free_port, listen};

/// How long handshakes under way get to arrive before a listener is shut. Nothing tells when
/// the last one has: loopback needs microseconds.
const LAST_ARRIVALS: std::time::Duration = std::time::Duration::from_millis(10);

/// A server that greets and echoes.
pub struct Greeter {
    pub name: &'static str,
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    taken: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
    streams: Mutex<Vec<Arc<TcpStream>>>,
}

impl Greeter {
    pub fn start(name: &'static str) -> Greeter {
        Greeter::at(name, (Ipv4Addr::LOCALHOST, free_port()).into())
    }

    /// At a given address: also one where a server has been before.
    pub fn at(name: &'static str, address: SocketAddr) -> Greeter {
        let listener = Arc::new(listen(address));
        let shared = Arc::new(Shared::default());
        let thread = thread::spawn({
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
            move || accept(&listener, name, &shared)
        });
        Greeter { name, address, shared, listener, thread: Some(thread) }
    }

    /// Connections that it has taken.
    pub fn taken(&self) -> usize {
        self.shared.taken.load(Ordering::SeqCst)
    }

    /// The most connections that it had at one moment.
    pub fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }

    /// Its line of the configuration.
    pub fn toml(&self) -> String {
        named(self.name, self.address)
    }

    /// Dies as a killed process does: refuses from now on, and resets what is open.
    pub fn die(&mut self) {
        self.stop_listening();
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = socket2::SockRef::from(&*stream).set_linger(Some(std::time::Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Read); // wakes its thread, which drops the socket
        }
    }

    /// Refuses new connections; those that it has go on, and those that are queued are served.
    pub fn stop_listening(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = tidegate::sys::socket::drop_new_attempts(self.listener.as_fd());
            thread::sleep(LAST_ARRIVALS);
            let _ = socket2::SockRef::from(&*self.listener).shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.die();
    }
}

fn accept(listener: &TcpListener, name: &'static str, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        shared.taken.fetch_add(1, Ordering::SeqCst);
        let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_open.fetch_max(open, Ordering::SeqCst);
        let _ = tidegate::sys::socket::let_hear(stream.as_fd()); // it may have come while new ones were dropped
        let stream = Arc::new(stream);
        shared.streams.lock().unwrap().push(Arc::clone(&stream));
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let _ = greet_and_echo(&stream, name);
            shared.streams.lock().unwrap().retain(|other| !Arc::ptr_eq(other, &stream));
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn greet_and_echo(mut stream: &TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    writeln!(stream, "{name}")?;
    let mut chunk = [0; 16 * 1024];
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            read => stream.write_all(&chunk[..read])?,
        }
    }
}

/// A client that has been greeted.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
    /// The server that serves it.
    pub server: String,
}

impl Client {
    /// Connects and waits for the greeting.
    pub fn connect(to: SocketAddr) -> io::Result<Client> {
        Client::greeted_on(TcpStream::connect(to)?)
    }

    /// The same from one of the many addresses of loopback.
    pub fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<Client> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.connect(&to.into())?;
        Client::greeted_on(socket.into())
    }

    /// Waits for the greeting on a stream that stands.
    pub fn greeted_on(stream: TcpStream) -> io::Result<Client> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut client = Client { reader: BufReader::new(stream), server: String::new() };
        let mut line = String::new();
        if client.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        client.server = line.trim_end().to_owned();
        Ok(client)
    }

    /// Says something and hears it back.
    pub fn echo(&mut self, said: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(said)?;
        let mut heard = vec![0; said.len()];
        self.reader.read_exact(&mut heard)?;
        assert_eq!(heard, said, "an echo is what was said");
        Ok(())
    }

    /// Leaves in good order and hears the server's end.
    pub fn leave(mut self) -> io::Result<()> {
        self.reader.get_mut().shutdown(Shutdown::Write)?;
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest)?;
        assert!(rest.is_empty(), "the server had nothing more to say");
        Ok(())
    }

    /// The error, or the end of the stream, that comes without having asked for it.
    pub fn farewell(&mut self) -> io::Result<usize> {
        self.reader.read(&mut [0; 1])
    }
}

/// A server that takes each client and resets it without a word.
pub struct Slammer {
    pub address: SocketAddr,
    taken: Arc<AtomicUsize>,
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Slammer {
    pub fn start() -> Slammer {
        let address = (Ipv4Addr::LOCALHOST, free_port()).into();
        let (listener, taken) = (Arc::new(listen(address)), Arc::<AtomicUsize>::default());
        let thread = thread::spawn({
            let (listener, taken) = (Arc::clone(&listener), Arc::clone(&taken));
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    taken.fetch_add(1, Ordering::SeqCst);
                    let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
                }
            }
        });
        Slammer { address, taken, listener, thread: Some(thread) }
    }

    /// Clients that it has reset.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }
}

impl Drop for Slammer {
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A listener whose queue is full: the kernel drops what comes, as a dead host does.
pub struct BlackHole {
    pub address: SocketAddr,
    listener: socket2::Socket,
    fillers: Vec<TcpStream>,
}

impl BlackHole {
    pub fn start() -> BlackHole {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.set_reuse_address(true).unwrap(); // an older test may have left connections in TIME_WAIT
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let patience = std::time::Duration::from_millis(200);
        let mut fillers = Vec::new();
        loop {
            match TcpStream::connect_timeout(&address, patience) {
                Ok(filler) => fillers.push(filler),
                Err(_) if fillers.is_empty() => {} // a busy machine, and not a full queue
                Err(_) => break,
            }
        }
        BlackHole { address, listener, fillers }
    }

    /// Takes what fills its queue. A handshake that was dropped comes again, and the kernel completes it.
    pub fn wake(&self) {
        self.fillers.iter().for_each(|_| _ = self.listener.accept().expect("a filler"));
    }
}

/// The server that serves a client who says a word and leaves.
#[track_caller]
pub fn served_by(front: SocketAddr) -> String {
    let mut client = Client::connect(front).unwrap();
    client.echo(b"hello").unwrap();
    let server = client.server.clone();
    client.leave().unwrap();
    server
}

/// A server's line of the configuration.
pub fn named(name: &str, address: SocketAddr) -> String {
    format!("{{ name = \"{name}\", address = \"{address}\" }}")
}

/// The same of a server that refuses everybody.
pub fn dead(name: &str) -> String {
    named(name, nobody())
}

/// An address of loopback where nobody listens.
pub fn nobody() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

/// A listener `l` at a free port and a pool `p` of these servers. `listener` and `pool` are
/// lines for their tables.
pub fn config(servers: &[String], listener: &str, pool: &str) -> (String, SocketAddr) {
    let front = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    (config_at(front, servers, listener, pool), front)
}

/// The same at a known address, for a reload.
pub fn config_at(front: SocketAddr, servers: &[String], listener: &str, pool: &str) -> String {
    let servers = servers.join(", ");
    format!(
        "[listener.l]\nbind = [\"{front}\"]\npool = \"p\"\n{listener}\n\n\
         [pool.p]\nservers = [{servers}]\n{pool}\n"
    )
}
