//! Which pool a client goes to: by a route that takes it, or as a part of the share that a canary gets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;

use serde_json::Value;

use crate::peers::{BlackHole, Client, Greeter, config, config_at, dead, named, nobody};
use crate::support::record::{failed_attempts, field, word};
use crate::support::{Daemon, PATIENCE, eventually};

const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
const OFFICE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// With a pool `next` of this one server.
fn and_next(text: &str, server: &str, more: &str) -> String {
    format!("{text}\n[pool.next]\nservers = [{server}]\n{more}\n")
}

fn canary(more: &str) -> String {
    format!("canary = {{ pool = \"next\", {more} }}")
}

fn serves(front: SocketAddr) -> String {
    serves_from(HOME, front)
}

fn serves_from(from: Ipv4Addr, front: SocketAddr) -> String {
    Client::connect_from(from, front).unwrap().server
}

fn closed(daemon: &Daemon, pool: &str) -> f64 {
    daemon.metric("tidegate_connections_closed_total", &[("listener", "l"), ("pool", pool)])
}

fn listener(daemon: &Daemon) -> Value {
    let all: Value = serde_json::from_str(&daemon.http_get("/api/v1/listeners").body).expect("JSON");
    all[0].clone()
}

#[test]
fn of_a_thousand_connections_over_all_workers_the_canary_gets_exactly_its_share() {
    let (main, next) = (Greeter::start("main"), Greeter::start("next"));
    let (text, front) = config(&[main.toml()], &canary("share = \"5%\""), "");
    let text = format!("[process]\nworkers = 4\n{}", and_next(&text, &next.toml(), ""));
    let daemon = Daemon::start(&text);
    let clients = (0..4).map(|_| thread::spawn(move || (0..250).for_each(|_| _ = serves(front))));
    let clients: Vec<_> = clients.collect();
    clients.into_iter().for_each(|client| client.join().expect("all were served"));
    assert_eq!((main.taken(), next.taken()), (950, 50));

    let log = daemon.access_log_of(1000);
    let of_canary: Vec<_> = log.iter().filter(|record| word(record, "route") == "canary").collect();
    assert_eq!(of_canary.len(), 50);
    assert!(
        of_canary.iter().all(|record| (word(record, "pool"), word(record, "server")) == ("next", "next"))
    );
    assert_eq!(log.iter().filter(|record| word(record, "route") == "default").count(), 950);
    assert_eq!((closed(&daemon, "p"), closed(&daemon, "next")), (950.0, 50.0));
    let given =
        daemon.metric("tidegate_canary_connections_total", &[("listener", "l"), ("route", "default")]);
    assert_eq!(given, 50.0);
}

#[test]
fn only_clients_from_the_listed_networks_are_shared_out() {
    let (main, next) = (Greeter::start("main"), Greeter::start("next"));
    let (text, front) = config(&[main.toml()], &canary("share = \"50%\", from = [\"127.0.0.2\"]"), "");
    let _daemon = Daemon::start(&and_next(&text, &next.toml(), ""));
    for _ in 0..10 {
        assert_eq!(serves(front), "main", "never a canary");
    }
    // Who is none takes no turn either, so the candidates' share stays exact.
    let turns = (0..20).map(|_| (serves(front), serves_from(OFFICE, front)).1 == "next");
    assert_eq!(turns.filter(|is_canary| *is_canary).count(), 10);
}

