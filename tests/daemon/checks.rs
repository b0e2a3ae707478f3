//! Health checks against servers that answer whatever a script says, well or badly.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::peers::config;
use crate::support::{Daemon, PATIENCE, eventually, listen};

/// A server that does the same to each connection, and notes how it ended.
pub struct Scripted {
    pub address: SocketAddr,
    ends: Arc<Mutex<Vec<End>>>,
}

/// What the server read, and whether the check left with a FIN (or with a reset).
#[derive(Clone, Debug)]
struct End {
    heard: Vec<u8>,
    is_clean: bool,
}

impl Scripted {
    /// Its thread lives as long as the test's process.
    pub fn start(act: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Scripted {
        let listener: TcpListener = listen((Ipv4Addr::LOCALHOST, 0));
        let address = listener.local_addr().unwrap();
        let ends = Arc::new(Mutex::new(Vec::new()));
        let (noted, act) = (Arc::clone(&ends), Arc::new(act));
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let (noted, act) = (Arc::clone(&noted), Arc::clone(&act));
                thread::spawn(move || {
                    act(&mut stream);
                    let mut heard = Vec::new();
                    let end = stream.read_to_end(&mut heard);
                    let is_clean = !end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
                    noted.lock().unwrap().push(End { heard, is_clean });
                });
            }
        });
        Scripted { address, ends }
    }

    /// How the first `count` checks ended.
    #[track_caller]
    fn ends(&self, count: usize) -> Vec<End> {
        eventually(&format!("{count} checks to end"), PATIENCE, || {
            Some(self.ends.lock().unwrap().clone()).filter(|ends| ends.len() >= count)
        })
    }
}

/// Says the text in pieces of one byte.
fn trickle(stream: &mut TcpStream, text: &str) {
    stream.set_nodelay(true).unwrap();
    text.bytes().for_each(|byte| drop(stream.write_all(&[byte])));
}

/// A daemon that checks that server and has nothing else to do.
fn watch(server: &Scripted, check: &str) -> Daemon {
    let pace = "[pool.p.health_check]\ninterval = \"100ms\"\nrise = 1\nfall = 1\n";
    let timeout = if check.contains("timeout") { "" } else { "timeout = \"5s\"\n" };
    let named = format!("{{ name = \"a\", address = \"{}\" }}", server.address);
    Daemon::start(&config(&[named], "", &format!("{pace}{timeout}{check}")).0)
}

/// Waits until the server has that state, and gives the message of its last check.
#[track_caller]
pub fn message_when(daemon: &Daemon, state: &str) -> String {
    eventually(&format!("the server to be {state}"), PATIENCE, || {
        let servers: Value = serde_json::from_str(&daemon.http_get("/api/v1/servers").body).unwrap();
        let server = servers[0].clone();
        (server["state"] == state).then(|| server["last_check"]["message"].as_str().unwrap().to_owned())
    })
}

#[test]
fn a_mail_server_is_greeted_and_left_with_quit() {
    let server = Scripted::start(|stream| {
        trickle(stream, "220-mail.example.com\r\n220 ESMTP\r\n");
        let mut ehlo = [0; 18];
        stream.read_exact(&mut ehlo).unwrap();
        assert_eq!(&ehlo, b"EHLO [127.0.0.1]\r\n");
        trickle(stream, "250-mail.example.com\r\n250 SIZE 10240000\r\n");
    });
    let daemon = watch(&server, "type = \"smtp\"");
    assert_eq!(message_when(&daemon, "up"), "ok");
    for end in server.ends(3) {
        assert!(end.is_clean && end.heard == b"QUIT\r\n", "{end:?}");
    }
}

#[test]
fn a_mail_server_that_will_not_serve_is_down() {
    let server = Scripted::start(|stream| drop(stream.write_all(b"554 no\x1b[31m service\r\n")));
    let daemon = watch(&server, "type = \"smtp\"");
    assert_eq!(message_when(&daemon, "down"), "the greeting is 554 no [31m service, wanted 220");
}

#[test]
fn steps_are_taken_in_order_whatever_comes_between_and_however_it_is_split() {
    let server = Scripted::start(|stream| {
        trickle(stream, "noise\0 ba ban banner noise");
        let mut said = [0; 4];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(said, [0, 0xff, b'\r', b'\n']);
        stream.write_all(&[1, 2, 3, 0xfe]).unwrap();
    });
    let steps = "type = \"send-expect\"\nsteps = [{ expect = \"banner\" }, { send_hex = \"00 FF\" }, \
                 { send = \"\\r\\n\", expect_hex = \"03fe\" }, { send = \"bye\" }]";
    let daemon = watch(&server, steps);
    assert_eq!(message_when(&daemon, "up"), "ok");
    for end in server.ends(3) {
        assert!(end.is_clean && end.heard == b"bye", "{end:?}");
    }
}

