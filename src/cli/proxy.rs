//! `tidegate proxy`: one address, some servers, no file. It goes through the same text and the
//! same checks as a file would, so `--print-config` shows exactly what runs.
#![allow(clippy::print_stdout, reason = "the configuration is printed because that was asked for")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use super::run;
use crate::config;
use crate::config::plan::{
    Admin, Balance, CheckKind, HealthCheck, Listener, Log, Plan, Pool, Process, Server,
};
use crate::control::{Notifier, Until};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where clients connect: ADDRESS:PORT, or :PORT for every address of this machine
    #[arg(value_name = "LISTEN", value_parser = listen_addresses)]
    listen: Addresses,
    /// The servers: ADDRESS:PORT each
    #[arg(value_name = "SERVER", required = true)]
    servers: Vec<SocketAddr>,
    /// How a server is chosen
    #[arg(long, value_name = "HOW", default_value = Balance::LeastConnections.word(), value_parser = balance)]
    balance: Balance,
    /// Check the servers actively, besides noticing those that refuse: tcp, http, redis or smtp
    #[arg(long, value_name = "TYPE", value_parser = check_kind)]
    check: Option<CheckKind>,
    /// Answer `tidegate status` and `tidegate servers` on this unix socket
    #[arg(long, env = "TIDEGATE_ADMIN", value_name = "PATH")]
    admin: Option<PathBuf>,
    /// Serve metrics and health at this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    /// Print the configuration file that does the same, and end
    #[arg(long)]
    print_config: bool,
}

/// What LISTEN stands for: `:PORT` is every IPv4 and every IPv6 address.
#[derive(Clone, Debug)]
struct Addresses(Vec<SocketAddr>);

pub(super) fn run(args: Args) -> ExitCode {
    let is_only_printed = args.print_config;
    let text = config::render(&plan(args));
    match config::parse("the command line", &text) {
        Err(mistakes) => run::refuse(&mistakes),
        Ok(_) if is_only_printed => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(loaded) => {
            run::log_to_stderr(&loaded.plan.log);
            run::daemon(loaded.plan, None, Notifier::from_env(), Until::Signals)
        }
    }
}

fn plan(args: Args) -> Plan {
    let pool = "servers";
    let servers = args.servers.into_iter().map(Server::from).collect();
    Plan {
        process: Process::default(),
        admin: Admin { socket: args.admin, http: args.http },
        log: Log::default(),
        listeners: vec![Listener::new("proxy", args.listen.0, pool)],
        pools: vec![Pool {
            balance: args.balance,
            health_check: args.check.map(|kind| HealthCheck { probe: kind.into(), ..HealthCheck::default() }),
            ..Pool::new(pool, servers)
        }],
    }
}

fn listen_addresses(text: &str) -> Result<Addresses, String> {
    if let Some(port) = text.strip_prefix(':').and_then(|port| port.parse().ok()) {
        return Ok(Addresses(vec![
            (Ipv4Addr::UNSPECIFIED, port).into(),
            (Ipv6Addr::UNSPECIFIED, port).into(),
        ]));
    }
    match text.parse() {
        Ok(address) => Ok(Addresses(vec![address])),
        Err(_) => Err("write ADDRESS:PORT such as 127.0.0.1:5432 or [::1]:5432, or :5432".into()),
    }
}

fn balance(word: &str) -> Result<Balance, String> {
    among(word, Balance::ALL, Balance::word)
}

fn check_kind(word: &str) -> Result<CheckKind, String> {
    // The others need more than a word: who logs in, or what is said.
    const PLAIN: &[CheckKind] = &[CheckKind::Tcp, CheckKind::Http, CheckKind::Redis, CheckKind::Smtp];
    among(word, PLAIN, CheckKind::word)
}

fn among<T: Copy>(word: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, String> {
    let found = all.iter().copied().find(|one| name(*one) == word);
    found.ok_or_else(|| {
        let words: Vec<_> = all.iter().map(|one| name(*one)).collect();
        format!("one of {}", words.join(", "))
    })
}
