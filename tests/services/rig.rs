//! Tidegate in front of a few servers, and the books that must balance afterwards.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::proc::{Proc, Spec, TempDir};
use crate::support::record::{accepted_at, ended_at};
use crate::support::{Daemon, PATIENCE, eventually, free_port};

/// One listener `l`, one pool `p`, the servers `a`, `b` and so on, and where clients connect.
pub struct Rig {
    pub daemon: Daemon,
    pub port: u16,
}

/// How Tidegate finds out that a server is gone.
#[derive(Clone, Copy)]
pub enum Check {
    /// Only by trying: what fails is tried at the next server.
    RetryOnly,
    /// Also by a TCP health check, twice a second.
    Tcp,
    /// The same, and while none is up clients wait.
    TcpAndQueue,
}

impl Rig {
    /// Starts Tidegate in front of these ports of 127.0.0.1.
    #[track_caller]
    pub fn start(servers: &[u16], check: Check) -> Rig {
        let port = free_port();
        Rig { daemon: Daemon::start(&config(port, servers, check)), port }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Waits for the end of all connections, then compares the three books: what the listener
    /// counted, what was counted as closed, and what the access log tells. Gives the log.
    #[track_caller]
    pub fn settled(&self) -> Vec<Value> {
        let active = "tidegate_listener_active_connections";
        let closed = "tidegate_connections_closed_total";
        let total = "tidegate_listener_connections_total";
        eventually("all connections to end", PATIENCE, || {
            let is_quiet = self.daemon.metric(active, &[]) == 0.0;
            (is_quiet && self.daemon.metric(closed, &[]) == self.daemon.metric(total, &[])).then_some(())
        });
        let accepted = self.daemon.metric(total, &[("listener", "l")]) as usize;
        let log = self.daemon.access_log_of(accepted);
        assert_eq!(log.len(), accepted, "one line in the access log for each connection");
        assert_eq!(self.daemon.metric("tidegate_access_log_dropped_total", &[]), 0.0);
        log
    }

    /// Waits until the metric says that the server is up (`true`) or down.
    #[track_caller]
    pub fn wait_for_server(&self, server: &str, up: bool) {
        let want = if up { 1.0 } else { 0.0 };
        eventually(&format!("server {server} to have up = {up}"), PATIENCE, || {
            (self.daemon.metric("tidegate_server_up", &[("server", server)]) == want).then_some(())
        });
    }
}

fn config(port: u16, servers: &[u16], check: Check) -> String {
    let mut text = format!("[listener.l]\nbind = [\"127.0.0.1:{port}\"]\npool = \"p\"\n\n[pool.p]\n");
    text += "balance = \"round-robin\"\nretry = { attempts = 3 }\nservers = [\n";
    for (name, port) in ('a'..='z').zip(servers) {
        let _ = writeln!(text, "  {{ name = \"{name}\", address = \"127.0.0.1:{port}\" }},");
    }
    text += "]\n";
    if matches!(check, Check::TcpAndQueue) {
        text += "on_no_server = \"queue\"\nqueue = { max = 200, timeout = \"60s\" }\n";
    }
    if !matches!(check, Check::RetryOnly) {
        text += "\n[pool.p.health_check]\ntype = \"tcp\"\ninterval = \"500ms\"\ntimeout = \"500ms\"\nrise = 2\nfall = 2\n";
    }
    text
}

/// A client program that works while the test does something to the servers.
pub struct Load {
    process: Proc,
    _dir: TempDir,
}

impl Load {
    #[track_caller]
    pub fn start(name: &str, command: Command) -> Load {
        let dir = TempDir::new(name);
        let spec = Spec { name: name.into(), command, user: None, end: Signal::SIGKILL };
        let process = Proc::start(&spec, dir.path()).expect("the client starts");
        Load { process, _dir: dir }
    }

    /// Waits for its end: stdout, stderr.
    #[track_caller]
    pub fn output(&mut self) -> (String, String) {
        self.process.wait_within(PATIENCE);
        (self.process.stdout(), self.process.stderr())
    }
}

/// The time that a server took to stop: from before the signal until its port refused.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    pub from: SystemTime,
    pub to: SystemTime,
}

impl Stopped {
    /// Runs `stop` and notes when it began and had ended.
    pub fn during(stop: impl FnOnce()) -> Self {
        let from = SystemTime::now();
        stop();
        Stopped { from, to: SystemTime::now() }
    }

    /// Whether the connection was open at any moment of the stop.
    pub fn cut_into(&self, record: &Value) -> bool {
        // The record's clock is read at other moments than ours; a few ms are nobody's mistake.
        const SLACK: Duration = Duration::from_millis(20);
        accepted_at(record) <= self.to + SLACK && ended_at(record) + SLACK >= self.from
    }
}

/// Returns when somebody listens on the port. A server that starts may have much to do before.
#[track_caller]
pub fn wait_for_port(port: u16, is_alive: impl FnMut() -> bool) {
    let mut is_alive = is_alive;
    eventually(&format!("a server on port {port}"), PATIENCE * 3, || {
        assert!(is_alive(), "the server for port {port} ended before it listened");
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(drop)
    });
}

/// Returns when nobody listens on the port any more.
#[track_caller]
pub fn wait_for_refusal(port: u16) {
    eventually(&format!("port {port} to refuse"), PATIENCE, || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).err().map(drop)
    });
}
