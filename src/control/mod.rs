//! Doers: each watches one thing and has one job. They run on one thread, and health checks on
//! another, beside the workers and never inside them: whatever stalls here, connections go on.
//!
//! `run` is the whole of it, from the first READY to the end of the last worker. To read: publisher
//! and desk (the world), prober and reloader (what changes it), lookout and events (what is told of it),
//! signals, crew and drainer (its end), watchdog and notify (signs of life), doors, admin, answers, view
//! and exporter (who looks on).

pub mod publisher; // the only writer of snapshots
pub mod desk; // what the doers share
pub mod events; // what an operator is told of as it happens
pub mod serving; // which servers of a pool serve, as far as he was told
pub mod checks; // what the checks of each server have found
pub mod probe; // one check: asks in the server's own protocol, and says goodbye
pub mod turns; // how many checks at once, and who goes first
pub mod late; // those that a server did not answer in time, and that must not break off
pub mod subject; // one address under check, again and again
pub mod prober; // which addresses are checked, and for whom
pub mod lookout; // when passive health acts
pub mod reloader; // SIGHUP: a new plan, or every reason against it
pub mod signals; // what is asked of the whole daemon
pub mod crew; // the worker threads, watched for their end
pub mod drainer; // from serving to the end
pub mod watchdog; // do all event loops turn?
pub mod notify; // the service manager
pub mod doors; // the sockets of the admin API
pub mod admin; // its connections
pub mod answers; // its answers
pub mod api; // its JSON shapes
pub mod standing; // who serves a pool's clients now, and how well it stands
pub mod view; // the desk in those shapes
pub mod exporter; // what is measured
pub mod exposition; // metrics as text

#[cfg(test)]
pub(crate) mod fixture; // plans and desks for the tests
#[cfg(test)]
mod tests; // the plane as a whole

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

pub use doors::Doors;
pub use notify::Notifier;
pub use publisher::Publisher;
pub use reloader::Loader;
pub use signals::Until;
use tokio::sync::Notify;

use crate::config::plan::{self, AccessOutput, AccessWhen, LogFormat, Plan};
use crate::orders::{Drained, Worker};
use crate::telemetry::access_log::{AccessLog, Format, Output, When};
use crew::Crew;
use desk::{Desk, Hand};
use drainer::Drainer;
use lookout::Lookout;
use prober::Prober;
use reloader::Reloader;
use signals::Asks;

/// What the last lines of the access log may take; a stuck reader of them holds up no exit.
const LOG_WITHIN: Duration = Duration::from_secs(1);

/// What the last health checks may take at the end. A login of a server that answers takes a few
/// milliseconds; one that hangs holds up no exit.
const CHECKS_WITHIN: Duration = Duration::from_millis(300);

/// All that control needs; made by `run.rs`.
pub struct Boot {
    pub plan: Plan,
    /// The driver that serves: what `process.io` came to.
    pub io: plan::Io,
    /// Why it is that one: `configured`, `works`, or what keeps io_uring from working. One word.
    pub io_reason: &'static str,
    /// `None`: there is no file, and SIGHUP says so.
    pub reload: Option<Loader>,
    /// Holds the first snapshot, which the workers have.
    pub publisher: Publisher,
    pub workers: Vec<Worker>,
    pub doors: Doors,
    pub access_log: AccessLog,
    /// `Notifier::from_env()` for a daemon, `Notifier::default()` for anything else.
    pub notifier: Notifier,
    pub until: Until,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Of all workers together.
    pub drained: Drained,
    pub by: EndedBy,
    /// What went wrong, one clause each; empty unless `by` is [`EndedBy::Failed`].
    pub trouble: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// SIGTERM, after a drain.
    Terminated,
    /// SIGINT, or a second SIGTERM: at once.
    Interrupted,
    /// The caller that holds the other end of [`Until::Asked`], after a drain.
    Asked,
    /// A worker ended by itself, or did not end when told to; or control could not begin.
    Failed,
}

/// Watches over the workers until the daemon ends. Takes over the calling thread.
pub fn run(boot: Boot) -> Ended {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let ended = runtime.block_on(live(boot));
    runtime.shutdown_background(); // a loader that hangs on a dead mount does not hold up the exit
    let (log, ended) = match ended {
        Ok(ended) => ended,
        Err(error) => return failed(&error),
    };
    if !log.finish(LOG_WITHIN) {
        tracing::warn!("access log: the last lines did not get out within {LOG_WITHIN:?}");
    }
    ended
}

async fn live(boot: Boot) -> io::Result<(AccessLog, Ended)> {
    let asks = Asks::new(boot.until)?;
    let (hands, threads) = boot.workers.into_iter().map(in_two).unzip();
    let crew = Crew::new(threads)?;
    let io = (boot.io, boot.io_reason);
    let desk = Desk::new(&boot.plan, io, boot.publisher, hands, boot.access_log.ring());
    let notifier = Arc::new(boot.notifier);
    let reload = Arc::new(Notify::new());

    let home = prober::Home::new()?;
    let prober = Prober::new(Arc::clone(&desk), &home);
    let reloader = Reloader::new(Arc::clone(&desk), prober, Arc::clone(&notifier), boot.reload, boot.plan);
    let doers = [
        tokio::spawn(reloader.serve(Arc::clone(&reload))),
        tokio::spawn(admin::serve(boot.doors, Arc::clone(&desk))),
        tokio::spawn(Lookout::new(Arc::clone(&desk)).watch()),
        tokio::spawn(watchdog::watch(Arc::clone(&desk), Arc::clone(&notifier))),
    ];
    notifier.ready();
    let ended = Drainer { desk, asks, crew, log: boot.access_log, notifier, reload }.live().await;
    for doer in doers {
        doer.abort();
        let _ = doer.await; // until it is dropped: then the admin socket is gone from the file system
    }
    if ended.1.by != EndedBy::Interrupted {
        home.rest(CHECKS_WITHIN).await;
    }
    Ok(ended)
}

/// The access log that the plan asks for. An error names the path.
pub fn open_access_log(plan: &plan::AccessLog, workers: usize) -> io::Result<AccessLog> {
    let output = match &plan.output {
        AccessOutput::Off => return Ok(AccessLog::off()),
        AccessOutput::Stdout => Output::Stdout,
        AccessOutput::File(path) => Output::File(path.clone()),
    };
    let format = match plan.format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    let when = match plan.when {
        AccessWhen::Always => When::Always,
        AccessWhen::Abnormal => When::Abnormal,
    };
    AccessLog::open(&output, format, when, workers)
}

/// The worker for the desk, and its thread for the crew.
fn in_two(worker: Worker) -> (Hand, JoinHandle<Drained>) {
    let hand = Hand { post: worker.post, pulse: worker.pulse, has_ended: AtomicBool::new(false) };
    (hand, worker.thread)
}

fn failed(error: &io::Error) -> Ended {
    let trouble = vec![format!("the control plane cannot begin: {error}")];
    Ended { drained: Drained::default(), by: EndedBy::Failed, trouble }
}
