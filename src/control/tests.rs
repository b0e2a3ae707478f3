//! The control plane as a whole, over real sockets and signals, with workers that only obey.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use super::fixture::{a_check, plan_of, scratch};
use super::*;
use crate::orders::{self, Inbox, Order};

/// What a worker of the tests does when it is told to drain.
#[derive(Clone, Copy, PartialEq)]
enum Conduct {
    /// Ends at once, with one connection finished.
    Prompt,
    /// Drains until it is stopped, and cuts one connection then.
    Slow,
    /// Panics at its first beat.
    Panics,
    /// Never answers a beat.
    Deaf,
}

type Seen = Arc<Mutex<Vec<String>>>;

fn worker(conduct: Conduct) -> (Worker, Seen) {
    let (post, inbox) = orders::mailbox();
    let (pulse, seen) = (Arc::new(AtomicU64::new(0)), Seen::default());
    let (its_pulse, its_seen) = (Arc::clone(&pulse), Arc::clone(&seen));
    let thread = thread::spawn(move || obey(&inbox, conduct, &its_pulse, &its_seen));
    (Worker { post, pulse, thread }, seen)
}

fn obey(inbox: &Inbox, conduct: Conduct, pulse: &AtomicU64, seen: &Seen) -> Drained {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    loop {
        let order = runtime.block_on(inbox.next());
        let word = match order {
            Order::Publish(snapshot) => format!("publish {}", snapshot.generation),
            Order::Beat if conduct == Conduct::Panics => panic!("on purpose"),
            Order::Beat if conduct == Conduct::Deaf => continue,
            Order::Beat => {
                pulse.fetch_add(1, Ordering::AcqRel);
                continue;
            }
            Order::Drain { .. } if conduct == Conduct::Slow => "drain".to_owned(),
            Order::Drain { .. } => return Drained { finished: 1, cut: 0 },
            Order::Stop => return Drained { finished: 0, cut: 1 },
        };
        seen.lock().expect("whole").push(word);
    }
}

/// A control plane that runs on a thread of its own.
struct Running {
    http: SocketAddr,
    socket: PathBuf,
    seen: Vec<Seen>,
    ask: Option<oneshot::Sender<()>>,
    thread: JoinHandle<Ended>,
    _litter: Litter,
}

/// A socket's file, which nobody wants when the test is over.
struct Litter(PathBuf);

impl Drop for Litter {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // also gone where the test took it away itself
    }
}

struct Setup {
    plan: Plan,
    conducts: Vec<Conduct>,
    reload: Option<Loader>,
    notifier: Notifier,
    by_signals: bool,
}

fn setup(conducts: &[Conduct]) -> Setup {
    let mut plan = plan_of("api", &["a", "b"]);
    plan.admin.socket = Some(scratch("control").with_extension("sock"));
    plan.admin.http = Some("127.0.0.1:0".parse().expect("an address"));
    Setup {
        plan,
        conducts: conducts.to_vec(),
        reload: None,
        notifier: Notifier::default(),
        by_signals: false,
    }
}

impl Setup {
    fn start(self) -> Running {
        let socket = self.plan.admin.socket.clone().expect("asked for");
        let doors = Doors::open(&self.plan.admin).expect("opens");
        let http = doors.http.as_ref().and_then(|listener| listener.local_addr().ok()).expect("bound");
        let (workers, seen) = self.conducts.iter().map(|conduct| worker(*conduct)).unzip();
        let (ask, asked) = oneshot::channel();
        let boot = Boot {
            io: crate::config::plan::Io::Epoll,
            io_reason: "configured",
            publisher: Publisher::new(&self.plan, self.conducts.len(), 100),
            plan: self.plan,
            reload: self.reload,
            workers,
            doors,
            access_log: AccessLog::off(),
            notifier: self.notifier,
            until: if self.by_signals { Until::Signals } else { Until::Asked(asked) },
        };
        let _litter = Litter(socket.clone());
        Running { http, socket, seen, ask: Some(ask), thread: thread::spawn(|| run(boot)), _litter }
    }
}

impl Running {
    fn get(&self, path: &str) -> (u16, String) {
        talk(
            TcpStream::connect(self.http).expect("listens"),
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        )
    }

    fn raw(&self, request: &str) -> (u16, String) {
        talk(TcpStream::connect(self.http).expect("listens"), request)
    }

    fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(path).1).expect("JSON")
    }

    fn has_seen(&self, worker: usize, word: &str) -> bool {
        self.seen[worker].lock().expect("whole").iter().any(|seen| seen == word)
    }

    /// Asks for the end and waits for it.
    fn end(mut self) -> Ended {
        drop(self.ask.take());
        self.ended()
    }

    fn ended(self) -> Ended {
        let ended = self.thread.join().expect("no panic");
        assert!(!self.socket.exists(), "the admin socket is left behind");
        ended
    }
}

