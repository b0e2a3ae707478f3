//! Workers share connections evenly, whatever the kernel's hash makes of their addresses.

use std::net::Ipv4Addr;

use crate::peers::{Client, Greeter, config};
use crate::support::{Daemon, PATIENCE, eventually};

const CONNECTIONS: usize = 1000;

fn open_by_worker(daemon: &Daemon, workers: usize) -> Vec<usize> {
    let open = |worker: usize| {
        daemon.metric("tidegate_worker_active_connections", &[("worker", &worker.to_string())]) as usize
    };
    (0..workers).map(open).collect()
}

#[test]
fn a_thousand_connections_from_many_sources_are_even_over_the_workers() {
    let server = Greeter::start("a");
    for workers in [2, 8] {
        let (text, front) = config(&[server.toml()], "", "");
        let daemon = Daemon::start(&format!("[process]\nworkers = {workers}\n\n{text}"));
        let source = |number: usize| Ipv4Addr::new(127, 1, (number / 250) as u8, (number % 250 + 1) as u8);
        let mut clients: Vec<_> = (0..CONNECTIONS)
            .map(|number| Client::connect_from(source(number), front).expect("a greeting"))
            .collect();

        let open = open_by_worker(&daemon, workers);
        let (busiest, idlest) = (*open.iter().max().unwrap(), *open.iter().min().unwrap());
        assert_eq!(open.iter().sum::<usize>(), CONNECTIONS, "{open:?}");
        assert!(10 * busiest <= 11 * idlest, "the busiest has more than 1.1 times the least busy: {open:?}");

        // Wherever they are served, they are served.
        clients.iter_mut().for_each(|client| client.echo(b"still here").expect("an echo"));
        clients.into_iter().for_each(|client| client.leave().expect("a clean end"));
        eventually("all seats to be free", PATIENCE, || {
            open_by_worker(&daemon, workers).iter().all(|open| *open == 0).then_some(())
        });
    }
}
