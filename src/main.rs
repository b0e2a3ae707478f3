//! Arguments in, exit code out. The only place that prints errors.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::cli::main()
}
