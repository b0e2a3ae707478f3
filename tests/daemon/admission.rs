//! Who may come in, and who is told to go.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use crate::peers::{Client, Greeter, config, config_at};
use crate::support::record::word;
use crate::support::{Daemon, PATIENCE, eventually, free_port};

const fn source(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

/// The ways in which a reset reaches a client that waits for its greeting.
#[track_caller]
pub fn is_reset(outcome: io::Result<Client>) {
    let error = outcome.expect_err("the client is refused");
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

/// A refusal is counted a moment after the client has felt it.
#[track_caller]
fn has_rejected(daemon: &Daemon, reason: &str, count: usize) {
    let labels = [("listener", "l"), ("reason", reason)];
    let rejected = || daemon.metric("tidegate_listener_rejected_connections_total", &labels);
    let what = format!("{count} clients to be rejected by {reason}");
    eventually(&what, PATIENCE, || (rejected() == count as f64).then_some(()));
}

/// A connection whose client speaks from there and has not been greeted yet.
pub fn knock(from: Ipv4Addr, at: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&at.into()).unwrap();
    socket.into()
}

#[test]
fn the_longest_network_decides_who_comes_in_and_the_log_says_which_it_was() {
    let server = Greeter::start("a");
    let rules = "allow = [\"127.0.0.0/28\", \"127.0.0.7\"]\ndeny = [\"127.0.0.4/30\"]";
    let (text, front) = config(&[server.toml()], rules, "");
    let daemon = Daemon::start(&text);
    for welcome in [1, 3, 7, 8] {
        Client::connect_from(source(welcome), front).unwrap().leave().unwrap();
    }
    is_reset(Client::connect_from(source(5), front));
    is_reset(Client::connect_from(source(16), front));
    let log = daemon.access_log_of(6);
    let told = |from: u8| {
        let client = format!("{}:", source(from));
        let record = log.iter().find(|record| word(record, "client").starts_with(&client)).unwrap();
        ["close.reason", "close.how", "close.phase", "close.detail"].map(|name| word(record, name))
    };
    let refused = |why| ["acl_deny", "policy", "accept", why];
    assert_eq!(told(5), refused("refused: 127.0.0.5 is in 127.0.0.4/30, which `deny` names"));
    assert_eq!(told(16), refused("refused: 127.0.0.16 is in no network that `allow` names"));
    has_rejected(&daemon, "acl_deny", 2);
    assert_eq!(server.taken(), 4);
}

#[test]
fn an_ipv6_client_is_judged_by_the_rules_of_its_family() {
    let server = Greeter::start("a");
    let front: SocketAddr = format!("[::1]:{}", free_port()).parse().unwrap();
    let mut daemon = Daemon::start(&config_at(front, &[server.toml()], "deny = [\"0.0.0.0/0\"]", ""));
    Client::connect(front).unwrap().leave().unwrap();
    daemon.reload(&config_at(front, &[server.toml()], "deny = [\"::/64\"]", ""));
    is_reset(Client::connect(front));
}

#[test]
fn a_denied_client_takes_no_place_at_a_full_listener() {
    let server = Greeter::start("a");
    for when_full in ["wait", "refuse"] {
        let rules = format!("max_connections = 1\nwhen_full = \"{when_full}\"\ndeny = [\"127.0.0.9\"]");
        let (text, front) = config(&[server.toml()], &rules, "");
        let daemon = Daemon::start(&format!("[process]\nworkers = 1\n\n{text}"));
        let first = Client::connect_from(source(1), front).unwrap();
        let denied: Vec<_> = (0..5).map(|_| knock(source(9), front)).collect();
        let waiting = (when_full == "wait").then(|| knock(source(2), front));
        first.leave().unwrap();
        for stream in denied {
            is_reset(Client::greeted_on(stream));
        }
        // One place, five who were denied it, and the next in the queue has it.
        let next = waiting.map_or_else(
            || eventually("a free place", PATIENCE, || Client::connect_from(source(2), front).ok()),
            |stream| Client::greeted_on(stream).unwrap(),
        );
        next.leave().unwrap();
        has_rejected(&daemon, "acl_deny", 5);
    }
}

#[test]
fn a_reload_changes_the_rules_for_new_clients_and_touches_no_open_connection() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let mut daemon = Daemon::start(&text);
    let mut open = Client::connect_from(source(9), front).unwrap();
    let denied = "[defaults]\ndeny = [\"127.0.0.9/32\"]\n\n";
    daemon.reload(&format!("{denied}{text}"));
    is_reset(Client::connect_from(source(9), front));
    open.echo(b"still here").unwrap();
    // What a listener says takes the place of the default.
    let own = config_at(front, &[server.toml()], "deny = []", "");
    daemon.reload(&format!("{denied}{own}"));
    Client::connect_from(source(9), front).unwrap().leave().unwrap();
}

