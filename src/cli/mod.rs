//! The command line: one file per command. This one parses, dispatches, and is the only place
//! that turns trouble into text and exit codes.

mod run; // the daemon
mod proxy; // no file needed
mod demo; // servers, balancer and traffic in one process
mod check; // every mistake in a configuration
mod status; // the live state of the daemon
mod listeners; // the live state of listeners
mod pools; // the live state of pools
mod servers; // the live state of servers
mod client; // the admin API, as the reading commands use it
mod exit; // exit codes, and what to do about each trouble

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A layer-4 load balancer for Linux that loses nothing and can say why.
///
/// It takes TCP connections and hands each to a good server: for PostgreSQL, MySQL and Redis
/// as much as for HTTP.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon with a configuration file
    Run(run::Args),
    /// Balance one address over some servers, without a file
    Proxy(proxy::Args),
    /// Watch it work: sample servers, the balancer in front, traffic, and a server that fails
    Demo(demo::Args),
    /// Report every mistake in a configuration file
    Check(check::Args),
    /// Show the state of the running daemon
    Status(status::Args),
    /// Show the listeners of the running daemon
    Listeners(listeners::Args),
    /// Show the pools of the running daemon
    Pools(pools::Args),
    /// Show the servers of the running daemon
    Servers(servers::Args),
}

/// The command line as clap knows it, for what is made from it: the man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the arguments and runs the command; the program's exit code.
pub fn main() -> ExitCode {
    // clap prints help and usage errors itself, and exits with 0 and 2 as SPEC has it.
    match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Proxy(args) => proxy::run(args),
        Command::Demo(args) => demo::run(&args),
        Command::Check(args) => check::run(args),
        Command::Status(args) => status::run(args),
        Command::Listeners(args) => listeners::run(args),
        Command::Pools(args) => pools::run(args),
        Command::Servers(args) => servers::run(args),
    }
}
