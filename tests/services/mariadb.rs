//! MariaDB and its clients, through Tidegate: a protocol in which the server speaks first.

use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::rig::{Check, Rig, wait_for_port};
use crate::support::proc::{self, Proc, Spec, TempDir};
use crate::support::record::word;
use crate::support::{PATIENCE, eventually, free_port};

pub struct MariaDb {
    pub port: u16,
    pub process: Proc,
    _dir: TempDir,
}

impl MariaDb {
    pub fn start() -> MariaDb {
        MariaDb::start_with(&[])
    }

    /// The same with more arguments, such as `--max-connect-errors=3`.
    pub fn start_with(more: &[&str]) -> MariaDb {
        let dir = TempDir::new("mariadb");
        let data = format!("--datadir={}", dir.join("data").display());
        let mut install = Command::new("mariadb-install-db");
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db", &data]);
        install.arg(SMALL_LOG).args(own_user()).env("TMPDIR", dir.path());
        if proc::is_root() {
            proc::run(Command::new("chown").arg(USER).arg(dir.path()));
        }
        proc::run(&mut install);

        let port = free_port();
        let mut command = Command::new("mariadbd");
        command.args(["--no-defaults", &data, "--bind-address=127.0.0.1", "--skip-name-resolve"]);
        command.args([format!("--port={port}"), format!("--socket={}", dir.join("socket").display())]);
        command.args(["--innodb-flush-log-at-trx-commit=0", SMALL_LOG]).args(own_user()).args(more);
        // As it starts it removes the temporary tables of everybody who shares this place, which has broken the
        // installation of another test's server.
        command.env("TMPDIR", dir.path());
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        // Nothing in this directory is worth a shutdown of some seconds.
        let spec = Spec { name: "mariadb".into(), command, user: None, end: Signal::SIGKILL };
        let mut process = Proc::start(&spec, dir.path()).expect("mariadbd starts");
        wait_for_port(port, || process.try_wait().is_none());
        // Our look at the port was a connection without a login, of which it keeps an account. Only when it is in the
        // books can a test hold them against what comes later.
        let booked = "show global status where variable_name = 'Aborted_connects' and value > 0";
        eventually("MariaDB to answer", PATIENCE, || {
            let output =
                client("mariadb", port).args(["-N", "-B", "-e", booked]).output().expect("mariadb runs");
            (output.status.success() && !output.stdout.is_empty()).then_some(())
        });
        MariaDb { port, process, _dir: dir }
    }

    /// What it has to say: MariaDB logs to stderr.
    pub fn log(&self) -> String {
        self.process.stderr()
    }
}

/// By default each server has a log of 96 MiB, of which the tests need next to nothing, and which a node of Galera
/// sends to the next one.
const SMALL_LOG: &str = "--innodb-log-file-size=8M";

/// MariaDB's package brings this user, which mariadbd becomes when root starts it.
const USER: &str = "mysql";

fn own_user() -> Option<String> {
    proc::is_root().then(|| format!("--user={USER}"))
}

/// One of MariaDB's client programs, over TCP.
fn client(program: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    command.args(["--no-defaults", "--protocol=tcp", "-h", "127.0.0.1", "-u", "root"]);
    command.args(["-P", &port.to_string()]).stdin(Stdio::null());
    command
}

/// What a statement prints, without headings.
#[track_caller]
pub fn ask(port: u16, statement: &str) -> String {
    proc::run(client("mariadb", port).args(["-N", "-B", "-e", statement]))
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once_every_time() {
    let server = MariaDb::start();
    let rig = Rig::start(&[server.port], Check::Tcp);

    for round in 1..=50 {
        assert_eq!(ask(rig.port, &format!("select {round} * 2")), format!("{}\n", round * 2));
    }
    let log = rig.settled();
    assert_eq!(log.len(), 50);
    let strange: Vec<_> = log.iter().filter(|record| word(record, "close.reason") != "done").collect();
    assert!(strange.is_empty(), "every session ended in order, but: {strange:?}");
}

#[test]
fn a_dump_and_its_load_carry_every_row() {
    let server = MariaDb::start();
    let rig = Rig::start(&[server.port], Check::Tcp);
    // 40,000 rows of 224 hexadecimal digits: about 10 MB each way.
    let fill = "create database one; create database two; use one; create table t (id int primary key, body text);
                insert into t select seq, concat(sha2(seq, 512), sha2(seq + 1000000, 384)) from seq_1_to_40000;";
    ask(server.port, fill);

    let mut dump =
        client("mariadb-dump", rig.port).arg("one").stdout(Stdio::piped()).spawn().expect("a dump");
    let from = dump.stdout.take().expect("its output");
    let load = client("mariadb", rig.port).arg("two").stdin(from).output().expect("a load");
    assert!(dump.wait().expect("the dump ends").success());
    assert!(load.status.success(), "{}", String::from_utf8_lossy(&load.stderr));

    let sum = |table: &str| ask(server.port, &format!("checksum table {table}"));
    assert_eq!(
        sum("one.t").split_once('\t').map(|pair| pair.1),
        sum("two.t").split_once('\t').map(|pair| pair.1)
    );
    assert_eq!(ask(server.port, "select count(*) from two.t"), "40000\n");
    let log = rig.settled();
    let carried: u64 = log.iter().map(|record| record["bytes_in"].as_u64().unwrap_or(0)).sum();
    assert!(carried > 8 << 20, "the load went through Tidegate: {carried} bytes from clients");
}
