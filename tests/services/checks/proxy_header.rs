//! `send_proxy` against servers that take nobody without a PROXY header.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;

use super::Watched;
use crate::authority::{Authority, NAME, trusting};
use crate::nginx::Nginx;
use crate::rig::wait_for_port;
use crate::support::free_port;
use crate::support::proc::{Proc, Spec, TempDir};

/// Asks for a page with a header of that version, fifty times without a failure.
#[track_caller]
fn asks(port: u16, version: &str, more: &str) {
    let check = format!("type = \"http\"\npath = \"/small\"\nsend_proxy = \"{version}\"\n{more}");
    let watched = Watched::start(&[port], &check);
    watched.wait_for("a", "up", "ok");
    watched.wait_for_checks("a", 50);
    assert_eq!(watched.checks("a", "failed"), 0);
}

#[test]
fn nginx_takes_the_header_in_clear_and_before_tls() {
    let authority = Authority::new();
    let certificate = authority.certificate(NAME);
    let (clear, secure) = (free_port(), free_port());
    let (chain, key) = (certificate.chain.display(), certificate.key.display());
    let nginx = Nginx::start_with(&format!(
        "listen 127.0.0.1:{clear} proxy_protocol; listen 127.0.0.1:{secure} ssl proxy_protocol; \
         ssl_certificate {chain}; ssl_certificate_key {key};"
    ));
    for version in ["v1", "v2"] {
        asks(clear, version, "");
        asks(secure, version, &trusting(&authority.file()));
    }
    assert_eq!(nginx.file("error.log"), "");
    let without = Watched::start(&[clear], "type = \"http\"\npath = \"/small\"");
    without.wait_for("a", "down", "closed the connection before it had answered");
}

#[test]
fn haproxy_takes_the_header_and_logs_no_bad_one() {
    let dir = TempDir::new("haproxy");
    let port = free_port();
    let config = format!(
        "global\n  log stdout format raw local0\ndefaults\n  log global\n  mode http\n  timeout client 10s\n\
         frontend f\n  bind 127.0.0.1:{port} accept-proxy\n  http-request return status 200\n"
    );
    fs::write(dir.join("haproxy.cfg"), config).expect("its configuration");
    let mut command = Command::new("haproxy");
    command.arg("-f").arg(dir.join("haproxy.cfg"));
    command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
    let spec = Spec { name: "haproxy".into(), command, user: None, end: Signal::SIGTERM };
    let mut haproxy = Proc::start(&spec, dir.path()).expect("haproxy starts");
    wait_for_port(port, || haproxy.try_wait().is_none());
    let complaints = |haproxy: &Proc| (haproxy.stdout() + &haproxy.stderr()).matches("PROXY").count();
    for version in ["v1", "v2"] {
        asks(port, version, "");
    }
    // The test's own look whether the port is open is one.
    assert!(complaints(&haproxy) <= 1, "{}", haproxy.stdout());
}
