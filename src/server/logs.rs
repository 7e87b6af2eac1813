//! Opening the cache logs of all shards.
//!
//! Owns: that their number changes only while they are empty: it says in which of them a machine's
//! records lie. Does not own: a log (`cache`), what is wanted (settings).

use std::sync::Arc;

use super::error::ServerError;
use crate::cache::{self, CacheError, Opened};
use crate::clock::{Clock, Entropy};
use crate::observe::Metrics;
use crate::settings::ServerSettings;

pub(super) async fn open(
    settings: &ServerSettings,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Opened>, ServerError> {
    let (directory, shards) = (&settings.cache.directory, settings.shards);
    let found = settings.cache.shards_found().map_err(|source| ServerError::Io {
        path: directory.clone(),
        action: "looking for cache logs",
        source,
    })?;
    let others = || CacheError::OtherShards { directory: directory.clone(), found, shards };
    let mut opened: Vec<Opened> = Vec::new();
    let has_records = |opened: &[Opened]| opened.iter().any(|log| !log.recovered.is_empty());
    for shard in 0..shards {
        if shard == found && has_records(&opened) {
            return Err(others().into());
        }
        let cache = settings.cache.clone();
        let (clock, entropy) = (Arc::clone(clock), Arc::clone(entropy));
        let measured = Arc::clone(metrics);
        let open = move || cache::open(&cache, shard, shards, clock, entropy, measured);
        let log =
            tokio::task::spawn_blocking(open).await.map_err(|_| ServerError::Shard { shard })??;
        for damage in &log.damage {
            tracing::error!(shard, %damage, "damage in the cache log");
            metrics.note_cache_damage(damage);
        }
        opened.push(log);
    }
    if found > shards {
        if has_records(&opened) {
            return Err(others().into());
        }
        let (cache, entropy) = (settings.cache.clone(), Arc::clone(entropy));
        let measured = Arc::clone(metrics);
        let retire = move || cache::retire(&cache, shards, &entropy, &measured);
        let shard = shards;
        tokio::task::spawn_blocking(retire).await.map_err(|_| ServerError::Shard { shard })??;
    }
    Ok(opened)
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
