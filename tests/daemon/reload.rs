//! SIGHUP: a valid file becomes the next snapshot, no connection is touched, and a bad file
//! changes nothing.

use std::net::SocketAddr;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::peers::{Client, Greeter, config, config_at, nobody};
use crate::support::{Daemon, PATIENCE, eventually};

/// Asks for a reload and waits until it has been refused.
fn refused_reload(daemon: &mut Daemon) -> String {
    daemon.signal(Signal::SIGHUP);
    eventually("the refusal", PATIENCE, || {
        (daemon.metric("tidegate_config_last_reload_successful", &[]) == 0.0).then_some(())
    });
    daemon.stderr()
}

fn serves(front: SocketAddr) -> String {
    Client::connect(front).unwrap().server
}

#[test]
fn servers_come_and_go_and_open_connections_stay() {
    let (old, new) = (Greeter::start("old"), Greeter::start("new"));
    let (text, front) = config(&[old.toml()], "", "");
    let mut daemon = Daemon::start(&text);
    let mut stays = Client::connect(front).unwrap();
    daemon.reload(&config_at(front, &[new.toml()], "", ""));
    assert_eq!(serves(front), "new");
    stays.echo(b"untouched").unwrap();
    assert_eq!(stays.server, "old");
    stays.leave().unwrap();
}

#[test]
fn a_hundred_reloads_under_load_break_nothing() {
    let servers = [Greeter::start("a"), Greeter::start("b")];
    let both = servers.each_ref().map(Greeter::toml);
    let (text, front) = config(&both, "", "");
    let mut daemon = Daemon::start(&text);
    let mut stays: Vec<Client> = (0..20).map(|_| Client::connect(front).unwrap()).collect();
    let before = daemon.resources();
    let load = std::thread::spawn(move || {
        for _ in 0..1500 {
            let mut client = Client::connect(front).unwrap();
            client.echo(b"load").unwrap();
            client.leave().unwrap();
        }
    });
    for turn in 0..100 {
        let servers = if turn % 2 == 0 { &both[..1] } else { &both[..] };
        daemon.reload(&config_at(front, servers, "", ""));
    }
    load.join().expect("no client saw an error");
    for client in &mut stays {
        client.echo(b"untouched").unwrap();
    }
    // One thread may have been made to read files, or two where the first had not yet lain down; idle ones end.
    eventually("threads to be given back", PATIENCE, || {
        (daemon.resources().threads <= before.threads + 1).then_some(())
    });
    eventually("descriptors to be given back", PATIENCE, || {
        (daemon.resources().descriptors <= before.descriptors + 4).then_some(())
    });
}

#[test]
fn counts_and_limits_outlive_a_reload() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "when_full = \"refuse\"", "");
    let mut daemon = Daemon::start(&text);
    let open = [Client::connect(front).unwrap(), Client::connect(front).unwrap()];
    daemon.reload(&config_at(front, &[server.toml()], "when_full = \"refuse\"\nmax_connections = 2", ""));
    assert_eq!(daemon.metric("tidegate_listener_active_connections", &[]), 2.0);
    assert_eq!(daemon.metric("tidegate_server_active_connections", &[("server", "a")]), 2.0);
    Client::connect(front).expect_err("the two that were there before fill it");
    open.into_iter().for_each(|client| client.leave().unwrap());
    eventually("room again", PATIENCE, || Client::connect(front).ok());
}

