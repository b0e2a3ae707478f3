//! A client comes back to the server that served it before.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use crate::peers::{Client, Greeter, config, config_at};
use crate::support::record::word;
use crate::support::{Daemon, PATIENCE, eventually};

const CHECKED: &str = "health_check = { interval = \"50ms\", timeout = \"5s\", rise = 1, fall = 1 }";

fn lines(affinity: &str) -> String {
    format!("balance = \"round-robin\"\naffinity = {{ {affinity} }}\n{CHECKED}")
}

fn from(host: u8, front: SocketAddr) -> Client {
    Client::connect_from(Ipv4Addr::new(127, 0, 5, host), front).unwrap()
}

fn up(daemon: &Daemon, count: f64) {
    eventually("that many servers up", PATIENCE, || {
        (daemon.metric("tidegate_server_up", &[]) == count).then_some(())
    });
}

#[test]
fn a_source_keeps_its_server_over_all_workers_and_reloads() {
    let servers = [Greeter::start("a"), Greeter::start("b"), Greeter::start("c")];
    let all = servers.each_ref().map(Greeter::toml);
    let (text, front) = config(&all, "", &lines(""));
    let mut daemon = Daemon::start(&text);
    up(&daemon, 3.0);
    let homes: Vec<String> = (1..=30).map(|host| from(host, front).server).collect();
    assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 3, "they came in turn");
    daemon.reload(&config_at(front, &all, "", &lines("ttl = \"1h\"")));
    for _ in 0..3 {
        let again: Vec<String> = (1..=30).map(|host| from(host, front).server).collect();
        assert_eq!(again, homes);
    }
    assert_eq!(daemon.metric("tidegate_pool_affinity_entries", &[("pool", "p")]), 30.0);
    assert_eq!(word(daemon.access_log_of(100).last().expect("many"), "balance"), "affinity");
}

#[test]
fn a_source_whose_server_is_down_finds_another_and_stays_there() {
    let (mut a, b) = (Greeter::start("a"), Greeter::start("b"));
    let (text, front) = config(&[a.toml(), b.toml()], "", &lines(""));
    let daemon = Daemon::start(&text);
    up(&daemon, 2.0);
    let host = (1..=2).find(|host| from(*host, front).server == "a").expect("one of two in turn");
    let address = a.address;
    a.die();
    up(&daemon, 1.0);
    assert_eq!(from(host, front).server, "b");
    let _back = Greeter::at("a", address);
    up(&daemon, 2.0);
    for _ in 0..6 {
        assert_eq!(from(host, front).server, "b", "the old server is forgotten");
    }
}

#[test]
fn a_source_whose_server_is_full_is_lent_to_another() {
    let (a, b) = (Greeter::start("a"), Greeter::start("b"));
    let limited = a.toml().replace(" }", ", max_connections = 1 }");
    let (text, front) = config(&[limited, b.toml()], "", &lines(""));
    let daemon = Daemon::start(&text);
    up(&daemon, 2.0);
    let (host, first) = (1..=2)
        .map(|host| (host, from(host, front)))
        .find(|(_, client)| client.server == "a")
        .expect("one of two in turn");
    assert_eq!(from(host, front).server, "b");
    first.leave().unwrap();
    eventually("its own server again", PATIENCE, || (from(host, front).server == "a").then_some(()));
}

#[test]
fn a_flood_of_sources_fills_the_table_and_no_more() {
    let servers = [Greeter::start("a"), Greeter::start("b")];
    let (text, front) = config(&servers.each_ref().map(Greeter::toml), "", &lines("max_entries = 50"));
    let daemon = Daemon::start(&text);
    up(&daemon, 2.0);
    for host in 0..200 {
        from(host, front);
    }
    let known = daemon.metric("tidegate_pool_affinity_entries", &[("pool", "p")]);
    assert!((30.0..=50.0).contains(&known), "{known}");
    let evicted = daemon.metric("tidegate_pool_affinity_evictions_total", &[("pool", "p")]);
    assert_eq!(known + evicted, 200.0);
}

#[test]
fn a_source_that_stays_away_for_its_time_is_forgotten() {
    let servers = [Greeter::start("a"), Greeter::start("b")];
    let (text, front) = config(&servers.each_ref().map(Greeter::toml), "", &lines("ttl = \"300ms\""));
    let daemon = Daemon::start(&text);
    up(&daemon, 2.0);
    from(1, front);
    eventually("it to be forgotten", PATIENCE, || {
        (daemon.metric("tidegate_pool_affinity_entries", &[("pool", "p")]) == 0.0).then_some(())
    });
    assert_eq!(daemon.metric("tidegate_pool_affinity_evictions_total", &[("pool", "p")]), 0.0);
}
