//! PostgreSQL and its own load generator, through Tidegate.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::rig::{Check, Load, Rig, Stopped, wait_for_refusal};
use crate::support::proc::{self, Proc, Spec, TempDir};
use crate::support::record::{failed_attempts, word};
use crate::support::{PATIENCE, eventually, free_port};

/// PostgreSQL refuses to run as root; its package brings this user.
pub const USER: &str = "postgres";

/// A server with pgbench's tables in it.
pub struct Postgres {
    process: Proc,
    pub port: u16,
    dir: TempDir,
}

impl Postgres {
    pub fn start() -> Postgres {
        let server = Postgres::start_empty();
        proc::run(pgbench(server.port).args(["-i", "-q", "-s", "1"]));
        server
    }

    /// Without the tables.
    pub fn start_empty() -> Postgres {
        let dir = own_directory();
        let data = dir.join("data");
        proc::run(
            as_postgres(&tool("initdb"))
                .args(["-N", "-A", "trust", "-U", USER, "--no-locale", "-D"])
                .arg(&data),
        );
        let port = free_port();
        Postgres { process: postmaster(&dir, port), port, dir }
    }

    /// A streaming replica of this server.
    pub fn replica(&self) -> Postgres {
        let dir = own_directory();
        let mut copy = as_postgres(&tool("pg_basebackup"));
        copy.args(["-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string(), "-c", "fast", "-R", "-D"]);
        proc::run(copy.arg(dir.join("data")));
        let port = free_port();
        Postgres { process: postmaster(&dir, port), port, dir }
    }

    /// What a statement gives, without headings.
    #[track_caller]
    pub fn sql(&self, statement: &str) -> String {
        proc::run(&mut psql(self.port, statement))
    }

    /// Who may log in and how, in the words of pg_hba.conf.
    #[track_caller]
    pub fn admit(&self, rules: &str) {
        let own = "local all all trust\nhost all postgres 127.0.0.1/32 trust\n";
        fs::write(self.dir.join("data/pg_hba.conf"), format!("{own}{rules}\n")).expect("its rules");
        self.sql("select pg_reload_conf()");
    }

    /// What it has to say: PostgreSQL logs to stderr.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// `pg_ctl stop -m fast`: cuts the sessions, and returns when the port refuses.
    pub fn stop_fast(&mut self) {
        self.process.signal(Signal::SIGINT);
        self.process.wait_within(PATIENCE);
        wait_for_refusal(self.port);
    }

    /// `pg_ctl stop -m immediate`: every session is cut and nothing is written down, as in a crash.
    pub fn crash(&mut self) {
        self.process.signal(Signal::SIGQUIT);
        self.process.wait_within(PATIENCE);
        wait_for_refusal(self.port);
    }

    fn start_again(&mut self) {
        self.process = postmaster(&self.dir, self.port);
    }
}

/// A directory that PostgreSQL's user can write to.
pub fn own_directory() -> TempDir {
    let dir = TempDir::new("postgres");
    if proc::is_root() {
        proc::run(Command::new("chown").arg(USER).arg(dir.path()));
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a directory to share");
    dir
}

/// Starts the postmaster on that port and waits until it answers queries.
fn postmaster(dir: &TempDir, port: u16) -> Proc {
    let mut command = Command::new(tool("postgres"));
    command.arg("-D").arg(dir.join("data")).args(["-p", &port.to_string()]);
    let socket_dir = format!("unix_socket_directories={}", dir.path().display());
    let settings = ["listen_addresses=127.0.0.1", &socket_dir, "fsync=off", "max_connections=200"];
    command.args(settings.iter().flat_map(|setting| ["-c", setting]));
    // SIGQUIT is the immediate shutdown: nothing in this directory is worth a clean one.
    let spec = Spec { name: "postgres".into(), command, user: Some(USER), end: Signal::SIGQUIT };
    let mut process = Proc::start(&spec, dir.path()).expect("the postmaster starts");
    eventually("PostgreSQL to be ready", PATIENCE, || {
        assert!(process.try_wait().is_none(), "the postmaster has ended:\n{}", process.stderr());
        is_ready(dir, process.pid()).then_some(())
    });
    assert_eq!(query(port).stdout, b"42\n");
    process
}

/// What `pg_ctl start` waits for. Whoever asks sooner is turned away, and is in the server's log for it.
fn is_ready(dir: &TempDir, postmaster: u32) -> bool {
    let told = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap_or_default();
    let lines: Vec<_> = told.lines().map(str::trim).collect();
    lines.first() == Some(&postmaster.to_string().as_str()) && lines.get(7) == Some(&"ready")
}

/// A program of the newest PostgreSQL here: Debian keeps them out of the way of `PATH`.
pub fn tool(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let version =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0.0);
    let newest = versions.map(|entry| entry.expect("a directory entry").path());
    let newest =
        newest.max_by(|a, b| f64::total_cmp(&version(a), &version(b))).expect("a version of PostgreSQL");
    newest.join("bin").join(name)
}

pub fn as_postgres(program: &Path) -> Command {
    if !proc::is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--"]).arg(program).current_dir("/");
    command
}

fn pgbench(port: u16) -> Command {
    let mut command = Command::new("pgbench");
    command.args(["-h", "127.0.0.1", "-U", USER, "-p", &port.to_string()]);
    command.env("PGCONNECT_TIMEOUT", "60").env("PGDATABASE", "postgres").stdin(Stdio::null());
    command
}

/// One session with one query, by the usual client.
fn query(port: u16) -> Output {
    psql(port, "select 6 * 7").output().expect("psql runs")
}

pub fn psql(port: u16, statement: &str) -> Command {
    let mut command = Command::new("psql");
    command.args(["-X", "-A", "-t", "-h", "127.0.0.1", "-U", USER, "-d", USER, "-p", &port.to_string()]);
    command.args(["-c", statement]).env("PGCONNECT_TIMEOUT", "60").stdin(Stdio::null());
    command
}

/// `count` sessions, `parallel` at a time; what went wrong in those that failed.
pub fn sessions(port: u16, count: usize, parallel: usize) -> Vec<String> {
    let one =
        || Some(query(port)).filter(|output| output.stdout != b"42\n").map(|output| format!("{output:?}"));
    let some = || (0..count / parallel).filter_map(|_| one()).collect::<Vec<_>>();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..parallel).map(|_| scope.spawn(some)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect()
    })
}

