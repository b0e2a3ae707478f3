//! Who comes first when room is short.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::admission::{is_reset, knock};
use crate::peers::{Client, Greeter, config, config_at};
use crate::queue::{full_server, visitor, wait_for_line};
use crate::support::record::{accepted_at, number, word};
use crate::support::{Daemon, PATIENCE, eventually, free_port};

/// Of ten places high clients may fill all, normal ones nine, low ones seven.
const THREE_CLASSES: &str =
    "max_connections = 10\npriority_from = { high = [\"127.0.1.0/24\"], low = [\"127.0.2.0/24\"] }";

/// With others, a place that one of them holds while it takes its next client would count at the edge.
const ONE_WORKER: &str = "[process]\nworkers = 1\n\n";

const HIGH: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const NORMAL: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const LOW: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);

/// So many from there come in, and stay.
#[track_caller]
fn come_in(count: usize, from: Ipv4Addr, front: SocketAddr) -> Vec<Client> {
    (0..count).map(|_| Client::connect_from(from, front).expect("there is room for it")).collect()
}

fn has_open(daemon: &Daemon, listener: &str, count: usize) {
    let labels = [("listener", listener)];
    eventually(&format!("{count} open at {listener}"), PATIENCE, || {
        let open = daemon.metric("tidegate_listener_active_connections", &labels);
        (open == count as f64).then_some(())
    });
}

/// Nobody serves it, and nobody has sent it away.
#[track_caller]
pub fn waits(client: &TcpStream) {
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(client.peek(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "it waits");
}

/// Client and detail of those who were not let in, in the order of coming.
fn refused(log: &[Value]) -> Vec<[String; 2]> {
    let mut refused: Vec<_> = log.iter().filter(|record| word(record, "close.phase") == "accept").collect();
    refused.sort_by_key(|record| accepted_at(record));
    refused
        .into_iter()
        .map(|record| ["client", "close.detail"].map(|name| word(record, name).to_owned()))
        .collect()
}

#[test]
fn lower_classes_are_refused_first_and_the_log_says_why() {
    let server = Greeter::start("a");
    for when_full in ["wait", "refuse"] {
        let rules = format!("{THREE_CLASSES}\nwhen_full = \"{when_full}\"");
        let (text, front) = config(&[server.toml()], &rules, "");
        let daemon = Daemon::start(&format!("{ONE_WORKER}{text}"));
        let _low = come_in(7, LOW, front);
        is_reset(Client::connect_from(LOW, front));
        let _normal = come_in(2, NORMAL, front);
        is_reset(Client::connect_from(NORMAL, front));
        is_reset(Client::connect_from(LOW, front));
        let high = come_in(1, HIGH, front);
        assert_eq!(daemon.metric("tidegate_listener_active_connections", &[]), 10.0);
        high.into_iter().for_each(|client| client.leave().unwrap());
        has_open(&daemon, "l", 9);
        is_reset(Client::connect_from(NORMAL, front));
        come_in(1, HIGH, front).pop().unwrap().leave().unwrap();

        let log = daemon.access_log_of(6);
        assert!(
            log.iter().all(|record| record["priority"].as_str() != Some("normal")),
            "the usual is not told"
        );
        let told = refused(&log);
        let classes = ["127.0.2.1:", "127.0.0.1:", "127.0.2.1:", "127.0.0.1:"];
        assert!(told.iter().zip(classes).all(|([client, _], from)| client.starts_with(from)), "{told:?}");
        let detail = |class, part| {
            format!(
                "refused: the listener lets clients of priority {class} fill {part} of its \
                 max_connections (10), and so many are taken"
            )
        };
        assert_eq!([&told[0][1], &told[1][1]], [&detail("low", 7), &detail("normal", 9)]);
        let record = log.iter().find(|record| word(record, "client").starts_with("127.0.1.1")).unwrap();
        assert_eq!(word(record, "priority"), "high");
        let stood_back = ["high", "normal", "low"].map(|class| {
            daemon.metric("tidegate_listener_refused_by_priority_total", &[("priority", class)])
        });
        assert_eq!(stood_back, [0.0, 2.0, 2.0]);
        let labels = [("reason", "listener_limit")];
        assert_eq!(daemon.metric("tidegate_listener_rejected_connections_total", &labels), 4.0);
    }
}

#[test]
fn a_lower_client_in_front_of_a_full_listener_holds_up_no_higher_one() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], THREE_CLASSES, "");
    let daemon = Daemon::start(&format!("{ONE_WORKER}{text}"));
    let mut all = come_in(10, HIGH, front);
    let (low, high) = (knock(LOW, front), knock(HIGH, front));
    waits(&low);
    waits(&high);
    all.pop().unwrap().leave().unwrap();
    let served = Client::greeted_on(high).expect("it is served, as soon as there is room");
    is_reset(Client::greeted_on(low));
    served.leave().unwrap();
    has_open(&daemon, "l", 9);
}

