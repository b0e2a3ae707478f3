//! The clients: each connects, asks, checks the answer to the last byte, closes, and begins again.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A pause between two connections of a client: the demo is to be watched, not to heat a room.
const PAUSE: Duration = Duration::from_millis(4);

/// No answer within this is an error.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Clients {
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    done: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
    is_stopped: AtomicBool,
}

impl Clients {
    pub(super) fn start(front: SocketAddr, count: usize) -> Self {
        let seen = Arc::new(Seen::default());
        let threads = (0..count)
            .map(|number| {
                let seen = Arc::clone(&seen);
                thread::spawn(move || seen.ask_over_and_over(front, number))
            })
            .collect();
        Clients { seen, threads }
    }

    pub(super) fn done(&self) -> u64 {
        self.seen.done.load(Ordering::Relaxed)
    }

    pub(super) fn errors(&self) -> u64 {
        self.seen.errors.load(Ordering::Relaxed)
    }

    pub(super) fn first_error(&self) -> Option<String> {
        self.seen.first_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets each client finish what it is at; connections made and errors seen.
    pub(super) fn stop(&mut self) -> (u64, u64) {
        self.seen.is_stopped.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.seen.note(&io::Error::other("a client panicked"));
            }
        }
        (self.done(), self.errors())
    }
}

impl Seen {
    fn ask_over_and_over(&self, front: SocketAddr, number: usize) {
        let mut round = 0_u64;
        while !self.is_stopped.load(Ordering::Acquire) {
            round += 1;
            match ask(front, &format!("client {number}, question {round}\n")) {
                Ok(()) => _ = self.done.fetch_add(1, Ordering::Relaxed),
                Err(error) => self.note(&error),
            }
            thread::sleep(PAUSE);
        }
    }

    fn note(&self, error: &io::Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| error.to_string());
    }
}

fn ask(front: SocketAddr, question: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&front, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(question.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once(" heard ") {
        Some((_, heard)) if heard == question => Ok(()),
        _ => Err(io::Error::other(format!("asked {question:?} and was answered {answer:?}"))),
    }
}
