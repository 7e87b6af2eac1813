//! The proof: every disk read back from the store at the last bookmark, every byte compared.
//!
//! Needs the store and the key, nothing that runs: the embedded server has ended before.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use holdfast::cli::site::Site;
use holdfast::clock::System;
use holdfast::model::{DiskSpec, MachineId, Sequence};
use holdfast::recover::{DiskReader, Pin, PointSpec, RecoverError};

use super::content::Content;
use super::ledger::Ledger;
use crate::error::LoadError;

/// Bytes read and compared at once.
const WINDOW: u64 = 1 << 20;
/// Opened frames that one reader keeps.
const CACHE_BYTES: u64 = 16 << 20;
/// Machines at once.
const AT_ONCE: usize = 2;

/// What the audit found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error(
        "disk {disk}, byte {at}: what was recovered at record {sequence} is not what was written \
         there last"
    )]
    Difference { disk: String, at: u64, sequence: Sequence },
    #[error("it cannot be recovered")]
    Recover(#[source] Box<RecoverError>),
    #[error("it has no last bookmark")]
    NoBookmark,
}

impl From<RecoverError> for AuditError {
    fn from(error: RecoverError) -> Self {
        Self::Recover(Box::new(error))
    }
}

/// What one machine must hold at which record.
pub(crate) struct Expected {
    pub(crate) machine: MachineId,
    pub(crate) disks: Vec<DiskSpec>,
    pub(crate) sequence: Sequence,
    pub(crate) ledger: Ledger,
}

/// Compares all of them; bytes that were compared.
pub(crate) async fn audit(
    site: &Site,
    content: &Content,
    machines: Vec<Expected>,
    done: impl Fn(u64),
) -> Result<u64, LoadError> {
    let done = &done;
    let compared = stream::iter(machines).map(|expected| async move {
        let machine = expected.machine.to_string();
        let recovery = site.recovery(&expected.machine).await;
        let recovery = recovery.map_err(LoadError::site("opening the store for the audit"))?;
        let spec = PointSpec::Sequence(expected.sequence);
        let compared = async {
            let (point, pin) = Pin::take(&recovery, &spec, &System::clock(), &System).await?;
            let mut bytes = 0;
            for (number, disk) in expected.disks.iter().enumerate() {
                let reader = DiskReader::open(&recovery, &point, &disk.name, CACHE_BYTES).await?;
                bytes += compare(&reader, &expected, number, content, done).await?;
            }
            pin.release().await;
            Ok::<_, AuditError>(bytes)
        };
        compared.await.map_err(|source| LoadError::Audit { machine, source })
    });
    let all: Vec<u64> = compared.buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(all.into_iter().sum())
}

/// One disk: wherever something was written, and wherever something was found.
async fn compare(
    reader: &DiskReader,
    expected: &Expected,
    disk: usize,
    content: &Content,
    done: &impl Fn(u64),
) -> Result<u64, AuditError> {
    let windows = |range: std::ops::Range<u64>| range.start / WINDOW..range.end.div_ceil(WINDOW);
    let written = expected.ledger.written(disk).flat_map(windows);
    let found = reader.ranges().await?.iter().cloned().flat_map(windows);
    let all: BTreeSet<u64> = written.chain(found).collect();
    let mut compared = 0;
    for window in all {
        let (at, end) = (window * WINDOW, ((window + 1) * WINDOW).min(reader.size_bytes()));
        let bytes = reader.read(at, end - at).await?;
        if let Some(at) = expected.ledger.difference(disk, at, &bytes, content) {
            let disk = expected.disks[disk].name.to_string();
            return Err(AuditError::Difference { disk, at, sequence: expected.sequence });
        }
        compared += end - at;
        done(end - at);
    }
    Ok(compared)
}