/// Runs pgbench (read only, no vacuum) and expects not one error of any kind.
#[track_caller]
fn pgbench_without_error(rig: &Rig, args: &[&str]) {
    let output = pgbench(rig.port).args(["-n", "-S"]).args(args).output().expect("pgbench runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "pgbench {args:?}: {}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("number of failed transactions: 0 "), "{stdout}");
    assert!(!stderr.contains("error"), "{stderr}");
}

pub fn on<'a>(log: &'a [Value], server: &str) -> Vec<&'a Value> {
    log.iter().filter(|record| word(record, "server") == server).collect()
}

#[test]
fn pgbench_runs_without_an_error_over_two_servers() {
    let (a, b) = (Postgres::start(), Postgres::start());
    let rig = Rig::start(&[a.port, b.port], Check::Tcp);

    pgbench_without_error(&rig, &["-c", "16", "-j", "2", "-T", "3"]);
    pgbench_without_error(&rig, &["-C", "-c", "8", "-j", "2", "-T", "3"]);

    let log = rig.settled();
    let strange: Vec<_> = log.iter().filter(|record| word(record, "close.reason") != "done").collect();
    assert!(strange.is_empty(), "every session ended in order, but: {strange:?}");
    let (on_a, on_b) = (on(&log, "a").len(), on(&log, "b").len());
    assert!(on_a.abs_diff(on_b) <= 1 + log.len() / 50, "a took {on_a}, b took {on_b}");
}

/// With no session open at the moment of the stop, nothing is lost, so every session must succeed,
/// also those that are sent to the stopped server: no health check has noticed (there is none),
/// and only the next attempt can save them.
#[test]
fn no_session_fails_when_a_server_is_gone_and_nothing_but_a_retry_can_know() {
    let (mut a, b) = (Postgres::start(), Postgres::start());
    let rig = Rig::start(&[a.port, b.port], Check::RetryOnly);

    assert_eq!(sessions(rig.port, 100, 4), Vec::<String>::new());
    let before = rig.settled();
    a.stop_fast();
    assert_eq!(sessions(rig.port, 100, 4), Vec::<String>::new());

    let log = rig.settled();
    let after = &log[before.len()..];
    let saved = after.iter().filter(|record| failed_attempts(record) == [("a", "server_refused")]);
    assert!(saved.count() >= 1, "some found out, and from then on one a second tries it");
    assert_eq!(on(after, "b").len(), after.len(), "the other server took them all");
}

