//! `holdfast gc`: objects that dead ownerships left in the store.

use super::output::{print, print_json};
use super::site::ConfigArgs;
use super::{Failure, block_on};
use crate::clock::System;
use crate::control::words;
use crate::model::MachineId;
use crate::server::collect_garbage;
use crate::settings::load_server;
use crate::upload::Removal;

/// Remove objects that dead ownerships left in the store, after the grace time
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine; all when left out
    machine: Option<MachineId>,
    /// Only name them
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Some machines could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("not all machines could be looked at: {0}")]
struct Incomplete(String);

/// Finds them and removes them, unless this is a dry run.
///
/// # Errors
/// When the store or the key cannot be opened, or a machine could not be looked at.
pub fn run(args: &Args) -> Result<(), Failure> {
    let settings = load_server(&args.config.config)?;
    let removal = if args.dry_run { Removal::DryRun } else { Removal::Remove };
    let time = (System::clock(), System::entropy());
    let found = block_on(async {
        Ok(collect_garbage(&settings, args.machine.clone(), removal, time).await?)
    })?;
    let objects = found.iter().flat_map(|garbage| &garbage.objects);
    let (count, bytes) =
        objects.clone().fold((0, 0), |(count, bytes), object| (count + 1, bytes + object.length));
    if args.json {
        let rows = objects.map(|object| {
            serde_json::json!({
                "object": object.name.to_string(),
                "bytes": object.length,
                "modified": object.modified,
            })
        });
        let rows: Vec<_> = rows.collect();
        print_json(&serde_json::json!({ "removed": !args.dry_run, "objects": rows }))?;
    } else {
        for object in objects {
            print(&format!("{} {}", object.name, words::bytes(object.length)))?;
        }
        let done = if args.dry_run { "would be removed" } else { "removed" };
        print(&format!("{count} objects, {} {done}", words::bytes(bytes)))?;
    }
    let trouble = found.iter().filter_map(|garbage| {
        garbage.trouble.as_ref().map(|why| format!("machine {}: {why}", garbage.machine))
    });
    let trouble: Vec<_> = trouble.collect();
    if trouble.is_empty() { Ok(()) } else { Err(Incomplete(trouble.join("; ")).into()) }
}
