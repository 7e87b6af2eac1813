//! Reads everything that points need and checks every seal, chain and footer.
//!
//! Points that build on the same base need the same objects, so each object is read once: points
//! are taken base by base, each base pinned while it is read. Which points a base carries is said by
//! the base that was pinned: a snapshot may be made, or given up, after the points were listed.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::RecoverError;
use super::base::{Base, READ_BYTES};
use super::error::line;
use super::export::Progress;
use super::list::{Holdings, Point};
use super::pin::Pin;
use super::point::PointSpec;
use super::recovery::Recovery;
use super::resolve::ResolvedPoint;
use crate::clock::{Clock, Entropy};
use crate::format::names;
use crate::model::{DiskSpec, MachineId, Sequence};
use crate::store::Class;

/// Deltas, or pieces of a snapshot, read at the same time.
const STREAMS: usize = 4;

/// What was checked, and what was found wrong.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Whose points.
    pub machine: MachineId,
    /// Points in question, oldest first.
    pub points: Vec<PointReport>,
    /// Deltas of which every frame was opened.
    pub deltas: u64,
    /// Frames that were opened.
    pub frames: u64,
    /// Bytes of those deltas in the store.
    pub delta_bytes: u64,
    /// Disks of snapshots whose footer was checked and whose pages were read.
    pub snapshots: u64,
    /// Bytes of those snapshots that are no holes.
    pub snapshot_bytes: u64,
    /// Everything that is wrong.
    pub failures: Vec<Failure>,
}

/// One point.
#[derive(Clone, Debug, Serialize)]
pub struct PointReport {
    /// Its place in the stream.
    pub sequence: u64,
    /// The user's name for it, or empty.
    pub name: String,
    /// Whether everything it needs is whole.
    pub good: bool,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Which object.
    pub object: String,
    /// Where in it and how.
    pub reason: String,
    /// Points from here on, on the same base, need it.
    #[serde(skip)]
    from: Sequence,
}

