//! Opening a shard's log: settings, lock, recovery, and the thread that prepares segments.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::damage::Damage;
use super::disk::DiskDirectory;
use super::durable::Survivor;
use super::error::CacheError;
use super::file::{SegmentDirectory, Slot};
use super::fill::Fill;
use super::flush;
use super::lineage::Lineage;
use super::pool::{Geometry, Pool, RESERVE, Recycling};
use super::recovery::{Recovered, recover};
use super::segment::Segment;
use super::writer::Writer;
use crate::clock::{Clock, Entropy};
use crate::format::segment::{SEGMENT_HEADER_BYTES, record_bytes};
use crate::model::WRITE_BYTES_MAX;
use crate::observe::Metrics;
use crate::settings::CacheSettings;

/// Fewest segments of a shard: one in use, one to go on in, one for recovery.
const SEGMENTS_MIN: u64 = 2 + RESERVE as u64;
/// Smallest segment: it holds the largest record, and the end record.
const SEGMENT_BYTES_MIN: u64 =
    SEGMENT_HEADER_BYTES + record_bytes(WRITE_BYTES_MAX) + record_bytes(0);
/// Largest segment: recovery reads one into memory.
pub(super) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// A log that is open.
pub struct Opened {
    /// Takes what comes next.
    pub writer: Writer,
    /// What was durable before, in log order; gapless for each machine.
    ///
    /// Whoever takes them over compares with the machine's manifest first: records at or below
    /// `published` are not needed; if the first one is above `published + 1`, none may be used, and
    /// of those that were admitted before another server owned the machine, neither.
    pub recovered: Vec<Survivor>,
    /// What was found damaged; logged and counted already.
    pub damage: Vec<Damage>,
    /// How full it is.
    pub fill: Arc<Fill>,
    /// Nothing is recycled before this is begun, nor after it is dropped.
    pub recycling: Recycling,
}

/// Opens the log of one shard, of `shards`, and puts it in order. Blocks for as long as reading the
/// segments in use takes.
///
/// # Errors
/// When the log is in use, the settings leave no room for it, or the file system refuses.
pub fn open(
    settings: &CacheSettings,
    shard: u16,
    shards: u16,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    metrics: Arc<Metrics>,
) -> Result<Opened, CacheError> {
    let path = settings.shard_directory(shard);
    let geometry = geometry(settings, shards)?;
    let directory: Arc<dyn SegmentDirectory> = Arc::new(DiskDirectory::lock(&path)?);
    let recovered = recover(directory, geometry, shard, entropy, &metrics)?;
    start(recovered, geometry, clock, metrics)
}

/// Maps what was recovered and starts the thread that prepares segments.
pub(super) fn start(
    mut recovered: Recovered,
    geometry: Geometry,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
) -> Result<Opened, CacheError> {
    let usable = u64::from(geometry.segments_max - RESERVE) * geometry.segment_bytes;
    let fill = Arc::new(Fill::new(usable, Arc::clone(&metrics)));
    for slot in &recovered.segments {
        fill.take(slot.file.bytes());
    }
    let (freed, returned) = mpsc::unbounded_channel();
    let (durable, lineage) = durable(&mut recovered, &freed)?;
    let channel = (freed, returned);
    let recycling = Recycling::not_yet();
    let pool = Pool::start(
        recovered.keeper,
        recovered.stale,
        channel,
        &recycling,
        Arc::clone(&fill),
        Arc::clone(&clock),
    )?;
    Ok(Opened {
        recovered: durable,
        writer: Writer { pool, lineage, clock, metrics },
        damage: recovered.damage,
        fill,
        recycling,
    })
}

/// The records that recovery found, each holding its segment.
pub(super) fn durable(
    recovered: &mut Recovered,
    freed: &mpsc::UnboundedSender<Slot>,
) -> Result<(Vec<Survivor>, Lineage), CacheError> {
    let mut lineage = Lineage::default();
    let mut segments = Vec::new();
    for slot in recovered.segments.drain(..) {
        let (bytes, path) = (slot.file.bytes(), slot.file.path().to_owned());
        let segment = Segment::in_slot(slot, freed.clone());
        let segment = Arc::new(segment.map_err(CacheError::io(&path, "mapping a segment"))?);
        segment.allow(bytes);
        lineage.begin(&segment);
        segments.push(segment);
    }
    if recovered.again {
        lineage.chain();
    }
    for &(machine, sequence) in &recovered.kept_back {
        lineage.remember(machine, sequence);
    }
    let durable = recovered.records.drain(..).map(|found| {
        let segment = Arc::clone(&segments[found.segment]);
        let (machine, sequence) = (found.machine, found.sequence);
        lineage.remember(machine, sequence);
        let record = flush::recovered(machine, sequence, found.change, found.payload, segment);
        Survivor { record, generation: found.generation }
    });
    let durable = durable.collect();
    Ok((durable, lineage))
}

pub(super) fn geometry(settings: &CacheSettings, shards: u16) -> Result<Geometry, CacheError> {
    let refuse = |found: String, expected: String| CacheError::Settings {
        directory: settings.directory.clone(),
        found,
        expected,
    };
    let segment_bytes = settings.segment_bytes;
    let page_aligned = segment_bytes.is_multiple_of(4096);
    if !page_aligned || !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes) {
        return Err(refuse(
            format!("segment_bytes is {segment_bytes}"),
            format!("a multiple of 4096 from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}"),
        ));
    }
    let segments = settings.bytes_max / u64::from(shards.max(1)) / segment_bytes;
    if segments < SEGMENTS_MIN {
        let least = SEGMENTS_MIN * segment_bytes * u64::from(shards.max(1));
        return Err(refuse(
            format!("bytes_max is {} for {shards} shards", settings.bytes_max),
            format!("at least {least}: {SEGMENTS_MIN} segments of {segment_bytes} for each shard"),
        ));
    }
    Ok(Geometry { segment_bytes, segments_max: u32::try_from(segments).unwrap_or(u32::MAX) })
}
