//! Exit codes, and what to do about each trouble. An error is printed here, once.
#![allow(clippy::print_stderr, reason = "what went wrong is told to whoever typed the command")]

use std::io;
use std::process::ExitCode;

use crate::control::{Ended, EndedBy};
use crate::run::Trouble;

/// It could not be done.
pub(super) const FAILURE: u8 = 1;
/// It ended as asked, but connections were still open and were cut.
pub(super) const CUT: u8 = 3;
/// The system forbids it.
pub(super) const NO_PERMISSION: u8 = 77;
/// The configuration is wrong.
pub(super) const BAD_CONFIG: u8 = 78;

/// Prints why the daemon could not start.
pub(super) fn trouble(trouble: &Trouble) -> ExitCode {
    let (text, hint, error) = match trouble {
        Trouble::Bind { listener, at, error } => {
            (format!("listener `{listener}` cannot bind {at}: {error}"), bind_hint(*at, error), Some(error))
        }
        Trouble::Admin(error) => (error.to_string(), String::new(), Some(error)),
        Trouble::AccessLog(error) => (
            error.to_string(),
            "its folder must exist and be writable for the daemon's user; `log.access.output` names it"
                .into(),
            Some(error),
        ),
        Trouble::NoIoUring { why, error } => (
            format!("`io = \"io-uring\"` in [process] cannot be had: io_uring {} ({error})", why.clause()),
            format!(
                "{}; or set `io = \"auto\"`, which uses epoll where io_uring does not work",
                why.advice()
            ),
            Some(error),
        ),
        Trouble::System { what, error } => (format!("cannot {what}: {error}"), String::new(), Some(error)),
    };
    eprintln!("error: {text}");
    if !hint.is_empty() {
        eprintln!("  = help: {hint}");
    }
    ExitCode::from(match error.map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => NO_PERMISSION,
        _ => FAILURE,
    })
}

fn bind_hint(at: std::net::SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a permission. Any one of these gives it: run under systemd with \
             AmbientCapabilities=CAP_NET_BIND_SERVICE; `setcap cap_net_bind_service=+ep` on the binary; \
             or `sysctl net.ipv4.ip_unprivileged_port_start={}`",
            at.port()
        ),
        io::ErrorKind::AddrInUse => format!(
            "another program listens there, perhaps another tidegate: `ss -ltnp 'sport = :{}'` shows which",
            at.port()
        ),
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address: `ip address` lists them".into()
        }
        _ => String::new(),
    }
}

/// Prints the last line of a daemon that ran and ended.
pub(super) fn ended(ended: &Ended) -> ExitCode {
    let drained = ended.drained;
    eprintln!("tidegate stopped: {} connections finished, {} were cut", drained.finished, drained.cut);
    ended.trouble.iter().for_each(|trouble| eprintln!("error: {trouble}"));
    ExitCode::from(match (ended.by, drained.cut) {
        (EndedBy::Failed, _) => FAILURE,
        (_, 0) => 0,
        (_, _) => CUT,
    })
}
