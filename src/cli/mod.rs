//! One file per subcommand; arguments in, tables or JSON out; no logic.
//!
//! A new subcommand: one file with `Args` and `run`, a variant of `Command`, an arm of `run`.

pub mod agent;
pub mod apply;
pub mod assign;
pub mod bookmark;
pub mod demo;
pub mod enroll;
pub mod export;
mod failure;
mod files;
pub mod gc;
pub mod init;
pub mod mount;
pub mod move_machine;
pub mod output;
pub mod points;
pub mod revoke;
pub mod serve;
pub mod sidecar;
pub mod site;
pub mod status;
mod stopped;
pub mod top;
pub mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::Failure;
pub use stopped::stopped;

/// Keeps running machines recoverable.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Init(init::Args),
    Serve(serve::Args),
    Apply(apply::Args),
    Sidecar(sidecar::Args),
    Enroll(enroll::Args),
    Agent(agent::Args),
    Bookmark(bookmark::Args),
    Status(status::Args),
    Top(top::Args),
    Points(points::Args),
    Assign(assign::Args),
    Move(move_machine::Args),
    Revoke(revoke::Args),
    Gc(gc::Args),
    Export(export::Args),
    Mount(mount::Args),
    Verify(verify::Args),
}

/// Runs the command that the process was started with. Exit codes: 0 done, 1 failed, 2 wrong usage
/// or settings, 3 verification found a difference.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse(); // leaves with 2 by itself when the usage is wrong
    // The demo tells its own story, and a screen is drawn on: what is logged would be in their way.
    let quiet = matches!(cli.command, Command::Demo(_) | Command::Top(_));
    let filter = if quiet { "error" } else { "info" };
    let log = crate::observe::start_log(filter).map_err(Failure::from);
    match log.and_then(|()| run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Apply(args) => apply::run(&args),
        Command::Sidecar(args) => sidecar::run(&args),
        Command::Enroll(args) => enroll::run(&args),
        Command::Agent(args) => agent::run(&args),
        Command::Bookmark(args) => bookmark::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Points(args) => points::run(&args),
        Command::Assign(args) => assign::run(&args),
        Command::Move(args) => move_machine::run(&args),
        Command::Revoke(args) => revoke::run(&args),
        Command::Gc(args) => gc::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Mount(args) => mount::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}

/// Runs `work` on a runtime of its own.
///
/// # Errors
/// When the runtime cannot be started, or as `work` fails.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Runtime::new()?.block_on(work)
}
