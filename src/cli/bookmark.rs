//! `holdfast bookmark`: a consistent point, now.

use super::output::{print, print_json};
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on};
use crate::control::{BookmarkQuestion, BookmarkWait, bookmark};
use crate::model::{BookmarkKind, MachineId};

/// Place a bookmark in a machine's write stream, now
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine
    machine: MachineId,
    /// Name of the bookmark; it is kept as a snapshot, too
    #[arg(long)]
    name: String,
    /// Application-consistent: the agent quiesces the application by its hook (`[application]` in
    /// agent.toml)
    #[arg(long)]
    app: bool,
    /// When to return: at once when it survives a power cut, or when it can be recovered to
    #[arg(long, value_enum, default_value = "durable")]
    wait: Wait,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Wait {
    Durable,
    Recoverable,
}

/// Asks the machine's process server for it.
///
/// # Errors
/// When the machine is unknown, or its server or its agent does not answer.
pub fn run(args: &Args) -> Result<(), Failure> {
    let site = Site::open(&args.config.config)?;
    let client = site.client()?;
    let question = BookmarkQuestion {
        name: args.name.clone(),
        kind: match args.app {
            true => BookmarkKind::ApplicationConsistent,
            false => BookmarkKind::CrashConsistent,
        },
        wait: match args.wait {
            Wait::Durable => BookmarkWait::Durable,
            Wait::Recoverable => BookmarkWait::Recoverable,
        },
    };
    let asked = async { Ok(bookmark(&site.sources, &client, &args.machine, &question).await?) };
    let answer = block_on(asked)?;
    if args.json {
        return print_json(&answer);
    }
    let reached = match answer.reached {
        BookmarkWait::Durable => "durable",
        BookmarkWait::Recoverable => "recoverable",
    };
    let (name, sequence) = (&answer.name, answer.sequence);
    print(&format!("{name}: sequence {sequence}, {reached}"))
}
