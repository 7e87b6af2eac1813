//! Machines, and what hangs on each: its document, its points, its pins.

use serde::{Deserialize, Serialize};

use super::{
    CertificateEntry, MachineDocument, PinDocument, PointsDocument, Policy, PolicyBounds, Vault,
    VaultError,
};
use crate::format::names;
use crate::model::{BookmarkId, MachineId};
use crate::store::ETag;

/// `vault/machines/<machine>`: the roll of machines, so that listing them does not list every delta.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollEntry {
    machine: MachineId,
}

impl Vault {
    /// All machines by name.
    ///
    /// # Errors
    /// The store's error.
    pub async fn machines(&self) -> Result<Vec<MachineId>, VaultError> {
        let listed = self.list(names::MACHINE_ROLL).await?;
        Ok(listed.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// A machine's document; `None` when it is not enrolled.
    ///
    /// # Errors
    /// When it was altered or the store does not answer.
    pub async fn machine(
        &self,
        machine: &MachineId,
    ) -> Result<Option<MachineDocument>, VaultError> {
        let read = self.read(&names::machine_document(machine)).await?;
        Ok(read.map(|(document, _)| document))
    }

    /// Makes a machine's document and puts it on the roll.
    ///
    /// # Errors
    /// `Exists` when it is enrolled; or the store's error.
    pub async fn create_machine(&self, document: &MachineDocument) -> Result<(), VaultError> {
        let machine = &document.machine;
        self.create(&names::machine_document(machine), document).await?;
        self.enter_on_roll(machine).await
    }

    /// Puts an enrolled machine on the roll. Repeated by every enrolment: the first may have been
    /// killed between document and roll.
    pub(super) async fn enter_on_roll(&self, machine: &MachineId) -> Result<(), VaultError> {
        let entry = RollEntry { machine: machine.clone() };
        match self.create(&names::machine_roll_entry(machine), &entry).await {
            Ok(_) | Err(VaultError::Exists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes a machine's document by compare-and-swap.
    ///
    /// # Errors
    /// `Missing` when it is not enrolled, what `change` refuses with, or the store's error.
    pub async fn update_machine(
        &self,
        machine: &MachineId,
        change: impl FnMut(MachineDocument) -> Result<MachineDocument, VaultError>,
    ) -> Result<MachineDocument, VaultError> {
        let name = names::machine_document(machine);
        Ok(self.update(&name, change).await?.0)
    }

    /// Gives a machine another policy.
    ///
    /// # Errors
    /// `Policy` with every broken rule; else as [`Self::update_machine`].
    pub async fn update_policy(
        &self,
        machine: &MachineId,
        policy: Policy,
        bounds: PolicyBounds,
    ) -> Result<MachineDocument, VaultError> {
        policy.check(bounds)?;
        self.update_machine(machine, |document| {
            Ok(MachineDocument { policy: policy.clone(), ..document })
        })
        .await
    }

    /// Records a certificate that was issued for a machine.
    ///
    /// # Errors
    /// As [`Self::update_machine`].
    pub async fn add_certificate(
        &self,
        machine: &MachineId,
        certificate: CertificateEntry,
    ) -> Result<MachineDocument, VaultError> {
        let updated = self.update_machine(machine, |mut document| {
            document.certificates.push(certificate.clone());
            Ok(document)
        });
        let document = updated.await?;
        self.enter_on_roll(machine).await?;
        Ok(document)
    }

    /// What the applier did for a machine, with its version; `None` before its first start.
    ///
    /// # Errors
    /// When it was altered or the store does not answer.
    pub async fn points(
        &self,
        machine: &MachineId,
    ) -> Result<Option<(PointsDocument, ETag)>, VaultError> {
        self.read(&names::points_document(machine)).await
    }

    /// Changes a machine's points document by compare-and-swap; `change` gets an empty one (applier
    /// generation 0) when there is none yet.
    ///
    /// # Errors
    /// What `change` refuses with, or the store's error.
    pub async fn update_points(
        &self,
        machine: &MachineId,
        change: impl FnMut(PointsDocument) -> Result<PointsDocument, VaultError>,
    ) -> Result<PointsDocument, VaultError> {
        Ok(self.update_points_known(machine, None, change).await?.0)
    }

    /// Like [`Self::update_points`], beginning with the version that was read or written last.
    ///
    /// # Errors
    /// As there.
    pub async fn update_points_known(
        &self,
        machine: &MachineId,
        known: Option<(PointsDocument, ETag)>,
        change: impl FnMut(PointsDocument) -> Result<PointsDocument, VaultError>,
    ) -> Result<(PointsDocument, ETag), VaultError> {
        let name = names::points_document(machine);
        let known = match known {
            Some(known) => Some(known),
            None => self.points(machine).await?,
        };
        if known.is_none() {
            let empty = PointsDocument {
                machine: machine.clone(),
                applier_generation: 0,
                epoch: 0,
                applied: 0,
                applied_delta: None,
                applying: 0,
                truncate_through: 0,
                snapshots: Vec::new(),
                pinned: Vec::new(),
                quarantine: None,
            };
            match self.create(&name, &empty).await {
                Ok(_) | Err(VaultError::Exists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.update_known(&name, known, change).await
    }

    /// Writes a machine's points document if it is still the version that `expected` names, and
    /// gives the new one. `None` when somebody else changed it: then whatever was decided on it must
    /// be decided anew.
    ///
    /// # Errors
    /// The store's error.
    pub async fn swap_points(
        &self,
        machine: &MachineId,
        expected: &ETag,
        next: &PointsDocument,
    ) -> Result<Option<ETag>, VaultError> {
        self.swap(&names::points_document(machine), expected, next).await
    }

    /// Writes a machine's points document again as it is. Its version is another then, so that
    /// [`Self::swap_points`] on a version seen before fails. Returns what it says.
    ///
    /// # Errors
    /// The store's error.
    pub async fn touch_points(&self, machine: &MachineId) -> Result<PointsDocument, VaultError> {
        self.update_points(machine, Ok).await
    }

    /// Keeps a bookmark past its time, or lets it go.
    ///
    /// # Errors
    /// The store's error.
    pub async fn keep_bookmark(
        &self,
        machine: &MachineId,
        bookmark: BookmarkId,
        keep: bool,
    ) -> Result<PointsDocument, VaultError> {
        let id = bookmark.to_string();
        let change = |mut document: PointsDocument| {
            document.pinned.retain(|pinned| *pinned != id);
            if keep {
                document.pinned.push(id.clone());
            }
            Ok(document)
        };
        self.update_points(machine, change).await
    }

    /// Makes or renews the pin of a running recovery.
    ///
    /// # Errors
    /// The store's error.
    pub async fn write_pin(
        &self,
        machine: &MachineId,
        id: &str,
        pin: &PinDocument,
    ) -> Result<(), VaultError> {
        self.replace(&names::pin(machine, id), pin).await?;
        Ok(())
    }

    /// Removes a pin; one that is gone already is no error.
    ///
    /// # Errors
    /// The store's error.
    pub async fn remove_pin(&self, machine: &MachineId, id: &str) -> Result<(), VaultError> {
        self.delete(&names::pin(machine, id)).await?;
        Ok(())
    }

    /// All pins of a machine, the expired ones too.
    ///
    /// # Errors
    /// When one was altered or the store does not answer.
    pub async fn pins(
        &self,
        machine: &MachineId,
    ) -> Result<Vec<(String, PinDocument)>, VaultError> {
        let mut pins = Vec::new();
        for id in self.list(&names::pins(machine)).await? {
            if let Some((pin, _)) = self.read(&names::pin(machine, &id)).await? {
                pins.push((id, pin));
            }
        }
        Ok(pins)
    }
}