/// PostgreSQL's fast shutdown cuts the sessions that it has, and until its port closes it takes
/// new ones only to tell them "the database system is shutting down". Neither can be undone
/// by a balancer: the bytes of the session are gone. So of eight long sessions exactly the four
/// on that server are lost; of the clients that connect anew for each transaction no more than
/// that server's own log, and resets of connections that it never took, account for; and every
/// session after the stop succeeds.
#[test]
fn only_sessions_of_the_stopped_server_are_lost_and_none_afterwards() {
    let (mut a, b) = (Postgres::start(), Postgres::start());
    let rig = Rig::start(&[a.port, b.port], Check::Tcp);

    // Long enough that the slowest machine gets to the stop before they end.
    let mut long = load(&rig, &["-c", "8", "-j", "2", "-T", "15"]);
    // pgbench asks for the size of its tables first, on a connection that it then closes.
    eventually("eight long sessions", PATIENCE, || {
        let (total, active) = ("tidegate_listener_connections_total", "tidegate_listener_active_connections");
        (rig.daemon.metric(total, &[]) >= 9.0 && rig.daemon.metric(active, &[]) == 8.0).then_some(())
    });
    let mut short = load(&rig, &["-C", "-c", "12", "-j", "2", "-T", "10"]);
    rig.daemon.access_log_of(24);
    let stopped = Stopped::during(|| a.stop_fast());
    let (long_lost, short_lost) = (aborted(&mut long), aborted(&mut short));

    let log = rig.settled();
    assert_eq!(long_lost, 4, "round robin had given each server four of the long sessions");
    let exposed: Vec<_> = on(&log, "a").into_iter().filter(|record| stopped.cut_into(record)).collect();
    let is_cut = |record: &&&Value| word(record, "close.reason").starts_with("server_");
    let accounted = a.process.stderr().matches("FATAL:").count() + exposed.iter().filter(is_cut).count();
    let lost = long_lost + short_lost;
    assert!(lost <= exposed.len(), "{lost} lost, {} connections were open on a", exposed.len());
    assert!(lost <= accounted, "{lost} lost, the server and the log account for {accounted}");
    assert_eq!(on(&log, "b").iter().filter(is_cut).count(), 0, "b cut nobody");

    pgbench_without_error(&rig, &["-C", "-c", "8", "-j", "2", "-T", "1"]);
    a.start_again();
    rig.wait_for_server("a", true);
    pgbench_without_error(&rig, &["-C", "-c", "8", "-j", "2", "-T", "1"]);
    let back = on(&rig.settled()[log.len()..], "a").len();
    assert!(back > 0, "the server that came back takes sessions again");
}

/// The only server is stopped and started. Whoever connects meanwhile, by any client, is served in
/// the end: to its clients the outage was a slow connect and not one error.
#[test]
fn sessions_that_begin_while_the_only_server_is_away_only_wait() {
    let mut a = Postgres::start();
    let rig = Rig::start(&[a.port], Check::TcpAndQueue);
    pgbench_without_error(&rig, &["-C", "-c", "4", "-j", "2", "-t", "5"]);
    let before = rig.settled().len();

    a.stop_fast();
    rig.wait_for_server("a", false);
    let mut bench = load(&rig, &["-C", "-c", "8", "-j", "2", "-t", "50"]);
    let failed = thread::scope(|scope| {
        let clients = scope.spawn(|| sessions(rig.port, 40, 8));
        eventually("nine clients that wait", PATIENCE, || {
            (rig.daemon.metric("tidegate_pool_queued_connections", &[("pool", "p")]) >= 9.0).then_some(())
        });
        a.start_again();
        clients.join().expect("the sessions end")
    });
    assert_eq!(failed, Vec::<String>::new());
    assert_eq!(aborted(&mut bench), 0);
    assert!(
        bench.output().0.contains("number of transactions actually processed: 400/400"),
        "{:?}",
        bench.output()
    );

    let log = rig.settled();
    let strange: Vec<_> = log.iter().filter(|record| word(record, "close.reason") != "done").collect();
    assert!(strange.is_empty(), "every session ended in order, but: {strange:?}");
    let waited = log[before..].iter().filter(|record| record["t"]["queue"].as_u64() > Some(100_000));
    assert!(waited.count() >= 9, "those that came first waited for the server");
}

/// pgbench (read only, no vacuum) in the background.
fn load(rig: &Rig, args: &[&str]) -> Load {
    transactions(rig, &[&["-S"], args].concat())
}

/// pgbench (no vacuum) in the background: reads and writes, unless the arguments say otherwise.
pub fn transactions(rig: &Rig, args: &[&str]) -> Load {
    let mut command = pgbench(rig.port);
    command.arg("-n").args(args);
    Load::start("pgbench", command)
}

/// Waits for the end of a load, and counts its clients that gave up at an error. Such a client
/// does not connect again.
#[track_caller]
pub fn aborted(load: &mut Load) -> usize {
    let (stdout, stderr) = load.output();
    assert!(stdout.contains("number of transactions actually processed"), "{stdout}\n{stderr}");
    stderr.lines().filter(|line| line.contains(" aborted ")).count()
}