/// Two listeners before one pool, and room for four in the process: two of the lower class.
fn two_listeners(fronts: [SocketAddr; 2], classes: [&str; 2], server: &Greeter) -> String {
    let listener = |name, front, class| {
        format!("[listener.{name}]\nbind = [\"{front}\"]\npool = \"p\"\npriority = \"{class}\"\n\n")
    };
    let listeners = listener("upper", fronts[0], classes[0]) + &listener("lower", fronts[1], classes[1]);
    let server = server.toml();
    format!("[process]\nworkers = 2\nmax_connections = 4\n\n{listeners}[pool.p]\nservers = [{server}]\n")
}

#[test]
fn a_listener_of_a_lower_class_waits_while_a_higher_one_takes_clients() {
    let server = Greeter::start("a");
    let fronts = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
    let [upper, lower] = fronts;
    let mut daemon = Daemon::start(&two_listeners(fronts, ["highest", "lowest"], &server));
    let mut low = come_in(2, NORMAL, lower);
    let waiting = knock(NORMAL, lower);
    waits(&waiting);
    let mut high = come_in(2, NORMAL, upper);
    low.pop().unwrap().leave().unwrap();
    high.pop().unwrap().leave().unwrap();
    daemon.access_log_of(2);
    waits(&waiting); // two places are taken, and two are its class's part
    low.pop().unwrap().leave().unwrap();
    let served = Client::greeted_on(waiting).expect("there is room for its class");

    let next = knock(NORMAL, lower);
    waits(&next);
    daemon.reload(&two_listeners(fronts, ["highest", "highest"], &server));
    Client::greeted_on(next).expect("its class reaches further now").leave().unwrap();
    served.leave().unwrap();
}

#[test]
fn one_class_alone_fills_the_room() {
    let server = Greeter::start("a");
    let rules = "max_connections = 4\nwhen_full = \"refuse\"\npriority = \"lowest\"";
    let (text, front) = config(&[server.toml()], rules, "");
    let daemon = Daemon::start(&text);
    let _all = come_in(4, NORMAL, front);
    is_reset(Client::connect_from(NORMAL, front));
    let detail = "refused: the listener is at its max_connections (4)";
    assert_eq!(refused(&daemon.access_log_of(1))[0][1], detail);
    assert_eq!(daemon.metric("tidegate_listener_refused_by_priority_total", &[]), 0.0);
}

#[test]
fn a_reload_changes_the_class_of_a_network_and_touches_no_open_connection() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], THREE_CLASSES, "");
    let mut daemon = Daemon::start(&format!("{ONE_WORKER}{text}"));
    let mut open = come_in(7, LOW, front);
    is_reset(Client::connect_from(LOW, front));
    let swapped = THREE_CLASSES.replace("high", "LOW").replace("low", "high").replace("LOW", "low");
    let swapped = config_at(front, &[server.toml()], &swapped, "");
    daemon.reload(&format!("{ONE_WORKER}{swapped}"));
    open.extend(come_in(3, LOW, front));
    daemon.reload(&format!("{ONE_WORKER}{text}"));
    open.iter_mut().for_each(|client| client.echo(b"still here").unwrap());
    open.into_iter().for_each(|client| client.leave().unwrap());
}

#[test]
fn parts_are_exact_under_many_clients_at_once() {
    let server = Greeter::start("a");
    let rules = format!("{THREE_CLASSES}\nwhen_full = \"refuse\"");
    let (text, front) = config(&[server.toml()], &rules, "");
    let daemon = Daemon::start(&format!("[process]\nworkers = 4\n\n{text}"));
    let crowd = |from: Ipv4Addr| {
        let all: Vec<_> =
            (0..40).map(|_| std::thread::spawn(move || Client::connect_from(from, front))).collect();
        all.into_iter().filter_map(|client| client.join().unwrap().ok()).collect::<Vec<_>>()
    };
    let low = crowd(LOW);
    let normal = crowd(NORMAL);
    let high = crowd(HIGH);
    assert_eq!([low.len(), normal.len(), high.len()], [7, 2, 1]);
    [low, normal, high].into_iter().flatten().for_each(|client| client.leave().unwrap());
    has_open(&daemon, "l", 0);
    assert_eq!(come_in(10, HIGH, front).len(), 10, "every place was given back");
}

