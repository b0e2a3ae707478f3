//! `type = "redis"` against a primary and its replica.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::Watched;
use crate::redis::Redis;
use crate::support::TempDir;

fn replica_of(primary: &Redis, more: &[&str]) -> Redis {
    let port = primary.port.to_string();
    Redis::start_with(&[&["--replicaof", "127.0.0.1", &port], more].concat())
}

#[test]
fn the_primary_is_up_and_a_failover_moves_it() {
    let a = Redis::start();
    let b = replica_of(&a, &[]);
    let watched = Watched::start(&[a.port, b.port], "type = \"redis\"\nrole = \"primary\"");
    watched.wait_for("a", "up", "ok");
    watched.wait_for("b", "down", "ROLE says replica, wanted primary");

    b.cli(&["replicaof", "no", "one"]);
    watched.wait_for("b", "up", "ok");
    a.cli(&["replicaof", "127.0.0.1", &b.port.to_string()]);
    watched.wait_for("a", "down", "ROLE says replica, wanted primary");
}

/// It goes on answering with what it knew.
#[test]
fn a_replica_that_has_lost_its_primary_is_down() {
    let a = Redis::start();
    let b = replica_of(&a, &[]);
    let watched = Watched::start(&[b.port], "type = \"redis\"\nrole = \"replica\"");
    watched.wait_for("a", "up", "ok");
    drop(a);
    watched.wait_for("a", "down", "the replica's link to its primary is \"connect");
}

#[test]
fn a_replica_that_may_not_answer_without_its_primary_is_down() {
    let a = Redis::start();
    let b = replica_of(&a, &["--replica-serve-stale-data", "no"]);
    let watched = Watched::start(&[a.port, b.port], "type = \"redis\"\nrole = \"replica\"");
    watched.wait_for("b", "up", "ok");
    watched.wait_for("a", "down", "ROLE says primary, wanted replica");
    drop(a);
    watched.wait_for("b", "down", "PING says MASTERDOWN");
    watched.wait_for("a", "down", "connection refused");
}

#[test]
fn a_server_that_loads_its_data_is_down_until_it_has() {
    let a = Redis::start_with(&[
        "--enable-debug-command",
        "yes",
        "--key-load-delay",
        "400",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    a.cli(&["debug", "populate", "15000", "key", "32"]);
    let watched = Watched::start(&[a.port], "type = \"redis\"");
    watched.wait_for("a", "up", "ok");
    // Writes the data and loads it again, 0.4 ms for each key.
    let load = std::thread::spawn({
        let port = a.port.to_string();
        move || {
            let mut command = std::process::Command::new("redis-cli");
            command.args(["-p", &port, "debug", "reload"]).output().expect("redis-cli runs");
        }
    });
    watched.wait_for("a", "down", "PING says LOADING");
    watched.wait_for("a", "up", "ok");
    load.join().expect("reloaded");
}

#[test]
fn a_password_comes_from_its_file_and_is_read_again_at_a_reload() {
    let a = Redis::start_with(&["--requirepass", "right one"]);
    let dir = TempDir::new("password");
    let file = dir.join("password");
    fs::write(&file, "the old one\n").expect("a password");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("for us alone");
    let mut watched = Watched::start(&[a.port], &format!("type = \"redis\"\npassword_file = {file:?}"));
    watched.wait_for("a", "down", "AUTH says WRONGPASS");

    fs::write(&file, "right one\n").expect("a password");
    watched.reload();
    watched.wait_for("a", "up", "ok");
    let told = watched.daemon.stdout() + &watched.daemon.stderr();
    assert!(!told.contains("the old one") && !told.contains("right one"), "{told}");
}

#[test]
fn a_login_that_is_missing_or_has_too_few_rights_says_so() {
    let a = Redis::start_with(&["--requirepass", "secret"]);
    let watched = Watched::start(&[a.port], "type = \"redis\"");
    watched.wait_for("a", "down", "PING says NOAUTH");
    a.cli(&["-a", "secret", "--no-auth-warning", "acl", "setuser", "watcher", "on", "nopass", "+ping"]);
    let watched = Watched::start(&[a.port], "type = \"redis\"\nuser = \"watcher\"");
    watched.wait_for("a", "up", "ok");
    let check = "type = \"redis\"\nuser = \"watcher\"\nrole = \"primary\"";
    Watched::start(&[a.port], check).wait_for("a", "down", "ROLE says NOPERM");
}

#[test]
fn two_hundred_checks_end_as_they_should() {
    let a = Redis::start();
    let watched = Watched::start(&[a.port], "type = \"redis\"\nrole = \"primary\"");
    watched.wait_for_checks("a", 200);
    assert_eq!(watched.checks("a", "failed"), 0);
    let errors = a.cli(&["info", "errorstats"]);
    assert!(!errors.contains("errorstat_"), "{errors}");
    let quits = a.cli(&["info", "commandstats"]);
    assert!(quits.contains("cmdstat_role:calls="), "{quits}");
}
