//! nginx, curl and wrk, through Tidegate.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::rig::{Check, Load, Rig, Stopped, wait_for_port, wait_for_refusal};
use crate::support::proc::{self, Proc, Spec, TempDir};
use crate::support::record::{accepted_at, ended_at, number, word};
use crate::support::{PATIENCE, free_port, stream};

const BIG_BYTES: u64 = 10 << 20;
/// Both servers give the same bytes, so a download may come from either.
const BIG_SEED: u64 = 7;

pub struct Nginx {
    process: Proc,
    pub port: u16,
    dir: TempDir,
}

impl Nginx {
    /// Serves `/small` (a few bytes) and `/big` (10 MiB).
    pub fn start() -> Nginx {
        Nginx::start_with("")
    }

    /// The same with more lines for its `server`.
    pub fn start_with(more: &str) -> Nginx {
        let dir = TempDir::new("nginx");
        let port = free_port();
        fs::write(dir.join("small"), "the small one\n").expect("a file to serve");
        let big = fs::File::create(dir.join("big")).expect("a file to serve");
        stream::send(big, BIG_SEED, 0..BIG_BYTES).expect("a file to serve");
        fs::write(dir.join("nginx.conf"), config(&dir, port, more)).expect("its configuration");
        let mut command = Command::new("nginx");
        command.arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("error.log"));
        // Debian keeps it in /usr/sbin, which is not in everybody's PATH.
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        // SIGTERM is nginx's fast shutdown, of the workers too.
        let spec = Spec { name: "nginx".into(), command, user: None, end: Signal::SIGTERM };
        let mut process = Proc::start(&spec, dir.path()).expect("nginx starts");
        wait_for_port(port, || process.try_wait().is_none());
        Nginx { process, port, dir }
    }

    /// A file of its directory, such as `error.log`; empty where there is none.
    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// Writes a file that it serves, in one step: it logs an error where one changes while it is sent.
    pub fn serve(&self, name: &str, text: &str) {
        let fresh = self.dir.join("fresh");
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(fresh, self.dir.join(name)))
            .expect("a file to serve");
    }

    /// Cuts what is open, and returns when the port refuses.
    fn stop_fast(&mut self) {
        self.process.signal(Signal::SIGTERM);
        self.process.wait_within(PATIENCE);
        wait_for_refusal(self.port);
    }
}

/// All that nginx would otherwise write to the system's directories goes to `dir`.
fn config(dir: &TempDir, port: u16, more: &str) -> String {
    let here = dir.path().display();
    // Workers would otherwise drop to a user who may not read the directory.
    let user = if proc::is_root() { "user root;" } else { "" };
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let paths: String = temporary.iter().map(|what| format!("  {what}_temp_path {here}/{what};\n")).collect();
    format!(
        "daemon off; {user} worker_processes 2; pid {here}/pid; error_log {here}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n{paths}  access_log off; root {here}; keepalive_requests 1000000;\n\
         \x20 server {{ listen 127.0.0.1:{port}; {more} }}\n}}\n"
    )
}

/// Runs wrk on `/small` for that many seconds.
fn wrk(port: u16, seconds: u32, headers: &[&str]) -> Load {
    let mut command = Command::new("wrk");
    command.args(["-t2", "-c64", &format!("-d{seconds}s"), "--timeout", "60s"]);
    command.args(headers.iter().flat_map(|header| ["-H", header]));
    command.arg(format!("http://127.0.0.1:{port}/small"));
    Load::start("wrk", command)
}

/// What wrk reports: requests answered, and errors of any kind.
#[derive(Debug, Default, PartialEq)]
struct Report {
    answered: u64,
    /// connect, read, write, timeout
    socket_errors: [u64; 4],
    not_2xx: u64,
}

impl Report {
    #[track_caller]
    fn of(mut wrk: Load) -> Report {
        let (text, _) = wrk.output();
        let numbers = |line: &str| -> Vec<u64> {
            let words = line.split(|letter: char| !letter.is_ascii_digit());
            words.filter_map(|word| word.parse().ok()).collect()
        };
        let mut report = Report::default();
        for line in text.lines().map(str::trim) {
            if line.contains(" requests in ") {
                report.answered = numbers(line)[0];
            } else if line.starts_with("Socket errors:") {
                report.socket_errors = numbers(line).try_into().expect("four kinds of errors");
            } else if line.starts_with("Non-2xx") {
                report.not_2xx = *numbers(line).last().expect("a count");
            }
        }
        assert!(report.answered > 0, "{text}");
        report
    }