#[test]
fn by_source_a_client_stays_on_its_side_over_reloads_and_a_share_that_rises() {
    let (main, next) = (Greeter::start("main"), Greeter::start("next"));
    let front = nobody();
    let text_of = |share: &str| {
        let canary = canary(&format!("share = \"{share}\", by = \"source-ip\""));
        and_next(&config_at(front, &[main.toml()], &canary, ""), &next.toml(), "")
    };
    let mut daemon = Daemon::start(&text_of("20%"));
    let canaries = || -> BTreeSet<Ipv4Addr> {
        let sources = (0..200).map(|last| Ipv4Addr::new(127, 0, 1, last));
        sources.filter(|from| serves_from(*from, front) == "next").collect()
    };
    let few = canaries();
    assert!((20..60).contains(&few.len()), "{} of 200", few.len());
    daemon.reload(&text_of("20%"));
    assert_eq!(canaries(), few);
    daemon.reload(&text_of("40%"));
    let many = canaries();
    assert!(many.is_superset(&few) && many.len() > few.len(), "{} after {}", many.len(), few.len());
}

#[test]
fn a_dead_canary_costs_no_client_its_connection_and_the_record_tells() {
    let main = Greeter::start("main");
    let (text, front) = config(&[main.toml()], &canary("share = \"100%\""), "");
    let daemon = Daemon::start(&and_next(&text, &[dead("n1"), dead("n2")].join(", "), ""));
    assert_eq!(serves(front), "main");
    let record = &daemon.access_log_of(1)[0];
    // One failure is enough: the other server of the canary is not asked.
    let failed = failed_attempts(record);
    assert!(matches!(failed[..], [("n1" | "n2", "server_refused")]), "{failed:?}");
    assert_eq!(
        (word(record, "route"), word(record, "pool"), word(record, "server")),
        ("canary-fallback", "p", "main")
    );
    assert_eq!(word(record, "close.reason"), "done");
    assert_eq!((closed(&daemon, "p"), closed(&daemon, "next")), (1.0, 0.0));
    assert_eq!(daemon.metric("tidegate_canary_fallback_connections_total", &[("listener", "l")]), 1.0);
    let canary = &listener(&daemon)["canary"];
    let told = [&canary["pool"], &canary["share"], &canary["total"], &canary["left"]];
    assert_eq!(told, [&Value::from("next"), &Value::from("100%"), &Value::from(1), &Value::from(1)]);
    let shown = String::from_utf8(daemon.tidegate(&["listeners"]).stdout).unwrap();
    assert!(shown.contains("p, 100% next"), "{shown}");
}

/// The bug: each server of the canary was asked in turn, so its client paid `attempts` times for an experiment.
#[test]
fn a_canary_that_does_not_answer_costs_its_client_one_connect() {
    let (main, holes) = (Greeter::start("main"), [BlackHole::start(), BlackHole::start()]);
    let (text, front) = config(&[main.toml()], &canary("share = \"100%\""), "");
    let servers = [named("n1", holes[0].address), named("n2", holes[1].address)].join(", ");
    let daemon = Daemon::start(&and_next(&text, &servers, "connect_timeout = \"300ms\""));
    assert_eq!(serves(front), "main");
    let record = &daemon.access_log_of(1)[0];
    let failed = failed_attempts(record);
    assert!(matches!(failed[..], [("n1" | "n2", "connect_timeout")]), "{failed:?}");
    assert_eq!((word(record, "route"), word(record, "server")), ("canary-fallback", "main"));
}

/// The bug: a canary in the fallbacks of the main pool was asked as if this client had never been there.
#[test]
fn a_canary_that_is_a_fallback_too_is_not_asked_twice_by_one_client() {
    let hole = BlackHole::start();
    let (text, front) = config(&[dead("a")], &canary("share = \"100%\""), "fallback = \"next\"");
    let next = named("n1", hole.address);
    let daemon = Daemon::start(&and_next(&text, &next, "connect_timeout = \"300ms\""));
    Client::connect(front).expect_err("nobody is there");
    let records = daemon.access_log_of(1);
    assert_eq!(failed_attempts(&records[0]), [("n1", "connect_timeout"), ("a", "server_refused")]);
}

