//! Load generator: drives a process server, measures it, audits every acknowledged write.

mod error;
mod image;
mod ladder;
mod load;
mod page;
mod path;
mod process;
mod progress;
mod roofline;
mod site;
mod takeover;
mod tls;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::LoadError;

/// Drive a process server, measure it, audit every acknowledged write
#[derive(Debug, Parser)]
#[command(name = "holdfast-loadtest", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    load: load::Args,
    /// Run a build that is not optimised: to try the load test itself
    #[arg(long, global = true)]
    any_build: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Path(path::Args),
    Ladder(ladder::Args),
    Roofline(roofline::Args),
    Takeover(takeover::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse(); // leaves with 2 by itself when the usage is wrong
    let ended = run(&cli);
    match ended.and_then(|text| show(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", holdfast::observe::error_chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<String, LoadError> {
    let program = program(cli.any_build)?;
    process::open_files(0, "this program")?;
    match &cli.command {
        Some(Command::Path(args)) => path::run(args, &program),
        Some(Command::Ladder(args)) => ladder::run(args, &program),
        Some(Command::Roofline(args)) => roofline::run(args, &program),
        Some(Command::Takeover(args)) => takeover::run(args, &program),
        None => load::run(&cli.load, &program),
    }
}

fn show(text: &str) -> Result<(), LoadError> {
    use std::io::Write;
    let written = writeln!(std::io::stdout().lock(), "{text}");
    written.map_err(LoadError::file("standard output", "writing to it"))
}

/// `holdfast` of the same build.
fn program(any_build: bool) -> Result<PathBuf, LoadError> {
    if cfg!(debug_assertions) && !any_build {
        return Err(LoadError::NotOptimised);
    }
    let own =
        std::env::current_exe().map_err(LoadError::file("holdfast-loadtest", "finding it"))?;
    let program = own.with_file_name("holdfast");
    if program.is_file() { Ok(program) } else { Err(LoadError::NoProgram(program)) }
}
