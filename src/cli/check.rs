//! `tidegate check`: every mistake of a configuration in one run, without starting anything.
//!
//! Only reads the file and prints. People read mistakes on stderr; programs read stdout.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;

use crate::config::{self, Colour, Format, Loaded, Mistakes, Plan, defaults};

/// The exit code for want of permission.
const NO_PERMISSION: u8 = 77;

/// Finds every mistake in a configuration: where it is, why it is one, what to write instead
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The configuration to check
    #[arg(value_name = "FILE", env = "TIDEGATE_CONFIG", default_value = defaults::FILE)]
    pub file: PathBuf,
    /// How mistakes are written
    #[arg(long, value_enum, default_value_t = Style::Human)]
    pub format: Style,
    /// Fail on warnings, too
    #[arg(long)]
    pub deny_warnings: bool,
    /// Look at nothing but the file. No check needs more as yet, so this changes nothing
    #[arg(long)]
    pub offline: bool,
}

/// The formats, as arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Style {
    /// With the line, a caret and a hint
    Human,
    /// An array of objects
    Json,
    /// Commands that a forge shows beside the changed line
    Github,
}

/// Checks the file: 0 if it is fine, 1 if not, 77 if it may not be read.
pub fn run(args: Args) -> ExitCode {
    let Args { file, format, deny_warnings, offline: _ } = args;
    match config::load(&file) {
        Err(mistakes) => {
            print(&mistakes, format);
            if mistakes.is_permission() { ExitCode::from(NO_PERMISSION) } else { ExitCode::FAILURE }
        }
        Ok(Loaded { warnings, .. }) if deny_warnings && !warnings.is_empty() => {
            print(&warnings, format);
            ExitCode::FAILURE
        }
        Ok(Loaded { plan, warnings }) => {
            print(&warnings, format);
            if format == Style::Human {
                say(&mut io::stdout(), &format!("{} is fine: {}\n", warnings.file_name(), summary(&plan)));
            }
            ExitCode::SUCCESS
        }
    }
}

/// `2 listeners, 1 pool, 3 servers`
fn summary(plan: &Plan) -> String {
    let servers = plan.pools.iter().map(|pool| pool.servers.len()).sum();
    let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    [count(plan.listeners.len(), "listener"), count(plan.pools.len(), "pool"), count(servers, "server")]
        .join(", ")
}

fn print(mistakes: &Mistakes, format: Style) {
    match format {
        Style::Human => {
            let colour = Colour::of(&io::stderr());
            say(&mut io::stderr(), &mistakes.render(Format::Human, colour));
        }
        Style::Json => say(&mut io::stdout(), &mistakes.render(Format::Json, Colour::Plain)),
        Style::Github => say(&mut io::stdout(), &mistakes.render(Format::Github, Colour::Plain)),
    }
}

/// Whoever stopped reading (a closed pipe) still gets the exit code.
fn say(stream: &mut impl Write, text: &str) {
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_in_words() {
        let text = "[listener.a]\nbind = [\"127.0.0.1:80\"]\npool = \"p\"\n\
                    [pool.p]\nservers = [\"192.0.2.1:80\", \"192.0.2.2:80\"]\n";
        let plan = config::parse("t.toml", text).unwrap().plan;
        assert_eq!(summary(&plan), "1 listener, 1 pool, 2 servers");
    }
}
