//! A pool that has no server left, and the pool that it falls back to.

use std::net::SocketAddr;
use std::thread;

use nix::sys::signal::Signal;

use crate::peers::{Client, Greeter, config, config_at, dead, named, nobody, served_by};
use crate::queue::wait_for_line;
use crate::support::record::{failed_attempts, field, word};
use crate::support::{Daemon, PATIENCE, eventually};

const CHECKED: &str = "health_check = { interval = \"50ms\", timeout = \"5s\", rise = 1, fall = 1 }";

/// Pools beyond the first, `p`: name, servers and other lines.
fn and(text: String, pools: &[(&str, String, &str)]) -> String {
    let tables =
        pools.iter().map(|(name, server, more)| format!("[pool.{name}]\nservers = [{server}]\n{more}\n"));
    text + &tables.collect::<Vec<_>>().join("\n")
}

fn view(daemon: &Daemon, path: &str) -> serde_json::Value {
    serde_json::from_str(&daemon.http_get(path).body).expect("JSON")
}

fn serves(front: SocketAddr) -> String {
    Client::connect(front).unwrap().server
}

#[test]
fn a_pool_whose_servers_refuse_hands_its_clients_on_and_they_do_not_notice() {
    let rescue = Greeter::start("rescue");
    let (text, front) = config(&[dead("a"), dead("b")], "", "balance = \"first\"\nfallback = \"q\"");
    let text = and(text, &[("q", dead("c"), "fallback = \"r\""), ("r", rescue.toml(), "")]);
    let daemon = Daemon::start(&text);
    assert_eq!(serves(front), "rescue");
    let record = &daemon.access_log_of(1)[0];
    let refused = "server_refused";
    assert_eq!(failed_attempts(record), [("a", refused), ("b", refused), ("c", refused)]);
    assert_eq!((word(record, "pool"), word(record, "server")), ("r", "rescue"));
    let closed =
        |pool| daemon.metric("tidegate_connections_closed_total", &[("listener", "l"), ("pool", pool)]);
    assert_eq!((closed("p"), closed("q"), closed("r")), (0.0, 0.0, 1.0));
    assert_eq!(daemon.metric("tidegate_server_retries_total", &[("server", "rescue")]), 1.0);
}

#[test]
fn a_pool_that_is_down_or_full_falls_back_and_comes_back() {
    let (mut main, rescue) = (Greeter::start("main"), Greeter::start("rescue"));
    let limited = main.toml().replace(" }", ", max_connections = 1 }");
    let (text, front) = config(&[limited], "", &format!("fallback = \"q\"\n{CHECKED}"));
    let daemon = Daemon::start(&and(text, &[("q", rescue.toml(), CHECKED)]));
    let up = |count: f64| {
        eventually("that many servers up", PATIENCE, || {
            (daemon.metric("tidegate_server_up", &[]) == count).then_some(())
        });
    };
    up(2.0);
    let first = Client::connect(front).unwrap();
    assert_eq!(
        (first.server.as_str(), serves(front).as_str()),
        ("main", "rescue"),
        "one place, one waits nowhere"
    );
    first.leave().unwrap();
    eventually("room", PATIENCE, || (serves(front) == "main").then_some(()));

    let address = main.address;
    main.die();
    up(1.0);
    assert_eq!(serves(front), "rescue");
    let why = view(&daemon, "/api/v1/pools")[0]["why"].to_string();
    assert!(why.contains("down: `main`; clients go to the pool `q`"), "{why}");
    daemon.has_said("pool `p`: no server is up, clients go to the pool `q`");

    let _back = Greeter::at("main", address);
    up(2.0);
    // Workers may come to know it a moment after the metric.
    eventually("the first pool to serve", PATIENCE, || (serves(front) == "main").then_some(()));
}

