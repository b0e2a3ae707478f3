//! One check of one server: connect, ask in the server's own protocol, say goodbye.
//!
//! Decides whether the answer is right, never what becomes of the server (`core/health.rs`) or when
//! it is asked (`prober.rs`). What is said and heard is built and read in `wire/`; here are the socket,
//! the deadline and the bounds.

mod line; // a connection to the server: says, hears, takes leave
pub mod tls; // and how it is made private
mod http;
mod mysql;
mod postgres;
mod redis;
mod send_expect;
mod smtp;

use std::fmt::Display;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use line::Fault;
pub use line::Line;

use super::checks::Found;
use crate::config::plan::{HealthCheck, Probe, Role, SendProxy};
use crate::wire::proxy_header;

/// A server whose role is not the one that is wanted.
fn wrong_role(said: impl Display, wanted: Role) -> Fault {
    Fault::theirs(format!("{said}, wanted {wanted}"))
}

/// What is still to be done for a connection in good order when the verdict is given, for which that need not
/// wait.
pub enum Rest {
    /// See [`Line::leave`].
    Leave(Box<Line>),
    /// The check itself, in spite of its verdict, and its leave: it must not be broken off. See `late.rs`.
    Late(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// Asks once, within the check's timeout.
pub async fn ask(
    target: SocketAddr,
    check: &Arc<HealthCheck>,
    tls: Option<&tls::Client>,
) -> (Found, Option<Rest>) {
    let mut patience = Patience { left: check.timeout, away: Duration::ZERO };
    let too_late = |what: &str| Found::Failed(format!("no {what} within {:?}", check.timeout));
    let mut line = match patience.with(Line::open(target, tls)).await {
        Some(Ok(line)) => line,
        Some(Err(fault)) => return (fault.into(), None),
        None => return (too_late("answer"), None),
    };
    let (said, line) = match check.probe {
        Probe::Mysql(_) => {
            line.outlives_its_time();
            let (awaited, check) = (line.awaited(), Arc::clone(check));
            let mut login = Box::pin(async move { (talk(&mut line, &check).await, line) });
            match patience.with(&mut login).await {
                Some((said, line)) => (Some(said), line),
                None => {
                    let rest = async move { login.await.1.leave().await };
                    return (too_late(&awaited.word()), Some(Rest::Late(Box::pin(rest))));
                }
            }
        }
        _ => (patience.with(talk(&mut line, check)).await, line),
    };
    let found = match said {
        Some(Ok(())) => Found::Ok,
        // Whom we left waiting for longer than a server gets may have given us up, and be well.
        Some(Err(_)) if patience.away > check.timeout => Found::Void("our own clock was late".into()),
        Some(Err(fault)) => fault.into(),
        None => too_late(&line.awaited().word()),
    };
    (found, Some(Rest::Leave(Box::new(line))))
}

/// What the work comes to; nothing where it takes longer, our own delays left out.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    Patience { left: limit, away: Duration::ZERO }.with(work).await
}

/// What is left of the time that a server may take. Only time counts in which our thread ran: while it
/// was stopped or starved, nobody was there to hear the server.
struct Patience {
    left: Duration,
    /// The longest time on end in which our thread did not run. Only the longest: each slice ends
    /// a little late, which over a long timeout would add up to a delay that nobody had.
    away: Duration,
}

/// A thread that runs wakes up far sooner than after so long; whatever a wait lasts beyond it is
/// our own delay.
const SLICE: Duration = Duration::from_millis(50);

impl Patience {
    /// What the work comes to; nothing where patience runs out before.
    async fn with<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        while !self.left.is_zero() {
            let slice = self.left.min(SLICE);
            let begun = Instant::now();
            let done = timeout(slice, &mut work).await.ok();
            let took = begun.elapsed();
            self.left -= if done.is_some() { took.min(slice) } else { slice };
            self.away = self.away.max(took.saturating_sub(slice));
            if done.is_some() {
                return done;
            }
        }
        None
    }
}

async fn talk(line: &mut Line, check: &HealthCheck) -> Result<(), Fault> {
    let probe = &check.probe;
    line.say(match check.send_proxy {
        SendProxy::Off => b"",
        SendProxy::V1 => proxy_header::UNKNOWN,
        SendProxy::V2 => proxy_header::LOCAL,
    })
    .await?;
    match probe {
        // These begin TLS where their protocols say.
        Probe::Postgres(_) | Probe::Mysql(_) | Probe::Smtp(_) => {}
        _ => line.secure().await?,
    }
    match probe {
        Probe::Tcp | Probe::Tls => Ok(()), // that it took the connection is the answer
        Probe::Http(http) => http::ask(line, http).await,
        Probe::Postgres(postgres) => postgres::ask(line, postgres).await,
        Probe::Mysql(mysql) => mysql::ask(line, mysql).await,
        Probe::SendExpect(steps) => send_expect::ask(line, steps).await,
        Probe::Smtp(smtp) => smtp::ask(line, smtp).await,
        Probe::Redis(redis) => redis::ask(line, redis).await,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::control::fixture::a_check;

    /// A server that answers at once whatever it is asked.
    fn answering(answer: &'static [u8]) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a check");
            let asked = stream.read(&mut [0; 64]);
            asked.and_then(|_| stream.write_all(answer)).expect("answered");
        });
        address
    }

    fn redis() -> Arc<HealthCheck> {
        Arc::new(HealthCheck { probe: Probe::Redis(Default::default()), ..a_check() })
    }

    /// The whole time that the server may take passes between its first and its second word.
    #[tokio::test]
    async fn time_in_which_we_did_not_run_is_not_the_servers() {
        let check = redis();
        let stall = check.timeout * 3;
        let target = answering(b"+PONG\r\n");
        tokio::spawn(async move { std::thread::sleep(stall) }); // the stall itself: the runtime does not turn
        let (found, _) = ask(target, &check, None).await;
        assert_eq!(found, Found::Ok);
    }

    /// It waits for a PING, and ends the connection while we do not run.
    #[tokio::test]
    async fn a_server_that_gives_us_up_while_we_do_not_run_is_not_at_fault() {
        let check = redis();
        let stall = check.timeout * 3;
        let target = answering(b"");
        tokio::spawn(async move { std::thread::sleep(stall) }); // the stall itself: the runtime does not turn
        let (found, _) = ask(target, &check, None).await;
        assert_eq!(found, Found::Void("our own clock was late".into()));
        // Where we run, the fault is its own. A busy machine may keep us from running now and then, but not always.
        let mut last = Found::Ok;
        for _ in 0..5 {
            (last, _) = ask(answering(b""), &check, None).await;
            if matches!(last, Found::Failed(_)) {
                return;
            }
        }
        panic!("{last:?}");
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_gets_its_time_and_no_more() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let (check, begun) = (redis(), Instant::now());
        let (found, _) = ask(listener.local_addr().expect("bound"), &check, None).await;
        assert_eq!(found, Found::Failed("no answer to PING within 500ms".into()));
        assert!(begun.elapsed() >= check.timeout);
    }
}
