//! Leases, on either kind of blob.

use azure_storage_blob::models::{BlobClientAcquireLeaseOptions, BlobClientBreakLeaseOptions};

use super::call::lease_text;
use super::{Azure, Effect, LeaseId, ObjectName, Result, StoreError};
use crate::store::LEASE_SECONDS;

impl Azure {
    /// Repeated by its holder it succeeds: the id is proposed, so the first answer may be lost.
    pub(super) async fn acquire(
        &self,
        name: &ObjectName,
        lease: LeaseId,
        seconds: u32,
    ) -> Result<()> {
        if !LEASE_SECONDS.contains(&seconds) {
            let rule = format!("a lease of {seconds} s; {LEASE_SECONDS:?} s are allowed");
            return Err(self.about(name).refused(rule));
        }
        let proposed_lease_id = Some(lease_text(lease));
        let options = BlobClientAcquireLeaseOptions { proposed_lease_id, ..Default::default() };
        let seconds = i32::try_from(seconds).expect("at most 60");
        let answer = self.blob(name).acquire_lease(seconds, Some(options)).await;
        self.told(name, Effect::Changes, answer).map(drop)
    }

    pub(super) async fn renew(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        let answer = self.blob(name).renew_lease(lease_text(lease), None).await;
        self.told(name, Effect::Changes, answer).map(drop)
    }

    /// At once. Breaking what nobody holds is fine.
    pub(super) async fn end_lease(&self, name: &ObjectName) -> Result<()> {
        let options = BlobClientBreakLeaseOptions { break_period: Some(0), ..Default::default() };
        let answer = self.blob(name).break_lease(Some(options)).await;
        match &answer {
            Err(error) if code(error) == "LeaseNotPresentWithLeaseOperation" => Ok(()),
            _ => self.told(name, Effect::Changes, answer).map(drop),
        }
    }

    /// Giving back what nobody holds is fine: the first answer may have been lost.
    pub(super) async fn give_back(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        let answer = self.blob(name).release_lease(lease_text(lease), None).await;
        match self.told(name, Effect::Changes, answer) {
            Err(error @ StoreError::Fenced { .. }) => {
                match self.see(name, None).await?.properties {
                    held if held.leased => Err(error),
                    _ => Ok(()),
                }
            }
            told => told.map(drop),
        }
    }
}

fn code(error: &azure_core::Error) -> &str {
    match error.kind() {
        azure_core::error::ErrorKind::HttpResponse { error_code, .. } => {
            error_code.as_deref().unwrap_or_default()
        }
        _ => "",
    }
}
