//! One machine, seen from the side of recovery: needs the store and the key, nothing that runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::RecoverError;
use super::error::line;
use super::list::{Holdings, Point};
use super::point::PointSpec;
use super::resolve::ResolvedPoint;
use crate::cloud_log::LogStore;
use crate::format::manifest::DeltaEntry;
use crate::model::{Change, DeltaId, EpochBegin, MachineId, Sequence};
use crate::seal::{KeyEncryptionKey, KeyRing, OpenDelta};
use crate::store::Store;
use crate::vault::Vault;

/// Purpose of the key under which the vault's documents are authenticated.
const VAULT_KEY: &str = "holdfast vault 1";

/// Reads one machine's points.
pub struct Recovery {
    log: LogStore,
    vault: Vault,
    /// Whether it was said already that a page cannot be read.
    warned: AtomicBool,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recovery({} in {})", self.machine(), self.store().describe())
    }
}

impl Recovery {
    /// Opens the machine's keys.
    ///
    /// # Errors
    /// When the machine is unknown, the key is another, or the store does not answer.
    pub async fn open(
        store: Arc<dyn Store>,
        key: &KeyEncryptionKey,
        machine: &MachineId,
    ) -> Result<Self, RecoverError> {
        let vault = Vault::new(Arc::clone(&store), key.derive(VAULT_KEY));
        let Some(document) = vault.machine(machine).await? else {
            let machine = machine.clone();
            return Err(RecoverError::NoMachine { machine });
        };
        let keys = KeyRing::unwrap(key, &document)?;
        Ok(Self::new(LogStore::new(store, machine.clone(), keys), vault))
    }

    /// Over a log and a vault that are open already.
    #[must_use]
    pub fn new(log: LogStore, vault: Vault) -> Self {
        Self { log, vault, warned: AtomicBool::new(false) }
    }

    /// Whose points.
    #[must_use]
    pub fn machine(&self) -> &MachineId {
        self.log.machine()
    }

    /// Where they are.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        self.log.store()
    }

    /// The control plane's documents.
    #[must_use]
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// All recovery points, oldest first.
    ///
    /// # Errors
    /// When manifest or points document cannot be read or believed. Of a page that cannot, the
    /// bookmarks are left out, with a warning.
    pub async fn points(&self) -> Result<Vec<Point>, RecoverError> {
        Ok(self.holdings().await?.list())
    }

    /// Finds a point and everything it needs. Hold a [`super::Pin`] while using it; better, let
    /// [`super::Pin::take`] do both.
    ///
    /// # Errors
    /// When there is no such point (naming what there is), or its chain is broken.
    pub async fn resolve(&self, spec: &PointSpec) -> Result<ResolvedPoint, RecoverError> {
        self.holdings().await?.resolve(self.machine(), spec)
    }

    /// What the store holds now. The manifest is read first: whatever retention removes meanwhile
    /// then shows as missing instead of being served from an older view.
    pub(super) async fn holdings(&self) -> Result<Holdings, RecoverError> {
        let Some((manifest, _)) = self.log.manifest().await? else {
            let points = self.vault.points(self.machine()).await?;
            return Ok(Holdings {
                points: points.map(|(points, _)| points),
                ..Holdings::default()
            });
        };
        let log = self.log.legible(&manifest, manifest.truncated).await?;
        let points = self.vault.points(self.machine()).await?;
        let holdings = Holdings::of(manifest, log, points.map(|(points, _)| points));
        if let Some(page) = holdings.unread.first()
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            let (machine, text) = (self.machine(), line(page.as_ref()));
            tracing::warn!(%machine, %text, "points that need it are out of reach");
        }
        Ok(holdings)
    }

    /// Opens one delta of a point: header, key, index and its place in the chain are proven. The
    /// first delta of a machine chains to none; where an epoch begins, its delta says so itself.
    pub(super) async fn delta_of(
        &self,
        point: &ResolvedPoint,
        entry: &DeltaEntry,
        previous: Option<DeltaId>,
    ) -> Result<OpenDelta, RecoverError> {
        let delta = self.log.open_delta(entry, previous).await?;
        let broken = |field, found: String, expected: String| {
            Err(RecoverError::Chain {
                machine: point.machine.clone(),
                sequence: point.sequence,
                field,
                found,
                expected,
            })
        };
        let chained = delta.header().previous;
        if let (Sequence(1), Some(id)) = (entry.first, chained) {
            return broken("previous of the first delta", id.to_string(), "none".to_owned());
        }
        let begins = point.base.is_none() && point.deltas.first().is_some_and(|d| d.id == entry.id);
        if begins {
            let expected =
                Change::EpochBegin(EpochBegin { epoch: point.epoch, disks: point.disks.clone() });
            let first = delta.index().marks.first();
            if first.is_none_or(|m| m.sequence != entry.first || m.change != expected) {
                let found = first.map_or("none".to_owned(), |mark| format!("{:?}", mark.change));
                return broken("first record of the epoch", found, format!("{expected:?}"));
            }
        }
        Ok(delta)
    }
}
