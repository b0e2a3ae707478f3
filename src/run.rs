//! Boot and end, in order: limits, sockets, workers, control; and the last line.
//!
//! Everything that can fail fails here, before a client is taken. Afterwards `control::run`
//! has the main thread until the daemon ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::plan::{Auto, Io, Plan};
use crate::control::{self, Boot, Doors, Ended, Loader, Notifier, Publisher, Until};
use crate::data;
use crate::net::{PIPES_MAX, probe};
use crate::sys::{cores, limits};

/// Descriptors for anything but connections and pipes: the log, the admin doors and their
/// clients, health checks under way, epoll and its like.
const OWN_FILES: usize = 512;

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
    /// The system gave no thread, no runtime, or told no limit.
    System {
        what: &'static str,
        error: io::Error,
    },
}

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
    let io = io(plan.process.io)?;
    let publisher = Publisher::new(&plan, workers, max_connections);
    let bound = data::bind_all(&plan.listeners, workers).map_err(|(listener, at, error)| Trouble::Bind {
        listener,
        at,
        error,
    })?;
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
            io,
            pin_to: plan.process.pin_workers.then(|| core_of(index)),
        })
        .collect();
    let workers = data::start(starts).map_err(|error| Trouble::System { what: "start a worker", error })?;
    Ok(control::run(Boot { plan, io, reload, publisher, workers, doors, access_log, notifier, until }))
}

/// The driver that the plan asks for; `auto` is io_uring where it works.
fn io(asked: Auto<Io>) -> Result<Io, Trouble> {
    match (asked, (asked != Auto::Set(Io::Epoll)).then(probe::io_uring)) {
        (Auto::Set(Io::Epoll), _) | (_, None) => Ok(Io::Epoll),
        (_, Some(Ok(()))) => Ok(Io::IoUring),
        (Auto::Auto, Some(Err(error))) => {
            tracing::info!("io is epoll, because io_uring does not work here: {error}");
            Ok(Io::Epoll)
        }
        (Auto::Set(Io::IoUring), Some(Err(error))) => Err(Trouble::System {
            what: "use io_uring, as `process.io` asks (\"auto\" would use epoll)",
            error,
        }),
    }
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
