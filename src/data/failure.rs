//! Why a server did not take a connection, and how a client that got none is told of.

use std::io;
use std::time::Duration;

use nix::libc;

use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::live::search::Failed;
use crate::snapshot::Server;

/// How the search for a server ended without one.
pub(super) struct Unserved {
    pub(super) close: Close,
    /// A server that could have taken the client had no room: it will have some.
    pub(super) has_full: bool,
}

impl From<Close> for Unserved {
    fn from(close: Close) -> Self {
        Unserved { close, has_full: false }
    }
}

/// Why one server did not take a connection.
pub(super) struct Failure {
    pub(super) reason: Reason,
    errno: Option<i32>,
    /// After "server NAME (ADDRESS)".
    told: String,
}

impl Failure {
    pub(super) fn of(error: io::Error) -> Self {
        let errno = error.raw_os_error();
        let reason = match errno {
            None if error.kind() == io::ErrorKind::ConnectionRefused => Reason::ServerRefused,
            Some(libc::ECONNREFUSED) => Reason::ServerRefused,
            Some(libc::ECONNRESET) => Reason::ServerReset,
            Some(libc::ETIMEDOUT) => Reason::ConnectTimeout,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC) => {
                Reason::FdExhausted
            }
            Some(libc::EADDRNOTAVAIL) => Reason::PortExhausted,
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EACCES
                | libc::EPERM
                | libc::EINVAL
                | libc::EAFNOSUPPORT,
            ) => Reason::ServerUnreachable,
            _ => Reason::Internal,
        };
        Failure { reason, errno, told: format!("failed to connect: {error}") }
    }

    pub(super) fn timed_out(limit: Duration) -> Self {
        let told = format!("did not answer within connect_timeout ({limit:?})");
        Failure { reason: Reason::ConnectTimeout, errno: None, told }
    }

    /// It took the connection, and meanwhile its checks had found it down.
    pub(super) fn went_down() -> Self {
        Failure {
            reason: Reason::ServerMarkedDown,
            errno: None,
            told: "went down by its health checks while it was connected to".to_owned(),
        }
    }

    /// It speaks against the server, and not only against this machine.
    pub(super) fn is_the_servers(&self) -> bool {
        use Reason::{ConnectTimeout, ServerRefused, ServerReset, ServerUnreachable};
        matches!(self.reason, ServerRefused | ServerReset | ConnectTimeout | ServerUnreachable)
    }

    /// The fault is this machine's, and another server would meet it too.
    pub(super) fn is_ours(&self) -> bool {
        self.reason == Reason::FdExhausted
    }

    /// What it says of the server: one that refused may be asked again.
    pub(super) fn on_server(&self) -> Failed {
        match self.reason {
            Reason::ServerRefused | Reason::ServerReset => Failed::Refused,
            _ => Failed::Silent,
        }
    }

    pub(super) fn told_of(&self, server: &Server) -> String {
        format!("server `{}` ({}), {}", server.plan.name, server.plan.address, self.told)
    }

    pub(super) fn close(&self, server: &Server) -> Close {
        let (by, how) = match self.reason {
            Reason::ServerRefused | Reason::ServerReset => (By::Server, How::Rst),
            Reason::ConnectTimeout => (By::Server, How::Timeout),
            Reason::ServerUnreachable => (By::Server, How::Error),
            _ => (By::Proxy, How::Error),
        };
        let detail = self.told_of(server).into();
        Close { by, phase: Phase::Connect, how, reason: self.reason, errno: self.errno, detail }
    }
}

/// Nobody was asked who could have taken the client.
pub(super) fn refusal(reason: Reason, detail: String) -> Close {
    Close {
        by: By::Proxy,
        phase: Phase::Connect,
        how: How::Policy,
        reason,
        errno: None,
        detail: detail.into(),
    }
}

/// The client did not wait.
pub(super) fn client_gone(error: &io::Error) -> Close {
    Close {
        by: By::Client,
        phase: Phase::Connect,
        how: How::Rst,
        reason: Reason::ClientReset,
        errno: error.raw_os_error(),
        detail: "the client reset the connection before a server had taken it".into(),
    }
}
