//! `holdfast move`: another process server for a machine, now and without a gap.

use super::output::{print, print_json};
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on};
use crate::control::{MoveOrder, move_machine};
use crate::model::{MachineId, ServerId};

/// Move a machine to another process server, now
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine
    machine: MachineId,
    /// Which process server
    server: ServerId,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Asks the machine's process server to give it up.
///
/// # Errors
/// When the machine is unknown or nobody's, or one of the two servers is not there.
pub fn run(args: &Args) -> Result<(), Failure> {
    let site = Site::open(&args.config.config)?;
    let client = site.client()?;
    let order = MoveOrder { to: args.server.clone(), unless_connected: false };
    let moved =
        block_on(async { Ok(move_machine(&site.sources, &client, &args.machine, &order).await?) })?;
    if args.json {
        return print_json(&moved);
    }
    let (machine, server) = (&moved.machine, &moved.server);
    match moved.moved {
        true => print(&format!("{machine} is served by {server} now; its agent was sent there")),
        false => print(&format!("{machine} was served by {server} already")),
    }
}
