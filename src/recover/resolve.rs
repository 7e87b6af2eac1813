//! From a point that somebody named to everything that must be read for it. Pure.
//!
//! Owns: choosing the base, that the log from base to point is whole. Does not own: reading.

use std::sync::Arc;

use super::RecoverError;
use super::list::{Holdings, Point};
use super::point::PointSpec;
use crate::cloud_log::UnreadPage;
use crate::format::manifest::DeltaEntry;
use crate::model::{BookmarkKind, DeltaId, DiskName, DiskSpec, Epoch, MachineId, Sequence};
use crate::vault::SnapshotPoint;

/// Why a delta cannot be cut.
const FOLDED: &str = "it lies inside a delta in which overwritten writes were folded \
                      (set the policy's keep_every_write to keep them from now on)";

/// A point and what makes it.
#[derive(Clone, Debug)]
pub struct ResolvedPoint {
    /// Whose.
    pub machine: MachineId,
    /// Everything up to here is in it, nothing after.
    pub sequence: Sequence,
    /// Its epoch.
    pub epoch: Epoch,
    /// The bookmark it is; `None` for a place between bookmarks.
    pub point: Option<Point>,
    /// The machine's disks at that point.
    pub disks: Vec<DiskSpec>,
    /// The snapshot that lies under the deltas; `None`: they begin with the epoch.
    pub base: Option<SnapshotPoint>,
    /// Deltas after the base through the point, ascending and gapless. The last one may reach
    /// beyond the point; its later entries are left out.
    pub deltas: Vec<DeltaEntry>,
    /// The delta before the first of them, where the manifest still names it.
    pub(super) before: Option<DeltaId>,
}

impl ResolvedPoint {
    /// One disk of the point.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn disk(&self, name: &DiskName) -> Result<&DiskSpec, RecoverError> {
        let found = self.disks.iter().find(|disk| disk.name == *name);
        found.ok_or_else(|| {
            let names: Vec<_> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
            RecoverError::NoDisk {
                machine: self.machine.clone(),
                disk: name.clone(),
                sequence: self.sequence,
                known: names.join(", "),
            }
        })
    }

    /// The delta that reaches beyond the point, if one does: it may have lost what later writes
    /// covered.
    fn cut(&self) -> Option<&DeltaEntry> {
        self.deltas.last().filter(|last| last.last > self.sequence)
    }

    /// The id that the delta at `position` must chain to, where it is known.
    pub(super) fn previous(&self, position: usize) -> Option<DeltaId> {
        match position.checked_sub(1) {
            Some(before) => self.deltas.get(before).map(|entry| entry.id),
            None => self.before,
        }
    }
}

impl Holdings {
    /// Finds the point that `spec` means. A page that cannot be read takes away what needs it and nothing
    /// else, and never makes an older point pass for the one that was asked for.
    pub(super) fn resolve(
        &self,
        machine: &MachineId,
        spec: &PointSpec,
    ) -> Result<ResolvedPoint, RecoverError> {
        let mut points = self.list();
        let wanted = |point: &Point| match spec {
            PointSpec::Latest => true,
            PointSpec::LatestProcessed => point.stored != super::Stored::CloudLog,
            PointSpec::LatestApp => point.kind == BookmarkKind::ApplicationConsistent,
            PointSpec::Name(name) => point.name == *name,
            PointSpec::Sequence(sequence) => point.sequence == *sequence,
            PointSpec::Time(time) => point.time <= *time,
        };
        let position = points.iter().rposition(wanted);
        if let Some(page) = self.hides(spec, &points, position) {
            return Err(RecoverError::Hidden {
                machine: machine.clone(),
                wanted: spec.to_string(),
                known: match position.map(|position| points[position].sequence) {
                    Some(sequence) => format!("the newest that is known is seq:{sequence}"),
                    None => known(&points),
                },
                page: Arc::clone(page),
            });
        }
        if let Some(position) = position {
            let point = points.swap_remove(position);
            let (sequence, epoch) = (point.sequence, point.epoch);
            return self.reach(machine, sequence, epoch, Some(point));
        }
        match spec {
            PointSpec::Sequence(sequence) => self.between(machine, *sequence, &points),
            _ => Err(RecoverError::NoPoint {
                machine: machine.clone(),
                wanted: spec.to_string(),
                known: known(&points),
            }),
        }
    }

    /// The page that cannot be read and may name a point that `spec` means rather than the one of
    /// `points` that was found: then that is not given in its place.
    fn hides(
        &self,
        spec: &PointSpec,
        points: &[Point],
        found: Option<usize>,
    ) -> Option<&Arc<UnreadPage>> {
        let after = found.map_or(Sequence::ZERO, |found| points[found].sequence);
        let before = match spec {
            // One place, or snapshots: those are known.
            PointSpec::Sequence(_) | PointSpec::LatestProcessed => return None,
            // The next one that is known is too late already.
            PointSpec::Time(_) => points.get(found.map_or(0, |found| found + 1)),
            PointSpec::Latest | PointSpec::LatestApp | PointSpec::Name(_) => None,
        };
        let before = before.map_or(Sequence(u64::MAX), |point| point.sequence);
        self.unread.iter().find(|page| page.last > after && page.first < before)
    }

