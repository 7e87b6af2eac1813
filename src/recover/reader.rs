//! Any byte of one disk at one point: the snapshot below, the deltas after it on top.
//!
//! Owns: which source answers for which bytes, the frame cache. Does not own: how the point was
//! found, who asks. Memory: about 100 bytes for each entry of the deltas' indexes, and the cache.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use super::RecoverError;
use super::base::{Base, READ_BYTES};
use super::frames::FrameCache;
use super::recovery::Recovery;
use super::resolve::ResolvedPoint;
use crate::format::delta::EntrySource;
use crate::model::{DiskName, DiskSpec, Epoch, ExtentMap, Sequence, Slice};
use crate::seal::OpenDelta;
use crate::store::Store;

/// Opened frames that a reader keeps; enough for the neighbourhood of several clients.
pub const CACHE_BYTES: u64 = 64 << 20;
/// Requests to the store at the same time.
const STREAMS: usize = 8;

/// One disk as it was at one point.
pub struct DiskReader {
    store: Arc<dyn Store>,
    point: Sequence,
    epoch: Epoch,
    disk: DiskSpec,
    base: Option<Base>,
    deltas: Vec<OpenDelta>,
    map: ExtentMap<Source>,
    frames: FrameCache,
    ranges: OnceCell<Vec<Range<u64>>>,
}

/// Where bytes that were written after the base are.
#[derive(Clone, Copy, Debug)]
enum Source {
    Zero,
    Frame { delta: usize, frame: u32, offset: u64 },
}

impl Slice for Source {
    fn skip(&self, skip: u64) -> Self {
        match *self {
            Self::Zero => Self::Zero,
            Self::Frame { delta, frame, offset } => {
                let offset = offset + skip;
                Self::Frame { delta, frame, offset }
            }
        }
    }
}

impl std::fmt::Debug for DiskReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DiskReader({} at {})", self.disk.name, self.point)
    }
}

impl DiskReader {
    /// Opens what the disk needs: the base's footer and the header and index of each delta.
    ///
    /// # Errors
    /// When there is no such disk, or anything it needs is missing or cannot be believed.
    pub async fn open(
        recovery: &Recovery,
        point: &ResolvedPoint,
        disk: &DiskName,
        cache_bytes: u64,
    ) -> Result<Self, RecoverError> {
        let disk = point.disk(disk)?.clone();
        let base = Base::open(recovery.store(), point, &disk).await?;
        let deltas = open_deltas(recovery, point).await?;
        let mut map = ExtentMap::default();
        for (delta, opened) in deltas.iter().enumerate() {
            let entries = opened.index().entries.iter();
            for entry in entries.filter(|e| e.disk == disk.index && e.sequence <= point.sequence) {
                let wrong = |source| RecoverError::Entry {
                    object: opened.name().clone(),
                    sequence: entry.sequence,
                    extent: entry.extent,
                    disk: disk.name.clone(),
                    source,
                };
                let extent = entry.extent.within(disk.size_bytes).map_err(wrong)?;
                let source = match entry.source {
                    EntrySource::Zero => Source::Zero,
                    EntrySource::Frame { frame, offset } => {
                        let offset = u64::from(offset);
                        Source::Frame { delta, frame, offset }
                    }
                };
                map.insert(extent.range(), source);
            }
        }
        Ok(Self {
            store: Arc::clone(recovery.store()),
            point: point.sequence,
            epoch: point.epoch,
            disk,
            base,
            deltas,
            map,
            frames: FrameCache::new(cache_bytes),
            ranges: OnceCell::new(),
        })
    }

    /// Which disk.
    #[must_use]
    pub fn disk(&self) -> &DiskSpec {
        &self.disk
    }

