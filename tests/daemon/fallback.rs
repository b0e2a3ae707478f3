//! Where io_uring does not work, epoll serves and the operator is told why; where it is asked for
//! by name, the daemon refuses to begin.
//!
//! strace makes the kernel say what a container's filter, an old kernel or a full limit says.

use std::process::Command;

use crate::peers::{Client, Greeter, config};
use crate::support::proc::is_root_or_skipped;
use crate::support::{Daemon, PATIENCE, eventually};

/// What io_uring's calls answer; the reason in a word; what the line must name.
const DENIALS: [(&str, &str, &str, &str); 7] = [
    ("io_uring_setup", "EPERM", "denied", "seccomp"),
    ("io_uring_setup", "EACCES", "denied", "kernel.io_uring_disabled"),
    ("io_uring_setup", "ENOSYS", "missing", "Linux 6.1"),
    ("io_uring_setup", "EINVAL", "too_old", "Linux 6.1"),
    ("io_uring_setup", "ENOMEM", "no_memory", "LimitMEMLOCK="),
    // A filter that forgot one of the three.
    ("io_uring_register", "EPERM", "denied", "io_uring_register"),
    ("io_uring_enter", "EPERM", "denied", "io_uring_enter"),
];

fn inject(call: &str, errno: &str) -> String {
    format!("inject={call}:error={errno}")
}

/// The configuration with the driver that the test is about.
fn with_io(text: &str, io: &str) -> String {
    format!("[process]\nio = \"{io}\"\nworkers = 4\n\n{text}")
}

/// One line about it, with these words; and all views say the same while traffic flows.
#[track_caller]
fn expect_epoll(daemon: &Daemon, front: std::net::SocketAddr, reason: &str, words: &[&str]) {
    let mut client = Client::connect(front).unwrap();
    client.echo(&[7; 100_000]).unwrap();
    client.leave().unwrap();
    let log = daemon.stderr();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("io_uring")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("io is epoll, because"), "{}", lines[0]);
    words.iter().for_each(|word| assert!(lines[0].contains(word), "{word} is not in: {}", lines[0]));
    let status = daemon.tidegate(&["status", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_slice(&status).expect("JSON");
    assert_eq!((&status["io"], &status["io_reason"]), (&"epoll".into(), &reason.into()));
    assert_eq!(daemon.metric("tidegate_process_io", &[("io", "epoll"), ("reason", reason)]), 1.0);
}

#[test]
fn where_io_uring_is_denied_epoll_serves_and_one_line_says_why() {
    for (call, errno, reason, word) in DENIALS {
        let server = Greeter::start("a");
        let (text, front) = config(&[server.toml()], "", "");
        let daemon = Daemon::builder(&with_io(&text, "auto"))
            .under(["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", &inject(call, errno)])
            .start();
        expect_epoll(&daemon, front, reason, &[word, "os error"]);
    }
}

#[test]
fn io_uring_that_is_asked_for_by_name_and_denied_is_refused_with_what_to_do() {
    for (call, errno, _, word) in DENIALS {
        let (text, _) = config(&["\"127.0.0.1:1\"".to_owned()], "", "");
        let mut daemon = Daemon::builder(&with_io(&text, "io-uring"))
            .under(["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", &inject(call, errno)])
            .spawn();
        let (code, _, said) = daemon.wait();
        // 77 is for what the system forbids; see the exit codes.
        assert_eq!(code, Some(if matches!(errno, "EPERM" | "EACCES") { 77 } else { 1 }), "{said}");
        let help = said.lines().find(|line| line.contains("= help:")).expect("a hint");
        assert!(help.contains(word) && help.contains("io = \"auto\""), "{said}");
        assert!(said.contains("error: `io = \"io-uring\"`"), "{said}");
    }
}

/// No ring fits, or the first, or some of the workers': 256 KiB each, and four workers.
#[test]
fn with_locked_memory_for_some_workers_only_all_of_them_serve_on_epoll() {
    // Otherwise there is nothing to fall back from, or other rings of this user count as well.
    if tidegate::net::probe::io_uring().is_err() || !is_root_or_skipped() {
        return;
    }
    for limit in ["65536", "400000", "800000"] {
        let server = Greeter::start("a");
        let (text, front) = config(&[server.toml()], "", "");
        let limit = format!("--memlock={limit}:{limit}");
        // Without the capability that lifts the limit; rings of those who have it do not count.
        let daemon = Daemon::builder(&with_io(&text, "auto"))
            .under(["prlimit", &limit, "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "--"])
            .start();
        expect_epoll(&daemon, front, "no_memory", &["LimitMEMLOCK="]);
    }
}

#[test]
fn with_too_few_descriptors_it_says_how_many_it_takes_and_that_many_are_enough() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let text = with_io(&text, "auto");
    let mut refused = Daemon::builder(&text).under(["prlimit", "--nofile=18:18"]).spawn();
    let (code, _, said) = refused.wait();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("LimitNOFILE="), "{said}");
    let least = said.split("it takes ").nth(1).and_then(|rest| rest.split(';').next()).expect("a number");
    let enough = format!("--nofile={least}:{least}");
    let daemon = Daemon::builder(&text).under(["prlimit", &enough]).start();
    let mut client = eventually("a client to be served", PATIENCE, || Client::connect(front).ok());
    client.echo(b"just enough").unwrap();
    assert!(daemon.tidegate(&["status"]).status.success(), "the admin API has what it needs too");
}

#[test]
fn what_is_configured_needs_no_line_and_no_probe() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let daemon = Daemon::start(&with_io(&text, "epoll"));
    Client::connect(front).unwrap().leave().unwrap();
    assert!(!daemon.stderr().contains("io_uring"), "{}", daemon.stderr());
    assert_eq!(daemon.metric("tidegate_process_io", &[("io", "epoll"), ("reason", "configured")]), 1.0);
    let rings =
        Command::new("sh").args(["-c", &format!("ls -l /proc/{}/fd", daemon.pid())]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rings.stdout).contains("io_uring"));
}