    /// A place that is no bookmark.
    fn between(
        &self,
        machine: &MachineId,
        sequence: Sequence,
        points: &[Point],
    ) -> Result<ResolvedPoint, RecoverError> {
        let refuse = |reason| Err(not_a_point(machine, sequence, reason, points));
        let holder =
            self.entries.iter().find(|entry| entry.first <= sequence && sequence <= entry.last);
        let holds = |page: &&Arc<UnreadPage>| page.first <= sequence && sequence <= page.last;
        if let Some(page) = self.unread.iter().find(holds) {
            let (machine, page) = (machine.clone(), Arc::clone(page));
            return Err(RecoverError::Unread { machine, sequence, page });
        }
        let Some(entry) = holder else {
            return refuse("the cloud log does not hold it");
        };
        if entry.catch_up {
            return refuse("a catch-up ran there, so the writes are not in order");
        }
        if self.epoch(entry.epoch).is_some_and(|epoch| epoch.first == sequence) {
            return refuse("an epoch begins there, and nothing of its disks was copied yet");
        }
        if self.base(sequence, entry.epoch).is_none() && !self.begins(entry.epoch) {
            return refuse("what it builds on is no longer kept");
        }
        self.reach(machine, sequence, entry.epoch, None)
    }

    /// Everything from the base to `sequence`.
    fn reach(
        &self,
        machine: &MachineId,
        sequence: Sequence,
        epoch: Epoch,
        point: Option<Point>,
    ) -> Result<ResolvedPoint, RecoverError> {
        let base = self.base(sequence, epoch).cloned();
        let broken = |field, found: String, expected: String| RecoverError::Chain {
            machine: machine.clone(),
            sequence,
            field,
            found,
            expected,
        };
        let Some(after) = self.log_after(sequence, epoch) else {
            let text = "neither a snapshot nor a beginning";
            return Err(broken("base", text.to_owned(), format!("one of epoch {epoch}")));
        };
        if let Some(page) = self.missing_for(sequence, epoch) {
            let (machine, page) = (machine.clone(), Arc::clone(page));
            return Err(RecoverError::Unread { machine, sequence, page });
        }
        let disks = self.disks(epoch, base.as_ref());
        let needed = |entry: &&DeltaEntry| entry.last > after && entry.first <= sequence;
        let deltas: Vec<_> = self.entries.iter().filter(needed).cloned().collect();
        let mut end = after;
        for delta in &deltas {
            let (found, expected) = (delta.first, end.next());
            if found != expected {
                return Err(broken("first of a delta", found.to_string(), expected.to_string()));
            }
            if delta.epoch != epoch {
                let (found, expected) = (delta.epoch.to_string(), epoch.to_string());
                return Err(broken("epoch of a delta", found, expected));
            }
            end = delta.last;
        }
        if end < sequence {
            let expected = format!("{sequence} or more");
            return Err(broken("end of the log", end.to_string(), expected));
        }
        let before = self.entries.iter().find(|entry| entry.last == after);
        let resolved = ResolvedPoint {
            machine: machine.clone(),
            sequence,
            epoch,
            point,
            disks,
            base,
            deltas,
            before: before.map(|entry| entry.id),
        };
        match resolved.cut() {
            Some(entry) if !entry.keeps_every_write => {
                Err(not_a_point(machine, sequence, FOLDED, &self.list()))
            }
            _ => Ok(resolved),
        }
    }

    fn disks(&self, epoch: Epoch, base: Option<&SnapshotPoint>) -> Vec<DiskSpec> {
        match (self.epoch(epoch), base) {
            (Some(entry), _) => entry.disks.clone(),
            (None, base) => {
                let disks = base.iter().flat_map(|base| &base.disks);
                let spec = |disk: &crate::vault::SnapshotDisk| DiskSpec {
                    index: disk.disk(),
                    name: disk.name.clone(),
                    size_bytes: disk.size_bytes,
                };
                disks.map(spec).collect()
            }
        }
    }
}

fn known(points: &[Point]) -> String {
    match (points.first(), points.last()) {
        (Some(first), Some(last)) => format!(
            "it has {} from sequence {} ({}) to {} ({}): see `holdfast points`",
            points.len(),
            first.sequence,
            first.time,
            last.sequence,
            last.time
        ),
        _ => "it has none yet: initial replication may still run".to_owned(),
    }
}

fn not_a_point(
    machine: &MachineId,
    sequence: Sequence,
    reason: &'static str,
    points: &[Point],
) -> RecoverError {
    let before = points.iter().rfind(|point| point.sequence < sequence);
    let after = points.iter().find(|point| point.sequence > sequence);
    let around: Vec<_> = [before, after]
        .into_iter()
        .flatten()
        .map(|point| format!("seq:{}", point.sequence))
        .collect();
    let nearest = match around.as_slice() {
        [] => "there is no bookmark near it".to_owned(),
        around => format!("the nearest bookmarks are {}", around.join(" and ")),
    };
    RecoverError::NotAPoint { machine: machine.clone(), sequence, reason, nearest }
}
