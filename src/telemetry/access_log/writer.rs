//! The writer's thread: takes records out of the ring, makes lines of them, writes them.
//!
//! Never stops for an error: lines that could not be written are counted as dropped, the log
//! says so at most once a minute, and the next line is tried again. Never leaves half a line
//! glued to the next one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{Format, Ring, line};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, Thread};
use crate::telemetry::record::Record;

/// Between two looks at the ring while there is work: lines go out in batches, and a busy
/// worker finds the writer awake instead of paying for its wake-up with each record.
const NAP: Duration = Duration::from_millis(10);
/// What is handed to one write; a pipe's default capacity.
const CHUNK_BYTES: usize = 64 * 1024;
/// A full disk is worth one message a minute, not one for each connection.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// A non-blocking standard output that takes nothing for this many naps has lost its chunk.
const NAPS_MAX: u32 = 100;

/// The handle on the thread.
#[derive(Debug)]
pub struct Writer {
    asked: Arc<Asked>,
    thread: Thread,
    ended: mpsc::Receiver<()>,
}

/// What the rest of the process asks of the thread.
#[derive(Debug, Default)]
struct Asked {
    reopen: AtomicBool,
    finish: AtomicBool,
}

impl Writer {
    pub fn start(ring: Arc<Ring>, format: Format, sink: File, path: Option<PathBuf>) -> io::Result<Self> {
        let asked = Arc::new(Asked::default());
        let (at_end, ended) = mpsc::sync_channel(1);
        let task = Task {
            ring,
            format,
            sink,
            path,
            asked: Arc::clone(&asked),
            chunk: Vec::with_capacity(CHUNK_BYTES),
            chunk_lines: 0,
            is_torn: false,
            last_report: None,
        };
        let run = move || {
            task.run();
            let _ = at_end.try_send(()); // whoever waited may have given up
        };
        let thread = thread::Builder::new().name("access-log".into()).spawn(run)?;
        Ok(Writer { asked, thread: thread.thread().clone(), ended })
    }

    pub fn reopen(&self) {
        self.asked.reopen.store(true, Ordering::Release);
        self.thread.unpark();
    }

    pub fn finish(self, within: Duration) -> bool {
        self.asked.finish.store(true, Ordering::Release);
        self.thread.unpark();
        self.ended.recv_timeout(within).is_ok()
    }
}

struct Task {
    ring: Arc<Ring>,
    format: Format,
    sink: File,
    /// Where `sink` was opened from; `None` is standard output.
    path: Option<PathBuf>,
    asked: Arc<Asked>,
    chunk: Vec<u8>,
    chunk_lines: u64,
    /// The last write ended within a line.
    is_torn: bool,
    last_report: Option<Instant>,
}

impl Task {
    fn run(mut self) {
        loop {
            let is_last = self.asked.finish.load(Ordering::Acquire);
            let had_work = self.drain();
            if self.asked.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            match (is_last, had_work) {
                (true, _) => return,
                (false, true) => thread::park_timeout(NAP),
                (false, false) => self.ring.park_writer(),
            }
        }
    }

    fn drain(&mut self) -> bool {
        let ring = Arc::clone(&self.ring);
        let mut had_work = false;
        ring.drain(|queue| {
            had_work = true;
            self.take(queue);
        });
        self.write_chunk();
        had_work
    }

    fn take(&mut self, queue: VecDeque<Record>) {
        for record in queue {
            line::append(&mut self.chunk, self.format, &record);
            self.chunk_lines += 1;
            if self.chunk.len() >= CHUNK_BYTES {
                self.write_chunk();
            }
        }
    }

    fn write_chunk(&mut self) {
        if self.chunk.is_empty() {
            return;
        }
        if self.is_torn {
            self.chunk.insert(0, b'\n'); // rare, so the move does not matter
        }
        let (written, result) = write_most(&mut self.sink, &self.chunk);
        if written > 0 {
            self.is_torn = self.chunk[written - 1] != b'\n';
        }
        if let Err(error) = result {
            self.count_lost(written, &error);
        }
        self.chunk.clear();
        self.chunk_lines = 0;
    }

    /// A line that did not get out whole has its end in what was left unwritten.
    fn count_lost(&mut self, written: usize, error: &io::Error) {
        let lost = self.chunk[written..].iter().filter(|byte| **byte == b'\n').count() as u64;
        self.ring.count_dropped(lost.min(self.chunk_lines)); // the line end before a torn line is no line
        if self.last_report.is_none_or(|last| last.elapsed() >= REPORT_EVERY) {
            self.last_report = Some(Instant::now());
            let dropped = self.ring.dropped();
            tracing::error!("access log: cannot write: {error}; {dropped} lines lost so far");
        }
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match super::open_file(path) {
            Ok(file) => {
                self.sink = file;
                self.is_torn = false;
                tracing::info!("access log {} reopened", path.display());
            }
            Err(error) => tracing::error!("{error}; the file opened before stays in use"),
        }
    }
}

/// Writes as much as the sink takes; says how much that was.
fn write_most(sink: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let (mut written, mut naps) = (0, 0);
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(some) => (written, naps) = (written + some, 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Standard output may have been made non-blocking by whoever shares it.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && naps < NAPS_MAX => {
                naps += 1;
                thread::park_timeout(NAP);
            }
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}
