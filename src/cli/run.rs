//! `tidegate run`: the daemon, from a file.
#![allow(clippy::print_stderr, reason = "mistakes in the file are told to whoever typed the command")]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use super::exit;
use crate::config::plan::{self, LogFormat, Plan};
use crate::config::{self, Colour, Format, Mistakes, defaults};
use crate::control::{Loader, Notifier, Until};
use crate::run;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file
    #[arg(short, long, env = "TIDEGATE_CONFIG", default_value = defaults::FILE, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let loaded = match config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(mistakes) => return refuse(&mistakes),
    };
    log_to_stderr(&loaded.plan.log);
    if !loaded.warnings.is_empty() {
        eprint!("{}", loaded.warnings.render(Format::Human, Colour::of(&std::io::stderr())));
    }
    let file = args.config.clone();
    daemon(loaded.plan, Some(Box::new(move || reload(&file))), Notifier::from_env(), Until::Signals)
}

/// Runs the daemon to its end and prints the last line.
pub(super) fn daemon(plan: Plan, reload: Option<Loader>, notifier: Notifier, until: Until) -> ExitCode {
    match run::run(plan, reload, notifier, until) {
        Ok(ended) => exit::ended(&ended),
        Err(trouble) => exit::trouble(&trouble),
    }
}

/// Prints what is wrong with the file.
pub(super) fn refuse(mistakes: &Mistakes) -> ExitCode {
    eprint!("{}", mistakes.render(Format::Human, Colour::of(&std::io::stderr())));
    ExitCode::from(if mistakes.is_permission() { exit::NO_PERMISSION } else { exit::BAD_CONFIG })
}

fn reload(file: &Path) -> Result<Plan, String> {
    match config::load(file) {
        Ok(loaded) => Ok(loaded.plan),
        Err(mistakes) => Err(mistakes.render(Format::Human, Colour::Plain)),
    }
}

/// The daemon's own log. The access log is another matter: `telemetry/access_log.rs`.
pub(super) fn log_to_stderr(plan: &plan::Log) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(plan.level.word()))
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(colour);
    let already_set = match plan.format {
        LogFormat::Text => subscriber.finish().try_init(),
        LogFormat::Json => subscriber.json().finish().try_init(),
    };
    // Fails only when a test of this process has set one before: then that one serves.
    let _ = already_set;
}
