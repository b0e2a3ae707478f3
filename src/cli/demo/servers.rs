//! The sample servers: each answers a line with its name and the line.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::sys::socket;

/// How long handshakes that are under way get to arrive before a listener is closed.
const LAST_ARRIVALS: Duration = Duration::from_millis(20);

/// A client of the demo is served within this, or something is very wrong.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct SampleServer {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SampleServer {
    pub(super) fn start(name: &'static str) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let mut server = SampleServer { name, address, is_stopped: Arc::default(), thread: None };
        server.serve(listener);
        Ok(server)
    }

    /// Stops listening. Connections that it has taken are served to their end.
    pub(super) fn stop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address); // so that accept(2) returns and sees the flag
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    pub(super) fn restart(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address)?;
        self.is_stopped.store(false, Ordering::Release);
        self.serve(listener);
        Ok(())
    }

    fn serve(&mut self, listener: TcpListener) {
        let (name, is_stopped) = (self.name, Arc::clone(&self.is_stopped));
        self.thread = Some(thread::spawn(move || accept_until(&listener, name, &is_stopped)));
    }
}

/// Serves one client after the other, each on a thread of its own; after the stop it serves
/// those who are queued and then closes the listener, so that nobody is reset.
fn accept_until(listener: &TcpListener, name: &'static str, is_stopped: &AtomicBool) {
    while !is_stopped.load(Ordering::Acquire) {
        if let Ok((client, _)) = listener.accept() {
            thread::spawn(move || answer(client, name));
        }
    }
    // Closing a listener resets whoever is queued, so the queue is closed first and emptied then.
    if socket::drop_new_attempts(listener.as_fd()).and_then(|()| listener.set_nonblocking(true)).is_ok() {
        for pause in [LAST_ARRIVALS, Duration::ZERO] {
            while let Ok((client, _)) = listener.accept() {
                thread::spawn(move || {
                    socket::let_hear(client.as_fd()).and_then(|()| client.set_nonblocking(false))?;
                    answer(client, name)
                });
            }
            thread::sleep(pause);
        }
    }
}

fn answer(client: TcpStream, name: &str) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line)?;
    (&client).write_all(format!("{name} heard {line}").as_bytes())
}
