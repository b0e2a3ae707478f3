//! Redis and its own load generator, through Tidegate.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::rig::{Check, Rig, wait_for_port};
use crate::support::free_port;
use crate::support::proc::{self, Proc, Spec, TempDir};
use crate::support::record::word;

pub struct Redis {
    pub port: u16,
    process: Proc,
    _dir: TempDir,
}

impl Redis {
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// The same with more arguments, such as `--replicaof 127.0.0.1 6379`.
    pub fn start_with(more: &[&str]) -> Redis {
        let dir = TempDir::new("redis");
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command.arg("--dir").arg(dir.path()).args(more);
        let spec = Spec { name: "redis".into(), command, user: None, end: Signal::SIGTERM };
        let mut process = Proc::start(&spec, dir.path()).expect("redis-server starts");
        wait_for_port(port, || process.try_wait().is_none());
        Redis { port, process, _dir: dir }
    }

    /// What it has to say: Redis logs to stdout.
    pub fn log(&self) -> String {
        self.process.stdout()
    }

    /// What a command prints.
    pub fn cli(&self, words: &[&str]) -> String {
        proc::run(Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(words))
    }

    /// How often the server itself has run that command.
    fn calls(&self, command: &str) -> u64 {
        let stats =
            proc::run(Command::new("redis-cli").args(["-p", &self.port.to_string(), "info", "commandstats"]));
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.map_or(0, |rest| rest.split(',').next().and_then(|count| count.parse().ok()).expect("a count"))
    }
}

/// Runs redis-benchmark with 50 clients, and expects a result for each test and no word of trouble.
#[track_caller]
fn benchmark(rig: &Rig, requests: u64, extra: &[&str]) {
    let mut command = Command::new("redis-benchmark");
    command.args(["-h", "127.0.0.1", "-p", &rig.port.to_string(), "-c", "50", "-t", "ping_mbulk,set,get"]);
    command.args(["-d", "512", "-q", "-n", &requests.to_string()]).args(extra);
    let output = command.output().expect("redis-benchmark runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    assert_eq!(stdout.matches("requests per second").count(), 3, "{stdout}");
    // It warns when it is told to use a new connection for each request, and is right.
    let words: Vec<_> = stderr.lines().filter(|line| !line.contains("Keepalive disabled")).collect();
    assert!(!stdout.contains("rror") && words.is_empty(), "{stdout}\n{stderr}");
}

#[test]
fn every_request_of_redis_benchmark_arrives_once_and_is_answered() {
    let redis = Redis::start();
    let rig = Rig::start(&[redis.port], Check::Tcp);

    benchmark(&rig, 20_000, &[]);
    benchmark(&rig, 100_000, &["-P", "16"]);
    // A new connection for each request.
    benchmark(&rig, 2_000, &["-k", "0"]);

    for command in ["ping", "set", "get"] {
        assert_eq!(redis.calls(command), 122_000, "calls of {command} that the server has seen");
    }
    // `settled` compares the access log with the metrics; what is left is how they ended.
    let log = rig.settled();
    assert!(log.len() >= 6_000, "one connection for each of the last requests");
    let cut = log.iter().filter(|record| word(record, "close.reason").starts_with("server_")).count();
    assert_eq!(cut, 0, "the server cut nobody");
    assert!(log.iter().all(|record| word(record, "server") == "a"));
}
