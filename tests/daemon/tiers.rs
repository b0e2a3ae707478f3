//! Servers that stand by for others.

use crate::peers::{Client, Greeter, config, nobody};
use crate::support::record::{failed_attempts, word};
use crate::support::{Daemon, PATIENCE, eventually};

const CHECKED: &str = "[pool.p.health_check]\ninterval = \"50ms\"\ntimeout = \"5s\"\nrise = 1\nfall = 1";

/// Its line of the configuration, with more keys.
fn with(server: &Greeter, more: &str) -> String {
    server.toml().replace(" }", &format!(", {more} }}"))
}

#[test]
fn a_standby_server_serves_while_the_others_are_full_and_not_a_moment_longer() {
    let (main, standby) = (Greeter::start("main"), Greeter::start("standby"));
    let servers = [with(&standby, "tier = 1"), with(&main, "max_connections = 2")];
    let (text, front) = config(&servers, "", "balance = \"round-robin\"");
    let daemon = Daemon::start(&text);
    let mut open: Vec<Client> = (0..3).map(|_| Client::connect(front).unwrap()).collect();
    let served: Vec<&str> = open.iter().map(|client| client.server.as_str()).collect();
    assert_eq!(served, ["main", "main", "standby"]);
    open.remove(0).leave().unwrap();
    eventually("room on the first", PATIENCE, || {
        (daemon.metric("tidegate_server_active_connections", &[("server", "main")]) == 1.0).then_some(())
    });
    assert_eq!(Client::connect(front).unwrap().server, "main");
    drop(open);
    let log = daemon.access_log_of(4);
    let of = |server: &str| log.iter().find(|record| word(record, "server") == server).expect("it served");
    assert!(word(of("standby"), "balance").starts_with("tier=1:round-robin:"), "{log:?}");
    assert!(word(of("main"), "balance").starts_with("round-robin:"), "{log:?}");
}

#[test]
fn a_client_does_not_notice_that_only_a_standby_server_answers() {
    let standby = Greeter::start("standby");
    let dead = format!("{{ name = \"dead\", address = \"{}\" }}", nobody());
    for balance in ["round-robin", "least-connections", "consistent-hash", "first"] {
        let servers = [dead.clone(), with(&standby, "tier = 1")];
        let (text, front) = config(&servers, "", &format!("balance = \"{balance}\""));
        let daemon = Daemon::start(&text);
        assert_eq!(Client::connect(front).unwrap().server, "standby");
        assert_eq!(failed_attempts(&daemon.access_log_of(1)[0]), [("dead", "server_refused")]);
    }
}

#[test]
fn the_views_and_the_log_say_which_tier_serves() {
    let (mut main, standby) = (Greeter::start("main"), Greeter::start("standby"));
    let (text, front) = config(&[main.toml(), with(&standby, "tier = 1")], "", CHECKED);
    let daemon = Daemon::start(&text);
    let view = |path: &str| -> serde_json::Value {
        serde_json::from_str(&daemon.http_get(path).body).expect("JSON")
    };
    eventually("all to be up", PATIENCE, || (daemon.metric("tidegate_server_up", &[]) == 2.0).then_some(()));
    assert_eq!(Client::connect(front).unwrap().server, "main");
    assert_eq!(view("/api/v1/servers")[1]["why"], "stands by while tier 0 serves");

    main.die();
    eventually("the standby to serve", PATIENCE, || {
        (view("/api/v1/servers")[1]["why"] == "serves for the tiers below 1").then_some(())
    });
    assert_eq!(Client::connect(front).unwrap().server, "standby");
    let why = view("/api/v1/pools")[0]["why"].to_string();
    assert!(why.contains("down: `main`; tier 1 serves"), "{why}");
    daemon.has_said("pool `p`: tier 1 serves: no server of a lower tier is up");
}
