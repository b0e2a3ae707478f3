//! Boot and end, in order: limits, event loops, sockets, control; and the last line.
//!
//! Everything that can fail fails here, before a client is taken. Afterwards `control::run`
//! has the main thread until the daemon ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::plan::{self, Auto, Io, Plan};
use crate::control::{self, Boot, Doors, Ended, Loader, Notifier, Publisher, Until};
use crate::data;
use crate::net::PIPES_MAX;
use crate::net::probe::{self, WhyNot};
use crate::sys::{cores, limits};

/// Descriptors for anything but connections and pipes: the log, the admin doors and their
/// clients, health checks under way, epoll and its like.
const OWN_FILES: usize = 512;

/// Descriptors that it takes to begin at all: the standard streams, the log, the runtime of the control
/// plane and its signals, the admin doors, a health check or a scrape.
const OWN_FILES_LEAST: usize = 24;

/// What a worker's event loop holds.
const FILES_OF_A_WORKER: usize = 3;

/// Why the daemon could not start.
#[derive(Debug)]
pub enum Trouble {
    Bind {
        listener: String,
        at: SocketAddr,
        error: io::Error,
    },
    /// The error names the address or the path.
    Admin(io::Error),
    /// The error names the path.
    AccessLog(io::Error),
    /// `process.io` asks for io_uring.
    NoIoUring {
        why: WhyNot,
        error: io::Error,
    },
    /// The system gave no thread, no runtime, or told no limit.
    System {
        what: &'static str,
        error: io::Error,
    },
}

/// How long a daemon that was killed may still hold its ports: the kernel takes its rings down, and the sockets
/// in them, some time after the process has gone. Whoever is started at once in its place must not fail for that.
const LEFT_BEHIND: Duration = Duration::from_secs(1);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Runs the daemon until it is told to end.
///
/// # Errors
/// What kept it from starting; nothing is left behind then.
pub fn run(plan: Plan, reload: Option<Loader>, notifier: Notifier, until: Until) -> Result<Ended, Trouble> {
    let workers = match plan.process.workers {
        Auto::Auto => cores::usable(),
        Auto::Set(count) => count,
    };
    let max_connections = room(&plan, workers)?;
    let staff = hire(&plan.process, workers)?;
    let publisher = Publisher::new(&plan, workers, max_connections);
    let bound = bind(&plan, workers)?;
    let doors = Doors::open(&plan.admin).map_err(Trouble::Admin)?;
    let access_log = control::open_access_log(&plan.log.access, workers).map_err(Trouble::AccessLog)?;
    let ring = access_log.ring();
    let starts = bound
        .into_iter()
        .enumerate()
        .map(|(index, bound)| data::Start {
            index,
            snapshot: publisher.snapshot(),
            bound,
            access_log: Arc::clone(&ring),
        })
        .collect();
    let Staff { hired, io, io_reason } = staff;
    let workers = data::start(hired, starts);
    Ok(control::run(Boot {
        plan,
        io,
        io_reason,
        reload,
        publisher,
        workers,
        doors,
        access_log,
        notifier,
        until,
    }))
}

/// Binds all listeners, if need be after a moment.
fn bind(plan: &Plan, workers: usize) -> Result<Vec<data::Bound>, Trouble> {
    let begun = Instant::now();
    loop {
        match data::bind_all(&plan.listeners, workers) {
            Ok(bound) => return Ok(bound),
            Err((.., error)) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < LEFT_BEHIND => {
                thread::sleep(LOOK_AGAIN_AFTER);
            }
            Err((listener, at, error)) => return Err(Trouble::Bind { listener, at, error }),
        }
    }
}

/// The workers, and the driver that they have.
struct Staff {
    hired: Vec<data::Hired>,
    io: Io,
    /// Why it is that one, in a word.
    io_reason: &'static str,
}

