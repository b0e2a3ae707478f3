//! A PostgreSQL replica takes over while pgbench works through Tidegate, which finds the primary by
//! its role and lets clients wait while there is none.

use std::thread;

use nix::sys::signal::Signal;

use crate::postgres::{Postgres, aborted, on, sessions, transactions};
use crate::rig::{Load, Rig, Stopped};
use crate::support::record::word;
use crate::support::{Daemon, PATIENCE, eventually, free_port};

/// Clients of pgbench, each with a thread of its own: one connects only while no other of its thread does.
const CLIENTS: usize = 8;

/// The pool `p` is whichever of `a` and `b` is the primary; `a` gets no new clients at weight 0.
fn config(port: u16, a: &Postgres, b: &Postgres, weight_of_a: u32) -> String {
    let (a, b) = (a.port, b.port);
    format!(
        r#"[listener.l]
bind = ["127.0.0.1:{port}"]
pool = "p"

[pool.p]
balance = "first"
on_no_server = "queue"
queue = {{ max = 200, timeout = "60s" }}
servers = [
  {{ name = "a", address = "127.0.0.1:{a}", weight = {weight_of_a} }},
  {{ name = "b", address = "127.0.0.1:{b}" }},
]

[pool.p.health_check]
type = "postgres"
user = "postgres"
role = "primary"
interval = "200ms"
timeout = "10s"
rise = 1
fall = 2
"#
    )
}

fn start(a: &Postgres, b: &Postgres) -> Rig {
    let port = free_port();
    let rig = Rig { daemon: Daemon::start(&config(port, a, b, 100)), port };
    rig.wait_for_server("a", true);
    rig.wait_for_server("b", false);
    rig
}

fn wait_for_metric(rig: &Rig, what: &str, name: &str, is_right: impl Fn(f64) -> bool) {
    eventually(what, PATIENCE, || is_right(rig.daemon.metric(name, &[])).then_some(()));
}

fn wait_for_waiting(rig: &Rig, at_least: usize) {
    let what = format!("{at_least} clients that wait for a primary");
    wait_for_metric(rig, &what, "tidegate_pool_queued_connections", |queued| queued >= at_least as f64);
}

/// Every transaction that pgbench was asked for, and not one error.
#[track_caller]
fn completed(bench: &mut Load, transactions: usize) {
    assert_eq!(aborted(bench), 0, "{:?}", bench.output());
    let (stdout, stderr) = bench.output();
    let all = format!("number of transactions actually processed: {transactions}/{transactions}");
    assert!(stdout.contains(&all) && stdout.contains("number of failed transactions: 0 "), "{stdout}");
    assert!(!stderr.contains("error"), "{stderr}");
}

/// How an operator moves the primary by plan: no new clients for the old one, which is stopped when
/// its last session has ended; then the replica is promoted. pgbench writes all the while with a new
/// connection for each transaction. It meets no error, and the new primary has every row.
#[test]
fn a_planned_switchover_costs_no_client_more_than_a_delay() {
    const EACH: usize = 40;
    let mut a = Postgres::start();
    let b = a.replica();
    let mut rig = start(&a, &b);
    let mut bench = transactions(
        &rig,
        &["-C", "-c", &CLIENTS.to_string(), "-j", &CLIENTS.to_string(), "-t", &EACH.to_string()],
    );
    rig.daemon.access_log_of(50);

    rig.daemon.rewrite_config(&config(rig.port, &a, &b, 0));
    rig.daemon.signal(Signal::SIGHUP);
    wait_for_waiting(&rig, CLIENTS);
    // Whoever waits has left the old primary, which may take a moment to notice.
    let on_a = [("server", "a")];
    eventually("its last session to end", PATIENCE, || {
        (rig.daemon.metric("tidegate_server_active_connections", &on_a) == 0.0).then_some(())
    });
    a.stop_fast();
    b.sql("select pg_promote()");
    completed(&mut bench, CLIENTS * EACH);

    assert_eq!(b.sql("select count(*) from pgbench_history"), format!("{}\n", CLIENTS * EACH));
    let log = rig.settled();
    let strange: Vec<_> = log.iter().filter(|record| word(record, "close.reason") != "done").collect();
    assert!(strange.is_empty(), "every session ended in order, but: {strange:?}");
    assert!(on(&log, "a").len() >= 50 && on(&log, "b").len() >= CLIENTS, "both have served");
    let waited = log.iter().filter(|record| record["t"]["queue"].is_u64()).count();
    assert!(waited >= CLIENTS, "{waited} clients waited");
}

/// The primary dies. The sessions that it had are lost with it, and nobody could save them; whoever
/// connects from then on waits until the replica has been promoted, and is served.
#[test]
fn whoever_connects_after_a_crash_is_served_by_the_promoted_replica() {
    let mut a = Postgres::start();
    let b = a.replica();
    let mut rig = start(&a, &b);
    let mut bench = transactions(&rig, &["-S", "-C", "-c", "8", "-j", "8", "-t", "100"]);
    rig.daemon.access_log_of(50);

    let stopped = Stopped::during(|| a.crash());
    let failed = thread::scope(|scope| {
        let clients = scope.spawn(|| sessions(rig.port, 40, 8));
        wait_for_waiting(&rig, 8);
        b.sql("select pg_promote()");
        clients.join().expect("the sessions end")
    });
    assert_eq!(failed, Vec::<String>::new());

    let lost = aborted(&mut bench);
    let log = rig.settled();
    let exposed = on(&log, "a").into_iter().filter(|record| stopped.cut_into(record)).count();
    assert!(lost <= exposed, "{lost} lost, {exposed} connections were open when the primary died");
    assert!(on(&log, "b").len() >= 40);
    assert!(rig.daemon.is_running());
}