impl VerifyReport {
    /// Whether nothing was found.
    #[must_use]
    pub fn good(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Verifies the point that `spec` means, or all points of the machine.
///
/// # Errors
/// When there is no such point or the store does not answer; what cannot be believed is a failure
/// in the report instead.
pub async fn verify(
    recovery: &Arc<Recovery>,
    spec: Option<&PointSpec>,
    clock: &Arc<dyn Clock>,
    entropy: &dyn Entropy,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<VerifyReport, RecoverError> {
    let mut run = Run::new(recovery, progress);
    let mut groups = match run.groups(spec).await {
        Ok(groups) => VecDeque::from(groups),
        Err(error) if error.class() == Class::Poison => {
            run.fail(object_of(&error, recovery.machine()), &error, Sequence::ZERO);
            return Ok(run.report);
        }
        Err(error) => return Err(error),
    };
    // A group that comes back has lost its newest point at least.
    while let Some(mut group) = groups.pop_front() {
        let (Some(newest), from) = (group.last(), run.report.failures.len()) else {
            continue;
        };
        let newest = PointSpec::Sequence(newest.sequence);
        match Pin::take(recovery, &newest, clock, entropy).await {
            Ok((point, pin)) => {
                let base = point.base.as_ref().map_or(0, |base| base.sequence);
                let read = run.read(&Arc::new(point)).await;
                pin.release().await;
                read?;
                let before = group.partition_point(|point| point.sequence.0 < base);
                let unread: Vec<_> = group.drain(..before).collect();
                if !unread.is_empty() {
                    groups.push_front(unread);
                }
            }
            // Retention was faster: what is gone is no longer a point.
            Err(RecoverError::NoPoint { .. } | RecoverError::NotAPoint { .. })
                if spec.is_none() =>
            {
                continue;
            }
            Err(error) if error.class() == Class::Poison => {
                run.fail(object_of(&error, recovery.machine()), &error, Sequence::ZERO);
            }
            Err(error) => return Err(error),
        }
        run.judge(&group, from);
    }
    run.report.points.sort_by_key(|point| point.sequence);
    Ok(run.report)
}

/// What an error is about: the manifest unless it names something else.
fn object_of(error: &RecoverError, machine: &MachineId) -> String {
    let named = match error {
        RecoverError::Log(source) => source.object().map(ToString::to_string),
        RecoverError::Unread { page, .. } | RecoverError::Hidden { page, .. } => {
            page.why.object().map(ToString::to_string)
        }
        RecoverError::Vault(source) => source.document().map(str::to_owned),
        RecoverError::Footer { object, .. } | RecoverError::Entry { object, .. } => {
            Some(object.to_string())
        }
        _ => None,
    };
    named.unwrap_or_else(|| names::manifest(machine).to_string())
}

struct Run<'a> {
    recovery: &'a Arc<Recovery>,
    progress: &'a (dyn Fn(Progress) + Sync),
    done_bytes: u64,
    total_bytes: u64,
    report: VerifyReport,
}

/// What reading one delta gave.
struct DeltaChecked {
    frames: u64,
    errors: Vec<RecoverError>,
}

impl<'a> Run<'a> {
    fn new(recovery: &'a Arc<Recovery>, progress: &'a (dyn Fn(Progress) + Sync)) -> Self {
        Self {
            recovery,
            progress,
            done_bytes: 0,
            total_bytes: 0,
            report: VerifyReport {
                machine: recovery.machine().clone(),
                points: Vec::new(),
                deltas: 0,
                frames: 0,
                delta_bytes: 0,
                snapshots: 0,
                snapshot_bytes: 0,
                failures: Vec::new(),
            },
        }
    }

    /// Points by base, ascending; those that need a page that cannot be read apart from others.
    async fn groups(&mut self, spec: Option<&PointSpec>) -> Result<Vec<Vec<Point>>, RecoverError> {
        if let Some(spec) = spec {
            let point = self.recovery.resolve(spec).await?;
            return Ok(vec![vec![row(&point)]]);
        }
        let holdings = self.recovery.holdings().await?;
        for page in &holdings.unread {
            let object = page.why.object().map_or_else(String::new, ToString::to_string);
            let (reason, from) = (line(page.as_ref()), page.first);
            self.report.failures.push(Failure { object, reason, from });
        }
        let base = |point: &Point, holdings: &Holdings| {
            let base = holdings.base(point.sequence, point.epoch);
            let missing = holdings.missing_for(point.sequence, point.epoch).is_some();
            (point.epoch, base.map(|base| base.sequence), missing)
        };
        let points = holdings.list();
        let groups = points.chunk_by(|a, b| base(a, &holdings) == base(b, &holdings));
        Ok(groups.map(<[Point]>::to_vec).collect())
    }

    /// Reads base and deltas of a point. Errors that say that nothing can be said end it.
    async fn read(&mut self, point: &Arc<ResolvedPoint>) -> Result<(), RecoverError> {
        let deltas: u64 = point.deltas.iter().map(|entry| entry.object_bytes).sum();
        self.total_bytes += deltas;
        self.advance(0);
        for disk in &point.disks {
            match Base::open(self.recovery.store(), point, disk).await {
                Ok(Some(base)) => self.read_base(&base, disk).await?,
                Ok(None) => {}
                Err(error) => {
                    let object = names::seed_disk(&point.machine, &disk.name, point.epoch);
                    self.found(object.to_string(), error, Sequence::ZERO)?;
                }
            }
        }
        let recovery = self.recovery;
        let mut checked = stream::iter(point.deltas.iter().enumerate())
            .map(|(position, entry)| {
                // A task of its own, so that opening frames shares all cores.
                let checking = check_delta(Arc::clone(recovery), Arc::clone(point), position);
                let checking = tokio::spawn(checking);
                async move { (entry, checking.await) }
            })
            .buffered(STREAMS);
        while let Some((entry, delta)) = checked.next().await {
            let delta = delta.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            self.report.deltas += 1;
            self.report.frames += delta.frames;
            self.report.delta_bytes += entry.object_bytes;
            self.advance(entry.object_bytes);
            let (generation, first, last) = (entry.generation, entry.first, entry.last);
            let object = names::delta(&point.machine, generation, first, last, entry.id);
            for error in delta.errors {
                self.found(object.to_string(), error, entry.first)?;
            }
        }
        Ok(())
    }

    async fn read_base(&mut self, base: &Base, disk: &DiskSpec) -> Result<(), RecoverError> {
        let ranges = match base.ranges(disk.size_bytes).await {
            Ok(ranges) => ranges,
            Err(error) => return self.found(base.name(), error, Sequence::ZERO),
        };
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        self.total_bytes += bytes;
        self.report.snapshots += 1;
        self.report.snapshot_bytes += bytes;
        let mut reads = stream::iter(ranges.into_iter().flat_map(steps))
            .map(|piece| async move {
                let length = piece.end - piece.start;
                (length, base.read(piece.start, length).await)
            })
            .buffered(STREAMS);
        while let Some((length, read)) = reads.next().await {
            self.advance(length);
            if let Err(error) = read {
                self.found(base.name(), error, Sequence::ZERO)?;
            }
        }
        Ok(())
    }

    fn advance(&mut self, bytes: u64) {
        self.done_bytes += bytes;
        (self.progress)(Progress { done_bytes: self.done_bytes, total_bytes: self.total_bytes });
    }

    /// A store that does not answer proves nothing about what it holds.
    fn found(
        &mut self,
        object: String,
        error: RecoverError,
        from: Sequence,
    ) -> Result<(), RecoverError> {
        if error.class() == Class::Retry {
            return Err(error);
        }
        self.fail(object, &error, from);
        Ok(())
    }

    fn fail(&mut self, object: String, error: &RecoverError, from: Sequence) {
        let reason = error.line();
        self.report.failures.push(Failure { object, reason, from });
    }

    /// Each point of a group by the failures found for that group.
    fn judge(&mut self, group: &[Point], first_failure: usize) {
        let failures = &self.report.failures[first_failure..];
        let bad: BTreeSet<Sequence> = failures.iter().map(|failure| failure.from).collect();
        let points = group.iter().map(|point| PointReport {
            sequence: point.sequence.0,
            name: point.name.clone(),
            good: !bad.iter().any(|from| *from <= point.sequence),
        });
        self.report.points.extend(points);
    }
}

/// The row of a point, made up for a place between bookmarks.
fn row(point: &ResolvedPoint) -> Point {
    point.point.clone().unwrap_or_else(|| Point {
        sequence: point.sequence,
        epoch: point.epoch,
        bookmark: String::new(),
        name: String::new(),
        kind: crate::model::BookmarkKind::CrashConsistent,
        time: crate::model::Timestamp::default(),
        stored: super::Stored::CloudLog,
        pinned: false,
    })
}

fn steps(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    let starts = range.step_by(READ_BYTES as usize);
    starts.map(move |start| start..end.min(start + READ_BYTES))
}

/// Opens a delta and every one of its frames, several with one request; a bad frame does not hide
/// the next.
async fn check_delta(
    recovery: Arc<Recovery>,
    point: Arc<ResolvedPoint>,
    position: usize,
) -> DeltaChecked {
    let mut checked = DeltaChecked { frames: 0, errors: Vec::new() };
    let entry = &point.deltas[position];
    let delta = match recovery.delta_of(&point, entry, point.previous(position)).await {
        Ok(delta) => delta,
        Err(error) => {
            checked.errors.push(error);
            return checked;
        }
    };
    let (store, frames) = (recovery.store().as_ref(), &delta.index().frames);
    let mut next = 0;
    while next < frames.len() {
        let limit = frames[next].offset + READ_BYTES;
        let count = frames[next..].iter().take_while(|frame| frame.end() <= limit).count().max(1);
        let range = next as u32..(next + count) as u32; // a delta has at most 65,536
        next += count;
        if delta.frames_range(store, range.clone()).await.is_ok() {
            checked.frames += count as u64;
            continue;
        }
        for number in range {
            match delta.frame(store, number).await {
                Ok(_) => checked.frames += 1,
                Err(error) => checked.errors.push(error.into()),
            }
        }
    }
    checked
}
