//! The outcome becomes one record: counted, logged, released. Nothing else in `data/` reports.

use std::io;
use std::time::{Duration, Instant};

use super::visit::{Cut, Side, Visit};
use super::worker::Worker;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::telemetry::record::{Attempt, Chosen, Path, Record, Routed, Times};

/// How a connection that was ended from outside is told.
pub(super) fn cut_off(cut: Cut, visit: &Visit) -> Close {
    let what = match visit.connected_after.get() {
        Some(_) => "still open",
        None => "still without a server",
    };
    let (by, detail) = match cut {
        Cut::MarkedDown => return lost(Reason::ServerMarkedDown, "its server went down"),
        Cut::Drained => {
            return lost(Reason::ServerDrained, "its server went down and its time to drain is over");
        }
        Cut::DrainDeadline => (By::Proxy, format!("{what} when drain_timeout had passed")),
        Cut::Stop => (By::Admin, format!("{what} when the daemon was told to stop at once")),
    };
    let detail = detail.into();
    Close { by, phase: Phase::Drain, how: How::Policy, reason: Reason::DrainDeadline, errno: None, detail }
}

fn lost(reason: Reason, detail: &'static str) -> Close {
    let (by, phase, how) = (By::Proxy, Phase::Data, How::Policy);
    Close { by, phase, how, reason, errno: None, detail: detail.into() }
}

/// How one is told that was taken from the kernel, and that the kernel then had no room to watch.
pub(super) fn unwatched(error: &io::Error) -> Close {
    let (by, phase, how, reason) = (By::Proxy, Phase::Accept, How::Error, Reason::FdExhausted);
    let detail = format!("the system has no room to watch one more socket: {error}").into();
    Close { by, phase, how, reason, errno: error.raw_os_error(), detail }
}

/// Counts a connection that has ended, and logs it where that is asked for.
pub(super) fn close(visit: &Visit, close: Close, worker: &Worker) {
    let total = worker.net.now().saturating_duration_since(visit.accepted);
    visit.count_bytes(worker.index);
    let has_failed = matches!(close.reason, Reason::ServerReset | Reason::ServerVanished);
    visit.judge_server(has_failed && close.phase == Phase::Data, worker.net.now());
    visit.flow.borrow().count(worker.index, &close);
    let stats = visit.listener.stats.of(worker.index);
    stats.duration.observe(total);
    if matches!(close.phase, Phase::Accept | Phase::Route) {
        stats.rejected.add(close.reason);
    }
    if worker.access_log.wants(&close) {
        worker.access_log.offer(record(visit, close, worker, total));
    }
    worker.leave(visit);
}

fn record(visit: &Visit, close: Close, worker: &Worker, total: Duration) -> Record {
    let attempts = visit.attempts.borrow();
    let flow = visit.flow.borrow();
    // The last that was tried may have been one of a canary that was left since.
    let server = attempts.last().filter(|last| last.server.pool == flow.pool).map(|last| Chosen {
        name: last.server.name.clone(),
        address: last.server.address,
        why: last.why,
    });
    let tally = &visit.tally;
    let since_accept = |at: Instant| at.saturating_duration_since(visit.accepted);
    Record {
        ts: visit.ts,
        conn_id: visit.conn_id,
        listener: visit.listener.name.clone(),
        worker: worker.index,
        generation: visit.generation,
        client: visit.client,
        priority: visit.class,
        local: visit.local,
        route: visit.route_name(),
        routed: (visit.side.get() != Side::Unrouted && close.phase != Phase::Route)
            .then(|| Routed { pool: flow.pool.clone(), server }),
        attempts: attempts
            .iter()
            .map(|one| Attempt { server: one.server.name.clone(), took: one.took, error: one.error })
            .collect(),
        times: Times {
            hello: Some(visit.heard_after_us.get())
                .filter(|us| *us > 0)
                .map(|us| Duration::from_micros(us.into())),
            queue: visit.queued_for.get(),
            connect: visit.connected_after.get(),
            first_byte: tally.first_byte.get().map(since_accept),
            total,
        },
        bytes_in: tally.to_server.get(),
        bytes_out: tally.to_client.get(),
        path: visit.connected_after.get().map(|_| match tally.has_spliced.get() {
            true => Path::Splice,
            false => Path::Copy,
        }),
        close,
    }
}