    /// Its epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.disk.size_bytes
    }

    /// `length` bytes from `offset`; they are in memory at once, so callers bound them.
    ///
    /// # Errors
    /// When they are not on the disk, or what holds them is missing or cannot be believed.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Bytes, RecoverError> {
        let end = offset.checked_add(length).filter(|end| *end <= self.disk.size_bytes);
        let Some(end) = end else {
            return Err(RecoverError::Range {
                disk: self.disk.name.clone(),
                size_bytes: self.disk.size_bytes,
                offset,
                length,
            });
        };
        let parts = self.map.read(offset..end).into_iter().flat_map(cut);
        let parts: Vec<_> = parts.collect();
        if let [(range, source)] = parts.as_slice()
            && let Some(bytes) = self.part(range, *source).await?
        {
            return Ok(bytes);
        }
        let mut target = BytesMut::zeroed(length as usize);
        let mut fetched = stream::iter(parts)
            .map(|(range, source)| async move {
                let bytes = self.part(&range, source).await?;
                Ok::<_, RecoverError>((range, bytes))
            })
            .buffered(STREAMS);
        while let Some((range, bytes)) = fetched.try_next().await? {
            if let Some(bytes) = bytes {
                let place = (range.start - offset) as usize..(range.end - offset) as usize;
                target[place].copy_from_slice(&bytes);
            }
        }
        Ok(target.freeze())
    }

    /// What is not a hole, ascending, neighbours joined. Everything else reads as zeros.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn ranges(&self) -> Result<&[Range<u64>], RecoverError> {
        let ranges = self.ranges.get_or_try_init(|| self.find_ranges()).await?;
        Ok(ranges)
    }

    async fn find_ranges(&self) -> Result<Vec<Range<u64>>, RecoverError> {
        let mut filled = ExtentMap::default();
        if let Some(base) = &self.base {
            for range in base.ranges(self.disk.size_bytes).await? {
                filled.insert(range, Filled);
            }
        }
        for (range, source) in self.map.iter() {
            match source {
                Source::Zero => filled.remove(range),
                Source::Frame { .. } => filled.insert(range, Filled),
            }
        }
        let mut joined: Vec<Range<u64>> = Vec::new();
        for (range, _) in filled.iter() {
            match joined.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => joined.push(range),
            }
        }
        Ok(joined)
    }

    /// Bytes of one part; `None` for zeros.
    async fn part(
        &self,
        range: &Range<u64>,
        source: Option<Source>,
    ) -> Result<Option<Bytes>, RecoverError> {
        let length = range.end - range.start;
        match (source, &self.base) {
            (Some(Source::Zero), _) | (None, None) => Ok(None),
            (None, Some(base)) => base.read(range.start, length).await.map(Some),
            (Some(Source::Frame { delta, frame, offset }), _) => {
                let bytes = self.frame(delta, frame).await?;
                // An index is refused unless its entries lie within their frames.
                Ok(Some(bytes.slice(offset as usize..(offset + length) as usize)))
            }
        }
    }

    async fn frame(&self, delta: usize, frame: u32) -> Result<Bytes, RecoverError> {
        let opened = &self.deltas[delta];
        let entry = opened.index().frames.get(frame as usize);
        let plain_bytes = entry.map_or(0, |entry| u64::from(entry.plain_bytes));
        let slot = self.frames.slot((delta, frame), plain_bytes);
        let fetch = || opened.frame(self.store.as_ref(), frame);
        Ok(slot.get_or_try_init(fetch).await?.clone())
    }
}

#[derive(Clone, Copy)]
struct Filled;

impl Slice for Filled {
    fn skip(&self, _: u64) -> Self {
        Self
    }
}

/// Cuts what comes from the base into requests of bounded length.
fn cut(
    (range, source): (Range<u64>, Option<Source>),
) -> impl Iterator<Item = (Range<u64>, Option<Source>)> {
    let step = match source {
        None => READ_BYTES,
        Some(_) => u64::MAX,
    };
    let end = range.end;
    let starts = std::iter::successors(Some(range.start), move |at| {
        at.checked_add(step).filter(|next| *next < end)
    });
    starts.map(move |start| (start..end.min(start.saturating_add(step)), source))
}

/// Opens all deltas of a point, each proven to follow the one before it.
async fn open_deltas(
    recovery: &Recovery,
    point: &ResolvedPoint,
) -> Result<Vec<OpenDelta>, RecoverError> {
    let opened = point
        .deltas
        .iter()
        .enumerate()
        .map(|(position, entry)| recovery.delta_of(point, entry, point.previous(position)));
    stream::iter(opened).buffered(STREAMS).try_collect().await
}