#[test]
fn a_dry_run_lets_lower_classes_in_and_counts_them() {
    let server = Greeter::start("a");
    for when_full in ["wait", "refuse"] {
        let rules = format!("{THREE_CLASSES}\nadmission = \"dry-run\"\nwhen_full = \"{when_full}\"");
        let (text, front) = config(&[server.toml()], &rules, "");
        let daemon = Daemon::start(&format!("{ONE_WORKER}{text}"));
        let would_reject = || {
            let labels = [("reason", "listener_limit")];
            daemon.metric("tidegate_listener_would_reject_connections_total", &labels)
        };
        let _low = come_in(7, LOW, front);
        assert_eq!(would_reject(), 0.0);
        let _more = come_in(3, LOW, front);
        assert_eq!(would_reject(), 3.0);
    }
}

/// A client that writes itself down when it is served, and leaves.
fn guest(from: Ipv4Addr, front: SocketAddr, served: &Arc<Mutex<Vec<Ipv4Addr>>>) -> JoinHandle<()> {
    let served = Arc::clone(served);
    thread::spawn(move || {
        let client = Client::connect_from(from, front).expect("it only waits");
        served.lock().unwrap().push(from); // before the next can be served
        client.leave().unwrap();
    })
}

#[test]
fn in_the_line_of_a_pool_higher_classes_are_served_first() {
    let server = Greeter::start("a");
    let queue = "queue = { timeout = \"20s\" }\nretry = { backoff = \"1h\" }";
    let (text, front) = config(&[full_server(&server)], THREE_CLASSES, queue);
    let daemon = Daemon::start(&text);
    let (first, served) = (Client::connect_from(LOW, front).unwrap(), Arc::default());
    let mut guests = Vec::new();
    for (place, from) in [LOW, LOW, NORMAL, HIGH, NORMAL, HIGH].into_iter().enumerate() {
        guests.push(guest(from, front, &served));
        wait_for_line(&daemon, place + 1);
    }
    first.leave().unwrap();
    guests.into_iter().for_each(|guest| guest.join().unwrap());
    assert_eq!(*served.lock().unwrap(), [HIGH, HIGH, NORMAL, NORMAL, LOW, LOW]);
}

#[test]
fn in_a_full_line_a_higher_class_takes_the_place_of_the_newest_of_the_lowest() {
    let server = Greeter::start("a");
    let queue = "queue = { max = 2, timeout = \"20s\" }\nretry = { backoff = \"1h\" }";
    let (text, front) = config(&[full_server(&server)], THREE_CLASSES, queue);
    let daemon = Daemon::start(&text);
    let first = Client::connect_from(NORMAL, front).unwrap();
    let displaced = || daemon.metric("tidegate_pool_displaced_connections_total", &[("priority", "low")]);
    let older = visitor(LOW, front);
    wait_for_line(&daemon, 1);
    let newer = visitor(LOW, front);
    wait_for_line(&daemon, 2);
    is_reset(Client::connect_from(LOW, front));
    let mut highs = vec![visitor(HIGH, front)];
    newer.join().unwrap().expect_err("its place was taken");
    assert_eq!(displaced(), 1.0);
    highs.push(visitor(HIGH, front));
    older.join().unwrap().expect_err("its place was taken");
    assert_eq!(displaced(), 2.0);
    is_reset(Client::connect_from(HIGH, front));
    wait_for_line(&daemon, 2);
    first.leave().unwrap();
    highs.into_iter().for_each(|client| assert_eq!(client.join().unwrap().expect("it waited"), "a"));

    let log = daemon.access_log_of(7);
    let full: Vec<_> = log.iter().filter(|record| word(record, "close.reason") == "queue_full").collect();
    assert_eq!(full.len(), 4);
    let detail = "2 clients wait for pool `p`, and one of a higher priority than low came and took its place";
    let displaced = full.iter().filter(|record| word(record, "close.detail") == detail);
    assert_eq!(displaced.filter(|record| number(record, "t.queue") > 0).count(), 2, "{full:?}");
}
