//! `type = "mysql"` against MariaDB.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::Watched;
use crate::mariadb::{MariaDb, ask};
use crate::support::TempDir;

const CHECK: &str = "type = \"mysql\"\nuser = \"tidegate\"\n";

/// What the server counts of connections that went wrong.
fn trouble(server: &MariaDb) -> String {
    ask(
        server.port,
        "show global status where variable_name like 'Aborted%' or variable_name like 'Connection_errors%'",
    )
}

/// MySQL keeps no account of errors for loopback's own host, so the server's whole account is read:
/// each connection that ends between greeting and login is in `Aborted_connects`, and each that
/// ends without COM_QUIT in `Aborted_clients`, wherever it comes from.
#[test]
fn two_hundred_checks_count_as_no_error_anywhere() {
    let a = MariaDb::start_with(&["--log-warnings=9"]);
    ask(a.port, "create user tidegate@'127.0.0.1'");
    // The test's own look whether the port is open is such a connection.
    let complaints = || a.log().matches("Aborted connection").count();
    let before = (trouble(&a), complaints());
    assert!(before.0.contains("Aborted_connects"), "{}", before.0);
    let watched = Watched::start(&[a.port], &format!("{CHECK}role = \"primary\""));
    watched.wait_for_checks("a", 200);
    assert_eq!(watched.checks("a", "failed"), 0);
    assert_eq!((trouble(&a), complaints()), before);
}

#[test]
fn a_server_that_becomes_read_only_is_no_primary() {
    let a = MariaDb::start();
    ask(a.port, "create user tidegate@'127.0.0.1'");
    let watched = Watched::start(&[a.port], &format!("{CHECK}role = \"primary\""));
    watched.wait_for("a", "up", "ok");
    ask(a.port, "set global read_only = 1");
    watched.wait_for("a", "down", "read_only says replica, wanted primary");
    let replicas = Watched::start(&[a.port], &format!("{CHECK}role = \"replica\""));
    replicas.wait_for("a", "up", "ok");
    ask(a.port, "set global read_only = 0");
    watched.wait_for("a", "up", "ok");
    replicas.wait_for("a", "down", "read_only says primary, wanted replica");
}

#[test]
fn a_password_is_proven_and_a_wrong_one_says_so() {
    let a = MariaDb::start();
    ask(a.port, "create user tidegate@'127.0.0.1' identified by 'right one'");
    let dir = TempDir::new("password");
    let file = dir.join("password");
    let write = |text: &str| {
        fs::write(&file, text).expect("a password");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("for us alone");
    };
    write("right one\n");
    let check = format!("{CHECK}password_file = {file:?}");
    let mut watched = Watched::start(&[a.port], &check);
    watched.wait_for("a", "up", "ok");
    write("wrong\n");
    watched.reload();
    watched.wait_for("a", "down", "error 1045: Access denied for user 'tidegate'");
    assert!(!(watched.daemon.stdout() + &watched.daemon.stderr()).contains("right one"));
}