#[test]
fn a_hundred_thousand_networks_are_read_and_kept() {
    let server = Greeter::start("a");
    let networks =
        (0..100_000_u32).map(|number| format!("\"{}/32\"", Ipv4Addr::from(0x0a00_0000 + 2 * number)));
    let deny = networks.chain(["\"127.0.0.9\"".to_owned()]).collect::<Vec<_>>().join(",");
    let (text, front) = config(&[server.toml()], &format!("deny = [{deny}]"), "");
    let _daemon = Daemon::start(&text);
    is_reset(Client::connect_from(source(9), front));
    Client::connect_from(source(8), front).unwrap().leave().unwrap();
}

#[test]
fn a_source_at_its_limit_is_refused_and_others_are_not() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "max_connections_per_source = 2", "");
    let daemon = Daemon::start(&text);
    let mut open: Vec<_> = (0..2).map(|_| Client::connect_from(source(1), front).unwrap()).collect();
    is_reset(Client::connect_from(source(1), front));
    let _other = Client::connect_from(source(2), front).unwrap();
    let record = &daemon.access_log_of(1)[0];
    assert_eq!(word(record, "close.reason"), "source_limit");
    assert_eq!(
        word(record, "close.detail"),
        "refused: 127.0.0.1 is at the listener's max_connections_per_source (2)"
    );
    has_rejected(&daemon, "source_limit", 1);
    open.pop().unwrap().leave().unwrap();
    eventually("its place to be free", PATIENCE, || Client::connect_from(source(1), front).ok());
}

#[test]
fn a_limit_by_source_is_exact_under_many_clients_at_once() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "max_connections_per_source = 3", "");
    let daemon = Daemon::start(&format!("[process]\nworkers = 4\n\n{text}"));
    // All stay while the others come: of ten from each source, three are in, whatever the race.
    let crowd: Vec<_> = (0..80_u8)
        .map(|number| std::thread::spawn(move || Client::connect_from(source(1 + number % 8), front)))
        .collect();
    let outcomes: Vec<_> = crowd.into_iter().map(|client| client.join().unwrap()).collect();
    let (inside, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((inside.len(), refused.len()), (24, 56));
    refused.into_iter().for_each(is_reset);
    has_rejected(&daemon, "source_limit", 56);
    inside.into_iter().for_each(|client| client.unwrap().leave().unwrap());
    eventually("every source to have all its places", PATIENCE, || {
        (daemon.metric("tidegate_listener_active_connections", &[]) == 0.0).then_some(())
    });
    for number in 1..=8 {
        let all: Vec<_> = (0..3).map(|_| Client::connect_from(source(number), front).unwrap()).collect();
        drop(all);
    }
}

#[test]
fn a_source_keeps_its_count_over_a_reload() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "max_connections_per_source = 3", "");
    let mut daemon = Daemon::start(&text);
    let open: Vec<_> = (0..3).map(|_| Client::connect_from(source(1), front).unwrap()).collect();
    daemon.reload(&config_at(front, &[server.toml()], "max_connections_per_source = 4", ""));
    let _fourth = Client::connect_from(source(1), front).unwrap();
    is_reset(Client::connect_from(source(1), front));
    daemon.reload(&config_at(front, &[server.toml()], "max_connections_per_source = \"off\"", ""));
    Client::connect_from(source(1), front).unwrap().leave().unwrap();
    open.into_iter().for_each(|client| client.leave().unwrap());
}

#[test]
fn ipv6_clients_of_one_network_are_one_source() {
    let server = Greeter::start("a");
    let front: SocketAddr = format!("[::1]:{}", free_port()).parse().unwrap();
    let daemon = Daemon::start(&config_at(front, &[server.toml()], "max_connections_per_source = 1", ""));
    let _first = Client::connect(front).unwrap();
    is_reset(Client::connect(front));
    assert!(word(&daemon.access_log_of(1)[0], "close.detail").contains("::/64 is at"));
}

#[test]
fn a_source_that_comes_too_often_is_refused_and_others_are_not() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "connection_rate_per_source = \"3/h\"", "");
    let daemon = Daemon::start(&format!("[process]\nworkers = 4\n\n{text}"));
    for _ in 0..3 {
        Client::connect_from(source(1), front).unwrap().leave().unwrap();
    }
    is_reset(Client::connect_from(source(1), front));
    Client::connect_from(source(2), front).unwrap().leave().unwrap();
    has_rejected(&daemon, "rate_limit", 1);
    let log = daemon.access_log_of(5);
    let refused = log.iter().find(|record| word(record, "close.reason") == "rate_limit").unwrap();
    assert_eq!(
        word(refused, "close.detail"),
        "refused: 127.0.0.1 is beyond the listener's connection_rate_per_source (3/h)"
    );
}

