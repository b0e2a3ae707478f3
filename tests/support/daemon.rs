//! Tidegate as its operators see it: a process with a file, a log, metrics and signals.
//!
//! `Daemon::start(text)` writes the file, runs `tidegate run -c FILE` and returns once the daemon
//! says that it is ready. Admin socket, admin HTTP and access log are added to the text
//! unless it has those tables itself. Tests look at the daemon only through what users have.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::http::{self, Answer};
use super::proc::{Proc, Spec, TempDir};
use super::{PATIENCE, eventually, free_port};

/// What to start, and how.
#[derive(Debug)]
pub struct Builder {
    text: String,
    env: Vec<(String, String)>,
    runner: Vec<String>,
}

impl Builder {
    /// Sets an environment variable of the daemon.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Runs the daemon under a command that ends in executing it, such as `prlimit --nofile=64`.
    pub fn under<const N: usize>(mut self, command: [&str; N]) -> Self {
        self.runner = command.map(String::from).to_vec();
        self
    }

    /// Starts it and waits until it is ready. Panics with its log when it is not.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let mut daemon = self.spawn();
        daemon.wait_until_ready();
        daemon
    }

    /// Starts it without waiting: for configurations that must fail.
    #[track_caller]
    pub fn spawn(self) -> Daemon {
        let dir = TempDir::new("daemon");
        let admin_http = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let config = dir.join("tidegate.toml");
        fs::write(&config, complete(&self.text, &dir, admin_http)).expect("the configuration is written");

        let notify = UnixDatagram::bind(dir.join("notify")).expect("a socket to be told READY=1 on");
        notify.set_nonblocking(true).expect("a socket that can be looked at without waiting");
        let mut line = self.runner;
        line.extend([binary(), "run".into(), "-c".into()]);
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).arg(&config).env("NOTIFY_SOCKET", dir.join("notify"));
        command.env_remove("TIDEGATE_CONFIG").env_remove("TIDEGATE_ADMIN").envs(self.env);
        let spec = Spec { name: "tidegate".into(), command, user: None, end: Signal::SIGKILL };
        let process = Proc::start(&spec, dir.path()).expect("the daemon starts");
        Daemon { process, notify, notices: Vec::new(), admin_http, config, dir }
    }
}

/// The binary under test: the one that cargo built beside the tests, or any other build of it
/// (a release, the one that a package installed) that `TIDEGATE_BIN` names.
fn binary() -> String {
    std::env::var("TIDEGATE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tidegate").into())
}

/// The operator's text and the tables that every test needs.
fn complete(text: &str, dir: &TempDir, admin_http: SocketAddr) -> String {
    let mut whole = String::new();
    if !text.contains("[admin]") {
        let socket = dir.join("admin.sock");
        whole += &format!("[admin]\nsocket = {socket:?}\nhttp = \"{admin_http}\"\n\n");
    }
    if !text.contains("[log.access]") {
        whole += &format!("[log.access]\noutput = {:?}\n\n", dir.join("access.jsonl"));
    }
    whole + &on_driver(text)
}

/// The text with the driver under test: `TIDEGATE_TEST_IO=io-uring` runs every test on that one.
fn on_driver(text: &str) -> String {
    match std::env::var("TIDEGATE_TEST_IO") {
        Err(_) => text.into(),
        Ok(_) if text.contains("\nio = ") => text.into(), // the test is about that driver
        Ok(io) if text.contains("[process]") => text.replace("[process]", &format!("[process]\nio = {io:?}")),
        Ok(io) => format!("[process]\nio = {io:?}\n\n{text}"),
    }
}

/// A running daemon. Dropping it kills it, and shows its log when the test has failed.
#[derive(Debug)]
pub struct Daemon {
    process: Proc, // first: dropped, and so ended, before the directory it writes to
    notify: UnixDatagram,
    notices: Vec<String>,
    admin_http: SocketAddr,
    config: PathBuf,
    dir: TempDir,
}

impl Daemon {
    /// A daemon with this configuration, ready to serve.
    #[track_caller]
    pub fn start(text: &str) -> Daemon {
        Daemon::builder(text).start()
    }