/// The bug: a pool's ejected servers were asked before the pool that it falls back to.
#[test]
fn a_server_that_is_ejected_is_asked_only_when_no_other_pool_has_one() {
    let (gone, rescue) = (nobody(), Greeter::start("rescue"));
    let ejects =
        "[pool.p.outlier_detection]\nconsecutive_failures = 1\nmax_ejected = \"100%\"\neject_for = \"1h\"";
    let more = format!("balance = \"first\"\nfallback = \"q\"\n{ejects}");
    let (text, front) = config(&[named("gone", gone), dead("b")], "", &more);
    let daemon = Daemon::start(&and(text, &[("q", rescue.toml(), "")]));
    let failed = |clients: usize| {
        let log = daemon.access_log_of(clients);
        let last = log.last().expect("one for each client");
        failed_attempts(last).iter().map(|(server, _)| (*server).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((serves(front).as_str(), failed(1).join(" ").as_str()), ("rescue", "gone b"));
    assert_eq!((serves(front).as_str(), failed(2).join(" ").as_str()), ("rescue", "b"), "`gone` is out");
    drop(rescue);
    let _back = Greeter::at("gone", gone);
    assert_eq!((serves(front).as_str(), failed(3).join(" ").as_str()), ("gone", "b rescue"));
}

#[test]
fn when_no_pool_has_a_server_the_first_one_says_so_and_names_the_others() {
    let (text, front) = config(&[dead("a")], "", &format!("fallback = \"q\"\n{CHECKED}"));
    let daemon = Daemon::start(&and(text, &[("q", dead("b"), CHECKED)]));
    eventually("both to be down", PATIENCE, || {
        (daemon.metric("tidegate_pool_servers", &[("state", "down")]) == 2.0).then_some(())
    });
    Client::connect(front).expect_err("nobody is there");
    let records = daemon.access_log_of(1);
    let record = records.last().expect("one");
    assert_eq!((word(record, "pool"), word(record, "close.reason")), ("p", "no_healthy_server"));
    assert!(field(record, "server").is_null());
    let detail = word(record, "close.detail");
    assert!(detail.contains("`p`") && detail.ends_with("falls back to: `q`"), "{detail}");
}

#[test]
fn a_reload_gives_takes_and_changes_a_fallback_without_touching_a_connection() {
    let servers = [Greeter::start("one"), Greeter::start("two")];
    let pools = [("q", servers[0].toml(), ""), ("r", servers[1].toml(), "fallback = \"q\"")];
    let text_of = |front, fallback| {
        and(config_at(front, &[dead("a")], "", &format!("fallback = \"{fallback}\"")), &pools)
    };
    let front = nobody();
    let mut daemon = Daemon::start(&text_of(front, "q"));
    let mut stays = Client::connect(front).unwrap();
    assert_eq!(stays.server, "one");
    daemon.rewrite_config(&text_of(front, "r"));
    daemon.signal(Signal::SIGHUP);
    eventually("the reload", PATIENCE, || (serves(front) == "two").then_some(()));
    stays.echo(b"untouched").unwrap();
    stays.leave().unwrap();
}

#[test]
fn a_client_waits_for_its_own_pool_only_when_no_other_has_a_server_either() {
    let (gone, spare) = (nobody(), nobody());
    let pool = |name: &str, address| format!("{{ name = \"{name}\", address = \"{address}\" }}");
    let (text, front) = config(&[pool("main", gone)], "", "fallback = \"q\"\non_no_server = \"queue\"");
    let daemon = Daemon::start(&and(text, &[("q", pool("spare", spare), "")]));

    let rescue = Greeter::at("spare", spare);
    assert_eq!(serves(front), "spare", "nobody waits while the other pool serves");
    drop(rescue);

    let waiting = std::thread::spawn(move || serves(front));
    eventually("a client in the line", PATIENCE, || {
        (daemon.metric("tidegate_pool_queued_connections", &[("pool", "p")]) == 1.0).then_some(())
    });
    let _back = Greeter::at("main", gone);
    assert_eq!(waiting.join().unwrap(), "main");
    let log = daemon.access_log_of(2);
    assert_eq!(log.iter().map(|record| word(record, "pool")).collect::<Vec<_>>(), ["q", "p"]);
}

/// The bug: each of the two left the line for the other pool's, found the other one still in it, and stood behind
/// that one again, as fast as the processor could.
#[test]
fn those_who_wait_for_a_pool_that_lets_nobody_wait_any_more_wait_for_its_fallback() {
    let (main, rescue, mut health) =
        (Greeter::start("main"), Greeter::start("rescue"), Greeter::start("health"));
    let limited = |server: &Greeter| server.toml().replace(" }", ", max_connections = 1 }");
    let line = "queue = { timeout = \"1m\" }";
    let check = format!(
        "health_check = {{ port = {}, interval = \"50ms\", timeout = \"5s\", rise = 1, fall = 1 }}",
        health.address.port()
    );
    let (text, front) = config(&[limited(&main)], "", &format!("fallback = \"q\"\n{line}\n{check}"));
    let daemon = Daemon::start(&and(text, &[("q", limited(&rescue), line)]));
    let is_up = |up: f64| {
        eventually("its check", PATIENCE, || {
            (daemon.metric("tidegate_server_up", &[("server", "main")]) == up).then_some(())
        });
    };
    is_up(1.0);
    let on_main = Client::connect(front).unwrap();
    let on_rescue = Client::connect(front).unwrap();
    assert_eq!((on_main.server.as_str(), on_rescue.server.as_str()), ("main", "rescue"));
    let waiting = [(); 2].map(|()| thread::spawn(move || served_by(front)));
    wait_for_line(&daemon, 2);
    health.stop_listening();
    is_up(0.0);
    eventually("both in the other line", PATIENCE, || {
        let queued = |pool| daemon.metric("tidegate_pool_queued_connections", &[("pool", pool)]);
        (queued("p") == 0.0 && queued("q") == 2.0).then_some(())
    });
    on_rescue.leave().unwrap();
    waiting.into_iter().for_each(|client| assert_eq!(client.join().unwrap(), "rescue"));
    let waits = |pool| daemon.metric("tidegate_queue_wait_seconds_count", &[("pool", pool)]);
    assert_eq!((waits("p"), waits("q")), (2.0, 2.0), "each has stood in each line once");
}

#[test]
fn the_log_names_no_fallback_that_has_nobody_either() {
    let (mut main, mut other) = (Greeter::start("main"), Greeter::start("other"));
    let (text, _) = config(&[main.toml()], "", &format!("fallback = \"q\"\n{CHECKED}"));
    let daemon = Daemon::start(&and(text, &[("q", other.toml(), CHECKED)]));
    eventually("both up", PATIENCE, || (daemon.metric("tidegate_server_up", &[]) == 2.0).then_some(()));
    main.die();
    daemon.has_said("pool `p`: no server is up, clients go to the pool `q`");
    other.die();
    daemon.has_said("pool `p`: no server is up, and what it falls back to has none either");
}
