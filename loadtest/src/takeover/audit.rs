//! The proof: points of every machine read back from the store with the key, and held against what was
//! written.

use std::sync::PoisonError;
use std::time::Duration;

use holdfast::cli::site::Site;
use holdfast::clock::System;
use holdfast::model::{Sequence, Timestamp};
use holdfast::recover::{CACHE_BYTES, DiskReader, Pin, Point, PointSpec, RecoverError};

use super::machine::{DISK, Machine};
use crate::error::LoadError;

/// Bytes read at once.
const WINDOW: u64 = 4 << 20;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Audited {
    /// Points that exist, over all machines.
    pub(crate) points: u64,
    /// Points that were read back and compared.
    pub(crate) compared: u64,
    pub(crate) bytes: u64,
    /// When writing began: before, nothing changed and no point was due.
    pub(crate) since: Timestamp,
    /// Longest time between two points of a machine, by its own clock.
    pub(crate) longest_gap: Duration,
}

impl Audited {
    pub(crate) fn since(since: Timestamp) -> Self {
        Self { points: 0, compared: 0, bytes: 0, since, longest_gap: Duration::ZERO }
    }

    /// One machine: the point at `last`, which must hold everything, and up to `others` more.
    pub(crate) async fn machine(
        &mut self,
        site: &Site,
        machine: &Machine,
        last: Sequence,
        others: usize,
    ) -> Result<(), LoadError> {
        let recovery = site.recovery(&machine.id).await;
        let recovery = recovery.map_err(LoadError::site("opening the store for the audit"))?;
        let broken = |what: String| LoadError::Broken { machine: machine.id.to_string(), what };
        let recover = |error: RecoverError| broken(holdfast::observe::error_chain(&error));
        let points = recovery.points().await.map_err(recover)?;
        self.points += points.len() as u64;
        self.longest_gap = self.longest_gap.max(longest_gap(&points, self.since));
        let earlier: Vec<_> = points.iter().filter(|point| point.sequence < last).collect();
        let step = earlier.len().div_ceil(others.max(1)).max(1);
        let chosen = earlier.iter().rev().step_by(step).take(others).map(|point| point.sequence);
        for sequence in chosen.chain([last]) {
            let spec = PointSpec::Sequence(sequence);
            let image = async {
                let taken = Pin::take(&recovery, &spec, &System::clock(), &System).await;
                let (point, pin) = taken?;
                let disk = DISK.parse().expect("a legal name");
                let reader = DiskReader::open(&recovery, &point, &disk, CACHE_BYTES).await?;
                let mut image = Vec::with_capacity(reader.size_bytes() as usize);
                while (image.len() as u64) < reader.size_bytes() {
                    let at = image.len() as u64;
                    let length = WINDOW.min(reader.size_bytes() - at);
                    image.extend_from_slice(&reader.read(at, length).await?);
                }
                pin.release().await;
                Ok(image)
            };
            let image: Vec<u8> = image.await.map_err(recover)?;
            let history = machine.history.lock().unwrap_or_else(PoisonError::into_inner);
            let through = history.check(&image);
            let through = through.map_err(|what| broken(format!("point {sequence}: {what}")))?;
            if sequence == last && through != history.last() {
                let written = history.last();
                return Err(broken(format!(
                    "the last point ends at {through} of {written} writes"
                )));
            }
            self.compared += 1;
            self.bytes += image.len() as u64;
        }
        Ok(())
    }
}

fn longest_gap(points: &[Point], since: Timestamp) -> Duration {
    let gaps = points.windows(2).map(|pair| pair[1].time.0 - pair[0].time.0.max(since.0));
    Duration::from_micros(u64::try_from(gaps.max().unwrap_or(0)).unwrap_or(0))
}
