//! Health checks against real servers: what each finds, and that no server logs an error for it.

mod galera;
mod http;
mod mysql;
mod postgres;
mod proxy_header;
mod redis;
mod tls;

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Daemon, PATIENCE, eventually, free_port};

/// Between two looks at the API.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A pool `p` of these servers (`a`, `b` and so on, by port) that nothing but checks talks to.
pub struct Watched {
    pub daemon: Daemon,
}

impl Watched {
    /// `check` is the rest of the table; checks come every 50 ms, up after one and down after two.
    #[track_caller]
    pub fn start(ports: &[u16], check: &str) -> Watched {
        Watched { daemon: Daemon::start(&config(free_port(), ports, check)) }
    }

    /// Waits until the server's state and the message of its last check are these.
    #[track_caller]
    pub fn wait_for(&self, server: &str, state: &str, message: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = self.server(server);
            let said = shown["last_check"]["message"].as_str().unwrap_or_default();
            if shown["state"] == state && said.contains(message) {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain for {state} ({message}): {shown}");
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Lets the daemon read its file, and what that names, again.
    #[track_caller]
    pub fn reload(&mut self) {
        self.daemon.signal(Signal::SIGHUP);
    }

    /// What the API says of the server.
    #[track_caller]
    pub fn server(&self, name: &str) -> Value {
        let servers: Value =
            serde_json::from_str(&self.daemon.http_get("/api/v1/servers").body).expect("JSON");
        let servers = servers.as_array().expect("a list");
        servers.iter().find(|server| server["name"] == name).expect("the server").clone()
    }

    /// Checks of the server with that result, `ok` or `failed`.
    pub fn checks(&self, server: &str, result: &str) -> u64 {
        self.daemon.metric("tidegate_health_check_total", &[("server", server), ("result", result)]) as u64
    }

    /// Waits until so many checks more have passed.
    #[track_caller]
    pub fn wait_for_checks(&self, server: &str, more: u64) {
        let from = self.checks(server, "ok");
        eventually(&format!("{more} checks of {server}"), PATIENCE * 2, || {
            (self.checks(server, "ok") >= from + more).then_some(())
        });
    }
}

fn config(listen: u16, ports: &[u16], check: &str) -> String {
    let timeout = if check.contains("timeout") { "" } else { "timeout = \"5s\"\n" };
    let servers: Vec<_> = ('a'..='z')
        .zip(ports)
        .map(|(name, port)| format!("{{ name = \"{name}\", address = \"127.0.0.1:{port}\" }}"))
        .collect();
    format!(
        "[listener.l]\nbind = [\"127.0.0.1:{listen}\"]\npool = \"p\"\n\n[pool.p]\nservers = [{}]\n\n\
         [pool.p.health_check]\ninterval = \"50ms\"\n{timeout}rise = 1\nfall = 2\n{check}\n",
        servers.join(", ")
    )
}
