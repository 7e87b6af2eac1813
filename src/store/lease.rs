//! Leases of objects and guards of page blobs: one set of rules for every store that keeps them itself.
//!
//! Time decides only when somebody *else* may take a lease; that a former owner is refused follows
//! from ids and sequence numbers, so a clock that jumps costs waiting, never a lost write.

use serde::{Deserialize, Serialize};

use super::rules::About;
use super::{LeaseId, PageGuard, Result};
use crate::model::Timestamp;

/// Shortest and longest lease, seconds (Azure).
pub const LEASE_SECONDS: std::ops::RangeInclusive<u32> = 15..=60;

/// Who may change an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ownership {
    /// Only ever raised.
    pub(crate) sequence_number: u64,
    /// The last lease given; it may have run out.
    pub(crate) lease: Option<Lease>,
}

/// A lease that was given and not given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lease {
    /// 32 hexadecimal digits.
    id: String,
    /// Its length.
    seconds: u32,
    /// Wall clock when it was taken or last renewed.
    since: Timestamp,
}

impl Lease {
    /// Running at `now`. A clock that was set back by more than the lease is long ends it, too:
    /// else a wrong clock could lock a disk for years.
    fn runs(&self, now: Timestamp) -> bool {
        let end = self.since.plus_seconds(i64::from(self.seconds));
        let earliest = self.since.plus_seconds(-i64::from(self.seconds));
        earliest <= now && now < end
    }
}

fn text(id: LeaseId) -> String {
    hex::encode(id.0)
}

impl Ownership {
    fn running(&self, now: Timestamp) -> Option<&Lease> {
        self.lease.as_ref().filter(|lease| lease.runs(now))
    }

    /// Whether anybody's lease runs at `now`.
    pub(crate) fn leased(&self, now: Timestamp) -> bool {
        self.running(now).is_some()
    }

    /// A block blob is changed. Without a lease only what nobody holds; that ends a lease that ran
    /// out for good: its holder must not renew it and believe that nothing happened (Azure).
    pub(crate) fn check_change(
        &mut self,
        about: About<'_>,
        id: Option<LeaseId>,
        now: Timestamp,
    ) -> Result<()> {
        self.check_removal(about, id, now)?;
        if id.is_none() {
            self.lease = None;
        }
        Ok(())
    }

    /// The guard must name the running lease and the present sequence number.
    pub(crate) fn check(&self, about: About<'_>, guard: &PageGuard, now: Timestamp) -> Result<()> {
        self.check_lease(about, guard.lease, now)?;
        if self.sequence_number != guard.sequence_number {
            return Err(about.fenced(format!(
                "its sequence number is {}, the write carries {}",
                self.sequence_number, guard.sequence_number
            )));
        }
        Ok(())
    }

    /// `id` must be the running lease.
    pub(crate) fn check_lease(&self, about: About<'_>, id: LeaseId, now: Timestamp) -> Result<()> {
        let asked = text(id);
        match self.running(now) {
            Some(lease) if lease.id == asked => Ok(()),
            Some(lease) => Err(about.fenced(format!("lease {} holds it, not {asked}", lease.id))),
            None => Err(about.fenced(format!("lease {asked} has ended"))),
        }
    }

    /// Without a lease only what nobody holds may be removed.
    pub(crate) fn check_removal(
        &self,
        about: About<'_>,
        id: Option<LeaseId>,
        now: Timestamp,
    ) -> Result<()> {
        match (id, self.running(now)) {
            (Some(id), _) => self.check_lease(about, id, now),
            (None, None) => Ok(()),
            (None, Some(lease)) => Err(about.fenced(format!("lease {} holds it", lease.id))),
        }
    }

    pub(crate) fn acquire(
        &mut self,
        about: About<'_>,
        id: LeaseId,
        seconds: u32,
        now: Timestamp,
    ) -> Result<()> {
        if !LEASE_SECONDS.contains(&seconds) {
            return Err(
                about.refused(format!("a lease of {seconds} s; {LEASE_SECONDS:?} s are allowed"))
            );
        }
        let asked = text(id);
        if let Some(lease) = self.running(now)
            && lease.id != asked
        {
            return Err(about.fenced(format!("lease {} holds it, not {asked}", lease.id)));
        }
        self.lease = Some(Lease { id: asked, seconds, since: now });
        Ok(())
    }

    /// Also after it ran out, as long as nobody else took it (Azure does the same).
    pub(crate) fn renew(&mut self, about: About<'_>, id: LeaseId, now: Timestamp) -> Result<()> {
        let asked = text(id);
        match &mut self.lease {
            Some(lease) if lease.id == asked => {
                lease.since = now;
                Ok(())
            }
            Some(lease) => Err(about.fenced(format!("lease {} holds it, not {asked}", lease.id))),
            None => Err(about.fenced(format!("lease {asked} has ended"))),
        }
    }

    /// Giving back what nobody holds is fine: the first answer may have been lost.
    pub(crate) fn release(&mut self, about: About<'_>, id: LeaseId) -> Result<()> {
        let asked = text(id);
        match &self.lease {
            Some(lease) if lease.id != asked => {
                Err(about.fenced(format!("lease {} holds it, not {asked}", lease.id)))
            }
            _ => {
                self.lease = None;
                Ok(())
            }
        }
    }
}
