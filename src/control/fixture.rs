//! Plans for the tests of the control plane: one listener, one pool, nothing on the network.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::desk::{Desk, Hand};
use super::publisher::Publisher;
use crate::config::plan::*;
use crate::orders::{self, Inbox, Order};
use crate::telemetry::access_log;

/// Listener `web` in front of one pool of these servers, at 127.0.0.1:1, :2 and so on.
pub fn plan_of(pool: &str, servers: &[&str]) -> Plan {
    let tcp = Tcp { keepalive: None, user_timeout: None };
    Plan {
        process: Process {
            workers: Auto::Set(1),
            pin_workers: false,
            io: Auto::Auto,
            max_connections: Auto::Auto,
            drain_timeout: Duration::from_secs(5),
            ready_delay: Duration::ZERO,
        },
        admin: Admin { socket: None, http: None },
        log: Log {
            level: Level::Info,
            format: LogFormat::Text,
            access: AccessLog {
                output: AccessOutput::Off,
                format: LogFormat::Json,
                when: AccessWhen::Always,
            },
        },
        listeners: vec![Listener {
            name: "web".into(),
            bind: vec!["127.0.0.1:0".parse().expect("an address")],
            routes: Vec::new(),
            target: Some(Target::from(pool.to_owned())),
            max_connections: None,
            when_full: WhenFull::Wait,
            admission: Admission::default(),
            classes: Arc::default(),
            first_byte_timeout: None,
            bandwidth: None,
            bandwidth_per_connection: None,
            idle_timeout: None,
            half_close_timeout: None,
            tcp,
        }],
        pools: vec![Pool {
            name: pool.into(),
            balance: Balance::RoundRobin,
            hash_key: HashKey::SourceIp,
            max_load: None,
            affinity: None,
            servers: servers.iter().zip(1u16..).map(|(name, port)| server(name, port)).collect(),
            retry: Retry::default(),
            connect_timeout: Duration::from_secs(1),
            tcp,
            on_no_server: OnNoServer::Refuse,
            slow_start: None,
            fallback: None,
            queue: None,
            on_server_down: OnServerDown::Keep,
            health_check: None,
            outlier_detection: None,
            circuit_breaker: None,
        }],
    }
}

pub fn server(name: &str, port: u16) -> Server {
    Server { name: name.into(), ..Server::from(std::net::SocketAddr::from(([127, 0, 0, 1], port))) }
}

/// Quick enough for a test: every 20 ms, up after 1, down after 2.
pub fn a_check() -> HealthCheck {
    HealthCheck {
        timeout: Duration::from_millis(500),
        rise: 1,
        fall: 2,
        ..HealthCheck::default().every(Duration::from_millis(20))
    }
}

/// A path of its own under the directory for temporary files.
pub fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tidegate-{name}-{}-{}", std::process::id(), fastrand::u64(..)))
}

/// A desk over that plan, with nobody working for it.
pub fn desk_of(plan: &Plan) -> Arc<Desk> {
    desk_with(plan, Vec::new())
}

/// Waits for the thing, as long as a busy machine may take.
pub async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to that");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A desk over that plan and those workers.
pub fn desk_with(plan: &Plan, hands: Vec<Hand>) -> Arc<Desk> {
    Desk::new(
        plan,
        (Io::Epoll, "denied"),
        Publisher::new(plan, 1, 1000),
        hands,
        access_log::AccessLog::off().ring(),
    )
}

/// A worker that does nothing unless the test does it.
pub fn worker() -> (Hand, Puppet) {
    let (post, inbox) = orders::mailbox();
    let pulse = Arc::new(AtomicU64::new(0));
    let puppet = Puppet { pulse: Arc::clone(&pulse), inbox };
    (Hand { post, pulse, has_ended: AtomicBool::new(false) }, puppet)
}

pub struct Puppet {
    pulse: Arc<AtomicU64>,
    inbox: Inbox,
}

impl Puppet {
    /// Takes all orders out of the mailbox.
    pub fn mail(&self) -> Vec<Order> {
        let mut mail = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(order) = pin!(self.inbox.next()).poll(&mut cx) {
            mail.push(order);
        }
        mail
    }

    pub fn beat(&self) {
        self.pulse.fetch_add(1, Ordering::AcqRel);
    }
}