/// Workers on the driver that the plan asks for; `auto` is io_uring where it works, for all of them.
fn hire(asked: &plan::Process, count: usize) -> Result<Staff, Trouble> {
    let pin_to = |index| asked.pin_workers.then(|| core_of(index));
    let on = |io| data::hire(count, io, pin_to);
    let configured = if asked.io == Auto::Auto { "works" } else { "configured" };
    let io_reason = if asked.io == Auto::Set(Io::Epoll) {
        configured
    } else {
        // The probe has one ring. There may still be too little of something for one per worker.
        let error = match probe::io_uring().and_then(|()| on(Io::IoUring)) {
            Ok(hired) => return Ok(Staff { hired, io: Io::IoUring, io_reason: configured }),
            Err(error) => error,
        };
        let why = WhyNot::of(&error);
        if asked.io == Auto::Set(Io::IoUring) {
            return Err(Trouble::NoIoUring { why, error });
        }
        tracing::info!(
            "io is epoll, because io_uring {} ({error}); to have io_uring, {}; to do without it, \
             set `io = \"epoll\"` in [process]",
            why.clause(),
            why.advice()
        );
        why.word()
    };
    let hired = on(Io::Epoll).map_err(|error| Trouble::System { what: "start a worker", error })?;
    Ok(Staff { hired, io: Io::Epoll, io_reason })
}

fn core_of(worker: usize) -> usize {
    let allowed = cores::allowed();
    allowed[worker % allowed.len().max(1)]
}

/// Connections that the process has room for, said with its arithmetic.
fn room(plan: &Plan, workers: usize) -> Result<usize, Trouble> {
    let files = limits::raise_open_files()
        .map_err(|error| Trouble::System { what: "read the limit of open files (RLIMIT_NOFILE)", error })?;
    let sockets = workers * plan.listeners.iter().map(|listener| listener.bind.len()).sum::<usize>();
    let least = OWN_FILES_LEAST + workers * FILES_OF_A_WORKER + sockets + 2;
    if files < least {
        let error = io::Error::other(format!(
            "the limit is {files}, and with {workers} workers it takes {least}; raise it (LimitNOFILE= in \
             the systemd unit, or `ulimit -n`)"
        ));
        return Err(Trouble::System { what: "begin with so few open files", error });
    }
    let room = Room::of(files, workers, sockets);
    match plan.process.max_connections {
        Auto::Auto => tracing::info!("max_connections is {}: {room}", room.connections),
        Auto::Set(wanted) if wanted <= room.connections => {
            tracing::info!(
                "max_connections is {wanted}, as configured; there is room for {}: {room}",
                room.connections
            );
            return Ok(wanted);
        }
        Auto::Set(wanted) => tracing::warn!(
            "max_connections is {} and not {wanted} as configured, because there is no room for more: {room}; \
             raise the limit (LimitNOFILE= in the systemd unit, or `ulimit -n`)",
            room.connections
        ),
    }
    Ok(room.connections)
}

/// How many connections fit under the limit of open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    files: usize,
    own: usize,
    pipes: usize,
    connections: usize,
}

impl Room {
    /// Two descriptors for each connection; pipes and our own needs come first, but never take
    /// more than half.
    fn of(files: usize, workers: usize, listening: usize) -> Self {
        let half = files / 2;
        let own = (OWN_FILES + listening).min(half);
        let pipes = (2 * PIPES_MAX * workers).min(half - own.min(half));
        let connections = ((files - own - pipes) / 2).max(1);
        Room { files, own, pipes, connections }
    }
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Room { files, own, pipes, connections } = self;
        write!(
            f,
            "({files} open files - {own} for own use - {pipes} for pipes) / 2 for each connection = {connections}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arithmetic_adds_up() {
        let room = Room::of(20_000, 2, 4);
        assert_eq!((room.own, room.pipes), (516, 512));
        assert_eq!(room.connections, (20_000 - 516 - 512) / 2);
    }

    #[test]
    fn a_tiny_limit_still_leaves_half_for_connections() {
        assert_eq!(Room::of(64, 2, 4).connections, 16);
        assert_eq!(Room::of(2, 1, 1).connections, 1);
    }
}
