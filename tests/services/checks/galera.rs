//! `galera = "synced"` against two nodes of a real Galera cluster.

use nix::sys::signal::Signal;

use super::Watched;
use crate::mariadb::{MariaDb, ask};
use crate::support::{PATIENCE, eventually, free_port};

/// MariaDB's provider of the cluster, where Debian has it.
const PROVIDER: &str = "/usr/lib/galera/libgalera_smm.so";

/// How soon a node counts as gone: somebody waits here. A machine with other work to do must not be taken for it.
const IMPATIENT: &str = "evs.inactive_check_period=PT0.5S;evs.keepalive_period=PT0.5S;evs.suspect_timeout=PT5S;\
                         evs.inactive_timeout=PT10S;evs.install_timeout=PT10S";

/// A node on that port for the cluster, which joins whoever is at `seed`, or begins a cluster; it is in step when this returns.
fn node(port: u16, seed: Option<u16>) -> MariaDb {
    let seed = seed.map(|seed| format!("127.0.0.1:{seed}")).unwrap_or_default();
    let (incremental, snapshot) = (free_port(), free_port());
    let options = [
        format!("gmcast.listen_addr=tcp://127.0.0.1:{port}"),
        format!("ist.recv_addr=127.0.0.1:{incremental}"),
        "gcache.size=8M".to_owned(),
        IMPATIENT.to_owned(),
    ];
    let settings = [
        "--wsrep-on=ON".to_owned(),
        format!("--wsrep-provider={PROVIDER}"),
        format!("--wsrep-provider-options={}", options.join(";")),
        format!("--wsrep-cluster-address=gcomm://{seed}"),
        format!("--wsrep-node-address=127.0.0.1:{port}"),
        "--wsrep-cluster-name=checked".to_owned(),
        "--wsrep-sst-method=rsync".to_owned(),
        format!("--wsrep-sst-receive-address=127.0.0.1:{snapshot}"),
        "--binlog-format=ROW".to_owned(),
        "--innodb-autoinc-lock-mode=2".to_owned(),
        "--innodb-buffer-pool-size=32M".to_owned(),
    ];
    let node = MariaDb::start_with(&settings.each_ref().map(String::as_str));
    let state = "show global status like 'wsrep_local_state'";
    eventually("the node to be synced", PATIENCE, || ask(node.port, state).ends_with("\t4\n").then_some(()));
    node
}

/// Both states that a bare login cannot tell: a node that is out of step by command, as during a backup,
/// and one that has lost the majority. It goes on answering, even `read_only` with "primary".
#[test]
fn a_node_that_is_out_of_step_with_its_cluster_is_down() {
    let (one, two) = (free_port(), free_port());
    let a = node(one, None);
    let mut b = node(two, Some(one));
    ask(a.port, "create user tidegate@'127.0.0.1'");
    let check = "type = \"mysql\"\nuser = \"tidegate\"\nrole = \"primary\"\n";
    let synced = Watched::start(&[a.port, b.port], &format!("{check}galera = \"synced\""));
    let lenient = Watched::start(&[a.port], &format!("{check}galera = \"synced-or-donor\""));
    for server in ["a", "b"] {
        synced.wait_for(server, "up", "ok");
    }

    ask(a.port, "set global wsrep_desync = 1");
    synced.wait_for("a", "down", "the node is donor or desynced, wanted synced");
    lenient.wait_for("a", "up", "ok");
    ask(a.port, "set global wsrep_desync = 0");
    synced.wait_for("a", "up", "ok");

    // Of two nodes the one that is left is no majority.
    b.process.signal(Signal::SIGKILL);
    synced.wait_for("a", "down", "the node is outside of its cluster's primary component");
    lenient.wait_for("a", "down", "outside of its cluster's primary component");
    assert_eq!(ask(a.port, "select @@global.read_only"), "0\n", "which alone would say nothing");
    ask(a.port, "set global wsrep_provider_options = 'pc.bootstrap=1'");
    synced.wait_for("a", "up", "ok");
}

#[test]
fn a_server_without_a_cluster_says_so() {
    let a = MariaDb::start();
    ask(a.port, "create user tidegate@'127.0.0.1'");
    let watched = Watched::start(&[a.port], "type = \"mysql\"\nuser = \"tidegate\"\ngalera = \"synced\"");
    watched.wait_for("a", "down", "is no node of a Galera cluster");
}
