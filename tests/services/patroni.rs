//! The example for Patroni as it stands in `conf/examples`, in front of two nodes that Patroni runs and an
//! etcd that it asks. Only addresses and ports are others.

use std::fs;
use std::process::Command;
use std::thread;

use nix::sys::signal::Signal;

use crate::postgres::{USER, as_postgres, on, own_directory, psql, sessions, tool};
use crate::rig::{Rig, Stopped, wait_for_port};
use crate::support::http;
use crate::support::proc::{self, Proc, Spec, TempDir};
use crate::support::{Daemon, PATIENCE, eventually, free_ports};

const EXAMPLE: &str = include_str!("../../conf/examples/postgresql-patroni.toml");

/// What Patroni keeps its lock in.
struct Etcd {
    _process: Proc,
    port: u16,
    _dir: TempDir,
}

impl Etcd {
    fn start() -> Etcd {
        let dir = TempDir::new("etcd");
        let [port, peers] = free_ports();
        let mut command = Command::new("etcd");
        let (clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        command.arg("--data-dir").arg(dir.join("data")).arg("--unsafe-no-fsync");
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("default={peers}")]);
        let spec = Spec { name: "etcd".into(), command, user: None, end: Signal::SIGKILL };
        let mut process = Proc::start(&spec, dir.path()).expect("etcd starts");
        wait_for_port(port, || process.try_wait().is_none());
        Etcd { _process: process, port, _dir: dir }
    }
}

/// The ports that both nodes have, each on an address of its own, as on two machines.
#[derive(Clone, Copy)]
struct Ports {
    postgres: u16,
    rest: u16,
}

/// One node: Patroni, and the PostgreSQL that it starts, stops and promotes.
struct Node {
    process: Proc,
    address: String,
    ports: Ports,
    dir: TempDir,
}

impl Node {
    /// `pg1` is on 127.0.0.2, and so on.
    fn start(number: u8, ports: Ports, etcd: &Etcd) -> Node {
        let (dir, address) = (own_directory(), format!("127.0.0.{number}"));
        let file = dir.join("patroni.yml");
        fs::write(&file, settings(number, &address, ports, &dir, etcd)).expect("its settings");
        let mut command = Command::new("patroni");
        command.arg(&file);
        let spec = Spec { name: "patroni".into(), command, user: Some(USER), end: Signal::SIGTERM };
        let process = Proc::start(&spec, dir.path()).expect("Patroni starts");
        Node { process, address, ports, dir }
    }

