//! What operators see: status, servers, health, metrics, and no file at all.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::peers::{Client, Greeter, config, nobody};
use crate::support::{Daemon, PATIENCE, eventually, free_port};

fn json(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn status_and_servers_tell_the_live_state() {
    let server = Greeter::start("alive");
    let dead = format!("{{ name = \"dead\", address = \"{}\" }}", nobody());
    let check = "[pool.p.health_check]\ninterval = \"50ms\"\ntimeout = \"5s\"\nrise = 1\nfall = 1";
    let (text, front) = config(&[server.toml(), dead], "", check);
    let daemon = Daemon::start(&text);
    let _open = Client::connect(front).unwrap();
    eventually("the dead server to be down", PATIENCE, || {
        (daemon.metric("tidegate_pool_servers", &[("state", "down")]) == 1.0).then_some(())
    });
    let status = json(&daemon.tidegate(&["status", "--json"]));
    assert_eq!((&status["state"], &status["generation"]), (&"serving".into(), &1.into()));
    assert_eq!(status["connections"]["active"], 1);
    assert_eq!(status["pools"]["degraded"], 1);
    let servers = json(&daemon.tidegate(&["servers", "--json"]));
    let of = |name: &str| {
        servers.as_array().unwrap().iter().find(|server| server["name"] == name).unwrap().clone()
    };
    assert_eq!((&of("alive")["state"], &of("alive")["active"]), (&"up".into(), &1.into()));
    assert_eq!(of("dead")["state"], "down");
    assert!(of("dead")["last_check"]["message"].as_str().unwrap().contains("refused"), "{servers}");
    let human = String::from_utf8(daemon.tidegate(&["servers"]).stdout).unwrap();
    let line = |name: &str| human.lines().find(|line| line.contains(name)).map(str::to_owned);
    assert!(line("alive").unwrap().contains("up") && line("dead").unwrap().contains("down"), "{human}");
    assert!(!String::from_utf8(daemon.tidegate(&["status"]).stdout).unwrap().is_empty());
}

#[test]
fn asking_a_daemon_that_is_not_there_says_what_to_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["status", "--admin", "/nonexistent/admin.sock"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("/nonexistent/admin.sock") && said.contains("--admin"), "{said}");
}

#[test]
fn a_proxy_needs_no_file() {
    let servers = [Greeter::start("a"), Greeter::start("b")];
    let front = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let addresses = servers.each_ref().map(|server| server.address.to_string());
    let mut proxy = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .arg("proxy")
        .arg(front.to_string())
        .args(&addresses)
        .args(["--balance", "round-robin"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let first = eventually("the proxy", PATIENCE, || Client::connect(front).ok());
    let second = Client::connect(front).unwrap();
    assert_ne!(first.server, second.server);
    drop((first, second));
    proxy.kill().unwrap();
    proxy.wait().unwrap();
}

#[test]
fn the_printed_configuration_is_what_a_proxy_runs() {
    let printed = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["proxy", "127.0.0.1:5432", "127.0.0.1:5433", "127.0.0.1:5434"])
        .args(["--balance", "least-connections", "--check", "tcp", "--print-config"])
        .output()
        .unwrap();
    let text = String::from_utf8(printed.stdout).unwrap();
    let plan = tidegate::config::parse("printed", &text).unwrap_or_else(|_| panic!("{text}")).plan;
    assert_eq!(plan.listeners[0].bind, ["127.0.0.1:5432".parse().unwrap()]);
    assert_eq!(plan.pools[0].servers.len(), 2);
    assert!(plan.pools[0].health_check.is_some(), "{text}");
}

#[test]
fn usage_errors_are_exit_2_and_help_is_exit_0() {
    let code = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_tidegate")).args(args).output().unwrap().status.code()
    };
    assert_eq!(code(&["run", "--nonsense"]), Some(2));
    assert_eq!(code(&["proxy", "127.0.0.1:1"]), Some(2));
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["proxy", "--help"]), Some(0));
}

#[test]
fn the_demo_ends_well() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_tidegate")).args(["demo", "--for", "12s"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    for part in ["birch stops", "birch down", "birch is back", "clients saw 0 errors"] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
}
