//! `type = "postgres"` against a primary and its streaming replica.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::Watched;
use crate::postgres::Postgres;
use crate::support::{PATIENCE, TempDir, eventually};

const CHECK: &str = "type = \"postgres\"\nuser = \"postgres\"\n";

/// What a server logs of clients that leave without a word, or that it turns away.
fn complaints(server: &Postgres) -> Vec<String> {
    let log = server.log();
    let is_complaint = |line: &&str| {
        ["unexpected EOF", "FATAL", "ERROR", "reset by peer"].iter().any(|word| line.contains(word))
    };
    log.lines().filter(is_complaint).map(String::from).collect()
}

#[test]
fn the_primary_is_up_and_a_promotion_moves_it() {
    let mut a = Postgres::start_empty();
    let b = a.replica();
    let watched = Watched::start(&[a.port, b.port], &format!("{CHECK}role = \"primary\""));
    watched.wait_for("a", "up", "ok");
    watched.wait_for("b", "down", "the server is a replica, wanted primary");
    assert_eq!(complaints(&b), Vec::<String>::new());

    a.stop_fast();
    watched.wait_for("a", "down", "connection refused");
    b.sql("select pg_promote()");
    watched.wait_for("b", "up", "ok");
}

#[test]
fn a_replica_that_lags_is_down_until_it_has_caught_up() {
    let mut a = Postgres::start_empty();
    let b = a.replica();
    let check = format!("{CHECK}role = \"replica\"\nmax_lag = \"500ms\"");
    let watched = Watched::start(&[a.port, b.port], &check);
    watched.wait_for("a", "down", "the server is a primary, wanted replica");
    watched.wait_for("b", "up", "ok");

    // Nothing has been replayed so far, and nobody could say since when something is missing.
    a.sql("create table old ()");
    let has_replayed = "select pg_last_xact_replay_timestamp() is not null";
    eventually("the first transaction", PATIENCE, || (b.sql(has_replayed) == "t\n").then_some(()));
    b.sql("select pg_wal_replay_pause()");
    a.sql("create table news ()");
    watched.wait_for("b", "down", "behind its primary, max_lag is 500ms");
    b.sql("select pg_wal_replay_resume()");
    watched.wait_for("b", "up", "ok");

    // With nobody to send, being up to date with what was received says nothing.
    a.stop_fast();
    watched.wait_for("b", "down", "behind its primary, max_lag is 500ms");
}

#[test]
fn logins_by_scram_and_md5_work_and_wrong_passwords_say_so() {
    let with_roles = || {
        let a = Postgres::start_empty();
        a.sql("create role scrammer login password 'right, =one'");
        a.sql("set password_encryption = md5; create role hasher login password 'right, =one'");
        a.admit("host all scrammer 127.0.0.1/32 scram-sha-256\nhost all hasher 127.0.0.1/32 md5\nhost all plain 127.0.0.1/32 password");
        a
    };
    let dir = TempDir::new("password");
    let file = dir.join("password");
    fs::write(&file, "right, =one\n").expect("a password");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("for us alone");

    let login = |user: &str| format!("type = \"postgres\"\nuser = {user:?}\ndatabase = \"postgres\"\n");
    let with_password = |user: &str| format!("{}password_file = {file:?}\nrole = \"primary\"", login(user));
    for user in ["scrammer", "hasher"] {
        // Each with a server of its own: a daemon that is killed in a check leaves a word in its log.
        let a = with_roles();
        let watched = Watched::start(&[a.port], &with_password(user));
        watched.wait_for("a", "up", "ok");
        assert_eq!(complaints(&a), Vec::<String>::new());
    }
    let a = with_roles();
    let verdict =
        |check: &str, message: &str| Watched::start(&[a.port], check).wait_for("a", "down", message);
    verdict(&login("scrammer"), "asks for a password, and there is no password_file");
    verdict(&with_password("plain"), "wants the password in clear");
    fs::write(&file, "wrong\n").expect("a password");
    verdict(&with_password("scrammer"), "password authentication failed for user \"scrammer\"");
    verdict(&with_password("hasher"), "password authentication failed for user \"hasher\"");
    verdict(&login("nobody"), "no pg_hba.conf entry");
}

#[test]
fn two_hundred_checks_leave_no_word_in_the_log_and_no_session_behind() {
    let a = Postgres::start_empty();
    let watched = Watched::start(&[a.port], &format!("{CHECK}role = \"primary\""));
    watched.wait_for_checks("a", 200);
    assert_eq!(watched.checks("a", "failed"), 0);
    assert_eq!(complaints(&a), Vec::<String>::new());
    drop(watched);
    let left = "select count(*) from pg_stat_activity where application_name = 'tidegate'";
    eventually("the last session to end", PATIENCE, || (a.sql(left) == "0\n").then_some(()));
}
