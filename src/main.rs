//! The one binary. See `holdfast::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast::cli::main()
}
