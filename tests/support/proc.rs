//! Processes and directories that never outlive their test.
//!
//! A `Proc` is ended and reaped by its `Drop`, also when the test panics, and by the kernel when
//! the test process itself is killed (`PR_SET_PDEATHSIG`, set by `setpriv` because a test
//! may not hold unsafe code). The kernel's rule is about the *thread* that started the
//! process: start it from the test's own thread. What the process printed goes to files,
//! never to pipes that could block it, and is shown when the test fails.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// From the polite signal to SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// Lines of each log that are shown when a test fails.
const TAIL_LINES: usize = 40;

/// A directory of one test, removed with all it holds.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// `name` appears in its path: the first thing seen in a listing of what was left behind.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // A process of the same number may have been killed before it could remove its own.
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("tidegate-{name}-{}-{count}", std::process::id()));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    made.expect("a temporary directory");
                    return TempDir(path);
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's own cleaning: no reason to fail a test.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How to run a process: the command, who runs it, and the signal that ends it.
#[derive(Debug)]
pub struct Spec {
    pub name: String,
    pub command: Command,
    /// Run as this user where we are root (servers that refuse root).
    pub user: Option<&'static str>,
    /// Ends it in good order; SIGKILL follows after a while.
    pub end: Signal,
}

/// A running process.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
    end: Signal,
    ended: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Proc {
    /// Starts it, its output going to `NAME.stdout` and `NAME.stderr` in `logs`.
    pub fn start(spec: &Spec, logs: &Path) -> io::Result<Proc> {
        let stdout = logs.join(format!("{}.stdout", spec.name));
        let stderr = logs.join(format!("{}.stderr", spec.name));
        let mut command = bound_to_us(spec);
        command.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let child = command.spawn()?;
        Ok(Proc { name: spec.name.clone(), child, end: spec.end, ended: None, stdout, stderr })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Does nothing once the process has been reaped: its number may be another's by then.
    pub fn signal(&mut self, signal: Signal) {
        if self.try_wait().is_none() {
            kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("our own child takes signals");
        }
    }

    /// How it ended; `None` while it runs.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child can be waited for");
        }
        self.ended
    }

    /// How it ended. Panics when it has not within `patience`.
    #[track_caller]
    pub fn wait_within(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        super::eventually(&what, patience, || self.try_wait())
    }

    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// The polite signal, then SIGKILL, then reaped.
    pub fn stop(&mut self) {
        if self.try_wait().is_some() {
            return;
        }
        self.signal(self.end);
        let deadline = std::time::Instant::now() + GRACE;
        while self.try_wait().is_none() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.try_wait().is_none() {
            // Both fail only where the process has just ended by itself.
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            for (what, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
                show_tail(&format!("{} {what}", self.name), &text);
            }
        }
    }
}

/// The command, run so that it dies with the thread that started it.
fn bound_to_us(spec: &Spec) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--pdeathsig={}", spec.end.as_str()));
    if let Some(user) = spec.user.filter(|_| is_root()) {
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--init-groups".into()]);
    }
    command.arg("--").arg(spec.command.get_program()).args(spec.command.get_args());
    for (key, value) in spec.command.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    if let Some(dir) = spec.command.get_current_dir() {
        command.current_dir(dir);
    }
    command
}

/// Whether this process is root: the owner of its own `/proc` entry is its effective user.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|ours| ours.uid() == 0)
}

/// Whether this process is root, for tests that nobody else can run. Where it is not, says aloud that the test is
/// left out: past the harness, which keeps to itself what a test prints that does not fail.
pub fn is_root_or_skipped() -> bool {
    if !is_root() {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a test");
        // Where nobody hears it, there is nobody to be told.
        let _ = writeln!(io::stderr(), "test {name} ... skipped: needs root");
    }
    is_root()
}

/// Runs a command to its end and gives its stdout. Panics with all it said when it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Shows the end of a log beside the panic that made it interesting.
#[allow(clippy::print_stderr)] // a failing test's words go where its panic goes
pub fn show_tail(title: &str, text: &str) {
    let lines: Vec<_> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if !tail.is_empty() {
        eprintln!("--- {title} ---\n{}\n---", tail.join("\n"));
    }
}
