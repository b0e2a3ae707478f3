//! A server that is new, or has come back, takes its share little by little.

use std::net::SocketAddr;

use crate::peers::{Client, Greeter, config, config_at};
use crate::support::{Daemon, PATIENCE, eventually};

const CHECKED: &str = "health_check = { interval = \"50ms\", timeout = \"5s\", rise = 1, fall = 1 }";

/// How many of that many clients a server of that name serves.
fn share(front: SocketAddr, clients: usize, name: &str) -> usize {
    (0..clients).filter(|_| Client::connect(front).unwrap().server == name).count()
}

#[test]
fn a_server_that_a_reload_adds_begins_with_little_and_a_reload_ends_the_slow_start() {
    let (old, new) = (Greeter::start("old"), Greeter::start("new"));
    for balance in ["round-robin", "least-connections"] {
        let lines = |slow: &str| format!("balance = \"{balance}\"\nslow_start = \"{slow}\"");
        let both = [old.toml(), new.toml()];
        let (text, front) = config(&both[..1], "", &lines("1h"));
        let mut daemon = Daemon::start(&text);
        assert_eq!(share(front, 10, "new"), 0);
        daemon.reload(&config_at(front, &both, "", &lines("1h")));
        let first = share(front, 400, "new");
        assert!((1..=40).contains(&first), "{balance}: {first} of 400 where 10 to 20 are due");
        assert_eq!(daemon.metric("tidegate_server_weight", &[("server", "new")]), 5.0);
        let servers = daemon.http_get("/api/v1/servers").body;
        assert!(servers.contains("slow start: has 5% of its weight"), "{servers}");

        daemon.reload(&config_at(front, &both, "", &lines("off")));
        let then = share(front, 400, "new");
        assert!((120..=280).contains(&then), "{balance}: {then} of 400");
        assert_eq!(daemon.metric("tidegate_server_weight", &[("server", "new")]), 100.0);
    }
}

#[test]
fn a_server_that_comes_back_begins_with_little_unless_it_is_alone() {
    let (mut a, mut b) = (Greeter::start("a"), Greeter::start("b"));
    let lines = format!("balance = \"round-robin\"\nslow_start = \"1h\"\n{CHECKED}");
    let (text, front) = config(&[a.toml(), b.toml()], "", &lines);
    let daemon = Daemon::start(&text);
    let up = |count: f64| {
        eventually("that many servers up", PATIENCE, || {
            (daemon.metric("tidegate_server_up", &[]) == count).then_some(())
        });
    };
    up(2.0);
    assert_eq!(share(front, 100, "a"), 50, "at the start everybody is new, and nobody begins slowly");
    let address = a.address;
    a.die();
    up(1.0);
    let _back = Greeter::at("a", address);
    up(2.0);
    let little = share(front, 400, "a");
    assert!((1..=40).contains(&little), "{little} of 400 where 10 are due");
    b.die();
    up(1.0);
    assert_eq!(share(front, 50, "a"), 50, "nobody else is there");
}

#[test]
fn a_slow_start_comes_to_its_end_by_itself() {
    let (old, new) = (Greeter::start("old"), Greeter::start("new"));
    let lines = "balance = \"round-robin\"\nslow_start = \"500ms\"";
    let (text, front) = config(&[old.toml()], "", lines);
    let mut daemon = Daemon::start(&text);
    daemon.reload(&config_at(front, &[old.toml(), new.toml()], "", lines));
    eventually("its full weight", PATIENCE, || {
        (daemon.metric("tidegate_server_weight", &[("server", "new")]) == 100.0).then_some(())
    });
    assert_eq!(share(front, 100, "new"), 50);
}
