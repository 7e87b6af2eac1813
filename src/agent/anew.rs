//! A resync on request: the next agent takes nothing for published and sends every disk again.
//!
//! Owns: what of a state directory is forgotten for it. Does not own: what the next life makes of that
//! ([`super::opening`]).

use std::fs::{File, read_dir, remove_file};
use std::path::PathBuf;

use crate::settings::AgentSettings;

use super::error::AgentError;
use super::opening;

/// Forgets, for good when this returns, what is published of a stopped agent's disks. Returns the files
/// that are gone; a life that finds one of its bitmaps missing begins a new epoch of all its disks, so
/// half of it is as good.
///
/// # Errors
/// While the agent runs, and when the state directory cannot be changed.
pub fn resync(settings: &AgentSettings) -> Result<Vec<PathBuf>, AgentError> {
    let directory = &settings.state_directory;
    let failed = |action| move |source| AgentError::io(directory, action, source);
    let _alone = opening::lock(directory)?;
    let mut gone = Vec::new();
    for entry in read_dir(directory).map_err(failed("list the state directory"))? {
        let path = entry.map_err(failed("list the state directory"))?.path();
        if path.extension().is_some_and(|end| end == "bitmap") {
            remove_file(&path).map_err(|source| AgentError::io(&path, "remove it", source))?;
            gone.push(path);
        }
    }
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync the state directory"))?;
    gone.sort();
    Ok(gone)
}