#[test]
fn an_answer_that_never_fits_says_which_step_and_what_was_heard() {
    let server = Scripted::start(|stream| {
        let _ = stream.write_all(b"-ERR not today\r\n");
        let _ = stream.shutdown(std::net::Shutdown::Write);
    });
    let steps =
        "type = \"send-expect\"\nsteps = [{ expect = \"-ERR\" }, { send = \"x\", expect = \"PONG\" }]";
    let daemon = watch(&server, steps);
    let message = message_when(&daemon, "down");
    assert_eq!(message, "step 2: heard \"not today\" to the end, wanted \"PONG\"");
}

/// Ten megabytes of garbage, to every kind of check.
#[test]
fn garbage_without_end_is_a_failure_and_costs_no_more_than_its_bound() {
    let flood = || {
        Scripted::start(|stream| {
            let chunk = [b'+'; 64 * 1024];
            (0..160).take_while(|_| stream.write_all(&chunk).is_ok()).for_each(drop);
        })
    };
    let login = "user = \"tidegate\"";
    let steps = "steps = [{ expect = \"never\" }]";
    for (check, expected) in [
        ("type = \"http\"".to_owned(), "speaks no HTTP"),
        ("type = \"redis\"".to_owned(), "sent a line without end"),
        (format!("type = \"postgres\"\n{login}"), "speaks no PostgreSQL"),
        (format!("type = \"mysql\"\n{login}"), "speaks no MySQL"),
        ("type = \"smtp\"".to_owned(), "speaks no SMTP"),
        (format!("type = \"send-expect\"\n{steps}"), "step 1: sent more than 131072 bytes"),
    ] {
        let (daemon, server) = (watch(&flood(), &check), flood());
        let message = message_when(&daemon, "down");
        assert!(message.contains(expected) || message.contains("without end"), "{check}: {message}");
        assert!(daemon.resources().rss_kib < 100 * 1024, "{check}: {:?}", daemon.resources());
        drop(server);
    }
}

#[test]
fn a_server_that_says_nothing_is_down_by_the_deadline_and_holds_no_descriptors() {
    let server = Scripted::start(|_| {
        loop {
            thread::park(); // it neither answers nor closes
        }
    });
    let daemon = watch(&server, "type = \"redis\"\ntimeout = \"100ms\"");
    assert_eq!(message_when(&daemon, "down"), "no answer to PING within 100ms");
    let checks = || daemon.metric("tidegate_health_check_total", &[("result", "failed")]);
    eventually("ten checks", PATIENCE, || (checks() >= 10.0).then_some(()));
    let before = daemon.resources().descriptors;
    eventually("thirty checks", PATIENCE, || (checks() >= 30.0).then_some(()));
    // One under way, and those of the last half second, which are heard out.
    assert!(daemon.resources().descriptors <= before.max(20) + 8, "{:?}", daemon.resources());
}

/// Protocol 10, mysql_native_password, and twenty bytes of salt.
const GREETING: &[u8] = b"\x47\0\0\0\x0a8.0\0\x01\0\0\0saltsalt\0\x00\x82\x2d\x02\0\x08\0\x15\
    \0\0\0\0\0\0\0\0\0\0saltsaltsalt\0mysql_native_password\0";
/// The login is accepted.
const WELCOME: &[u8] = b"\x07\0\0\x02\0\0\0\x02\0\0\0";

/// It holds each login that breaks off against this host, and blocks all clients when they were too many: those
/// of a pause it finds together when it goes on.
#[test]
fn a_mysql_that_pauses_finds_one_login_open_and_hears_it_to_its_end() {
    let (pause, logins) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(0)));
    let (paused, counted) = (Arc::clone(&pause), Arc::clone(&logins));
    let server = Scripted::start(move |stream| {
        *counted.lock().unwrap() += 1;
        drop(paused.lock().unwrap());
        stream.write_all(GREETING).unwrap();
        let mut head = [0; 4];
        stream.read_exact(&mut head).unwrap();
        stream.read_exact(&mut vec![0; usize::from(head[0])]).unwrap();
        stream.write_all(WELCOME).unwrap();
    });
    let on = pause.lock().unwrap();
    let daemon = watch(&server, "type = \"mysql\"\nuser = \"tidegate\"\ntimeout = \"100ms\"");
    eventually("ten failures", PATIENCE, || {
        (daemon.metric("tidegate_health_check_total", &[("result", "failed")]) >= 10.0).then_some(())
    });
    let message = message_when(&daemon, "down");
    assert!(message.starts_with("no answer yet to the check of "), "{message}");
    assert_eq!(*logins.lock().unwrap(), 1);
    drop(on);
    message_when(&daemon, "up");
    for end in server.ends(3) {
        assert!(end.is_clean && end.heard == b"\x01\0\0\0\x01", "{end:?}");
    }
}