    #[track_caller]
    fn expect_no_error(&self) {
        let clean = Report { answered: self.answered, ..Report::default() };
        assert_eq!(*self, clean, "no socket error, and nothing but 2xx");
    }
}

#[test]
fn curl_gets_the_whole_file_again_and_again_on_one_connection() {
    let (a, b) = (Nginx::start(), Nginx::start());
    let rig = Rig::start(&[a.port, b.port], Check::Tcp);
    let dir = TempDir::new("curl");

    let url = format!("http://127.0.0.1:{}/big", rig.port);
    let files = ["1", "2", "3"].map(|name| dir.join(name));
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "--max-time", "60", "-w", "%{http_code} %{num_connects}\n"]);
    for file in &files {
        command.arg("-o").arg(file).arg(&url);
    }
    assert_eq!(proc::run(&mut command), "200 1\n200 0\n200 0\n", "one connection for three downloads");

    for file in files {
        let mut got = fs::File::open(file).expect("the download");
        stream::expect(&mut got, BIG_SEED, 0..BIG_BYTES).expect("every byte as served");
        stream::expect_end(&mut got).expect("nothing after it");
    }
    let log = rig.settled();
    assert_eq!(log.len(), 1);
    assert!(number(&log[0], "bytes_out") > 3 * BIG_BYTES, "{}", log[0]);
}

#[test]
fn wrk_sees_no_error_with_and_without_keepalive() {
    let (a, b) = (Nginx::start(), Nginx::start());
    let rig = Rig::start(&[a.port, b.port], Check::Tcp);

    Report::of(wrk(rig.port, 3, &[])).expect_no_error();
    let kept = rig.settled().len();
    assert!((64..=130).contains(&kept), "64 connections, and one or two to begin with: {kept}");

    let report = Report::of(wrk(rig.port, 3, &["Connection: close"]));
    report.expect_no_error();
    let single = rig.settled().len() - kept;
    assert!(single as u64 >= report.answered, "{single} connections for {} answers", report.answered);
}

/// A fast stop cuts the requests that nginx has in hand and resets those that it has not yet
/// accepted; their bytes are gone, and no balancer of connections may send them twice. So an
/// answer may be missing only on the stopped server, on a connection that was open during its
/// stop, and wrk may see no more errors than there are such connections. Connections that begin
/// after the port refuses are all saved by retry and health check.
#[test]
fn only_requests_in_the_hands_of_the_stopped_nginx_are_lost() {
    let (mut a, b) = (Nginx::start(), Nginx::start());
    let rig = Rig::start(&[a.port, b.port], Check::Tcp);

    let load = wrk(rig.port, 4, &["Connection: close"]);
    rig.daemon.access_log_of(200);
    let stopped = Stopped::during(|| a.stop_fast());
    rig.wait_for_server("a", false);
    let report = Report::of(load);

    let log = rig.settled();
    // The answers to one request are alike, so the commonest length is that of a whole answer.
    let whole = number(&log[log.len() / 8], "bytes_out");
    // When its time is up wrk leaves its 64 connections as they are: these are no errors of ours.
    let wrk_stopped = log.iter().map(accepted_at).max().expect("connections");
    let is_left_by_wrk = |record: &Value| ended_at(record) >= wrk_stopped;
    // One connection of wrk's asks nothing and ends: it tries whether anybody is there. One that the
    // server ended before its request had come is another matter.
    let is_trial = |record: &Value| number(record, "bytes_in") == 0 && word(record, "close.by") == "client";
    let asked = log.iter().filter(|record| !is_trial(record));
    let missing = asked.filter(|record| number(record, "bytes_out") != whole);
    let missing: Vec<_> = missing.filter(|record| !is_left_by_wrk(record)).collect();
    for record in &missing {
        let is_excused = word(record, "server") == "a" && stopped.cut_into(record);
        assert!(is_excused, "an answer is not whole ({whole} bytes) that must be: {record}");
    }
    let errors: u64 = report.socket_errors.iter().sum();
    assert!(errors <= missing.len() as u64, "{report:?}, but only {} answers are missing", missing.len());
    assert_eq!(report.not_2xx, 0);
    let afterwards = log.iter().filter(|record| accepted_at(record) > stopped.to).count();
    assert!(afterwards > 100, "the other server went on alone: {afterwards} connections");
}
