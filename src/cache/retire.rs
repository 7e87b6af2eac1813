//! Logs of shards that there are none of any more.
//!
//! Owns: that one is removed only when nothing in it could be wanted, and only when that is so of all of
//! them: a machine's shard depends on how many there are. Does not own: how many there shall be
//! (settings), the logs that stay (whoever opened them has seen that they are empty, too).

use std::sync::Arc;

use super::disk::DiskDirectory;
use super::error::CacheError;
use super::file::{SegmentDirectory, Slot};
use super::open::geometry;
use super::recovery::recover;
use crate::clock::Entropy;
use crate::observe::Metrics;
use crate::settings::CacheSettings;

/// An empty log.
struct Empty {
    directory: Arc<DiskDirectory>,
    /// Its segments in the order in which they go: some may void records of others before them.
    slots: Vec<Slot>,
}

/// Removes the logs of the shards from `shards` on. Blocks for as long as reading the segments in use
/// takes. May be cut off anywhere and done again.
///
/// # Errors
/// When one of them holds records, or something that is damaged: then all of them stay.
pub fn retire(
    settings: &CacheSettings,
    shards: u16,
    entropy: &Arc<dyn Entropy>,
    metrics: &Metrics,
) -> Result<(), CacheError> {
    let directory = &settings.directory;
    let found = settings.shards_found();
    let found = found.map_err(CacheError::io(directory, "looking for logs of other shards"))?;
    let geometry = geometry(settings, shards)?;
    let mut empty = Vec::new();
    for shard in shards..found {
        let path = settings.shard_directory(shard);
        if !path.try_exists().map_err(CacheError::io(&path, "looking for a log"))? {
            continue;
        }
        let locked = Arc::new(DiskDirectory::lock(&path)?);
        let there: Arc<dyn SegmentDirectory> = Arc::clone(&locked) as _;
        let log = recover(there, geometry, shard, Arc::clone(entropy), metrics)?;
        if !log.records.is_empty() || !log.damage.is_empty() {
            return Err(CacheError::OtherShards { directory: path, found, shards });
        }
        let slots = log.segments.into_iter().chain(log.stale).chain(log.keeper.blank).collect();
        empty.push(Empty { directory: locked, slots });
    }
    // The last first: as many logs as there are at any moment are the first ones.
    for Empty { directory, slots } in empty.into_iter().rev() {
        let path = directory.path();
        tracing::info!(path = %path.display(), "the log of a shard that is not wanted any more is removed");
        let removed = slots.iter().try_for_each(|slot| directory.remove(slot));
        let removed = removed.and_then(|()| directory.remove_itself());
        removed.map_err(CacheError::io(path, "removing the log of a shard that is not wanted"))?;
    }
    Ok(())
}