#[test]
fn a_canary_that_is_down_by_its_checks_is_not_even_tried() {
    let main = Greeter::start("main");
    let (text, front) = config(&[main.toml()], &canary("share = \"100%\""), "");
    let check = "health_check = { interval = \"50ms\", timeout = \"5s\", rise = 1, fall = 1 }";
    let daemon = Daemon::start(&and_next(&text, &dead("n1"), check));
    eventually("the canary to be down", PATIENCE, || {
        (daemon.metric("tidegate_pool_servers", &[("pool", "next"), ("state", "down")]) == 1.0).then_some(())
    });
    assert_eq!(serves(front), "main");
    let record = &daemon.access_log_of(1)[0];
    assert_eq!((word(record, "route"), word(record, "pool")), ("canary-fallback", "p"));
    assert!(failed_attempts(record).is_empty());
}

#[test]
fn a_client_of_a_dead_canary_waits_in_the_line_of_the_main_pool() {
    let main = Greeter::start("main");
    let limited = main.toml().replace(" }", ", max_connections = 1 }");
    let (text, front) = config(&[limited], &canary("share = \"100%\""), "queue = { max = 10 }");
    let daemon = Daemon::start(&and_next(&text, &dead("n1"), "on_no_server = \"queue\""));
    let first = Client::connect(front).unwrap();
    let second = thread::spawn(move || serves(front));
    let queued = |pool| daemon.metric("tidegate_pool_queued_connections", &[("pool", pool)]);
    eventually("a client in the line", PATIENCE, || (queued("p") == 1.0).then_some(()));
    assert_eq!(queued("next"), 0.0);
    first.leave().unwrap();
    assert_eq!(second.join().unwrap(), "main");
}

#[test]
fn a_canary_for_which_others_wait_is_not_asked() {
    let main = Greeter::start("main");
    let (text, front) = config(&[main.toml()], &canary("share = \"100%\""), "");
    let (waits_at, next) = (nobody(), dead("n1"));
    let text = and_next(&text, &next, "on_no_server = \"queue\"");
    let daemon = Daemon::start(&format!("{text}[listener.m]\nbind = [\"{waits_at}\"]\npool = \"next\"\n"));
    let _waiting = std::net::TcpStream::connect(waits_at).unwrap();
    eventually("a client in the canary's line", PATIENCE, || {
        (daemon.metric("tidegate_pool_queued_connections", &[("pool", "next")]) == 1.0).then_some(())
    });
    assert_eq!(serves(front), "main");
    let record = &daemon.access_log_of(1)[0];
    assert_eq!((word(record, "listener"), word(record, "route")), ("l", "canary-fallback"));
    assert!(failed_attempts(record).is_empty(), "whoever waits there comes first");
}

#[test]
fn when_neither_side_has_a_server_the_main_pool_says_so() {
    let check = "health_check = { interval = \"50ms\", timeout = \"5s\", rise = 1, fall = 1 }";
    let (text, front) = config(&[dead("a")], &canary("share = \"100%\""), check);
    let daemon = Daemon::start(&and_next(&text, &dead("n1"), ""));
    eventually("the main pool to be down", PATIENCE, || {
        (daemon.metric("tidegate_pool_servers", &[("pool", "p"), ("state", "down")]) == 1.0).then_some(())
    });
    Client::connect(front).expect_err("nobody is there");
    let records = daemon.access_log_of(1);
    let record = records.last().expect("one");
    assert_eq!((word(record, "pool"), word(record, "close.reason")), ("p", "no_healthy_server"));
    assert_eq!(failed_attempts(record), [("n1", "server_refused")]);
    assert!(field(record, "server").is_null(), "none of this pool was tried");
}

#[test]
fn a_new_share_touches_no_open_connection() {
    let (main, next) = (Greeter::start("main"), Greeter::start("next"));
    let front = nobody();
    let text_of = |share: &str| {
        let canary = canary(&format!("share = \"{share}\""));
        and_next(&config_at(front, &[main.toml()], &canary, ""), &next.toml(), "")
    };
    let mut daemon = Daemon::start(&text_of("50%"));
    let mut open: Vec<_> = (0..10).map(|_| Client::connect(front).unwrap()).collect();
    assert_eq!((main.taken(), next.taken()), (5, 5));
    daemon.reload(&text_of("0%"));
    assert!((0..5).all(|_| serves(front) == "main"));
    daemon.reload(&text_of("100%"));
    assert!((0..5).all(|_| serves(front) == "next"));
    for client in &mut open {
        client.echo(b"untouched").unwrap();
    }
    open.into_iter().for_each(|client| client.leave().unwrap());
}