#[test]
fn a_body_passes_as_soon_as_it_holds_the_text_though_the_answer_never_ends() {
    let check = "type = \"http\"\nexpect_body = \"ready\"\ntimeout = \"300ms\"";
    for (body, state, message) in [
        ("all ready, ", "up", "ok"),
        ("not read", "down", "no \"ready\" in the body, nor an end of it, within 300ms"),
    ] {
        let server =
            Scripted::start(move |stream| trickle(stream, &format!("HTTP/1.1 200 OK\r\n\r\n{body}")));
        assert_eq!(message_when(&watch(&server, check), state), message);
    }
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}ready", "-".repeat(64 * 1024));
    let server = Scripted::start(move |stream| drop(stream.write_all(long.as_bytes())));
    let message = message_when(&watch(&server, &check.replace("300ms", "5s")), "down");
    assert_eq!(message, "the first 64 KiB of the body hold no \"ready\"");
}

#[test]
fn a_step_that_is_not_answered_is_named() {
    let server = Scripted::start(|stream| drop(stream.write_all(b"+OK")));
    let steps = "type = \"send-expect\"\ntimeout = \"200ms\"\nsteps = [{ expect = \"OK\" }, { send = \"x\", expect = \"y\" }]";
    assert_eq!(message_when(&watch(&server, steps), "down"), "no answer that step 2 expects within 200ms");
}

#[test]
fn a_bare_connection_is_left_without_a_reset_though_the_server_speaks_first() {
    let server = Scripted::start(|stream| drop(stream.write_all(b"220 a banner that nobody reads\r\n")));
    let daemon = watch(&server, "");
    assert_eq!(message_when(&daemon, "up"), "ok");
    assert!(server.ends(10).iter().all(|end| end.is_clean && end.heard.is_empty()));
}

#[test]
fn a_server_that_requires_a_proxy_header_gets_it_before_anything_else() {
    let headers: [(&str, &'static [u8]); 2] =
        [("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")];
    for (version, header) in headers {
        let server = Scripted::start(|_| {});
        let proxy = format!("send_proxy = \"{version}\"\n");
        let daemon = watch(&server, &proxy);
        assert_eq!(message_when(&daemon, "up"), "ok");
        assert!(server.ends(3).iter().all(|end| end.is_clean && end.heard == header));
        let daemon = watch(&server, &format!("{proxy}type = \"tls\"\ntimeout = \"200ms\"\n"));
        message_when(&daemon, "down");
        let hello = [header, b"\x16\x03\x01"].concat();
        let is_hello = |end: &End| end.heard.starts_with(&hello);
        eventually("a TLS hello behind the header", PATIENCE, || {
            server.ends(1).iter().any(is_hello).then_some(())
        });
    }
}

/// A server that answers PING when it is told to, and a check that waits for it.
fn a_check_under_way() -> (Scripted, Arc<AtomicBool>, Daemon) {
    let may_answer = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&may_answer);
    let asked = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&asked);
    let server = Scripted::start(move |stream| {
        stream.read_exact(&mut [0; 14]).unwrap(); // PING
        noted.store(true, Ordering::SeqCst);
        eventually("the word to answer", PATIENCE, || told.load(Ordering::SeqCst).then_some(()));
        stream.write_all(b"+PONG\r\n").unwrap();
    });
    let daemon = watch(&server, "type = \"redis\"\ntimeout = \"1h\"\n");
    eventually("a check to be under way", PATIENCE, || asked.load(Ordering::SeqCst).then_some(()));
    (server, may_answer, daemon)
}

const QUIT: &[u8] = b"*1\r\n$4\r\nQUIT\r\n";

#[test]
fn a_check_that_a_reload_does_away_with_ends_in_good_order() {
    let (server, may_answer, mut daemon) = a_check_under_way();
    let text = std::fs::read_to_string(daemon.config_path()).unwrap();
    let (before, check) = text.split_once("[pool.p.health_check]").unwrap();
    let rest = check.split_once("\n[").map(|(_, rest)| format!("[{rest}")).unwrap_or_default();
    std::fs::write(daemon.config_path(), format!("{before}{rest}")).unwrap();
    daemon.signal(Signal::SIGHUP);
    eventually("the reload that ends it", PATIENCE, || {
        (daemon.metric("tidegate_config_generation", &[]) == 2.0).then_some(())
    });
    may_answer.store(true, Ordering::SeqCst);
    let end = &server.ends(1)[0];
    assert!(end.is_clean && end.heard == QUIT, "{end:?}");
}

#[test]
fn a_check_under_way_at_the_end_takes_its_leave() {
    // An exit waits for a third of a second. A machine that stalls may use that up before the server has
    // answered, so the scene has several turns; where no leave is taken, none of them helps.
    let takes_leave = (0..5).any(|_| {
        let (server, may_answer, mut daemon) = a_check_under_way();
        daemon.signal(Signal::SIGTERM);
        may_answer.store(true, Ordering::SeqCst);
        assert_eq!(daemon.wait().0, Some(0));
        let end = &server.ends(1)[0];
        end.is_clean && end.heard == QUIT
    });
    assert!(takes_leave);
}

#[test]
fn a_check_that_hangs_holds_up_no_exit() {
    let (_server, _never, mut daemon) = a_check_under_way();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0)); // its timeout is far longer
}