/// One request, and the answer's status and body.
fn talk(mut stream: impl Read + Write, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

fn eventually(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to that");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_orderly_life_ends_with_the_sum_of_all_workers() {
    let running = setup(&[Conduct::Prompt, Conduct::Prompt]).start();
    assert_eq!(running.get("/readyz"), (200, "ok\n".into()));
    let ended = running.end();
    assert_eq!(ended.by, EndedBy::Asked);
    assert_eq!(ended.drained, Drained { finished: 2, cut: 0 });
    assert_eq!(ended.trouble, Vec::<String>::new());
}

#[test]
fn readiness_says_no_before_anybody_is_turned_away() {
    let mut setup = setup(&[Conduct::Slow]);
    setup.plan.process.ready_delay = Duration::from_secs(5);
    setup.plan.process.drain_timeout = Duration::from_secs(60);
    let mut running = setup.start();
    eventually(|| running.get("/readyz").0 == 200);
    drop(running.ask.take());
    eventually(|| running.get("/readyz") == (503, "draining\n".into()));
    assert!(!running.has_seen(0, "drain"), "still accepting");
    assert_eq!(running.get("/livez").0, 200);
    eventually(|| running.has_seen(0, "drain"));
    assert_eq!(running.json("/api/v1/status")["state"], "draining");
    drop(running); // it drains for a minute yet; the thread is left to it
}

#[test]
fn signals_do_what_they_say() {
    let loads = Arc::new(AtomicU64::new(0));
    let (mut setup, counted) = (setup(&[Conduct::Slow]), Arc::clone(&loads));
    setup.by_signals = true;
    setup.plan.process.drain_timeout = Duration::from_secs(60);
    let same = setup.plan.clone();
    setup.reload = Some(Box::new(move || {
        counted.fetch_add(1, Ordering::AcqRel);
        Ok(same.clone())
    }));
    let running = setup.start();
    let send = |signal| kill(Pid::this(), signal).expect("sent");
    eventually(|| running.get("/readyz").0 == 200); // the doors open after the signals are taken
    send(Signal::SIGUSR2);
    send(Signal::SIGALRM);
    send(Signal::SIGUSR1);
    send(Signal::SIGHUP);
    eventually(|| running.has_seen(0, "publish 2"));
    eventually(|| running.json("/api/v1/status")["last_reload"]["ok"] == true);
    send(Signal::SIGTERM);
    eventually(|| running.has_seen(0, "drain"));
    let before = loads.load(Ordering::Acquire);
    send(Signal::SIGHUP);
    assert_eq!(running.get("/readyz").0, 503);
    send(Signal::SIGTERM);
    let ended = running.ended();
    assert_eq!((ended.by, ended.drained), (EndedBy::Interrupted, Drained { finished: 0, cut: 1 }));
    assert_eq!(loads.load(Ordering::Acquire), before, "no reload in a drain");
}

#[test]
fn a_worker_that_panics_ends_the_process_and_says_why() {
    let running = setup(&[Conduct::Prompt, Conduct::Panics]).start();
    let ended = running.ended();
    assert_eq!(ended.by, EndedBy::Failed);
    assert_eq!(ended.trouble, ["worker 1 panicked: on purpose"]);
    assert_eq!(ended.drained.cut, 1, "the other one was stopped");
}

#[test]
fn the_service_manager_hears_ready_life_and_the_end_but_no_life_of_a_deaf_worker() {
    for (conduct, expects_life) in [(Conduct::Slow, true), (Conduct::Deaf, false)] {
        let path = scratch("manager");
        let manager = UnixDatagram::bind(&path).expect("binds");
        manager.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        let mut setup = setup(&[conduct]);
        setup.notifier = Notifier::to(path.as_os_str()).expect("connects");
        setup.notifier.watchdog = Some(Duration::from_millis(20));
        let mut running = setup.start();
        let hear = || {
            let mut message = [0; 256];
            let length = manager.recv(&mut message).expect("a message");
            String::from_utf8(message[..length].to_vec()).expect("text")
        };
        assert_eq!(hear(), "READY=1\n");
        let (mut alive, mut lines) = (0, 0);
        // A worker that gets no CPU for a moment misses some: most of them come on a machine that is idle.
        while lines < 10 || (expects_life && alive <= 5 && lines < 1000) {
            match hear().as_str() {
                "WATCHDOG=1\n" => alive += 1,
                line if line.starts_with("STATUS=serving: 0 connections, 2 of 2 servers up") => lines += 1,
                other => panic!("{other}"),
            }
        }
        // The first tick only asks, so it is a sign of life in any case.
        assert!(if expects_life { alive > 5 } else { alive == 1 }, "{alive} signs of life");
        drop(running.ask.take());
        while hear() != "STOPPING=1\n" {}
        drop(running);
        std::fs::remove_file(&path).expect("removed");
    }
}

#[test]
fn the_api_tells_what_there_is_and_refuses_what_there_is_not() {
    let mut setup = setup(&[Conduct::Prompt]);
    setup.plan.pools[0].health_check = Some(a_check()); // nobody listens on ports 1 and 2
    let running = setup.start();
    eventually(|| running.json("/api/v1/servers")[1]["state"] == "down");
    eventually(|| running.json("/api/v1/servers")[0]["why"] == "connection refused");
    assert_eq!(running.get("/healthz"), (503, "empty\n".into()));
    assert_eq!(running.json("/api/v1/pools")[0]["state"], "empty");
    assert_eq!(running.json("/api/v1/listeners")[0]["state"], "listening");
    assert_eq!(running.json("/api/v1/status")["workers"], 1);
    assert!(running.get("/metrics").1.contains("tidegate_server_up{pool=\"api\",server=\"a\"} 0"));
    let open = "GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n\r\n";
    assert!(running.raw(open).1.ends_with("# EOF\n"));

    let error = |request: &str| {
        let (status, body) = running.raw(request);
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        (status, body["error"]["code"].as_str().expect("a code").to_owned())
    };
    let tail = "Host: localhost\r\nConnection: close\r\n";
    for path in ["/", "/../etc/passwd", "/%2e%2e/etc", "//livez", "/api/v1/status/"] {
        assert_eq!(error(&format!("GET {path} HTTP/1.1\r\n{tail}\r\n")), (404, "not_found".into()), "{path}");
    }
    assert!(running.get("/nope").1.contains("/api/v1/servers"));
    let post = format!("POST /livez HTTP/1.1\r\n{tail}\r\n");
    assert_eq!(error(&post), (405, "method_not_allowed".into()));
    let large = format!("GET /livez HTTP/1.1\r\n{tail}Content-Length: 65537\r\n\r\n");
    assert_eq!(error(&large), (413, "body_too_large".into()));
    let chunked = format!("GET /livez HTTP/1.1\r\n{tail}Transfer-Encoding: chunked\r\n\r\n");
    assert_eq!(error(&chunked), (413, "body_too_large".into()));
    running.end();
}

#[test]
fn a_name_that_points_at_us_gets_nothing_on_the_open_door_and_all_on_the_private_one() {
    let running = setup(&[Conduct::Prompt]).start();
    let host = |host: &str| format!("GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    for refused in ["evil.example", "evil.example:9901", "localhost.evil.example", "127.0.0.1.evil.example"] {
        assert_eq!(running.raw(&host(refused)).0, 403, "{refused}");
    }
    for allowed in ["127.0.0.1:9901", "[::1]:9901", "[::1]", "LOCALHOST", "10.1.2.3"] {
        assert_eq!(running.raw(&host(allowed)).0, 200, "{allowed}");
    }
    let absolute = "GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(running.raw(absolute).0, 403);
    let twice = "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(running.raw(twice).0, 400);
    let private = UnixStream::connect(&running.socket).expect("listens");
    assert_eq!(talk(private, &host("tidegate")).0, 200);
    running.end();
}

#[test]
fn clients_that_stall_are_dropped_and_lock_nobody_out_of_the_private_door() {
    let running = setup(&[Conduct::Prompt]).start();
    let stalled: Vec<_> = (0..60)
        .map(|_| {
            let mut stream = TcpStream::connect(running.http).expect("queued");
            stream.write_all(b"GET /livez HTT").expect("sends");
            stream
        })
        .collect();
    let private = UnixStream::connect(&running.socket).expect("listens");
    let asked = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(talk(private, asked).0, 200);
    // All places of the open door are taken, until the stalled ones have used up their time.
    assert_eq!(running.get("/livez").0, 200);
    drop(stalled);
    running.end();
}

#[test]
fn a_control_plane_that_ends_leaves_its_port_free() {
    let running = setup(&[Conduct::Prompt]).start();
    let http = running.http;
    assert_eq!(running.get("/livez").0, 200);
    running.end();
    // A connection of another test may have got the port for a moment.
    eventually(|| {
        Doors::open(&plan::Admin { socket: None, http: Some(http) }).is_ok_and(|doors| doors.http.is_some())
    });
}
