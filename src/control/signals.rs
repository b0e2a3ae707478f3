//! What the outside asks of the whole daemon: signals, or a caller in the same process.
//!
//! Says what is asked and does none of it. SIGPIPE is left as the runtime of the language set
//! it, ignored: a handler that logs would, on a closed log, bring forth the next SIGPIPE.

use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// When the daemon is to end.
#[derive(Debug)]
pub enum Until {
    /// SIGTERM, SIGINT; and all other signals are heard.
    Signals,
    /// The caller says so, or drops the sender: a graceful drain. No signal is touched.
    Asked(oneshot::Receiver<()>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Reload,
    ReopenLogs,
    /// Let the connections finish, then end.
    Drain,
    /// End now.
    Stop,
}

/// Where asks come from.
pub enum Asks {
    Signals(Box<Signals>),
    /// `None` once it was asked.
    Caller(Option<oneshot::Receiver<()>>),
}

pub struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
    user1: Signal,
    user2: Signal,
    alarm: Signal,
    was_terminated: bool,
}

impl Asks {
    /// Takes the signals over from here on. Needs a tokio runtime around it.
    pub fn new(until: Until) -> io::Result<Self> {
        Ok(match until {
            Until::Signals => Asks::Signals(Box::new(Signals::new()?)),
            Until::Asked(asked) => Asks::Caller(Some(asked)),
        })
    }

    /// The next one. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Ask {
        match self {
            Asks::Signals(signals) => signals.next().await,
            Asks::Caller(Some(asked)) => {
                let _ = asked.await; // a dropped sender asks too: nobody is left who could
                *self = Asks::Caller(None);
                Ask::Drain
            }
            Asks::Caller(None) => pending().await,
        }
    }
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            alarm: signal(SignalKind::alarm())?,
            was_terminated: false,
        })
    }

    async fn next(&mut self) -> Ask {
        loop {
            let ignored = tokio::select! {
                _ = self.hangup.recv() => return Ask::Reload,
                _ = self.interrupt.recv() => return Ask::Stop,
                _ = self.terminate.recv() => return self.terminated(),
                _ = self.user1.recv() => return Ask::ReopenLogs,
                _ = self.user2.recv() => "SIGUSR2",
                _ = self.alarm.recv() => "SIGALRM",
            };
            tracing::warn!("{ignored} means nothing here and is ignored");
        }
    }

    /// The first time gracefully, then at once.
    fn terminated(&mut self) -> Ask {
        match std::mem::replace(&mut self.was_terminated, true) {
            false => Ask::Drain,
            true => Ask::Stop,
        }
    }
}
