//! The daemon's life from serving to its end: waits for what is asked, then drains or stops.
//!
//! Moves no byte and closes no connection itself; it orders, waits with a bound, and sums up.
//! While it drains, checks go on and the admin API still answers: a drain is the moment when an
//! operator wants to see most.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::crew::{Crew, End};
use super::desk::Desk;
use super::notify::Notifier;
use super::signals::{Ask, Asks};
use super::{Ended, EndedBy};
use crate::orders::{Drained, Order};
use crate::telemetry::access_log::AccessLog;

/// What workers may take beyond the deadline of a drain, or after the order to stop. They need
/// milliseconds; one that takes this long never will come.
const GRACE: Duration = Duration::from_secs(5);
/// Stands for "no deadline" where a moment is needed; a year outlasts every restart.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

pub struct Drainer {
    pub desk: Arc<Desk>,
    pub asks: Asks,
    pub crew: Crew,
    pub log: AccessLog,
    pub notifier: Arc<Notifier>,
    /// Where reloads are asked for.
    pub reload: Arc<Notify>,
}

/// Why a wait was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    DrainAsked,
    StopAsked,
    /// A worker ended before it was told to.
    WorkerLost,
    AllEnded,
    TimeUp,
}

/// The sum so far.
#[derive(Debug, Default)]
struct Sum {
    drained: Drained,
    trouble: Vec<String>,
    /// Workers were told to end: from here on their ends are no surprise.
    is_ending: bool,
}

impl Drainer {
    /// Serves until the end, whatever brings it. Gives back the log and the summary.
    pub async fn live(mut self) -> (AccessLog, Ended) {
        let mut sum = Sum::default();
        let by = match self.wait_until(Instant::now() + FOR_EVER, &mut sum).await {
            Over::DrainAsked | Over::TimeUp => self.drain(&mut sum).await,
            Over::StopAsked => self.stop(EndedBy::Interrupted, &mut sum).await,
            Over::WorkerLost | Over::AllEnded => self.stop(EndedBy::Failed, &mut sum).await,
        };
        (self.log, Ended { drained: sum.drained, by, trouble: sum.trouble })
    }

    async fn drain(&mut self, sum: &mut Sum) -> EndedBy {
        let process = self.desk.process();
        self.desk.begin_drain();
        self.notifier.stopping();
        if !process.ready_delay.is_zero() {
            tracing::info!("draining: not ready any more, accepting for {:?} yet", process.ready_delay);
            match self.wait_until(Instant::now() + process.ready_delay, sum).await {
                Over::TimeUp => {}
                Over::WorkerLost | Over::AllEnded => return self.stop(EndedBy::Failed, sum).await,
                Over::StopAsked | Over::DrainAsked => return self.stop(EndedBy::Interrupted, sum).await,
            }
        }
        let open = self.desk.snapshot().process_room.taken();
        tracing::info!("draining: {open} connections have {:?} to finish", process.drain_timeout);
        let deadline = Instant::now() + process.drain_timeout;
        self.desk.tell(&Order::Drain { deadline });
        sum.is_ending = true;
        match self.wait_until(deadline + GRACE, sum).await {
            Over::AllEnded if !sum.trouble.is_empty() => EndedBy::Failed,
            Over::AllEnded => self.graceful(),
            Over::StopAsked | Over::DrainAsked => self.stop(EndedBy::Interrupted, sum).await,
            Over::WorkerLost | Over::TimeUp => self.stop(EndedBy::Failed, sum).await,
        }
    }

    /// Cuts everything. Nothing but the end of the workers is waited for, and that with a bound.
    async fn stop(&mut self, by: EndedBy, sum: &mut Sum) -> EndedBy {
        self.desk.begin_drain();
        self.notifier.stopping();
        self.desk.tell(&Order::Stop);
        sum.is_ending = true;
        let deadline = Instant::now() + GRACE;
        while self.crew.left() > 0 {
            match self.wait_until(deadline, sum).await {
                Over::AllEnded => break,
                Over::TimeUp => {
                    sum.trouble.push(format!("{} workers did not stop within {GRACE:?}", self.crew.left()));
                    return EndedBy::Failed;
                }
                Over::StopAsked | Over::DrainAsked | Over::WorkerLost => {} // it is stopping already
            }
        }
        if sum.trouble.is_empty() { by } else { EndedBy::Failed }
    }

    /// Waits until then, or for something that matters earlier; does the small things meanwhile.
    async fn wait_until(&mut self, deadline: Instant, sum: &mut Sum) -> Over {
        let time_up = sleep_until(deadline.into());
        tokio::pin!(time_up);
        loop {
            tokio::select! {
                ask = self.asks.next() => match ask {
                    Ask::Reload => self.ask_for_reload(),
                    Ask::ReopenLogs => self.log.reopen(),
                    Ask::Drain => return Over::DrainAsked,
                    Ask::Stop => return Over::StopAsked,
                },
                end = self.crew.next_end() => {
                    let was_expected = sum.is_ending;
                    self.note(end, sum);
                    if self.crew.left() == 0 && was_expected {
                        return Over::AllEnded;
                    }
                    if !was_expected {
                        return Over::WorkerLost;
                    }
                },
                () = &mut time_up => return Over::TimeUp,
            }
        }
    }

    fn ask_for_reload(&self) {
        match self.desk.is_draining() {
            true => tracing::warn!("SIGHUP is ignored: the daemon is draining"),
            false => self.reload.notify_one(), // asked twice while one is under way is asked once
        }
    }

    fn note(&self, end: End, sum: &mut Sum) {
        self.desk.note_end(end.worker);
        let trouble = match end.how {
            Ok(drained) => {
                sum.drained = [sum.drained, drained].into_iter().sum();
                (!sum.is_ending).then(|| "ended by itself".to_owned())
            }
            Err(panic) => Some(format!("panicked: {panic}")),
        };
        if let Some(trouble) = trouble {
            tracing::error!("worker {} {trouble}", end.worker);
            sum.trouble.push(format!("worker {} {trouble}", end.worker));
        }
    }

    fn graceful(&self) -> EndedBy {
        match self.asks {
            Asks::Signals(_) => EndedBy::Terminated,
            Asks::Caller(_) => EndedBy::Asked,
        }
    }
}