#[test]
fn the_first_route_that_takes_a_client_decides_and_the_log_says_which() {
    let servers = [Greeter::start("inside"), Greeter::start("lab"), Greeter::start("next")];
    let routes = "[[listener.l.route]]\nname = \"thieves\"\nfrom = [\"127.6.6.0/24\"]\nreject = true\n\
                  [[listener.l.route]]\nfrom = [\"127.6.0.0/16\", \"127.7.0.0/16\"]\npool = \"lab\"\n\
                  canary = { pool = \"next\", share = \"50%\" }\n\
                  [[listener.l.route]]\nfrom = [\"127.0.0.1\"]\npool = \"p\"\n";
    let (text, front) = config(&[servers[0].toml()], routes, "");
    let text = text.replacen("pool = \"p\"\n", "", 1); // the listener has no pool of its own
    let text = format!("{text}[pool.lab]\nservers = [{}]\n", servers[1].toml());
    let daemon = Daemon::start(&and_next(&text, &servers[2].toml(), ""));

    let served = |from: [u8; 4]| Client::connect_from(from.into(), front).map_or("none".into(), |c| c.server);
    assert_eq!(served([127, 6, 6, 6]), "none");
    assert_eq!((served([127, 6, 7, 1]), served([127, 7, 0, 1])), ("lab".into(), "next".into()));
    assert_eq!(served([127, 0, 0, 1]), "inside");
    assert_eq!(served([127, 9, 0, 1]), "none");

    let log = daemon.access_log_of(5);
    let record = |from: &str| log.iter().find(|record| word(record, "client").starts_with(from)).expect(from);
    let told = |from: &str| {
        let record = record(from);
        (word(record, "route"), word(record, "pool"), word(record, "close.reason"))
    };
    assert_eq!(told("127.6.6.6"), ("thieves", "", "acl_deny"));
    assert_eq!(told("127.6.7.1"), ("2", "lab", "done"));
    assert_eq!(told("127.7.0.1"), ("2/canary", "next", "done"));
    assert_eq!(told("127.0.0.1"), ("3", "p", "done"));
    assert_eq!(told("127.9.0.1"), ("", "", "no_route"));
    for (from, named) in [("127.9.0.1", "listener `l`"), ("127.6.6.6", "route `thieves`")] {
        let record = record(from);
        let ended = (word(record, "close.by"), word(record, "close.phase"), word(record, "close.how"));
        assert_eq!(ended, ("proxy", "route", "policy"));
        assert!(word(record, "close.detail").contains(named), "{record}");
    }

    for reason in ["no_route", "acl_deny"] {
        let labels = [("listener", "l"), ("reason", reason)];
        assert_eq!(daemon.metric("tidegate_listener_rejected_connections_total", &labels), 1.0);
        assert_eq!(daemon.metric("tidegate_connections_closed_total", &labels), 1.0);
    }
    assert_eq!(["lab", "next", "p"].map(|pool| closed(&daemon, pool)), [1.0; 3]);
    let taken = ["thieves", "2", "3"]
        .map(|route| daemon.metric("tidegate_route_connections_total", &[("route", route)]));
    assert_eq!(taken, [1.0, 2.0, 1.0]);
    let listener = listener(&daemon);
    assert!(listener["pool"].is_null());
    let goals: Vec<_> = (0..3).map(|number| listener["routes"][number]["pool"].as_str()).collect();
    assert_eq!(goals, [None, Some("lab"), Some("p")]);
}