#[test]
fn a_listener_takes_as_many_as_its_rate_whatever_the_race_and_counts_no_client_that_is_refused_anyway() {
    let server = Greeter::start("a");
    let rules = "connection_rate = \"20/h\"\ndeny = [\"127.0.0.9\"]";
    let (text, front) = config(&[server.toml()], rules, "");
    let daemon = Daemon::start(&format!("[process]\nworkers = 4\n\n{text}"));
    (0..30).for_each(|_| is_reset(Client::connect_from(source(9), front)));
    let crowd: Vec<_> = (1..=60)
        .map(|number| std::thread::spawn(move || Client::connect_from(source(10 + number), front)))
        .collect();
    let outcomes: Vec<_> = crowd.into_iter().map(|client| client.join().unwrap()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 20);
    has_rejected(&daemon, "rate_limit", 40);
    has_rejected(&daemon, "acl_deny", 30);
}

#[test]
fn a_rate_comes_back_with_time_and_what_was_spent_outlives_a_reload() {
    let server = Greeter::start("a");
    let rules = |rate: &str| format!("connection_rate_per_source = \"{rate}\"");
    let (text, front) = config(&[server.toml()], &rules("2/h"), "");
    let mut daemon = Daemon::start(&text);
    for _ in 0..2 {
        Client::connect_from(source(1), front).unwrap().leave().unwrap();
    }
    daemon.reload(&config_at(front, &[server.toml()], &rules("2/h"), "balance = \"first\""));
    is_reset(Client::connect_from(source(1), front));
    // A quicker rate finds an empty bucket, which fills at that rate.
    daemon.reload(&config_at(front, &[server.toml()], &rules("100/s"), ""));
    eventually("the next to come in", PATIENCE, || Client::connect_from(source(1), front).ok());
}

#[test]
fn a_dry_run_lets_everybody_in_and_counts_whom_it_would_have_refused() {
    let server = Greeter::start("a");
    let rules = |mode: &str| {
        format!(
            "admission = \"{mode}\"\ndeny = [\"127.0.0.9\"]\nmax_connections_per_source = 1\n\
             connection_rate_per_source = \"3/h\"\nconnection_rate = \"5/h\""
        )
    };
    let (text, front) = config(&[server.toml()], &rules("dry-run"), "");
    let mut daemon = Daemon::start(&text);
    let counted = |daemon: &Daemon| {
        ["acl_deny", "source_limit", "rate_limit"].map(|reason| {
            daemon.metric("tidegate_listener_would_reject_connections_total", &[("reason", reason)])
        })
    };
    let mut open = Vec::new();
    let mut comes = |from: u8| open.push(Client::connect_from(source(from), front).unwrap());
    comes(9);
    assert_eq!(counted(&daemon), [1.0, 0.0, 0.0]);
    comes(1);
    comes(1);
    comes(1);
    assert_eq!(counted(&daemon), [1.0, 2.0, 0.0]);
    comes(1); // more than three within the hour
    assert_eq!(counted(&daemon), [1.0, 2.0, 1.0]);
    (2..6).for_each(&mut comes);
    assert_eq!(counted(&daemon), [1.0, 2.0, 1.0], "five have passed, none of them refused before");
    comes(6);
    assert_eq!(counted(&daemon), [1.0, 2.0, 2.0]);
    assert_eq!(daemon.metric("tidegate_listener_rejected_connections_total", &[]), 0.0);

    daemon.reload(&config_at(front, &[server.toml()], &rules("enforce"), ""));
    is_reset(Client::connect_from(source(9), front));
    is_reset(Client::connect_from(source(1), front));
    is_reset(Client::connect_from(source(7), front));
    assert_eq!(counted(&daemon), [1.0, 2.0, 2.0]);
    open.into_iter().for_each(|client| client.leave().unwrap());
}

#[test]
fn a_storm_of_refused_clients_leaves_nothing_behind_and_keeps_nobody_out() {
    const STORM: usize = 2000;
    let server = Greeter::start("a");
    let rules = "max_connections = 3\ndeny = [\"127.0.0.9\"]";
    let (text, front) = config(&[server.toml()], rules, "");
    let daemon = Daemon::start(&text);
    let mut open = Client::connect_from(source(1), front).unwrap();
    let before = daemon.resources();
    let storm: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                (0..STORM / 4).for_each(|_| is_reset(Client::connect_from(source(9), front)));
            })
        })
        .collect();
    for _ in 0..50 {
        Client::connect_from(source(2), front).unwrap().leave().unwrap();
    }
    storm.into_iter().for_each(|thread| thread.join().unwrap());
    has_rejected(&daemon, "acl_deny", STORM);
    open.echo(b"untouched").unwrap();
    eventually("descriptors to be given back", PATIENCE, || {
        (daemon.resources().descriptors <= before.descriptors + 4).then_some(())
    });
    eventually("all others to be gone", PATIENCE, || {
        (daemon.metric("tidegate_listener_active_connections", &[]) == 1.0).then_some(())
    });
    assert_eq!(daemon.metric("tidegate_listener_connections_total", &[]), STORM as f64 + 51.0);
    assert_eq!(server.taken(), 51);
}