/// The bug: a reload after the pool's last connection had ended took its series away, and the sum over
/// the pools of a listener fell.
#[test]
fn ends_of_connections_stay_counted_when_their_pool_has_left() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let renamed = text.replace("pool = \"p\"", "pool = \"q\"").replace("[pool.p]", "[pool.q]");
    let mut daemon = Daemon::start(&text);
    let visit = || Client::connect(front).unwrap().leave().unwrap();
    let stays = Client::connect(front).unwrap();
    (0..3).for_each(|_| visit());
    daemon.access_log_of(3);
    let closed = |daemon: &Daemon, labels: &[_]| daemon.metric("tidegate_connections_closed_total", labels);
    for _ in 0..3 {
        daemon.reload(&renamed);
        assert_eq!(closed(&daemon, &[("pool", "p")]), 3.0);
    }
    stays.leave().unwrap();
    daemon.access_log_of(4);
    visit();
    daemon.access_log_of(5);
    for text in [&renamed, &renamed, &text, &text] {
        daemon.reload(text);
        assert_eq!(closed(&daemon, &[("pool", "p")]), 4.0);
        assert_eq!(closed(&daemon, &[]), daemon.metric("tidegate_listener_connections_total", &[]));
    }
}

#[test]
fn a_server_that_was_down_stays_down_over_a_reload() {
    let check = "[pool.p.health_check]\ninterval = \"50ms\"\ntimeout = \"5s\"\nrise = 1\nfall = 1";
    let server = Greeter::start("alive");
    let dead = format!("{{ name = \"dead\", address = \"{}\" }}", nobody());
    let servers = [dead, server.toml()];
    let (text, front) = config(&servers, "", check);
    let mut daemon = Daemon::start(&text);
    let down = |daemon: &Daemon| daemon.metric("tidegate_pool_servers", &[("state", "down")]);
    eventually("the dead server to be down", PATIENCE, || (down(&daemon) == 1.0).then_some(()));
    let tried = daemon.metric("tidegate_server_connect_failures_total", &[("server", "dead")]);
    for _ in 0..5 {
        daemon.reload(&config_at(front, &servers, "", check));
        assert_eq!(down(&daemon), 1.0);
        assert_eq!(serves(front), "alive");
    }
    assert_eq!(daemon.metric("tidegate_server_connect_failures_total", &[("server", "dead")]), tried);
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let mut daemon = Daemon::start(&text);
    daemon.rewrite_config(&text.replace("servers", "serverz"));
    let said = refused_reload(&mut daemon);
    assert!(said.contains("serverz") && said.contains("servers"), "{said}");
    assert_eq!(serves(front), "a");
    assert_eq!(daemon.metric("tidegate_config_generation", &[]), 1.0);
    daemon.reload(&text);
    assert_eq!(daemon.metric("tidegate_config_last_reload_successful", &[]), 1.0);
}

#[test]
fn what_needs_a_restart_is_refused_as_a_whole() {
    let (old, new) = (Greeter::start("old"), Greeter::start("new"));
    let (text, front) = config(&[old.toml()], "", "");
    let mut daemon = Daemon::start(&text);
    daemon.rewrite_config(&config_at(nobody(), &[new.toml()], "", ""));
    let said = refused_reload(&mut daemon);
    assert!(said.contains("restart") && said.contains('l'), "{said}");
    assert_eq!(serves(front), "old");
}

#[test]
fn a_missing_file_at_the_start_is_exit_78_and_at_a_reload_changes_nothing() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let mut daemon = Daemon::start(&text);
    std::fs::remove_file(daemon.config_path()).unwrap();
    let said = refused_reload(&mut daemon);
    assert!(said.contains("there is no such file"), "{said}");
    assert_eq!(serves(front), "a");
    let missing =
        daemon.tidegate(&["run", "-c", &Path::new("/nonexistent/tidegate.toml").display().to_string()]);
    assert_eq!(missing.status.code(), Some(78));
}

#[test]
fn a_bad_file_at_the_start_is_exit_78_with_the_same_text_as_check() {
    let (text, _) = config(&[format!("\"{}\"", nobody())], "", "balance = \"least-conections\"");
    let mut daemon = Daemon::builder(&text).spawn();
    let (code, _, stderr) = daemon.wait();
    assert_eq!(code, Some(78), "{stderr}");
    let checked = daemon.tidegate(&["check", &daemon.config_path().display().to_string()]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(stderr.contains("least-connections"), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&checked.stderr), stderr);
}
