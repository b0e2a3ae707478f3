//! `type = "mysql"` against MariaDB.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use super::Watched;
use crate::authority::{Authority, NAME, trusting};
use crate::mariadb::{MariaDb, ask};
use crate::support::{PATIENCE, TempDir, eventually};

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
    eventually("the word about it", PATIENCE, || (complaints() >= 1).then_some(()));
    let before = (trouble(&a), complaints());
    assert!(before.0.contains("Aborted_connects"), "{}", before.0);
    let watched = Watched::start(&[a.port], &format!("{CHECK}role = \"primary\""));
    watched.wait_for_checks("a", 200);
    assert_eq!(watched.checks("a", "failed"), 0);
    assert_eq!((trouble(&a), complaints()), before);
}

/// What MySQL and MariaDB hold against a host. A login that is refused is not in it.
fn unfinished(server: &MariaDb) -> String {
    ask(
        server.port,
        "show global status where variable_name = 'Aborted_connects_preauth' \
         or variable_name like 'Connection_errors%'",
    )
}

/// Each of them once ended the connection between greeting and login, and a hundred of those block the
/// host (`max_connect_errors`), for clients too.
#[test]
fn a_check_that_has_something_against_the_server_still_ends_its_login() {
    let (authority, other) = (Authority::new(), Authority::new());
    let certificate = authority.certificate(NAME).owned_by("mysql");
    let (chain, key) = (certificate.chain.display(), certificate.key.display());
    let (chain, key) = (format!("--ssl-cert={chain}"), format!("--ssl-key={key}"));
    let a = MariaDb::start_with(&["--plugin-load-add=auth_ed25519", &chain, &key]);
    let plain = MariaDb::start_with(&["--skip-ssl"]);
    ask(a.port, "create user tidegate@'127.0.0.1' identified by 'secret'");
    ask(a.port, "create user nobody@'127.0.0.1'");
    ask(a.port, "create user ed@'127.0.0.1' identified via ed25519 using password('secret')");
    let before = (unfinished(&a), unfinished(&plain));
    assert!(before.0.contains("Aborted_connects_preauth"), "{}", before.0);

    let check = |user: &str, tls: &str| format!("type = \"mysql\"\nuser = {user:?}\n{tls}");
    let untrusted = trusting(&other.file());
    let misnamed = format!("tls = {{ verify = {:?}, sni = \"other.internal\" }}\n", authority.file());
    let stories = [
        (&a, check("tidegate", &untrusted), "its certificate is from no authority in /"),
        (&a, check("nobody", &untrusted), "its certificate is from no authority in /"),
        (&a, check("tidegate", "tls = {}\n"), "from an authority that this machine does not know"),
        (&a, check("tidegate", &misnamed), "not for other.internal"),
        (&a, check("ed", &trusting(&authority.file())), "wants the login plugin client_ed25519"),
        (&plain, check("tidegate", &untrusted), "offers no TLS"),
    ];
    // All at once, and alive until the account is read: one that is killed in a check leaves it unfinished.
    let watched: Vec<_> =
        stories.iter().map(|(server, check, _)| Watched::start(&[server.port], check)).collect();
    for (watched, (_, _, message)) in watched.iter().zip(&stories) {
        watched.wait_for("a", "down", message);
        eventually("twenty checks", PATIENCE, || (watched.checks("a", "failed") >= 20).then_some(()));
    }
    assert_eq!((unfinished(&a), unfinished(&plain)), before);
}

/// A server that was stopped for four seconds once found a dozen logins broken off when it went on, held them
/// against this host (`max_connect_errors`), and blocked all clients for good.
#[test]
fn a_server_that_stops_for_a_while_finds_no_login_broken_off() {
    let mut a = MariaDb::start();
    ask(a.port, "create user tidegate@'127.0.0.1'");
    let before = unfinished(&a);
    let check = format!("{CHECK}timeout = \"200ms\"\n");
    let (watched, mut removed) = (Watched::start(&[a.port], &check), Watched::start(&[a.port], &check));
    for watched in [&watched, &removed] {
        watched.wait_for("a", "up", "ok");
    }
    a.process.signal(Signal::SIGSTOP);
    for watched in [&watched, &removed] {
        watched.wait_for("a", "down", "no answer yet to the check of ");
        let from = watched.checks("a", "failed");
        eventually("ten more checks", PATIENCE, || {
            (watched.checks("a", "failed") >= from + 10).then_some(())
        });
    }
    // Its login goes on without the check that it was made for.
    let text = fs::read_to_string(removed.daemon.config_path()).expect("its file");
    removed.daemon.reload(text.split("[pool.p.health_check]").next().expect("a beginning"));
    a.process.signal(Signal::SIGCONT);
    watched.wait_for("a", "up", "ok");
    watched.wait_for_checks("a", 10);
    assert_eq!(unfinished(&a), before);
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
