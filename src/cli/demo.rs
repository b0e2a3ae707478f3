//! `tidegate demo`: the main job in one process, to watch. Three sample servers, the balancer in
//! front, clients that check every answer; one server is stopped and comes back.
//!
//! The balancer is the real one, started as `tidegate run` starts it, and what is shown of it
//! comes from its admin API. Exit 0 says that no client saw an error.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demo is there to be read")]

mod clients;
mod servers;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use self::clients::Clients;
use self::servers::SampleServer;
use super::{client, exit, run};
use crate::config::plan::{
    AccessLog, AccessOutput, Admin, HealthCheck, Level, Listener, Log, Plan, Pool, Process, Server,
};
use crate::config::units;
use crate::control::api;
use crate::control::{Notifier, Until};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End after this long, such as 10s; without it, Ctrl-C ends the demo
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(|unfit| unfit.why)
}

/// How long one act of the play lasts where nothing else is said: long enough to read.
const ACT: Duration = Duration::from_secs(4);

/// The play in acts: all is well, one server stops, it comes back, all is well again.
const ACTS: u32 = 4;

/// Clients at once. Each opens a connection, asks, checks the answer, closes and begins again.
const CLIENTS: usize = 8;

const NAMES: [&str; 3] = ["amber", "birch", "cedar"];

pub(super) fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(play(args.duration))) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(exit::FAILURE),
        Err(error) => {
            eprintln!("error: the demo cannot be staged: {error}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

/// Plays until the time is up or Ctrl-C comes; how many errors clients saw.
async fn play(duration: Option<Duration>) -> std::io::Result<u64> {
    let mut stage = Stage::set()?;
    let act = duration.map_or(ACT, |all| all / ACTS);
    let begun = Instant::now();
    let mut acts = 1;
    println!("   time  connections  errors  servers (state, connections so far)");
    let mut tick = tokio::time::interval((act / 4).min(Duration::from_secs(1)));
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        let elapsed = begun.elapsed();
        stage.tell(elapsed).await;
        if duration.is_some_and(|all| elapsed >= all) {
            break;
        }
        if elapsed >= act * acts {
            stage.turn_to(acts)?;
            acts += 1;
        }
    }
    Ok(stage.close())
}

/// Everything that is running.
struct Stage {
    servers: Vec<SampleServer>,
    clients: Clients,
    admin: PathBuf,
    folder: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    balancer: Option<thread::JoinHandle<ExitCode>>,
}

impl Stage {
    fn set() -> std::io::Result<Stage> {
        let servers =
            NAMES.iter().map(|name| SampleServer::start(name)).collect::<std::io::Result<Vec<_>>>()?;
        // The kernel picks a free port; it is given up here and taken again by the balancer.
        let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let folder = std::env::temp_dir().join(format!("tidegate-demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let admin = folder.join("admin.sock");
        let plan = plan(front, &admin, &servers);
        println!("Tidegate listens on {front} and balances over three servers, by least connections:");
        for server in &servers {
            println!("  {:<6} {}", server.name, server.address);
        }
        println!("{CLIENTS} clients connect, ask, check the answer and close, over and over.\n");
        run::log_to_stderr(&plan.log);
        let (stop, stopped) = oneshot::channel();
        let balancer = thread::Builder::new()
            .name("balancer".into())
            .spawn(move || run::daemon(plan, None, Notifier::default(), Until::Asked(stopped)))?;
        wait_for(front)?;
        let clients = Clients::start(front, CLIENTS);
        Ok(Stage { servers, clients, admin, folder, stop: Some(stop), balancer: Some(balancer) })
    }

    /// The second act stops a server and the third brings it back, over and over.
    fn turn_to(&mut self, act: u32) -> std::io::Result<()> {
        let server = &mut self.servers[1];
        match act % ACTS {
            1 => {
                server.stop();
                println!("-- {} stops: it refuses new connections. Clients should not notice.", server.name);
            }
            2 => {
                server.restart()?;
                println!("-- {} is back. It gets clients again once its checks say so.", server.name);
            }
            _ => println!("-- all is well"),
        }
        Ok(())
    }

    /// One line on how things stand.
    async fn tell(&self, elapsed: Duration) {
        let (done, errors) = (self.clients.done(), self.clients.errors());
        let admin = self.admin.clone();
        let asked = tokio::task::spawn_blocking(move || servers_of(&admin)).await;
        let servers = asked.unwrap_or_else(|_| "the admin API was not asked".into());
        println!("{:>6.1}s  {done:>11}  {errors:>6}  {servers}", elapsed.as_secs_f64());
    }

    /// Ends everything and sums up; how many errors clients saw.
    fn close(mut self) -> u64 {
        let (done, errors) = self.clients.stop();
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(()); // fails when the balancer has ended already, which `join` tells
        }
        let has_balancer_failed = self.balancer.take().is_some_and(|thread| thread.join().is_err());
        let _ = std::fs::remove_dir_all(&self.folder);
        println!(
            "\n{done} connections were made while a server failed and came back; clients saw {errors} errors."
        );
        if let Some(first) = self.clients.first_error() {
            println!("the first error: {first}");
        }
        errors + u64::from(has_balancer_failed) + u64::from(done == 0)
    }
}

/// What the admin API says of the servers, on one line.
fn servers_of(admin: &Path) -> String {
    let servers: Vec<api::Server> = match client::get(admin, "/api/v1/servers") {
        Err(trouble) => return trouble.text,
        Ok(body) => serde_json::from_str(&body).unwrap_or_default(),
    };
    let told =
        servers.iter().map(|server| format!("{} {:<4} {:>6}", server.name, server.state, server.total));
    told.collect::<Vec<_>>().join("   ")
}

fn plan(front: SocketAddr, admin: &Path, servers: &[SampleServer]) -> Plan {
    let named = |server: &SampleServer| Server { name: server.name.into(), ..Server::from(server.address) };
    let pace = Duration::from_millis(200);
    let check = HealthCheck { timeout: pace, ..HealthCheck::default() }.every(pace);
    Plan {
        process: Process { drain_timeout: Duration::from_secs(2), ..Process::default() },
        admin: Admin { socket: Some(admin.to_owned()), http: None },
        log: Log {
            level: Level::Warn,
            access: AccessLog { output: AccessOutput::Off, ..AccessLog::default() },
            ..Log::default()
        },
        listeners: vec![Listener::new("demo", vec![front], "sample")],
        pools: vec![Pool {
            health_check: Some(check),
            ..Pool::new("sample", servers.iter().map(named).collect())
        }],
    }
}

/// Waits until the balancer takes connections, ten seconds at the most.
fn wait_for(front: SocketAddr) -> std::io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match std::net::TcpStream::connect_timeout(&front, Duration::from_secs(1)) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}
