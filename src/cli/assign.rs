//! `holdfast assign`: the wish which process server shall serve a machine.

use super::output::print;
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on};
use crate::control::{Wish, assign};
use crate::model::{MachineId, ServerId};

/// Wish which process server shall serve a machine when it is placed next
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine
    machine: MachineId,
    /// Which process server, or `auto`: the least loaded
    #[arg(value_name = "SERVER|auto")]
    server: String,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Writes the wish. Needs only the store and the key.
///
/// # Errors
/// When the machine is unknown, or no such server ever started.
pub fn run(args: &Args) -> Result<(), Failure> {
    let site = Site::open(&args.config.config)?;
    let server: Option<ServerId> = match args.server.as_str() {
        "auto" => None,
        name => Some(name.parse()?),
    };
    let (machine, wish) = (&args.machine, Wish { server });
    block_on(async { Ok(assign(&site.sources, machine, &wish).await?) })?;
    print(&match &wish.server {
        Some(server) => format!(
            "{machine} goes to {server} when it is placed next; now: holdfast move {machine} {server}"
        ),
        None => format!("{machine} goes to the least loaded process server when it is placed next"),
    })
}
