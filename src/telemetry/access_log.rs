//! The access log: one line for each connection, written when it has ended.
//!
//! Workers offer records to a bounded ring and go on; one thread formats and writes them.
//! Nothing here ever makes a worker wait: a full ring, a full disk or a stuck pipe loses
//! lines, and every lost line is counted.

mod line; // a record as a line: JSON or text
mod ring; // bounded, one shard for each worker
mod writer; // the thread, the file, what happens when writing fails

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use ring::Ring;
use writer::Writer;

/// Records that may wait for the writer, over all workers: about 8 MiB of them at the most.
/// The writer comes every 10 ms, so this is room for 1.6 million connections a second.
pub const RECORDS_MAX: usize = 16_384;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Text,
}

/// Which connections are worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Never,
    Always,
    /// All but those that ended as `done`.
    Abnormal,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    /// Made with mode 0640 where it does not exist; appended to.
    File(PathBuf),
}

/// An open access log. Dropping it without [`AccessLog::finish`] leaves what waits unwritten.
#[derive(Debug)]
pub struct AccessLog {
    ring: Arc<Ring>,
    writer: Option<Writer>,
}

impl AccessLog {
    /// Opens `output` and starts the writer's thread. An error names the path.
    pub fn open(output: &Output, format: Format, when: When, workers: usize) -> io::Result<Self> {
        let sink = open_sink(output)?;
        let ring = Arc::new(Ring::new(when, workers, RECORDS_MAX));
        let path = match output {
            Output::Stdout => None,
            Output::File(path) => Some(path.clone()),
        };
        let writer = Writer::start(Arc::clone(&ring), format, sink, path)?;
        Ok(AccessLog { ring, writer: Some(writer) })
    }

    /// A log that wants no record and has no thread.
    pub fn off() -> Self {
        AccessLog { ring: Arc::new(Ring::new(When::Never, 0, 0)), writer: None }
    }

    /// The workers' end.
    pub fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring)
    }

    /// Opens the file anew, after somebody has moved it away. Where that fails, the old file
    /// stays in use and the failure is reported. Standard output is left alone.
    pub fn reopen(&self) {
        if let Some(writer) = &self.writer {
            writer.reopen();
        }
    }

    /// Writes what waits and ends the thread. Says no when that took longer than `within`:
    /// then the thread is left behind, stuck in its write.
    pub fn finish(self, within: Duration) -> bool {
        self.writer.is_none_or(|writer| writer.finish(within))
    }
}

fn open_sink(output: &Output) -> io::Result<File> {
    match output {
        // A descriptor of our own: the library's handle has a lock and a buffer that we do not want.
        Output::Stdout => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        Output::File(path) => open_file(path),
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    opened.map_err(|error| io::Error::new(error.kind(), format!("access log {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::line::tests::record;
    use super::*;
    use crate::core::outcome::Reason;

    /// On a busy machine; usually some milliseconds.
    const SOON: Duration = Duration::from_secs(60);

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tidegate-{name}-{}-{}", std::process::id(), fastrand::u64(..)))
    }

    fn log_to(path: &Path) -> AccessLog {
        AccessLog::open(&Output::File(path.to_owned()), Format::Text, When::Always, 1).expect("opens")
    }

    #[test]
    fn what_was_offered_before_the_end_is_in_the_file() {
        let path = scratch("access");
        let log = log_to(&path);
        let ring = log.ring();
        for _ in 0..1000 {
            ring.offer(record());
        }
        assert!(log.finish(SOON));
        let text = std::fs::read_to_string(&path).expect("written");
        assert_eq!((text.lines().count(), ring.dropped()), (1000, 0));
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_moved_file_is_left_and_a_new_one_begun() {
        let (path, moved) = (scratch("access"), scratch("access-moved"));
        let log = log_to(&path);
        let ring = log.ring();
        ring.offer(record());
        while std::fs::metadata(&path).expect("exists").len() == 0 {
            std::thread::yield_now();
        }
        std::fs::rename(&path, &moved).expect("moved");
        log.reopen();
        while !path.exists() {
            std::thread::yield_now();
        }
        ring.offer(record());
        assert!(log.finish(SOON));
        for path in [path, moved] {
            assert_eq!(std::fs::read_to_string(&path).expect("readable").lines().count(), 1);
            std::fs::remove_file(&path).expect("removed");
        }
    }

    #[test]
    fn a_full_disk_loses_lines_counts_them_and_stops_nobody() {
        let log = log_to(Path::new("/dev/full"));
        let ring = log.ring();
        for _ in 0..100 {
            ring.offer(record());
        }
        assert!(log.finish(SOON));
        assert_eq!(ring.dropped(), 100);
    }

    #[test]
    fn a_stuck_reader_does_not_hold_up_the_end() {
        let path = scratch("access-fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)
            .expect("a fifo");
        let reader = OpenOptions::new().read(true).write(true).open(&path).expect("an end that never reads");
        let log = log_to(&path);
        let ring = log.ring();
        for _ in 0..2000 {
            ring.offer(record()); // 2000 lines are more than the 64 KiB that a pipe holds
        }
        assert!(!log.finish(Duration::from_millis(100)));
        drop(reader);
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn an_error_names_the_path() {
        let nowhere = Output::File("/nonexistent/access.log".into());
        let error = AccessLog::open(&nowhere, Format::Json, When::Always, 1).expect_err("no such directory");
        assert!(error.to_string().starts_with("access log /nonexistent/access.log: "), "{error}");
    }

    #[test]
    fn a_log_that_is_off_wants_nothing_and_ends_at_once() {
        let log = AccessLog::off();
        let mut close = record().close;
        close.reason = Reason::ServerReset;
        assert!(!log.ring().wants(&close));
        assert!(log.finish(Duration::ZERO));
    }
}