    /// Waits until it says that it is that: `primary` or `replica`.
    #[track_caller]
    fn wait_until(&self, role: &str) {
        let rest = format!("{}:{}", self.address, self.ports.rest).parse().expect("an address");
        eventually(&format!("{} to be a {role}", self.address), PATIENCE * 2, || {
            http::get(rest, &format!("/{role}")).is_ok_and(|answer| answer.status == 200).then_some(())
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.process.stop();
        // Usually stopped by Patroni already.
        let mut stop = as_postgres(&tool("pg_ctl"));
        let _ = stop.args(["stop", "-m", "immediate", "-D"]).arg(self.dir.join("data")).output();
    }
}

fn node(number: u8) -> String {
    format!("pg{}", number - 1)
}

fn settings(number: u8, address: &str, ports: Ports, dir: &TempDir, etcd: &Etcd) -> String {
    let Ports { postgres, rest } = ports;
    let (home, bin) = (dir.path().display(), tool(""));
    format!(
        r#"scope: tidegate
name: {name}
restapi: {{ listen: "{address}:{rest}", connect_address: "{address}:{rest}" }}
etcd3: {{ host: "127.0.0.1:{etcd}" }}
bootstrap:
  dcs: {{ ttl: 60, loop_wait: 1, retry_timeout: 10 }}
  initdb: [{{ encoding: UTF8 }}, {{ locale: C }}]
  pg_hba: ["host all all 127.0.0.0/8 trust", "host replication all 127.0.0.0/8 trust", "local all all trust"]
postgresql:
  listen: "{address}:{postgres}"
  connect_address: "{address}:{postgres}"
  data_dir: "{home}/data"
  bin_dir: "{bin}"
  pgpass: "{home}/pgpass"
  authentication:
    superuser: {{ username: postgres, password: secret }}
    replication: {{ username: standby, password: secret }}
  parameters: {{ unix_socket_directories: "{home}", fsync: "off" }}
"#,
        name = node(number),
        etcd = etcd.port,
        bin = bin.display(),
    )
}

/// The example with these ports on loopback. `pg1` to `pg3` are 127.0.0.2 to 127.0.0.4; the last is away.
fn example(ports: Ports, write: u16, read: u16) -> String {
    let mut text = EXAMPLE.to_owned();
    let Ports { postgres, rest } = ports;
    let mut replace = |from: &str, to: &str| {
        assert!(text.contains(from), "the example has {from}");
        text = text.replace(from, to);
    };
    replace("[admin]\nhttp = \"127.0.0.1:9901\"\n", "");
    for (from, to) in [("192.0.2.10", 2), ("192.0.2.11", 3), ("192.0.2.12", 4)] {
        replace(&format!("{from}:5432"), &format!("127.0.0.{to}:{postgres}"));
    }
    replace("192.0.2.1:5432", &format!("127.0.0.1:{write}"));
    replace("192.0.2.1:5433", &format!("127.0.0.1:{read}"));
    replace("port = 8008", &format!("port = {rest}"));
    text
}

fn is_in_recovery(port: u16) -> String {
    proc::run(&mut psql(port, "select pg_is_in_recovery()"))
}

/// Writes find the leader and reads the replica. At a switchover, who connects is served by the old leader
/// or waits for the new one; only sessions that are open when Patroni stops the old one are lost.
#[test]
fn the_example_follows_a_switchover_by_patroni() {
    let [postgres, rest, write, read] = free_ports();
    let (etcd, ports) = (Etcd::start(), Ports { postgres, rest });
    let first = Node::start(2, ports, &etcd);
    first.wait_until("primary");
    let second = Node::start(3, ports, &etcd);
    second.wait_until("replica");
    let rig = Rig { daemon: Daemon::start(&example(ports, write, read)), port: write };
    let up = |pool: &str, server: &str| {
        eventually(&format!("{pool}/{server} to be up"), PATIENCE, || {
            let labels = [("pool", pool), ("server", server)];
            (rig.daemon.metric("tidegate_server_up", &labels) == 1.0).then_some(())
        });
    };
    up("primary", "pg1");
    up("replicas", "pg2");
    assert_eq!((is_in_recovery(write), is_in_recovery(read)), ("f\n".into(), "t\n".into()));

    let mut failed = Vec::new();
    let stopped = thread::scope(|scope| {
        let switch = scope.spawn(|| {
            Stopped::during(|| {
                let mut control = Command::new("patronictl");
                control.arg("-c").arg(first.dir.join("patroni.yml")).arg("switchover");
                proc::run(control.args(["--leader", "pg1", "--candidate", "pg2", "--force"]));
            })
        });
        while !switch.is_finished() {
            failed.extend(sessions(write, 8, 8));
        }
        switch.join().expect("the switchover ends")
    });
    up("primary", "pg2");
    assert_eq!(sessions(write, 40, 8), Vec::<String>::new(), "nobody fails afterwards");
    assert_eq!(is_in_recovery(write), "f\n");

    let metric = |name| rig.daemon.metric(name, &[]);
    let ended = eventually("all connections to end", PATIENCE, || {
        let closed = metric("tidegate_connections_closed_total");
        (closed == metric("tidegate_listener_connections_total")).then_some(closed)
    });
    let log = rig.daemon.access_log_of(ended as usize);
    let exposed = on(&log, "pg1").into_iter().filter(|record| stopped.cut_into(record)).count();
    assert!(failed.len() <= exposed, "{} of those on the old leader failed: {failed:?}", failed.len());
    let served: Vec<_> = on(&log, "pg2").into_iter().filter(|record| record["pool"] == "primary").collect();
    assert!(served.len() >= 40, "the new leader serves");
}
