//! `tidegate status`: how the daemon is, on half a screen.

use std::fmt::Write;
use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};

use super::client::{Paint, Reading, show};
use crate::control::api::Status;

/// Show how the daemon is: version, uptime, connections, pools, last reload
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub reading: Reading,
}

#[expect(clippy::needless_pass_by_value, reason = "every command has this shape")]
pub fn run(args: Args) -> ExitCode {
    show(&args.reading, "/api/v1/status", |status, paint| human(status, paint, Timestamp::now()))
}

fn human(status: &Status, paint: Paint, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<12} {value}"); // a string takes everything
    };
    line("state", &paint.word(&status.state));
    line("version", &status.version);
    line("up for", &age(&status.started, now));
    line("workers", &format!("{} ({})", status.workers, status.io));
    let connections = &status.connections;
    line("connections", &format!("{} open, {} since the start", connections.active, connections.total));
    line("listeners", &status.listeners.to_string());
    let pools = &status.pools;
    let up = pools.total - pools.degraded - pools.empty;
    let parts = [(up, "up"), (pools.degraded, "degraded"), (pools.empty, "empty")];
    let told = parts.iter().filter(|(count, _)| *count > 0);
    let told: Vec<_> = told.map(|(count, word)| format!("{count} {}", paint.word(word))).collect();
    line("pools", &told.join(", "));
    line("generation", &status.generation.to_string());
    let reload = status.last_reload.as_ref().map(|last| {
        let word = paint.word(if last.ok { "ok" } else { "refused" });
        format!("{word}, {} ago: {}", age(&last.at, now), last.message.replace('\n', "\n             "))
    });
    line("last reload", reload.as_deref().unwrap_or("none yet"));
    text
}

/// `3d 4h`, `4h 5m`, `5m 6s`, `6s`: the two largest units say enough.
fn age(since: &str, now: Timestamp) -> String {
    let Ok(since) = since.parse::<Timestamp>() else { return since.to_owned() };
    let seconds = now.duration_since(since).max(SignedDuration::ZERO).as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Connections, LastReload, Pools};

    #[test]
    fn it_is_exactly_this() {
        let status = Status {
            version: "0.1.0".into(),
            generation: 3,
            started: "2025-01-01T00:00:00Z".into(),
            io: "epoll".into(),
            io_reason: "denied".into(),
            workers: 2,
            state: "serving".into(),
            connections: Connections { active: 12, total: 3456 },
            listeners: 1,
            pools: Pools { total: 3, degraded: 1, empty: 1 },
            last_reload: Some(LastReload {
                at: "2025-01-02T03:00:00Z".into(),
                ok: false,
                message: "only a restart can change `process.workers`".into(),
            }),
        };
        let now = "2025-01-02T03:04:05Z".parse().expect("a time");
        let expected = "\
state        serving
version      0.1.0
up for       1d 3h
workers      2 (epoll)
connections  12 open, 3456 since the start
listeners    1
pools        1 up, 1 degraded, 1 empty
generation   3
last reload  refused, 4m 5s ago: only a restart can change `process.workers`
";
        assert_eq!(human(&status, Paint::NEVER, now), expected);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_negative_age() {
        let now = "2025-01-01T00:00:00Z".parse().expect("a time");
        assert_eq!(age("2025-01-01T00:10:00Z", now), "0s");
    }
}
