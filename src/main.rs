//! The one binary. See `holdfast::cli`.

mod heap;

use std::process::ExitCode;

fn main() -> ExitCode {
    heap::settle();
    holdfast::cli::main()
}
