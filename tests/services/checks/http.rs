//! `type = "http"` against nginx.

use super::Watched;
use crate::nginx::Nginx;
use crate::support::{PATIENCE, eventually};

const LOCATIONS: &str = "location /no-content { return 204; }\n\
    location /moved { return 301 /elsewhere; }\n\
    location /role { add_header X-Role replica; return 200 'ready'; }\n";

#[test]
fn a_page_that_changes_its_mind_takes_the_server_down_and_up_again() {
    let nginx = Nginx::start();
    nginx.serve("health", "ready\n");
    let check = "type = \"http\"\npath = \"/health\"\nexpect = [200]\nexpect_body = \"ready\"";
    let watched = Watched::start(&[nginx.port], check);
    watched.wait_for("a", "up", "ok");
    nginx.serve("health", "not yet\n");
    watched.wait_for("a", "down", "the body holds no \"ready\"");
    nginx.serve("health", "ready again\n");
    watched.wait_for("a", "up", "ok");
    assert_eq!(nginx.file("error.log"), "");
}

#[test]
fn status_headers_and_the_end_of_a_long_body_are_judged() {
    let nginx = Nginx::start_with(LOCATIONS);
    let verdict = |check: &str, state: &str, message: &str| {
        let watched = Watched::start(&[nginx.port], &format!("type = \"http\"\n{check}"));
        watched.wait_for("a", state, message);
    };
    verdict("path = \"/no-content\"", "up", "ok");
    verdict("path = \"/missing\"", "down", "status 404, wanted 200-299");
    verdict("path = \"/moved\"", "down", "status 301, wanted 200-299");
    verdict("path = \"/moved\"\nexpect = [200, \"300-399\"]", "up", "ok");
    verdict("path = \"/role\"\nexpect_headers = [\"x-role: replica\"]\nexpect_body = \"ready\"", "up", "ok");
    let primary = "path = \"/role\"\nexpect_headers = [\"X-Role: primary\"]";
    verdict(primary, "down", "header X-Role is \"replica\", wanted \"primary\"");
    verdict("path = \"/role\"\nexpect_headers = [\"X-Lag\"]", "down", "header X-Lag is missing");
    // 10 MiB that hold no such word: 64 KiB of them are looked at.
    verdict(
        "path = \"/big\"\nexpect_body = \"nothing like it\"",
        "down",
        "the first 64 KiB of the body hold no",
    );
    verdict("path = \"/big\"\nmethod = \"HEAD\"", "up", "ok");
}

#[test]
fn two_hundred_checks_leave_no_word_in_the_error_log_and_no_descriptor_behind() {
    let nginx = Nginx::start();
    let watched =
        Watched::start(&[nginx.port], "type = \"http\"\npath = \"/small\"\nhost = \"www.example.com\"");
    watched.wait_for_checks("a", 10);
    let before = watched.daemon.resources().descriptors;
    watched.wait_for_checks("a", 190);
    // One check is under way, and some take their leave.
    eventually("descriptors to be given back", PATIENCE, || {
        (watched.daemon.resources().descriptors <= before + 2).then_some(())
    });
    assert_eq!(watched.checks("a", "failed"), 0);
    assert_eq!(nginx.file("error.log"), "");
}

/// Patroni answers for PostgreSQL on a port of its own.
#[test]
fn a_service_on_another_port_answers_for_the_server() {
    let nginx = Nginx::start();
    let check = format!("type = \"http\"\npath = \"/small\"\nport = {}", nginx.port);
    let watched = Watched::start(&[1], &check);
    watched.wait_for("a", "up", "ok");
}