    pub fn builder(text: &str) -> Builder {
        Builder { text: text.into(), env: Vec::new(), runner: Vec::new() }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Its file, to be changed before a reload.
    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// Replaces its file in one step, completed in the same way as the first one.
    pub fn rewrite_config(&self, text: &str) {
        let fresh = self.config.with_extension("fresh");
        fs::write(&fresh, complete(text, &self.dir, self.admin_http)).expect("the new configuration");
        fs::rename(fresh, &self.config).expect("the new configuration takes the old one's place");
    }

    /// Reloads with that file, and waits until the daemon has done so.
    #[track_caller]
    pub fn reload(&mut self, text: &str) {
        let generation = self.metric("tidegate_config_generation", &[]);
        self.rewrite_config(text);
        self.signal(Signal::SIGHUP);
        eventually("the reload", PATIENCE, || {
            (self.metric("tidegate_config_generation", &[]) == generation + 1.0).then_some(())
        });
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    pub fn admin_http(&self) -> SocketAddr {
        self.admin_http
    }

    /// What it sent to the service manager so far, such as `READY=1` or `STOPPING=1`.
    pub fn notices(&mut self) -> &[String] {
        let mut datagram = [0; 4096];
        while let Ok(length) = self.notify.recv(&mut datagram) {
            self.notices.extend(String::from_utf8_lossy(&datagram[..length]).lines().map(String::from));
        }
        &self.notices
    }

    /// Returns when the daemon has told the service manager `READY=1`, or `/readyz` says so.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        eventually("the daemon to be ready", PATIENCE, || {
            if let Some(status) = self.process.try_wait() {
                panic!("the daemon ended with {status} before it was ready:\n{}", self.stderr());
            }
            let is_told = self.notices().iter().any(|notice| notice == "READY=1");
            let is_ready = || http::get(self.admin_http, "/readyz").is_ok_and(|answer| answer.status == 200);
            (is_told || is_ready()).then_some(())
        });
    }

    /// `GET` on its admin HTTP.
    #[track_caller]
    pub fn http_get(&self, path: &str) -> Answer {
        http::get(self.admin_http, path).expect("admin.http answers")
    }

    /// The sum of all samples of that metric that have all of these labels; 0 where there is none.
    /// `name` is the whole name: `daemon.metric("tidegate_server_up", &[("server", "a")])`.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let answer = self.http_get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        http::metric(&answer.body, name, labels)
    }

    /// Every line of the access log so far, oldest first.
    #[track_caller]
    pub fn access_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("access.jsonl")).unwrap_or_default();
        // The last line may still be on its way into the file.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        whole
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line of the access log is JSON"))
            .collect()
    }

    /// The access log once it has at least `count` lines.
    #[track_caller]
    pub fn access_log_of(&self, count: usize) -> Vec<Value> {
        let what = format!("{count} lines in the access log");
        eventually(&what, PATIENCE, || Some(self.access_log()).filter(|lines| lines.len() >= count))
    }

    /// Runs another command of the same binary against this daemon: `daemon.tidegate(&["status"])`.
    pub fn tidegate(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(args).env("TIDEGATE_ADMIN", self.admin_socket()).stdin(Stdio::null());
        command.output().expect("the command runs")
    }

    pub fn stdout(&self) -> String {
        self.process.stdout()
    }

    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// Returns when its log has that text.
    #[track_caller]
    pub fn has_said(&self, text: &str) {
        eventually(&format!("the log to say `{text}`"), PATIENCE, || {
            self.stderr().contains(text).then_some(())
        });
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().is_none()
    }

    /// Waits for its end: exit code (`None`: ended by a signal), stdout, stderr.
    #[track_caller]
    pub fn wait(&mut self) -> (Option<i32>, String, String) {
        self.wait_within(PATIENCE)
    }

    #[track_caller]
    pub fn wait_within(&mut self, patience: Duration) -> (Option<i32>, String, String) {
        let status = self.process.wait_within(patience);
        (status.code(), self.stdout(), self.stderr())
    }

    /// What the kernel knows of it; see `/proc/PID/status` in proc(5).
    pub fn resources(&self) -> Resources {
        Resources::of(self.pid())
    }
}

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    pub descriptors: usize,
    pub threads: usize,
    pub rss_kib: u64,
}

impl Resources {
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
        let field = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).expect("a field of proc(5)");
            line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
        Resources { descriptors, threads: field("Threads:") as usize, rss_kib: field("VmRSS:") }
    }
}
