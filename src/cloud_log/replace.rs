//! The manifest's compare-and-swap, and what a lost or refused answer to it means.
//!
//! Every write is sealed under a fresh 32-byte salt, so the sealed bytes are a token that nobody
//! else can have written: finding exactly them in the store proves that *this* write happened,
//! even where another process of the same name wrote the same manifest at the same moment.
//! Lettered cases: `docs/formats/manifest.md`, "when the answer is lost".

use bytes::Bytes;

use super::error::CloudLogError;
use super::log_store::LogStore;
use crate::clock::Entropy;
use crate::format::manifest::{MANIFEST_KIND, Manifest};
use crate::format::names;
use crate::seal::seal_document;
use crate::store::{Condition, ETag, StoreError};

/// What stands in the store after a write whose answer says nothing or no.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Exactly the bytes that were sent.
    Ours,
    /// What stood there before.
    Before,
    /// Anything else.
    Other,
}

/// What the answer to a write leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The store says that the condition did not hold (409, 412, or 404 under `If-Match`).
    Refused,
    /// The answer was lost.
    Lost,
}

/// The caller's next move.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is written.
    Written,
    /// Somebody else wrote: read, merge, try again or stop.
    Changed,
    /// Not written yet, and may still be: read again before the next write.
    Unsettled,
}

/// The decision table A to F; no other place decides this.
pub(super) fn judge(answer: Answer, found: &Found) -> Verdict {
    match (answer, found) {
        (_, Found::Ours) => Verdict::Written,                // A, D
        (_, Found::Other) => Verdict::Changed,               // B, E
        (Answer::Lost, Found::Before) => Verdict::Unsettled, // C
        // F: refused, and yet what we expected stands there: it was put back in between, or the
        // refusal answered an older attempt. Read again; nothing is lost by it.
        (Answer::Refused, Found::Before) => Verdict::Unsettled,
    }
}

impl LogStore {
    /// Makes `manifest` the machine's manifest, if `expected` (`None`: nothing) still stands there.
    /// Sends one write and, where its answer leaves it open, one read: back-off is the caller's.
    ///
    /// # Errors
    /// [`CloudLogError::Changed`]: somebody else wrote, nothing of ours happened.
    /// [`CloudLogError::Unsettled`]: it may still happen; read the manifest before the next write.
    /// Any other: it did not happen.
    pub async fn replace(
        &self,
        manifest: &Manifest,
        expected: Option<&ETag>,
        entropy: &dyn Entropy,
    ) -> Result<ETag, CloudLogError> {
        let name = names::manifest(&self.machine);
        let (found, wanted) = (&manifest.machine, &self.machine);
        self.same(&name, "machine", found == wanted, found, wanted)?;
        let next = |source| CloudLogError::Next {
            machine: self.machine.clone(),
            source: Box::new(source),
        };
        let plain = manifest.encode().map_err(next)?;
        let key = self.keys.newest();
        let sealed = seal_document(MANIFEST_KIND, &self.machine, key, entropy, &plain);
        let body = Bytes::from(sealed);
        let condition = match expected {
            None => Condition::Absent,
            Some(etag) => Condition::Matches(etag.clone()),
        };
        let (answer, source) = match self.store.put(&name, body.clone(), condition).await {
            Ok(etag) => return Ok(etag),
            Err(error) => match error {
                StoreError::Ambiguous { .. } => (Answer::Lost, error),
                StoreError::AlreadyExists { .. }
                | StoreError::Precondition { .. }
                | StoreError::NotFound { .. } => (Answer::Refused, error),
                other => return Err(self.store_error(name, other)),
            },
        };
        let machine = self.machine.clone();
        let source = Box::new(source);
        let (found, etag) = match self.store.read(&name).await {
            Ok((bytes, etag)) if bytes == body => (Found::Ours, Some(etag)),
            Ok((_, etag)) if Some(&etag) == expected => (Found::Before, None),
            Ok(_) => (Found::Other, None),
            Err(StoreError::NotFound { .. }) if expected.is_none() => (Found::Before, None),
            Err(StoreError::NotFound { .. }) => (Found::Other, None),
            Err(_) => return Err(CloudLogError::Unsettled { machine, source }),
        };
        match (judge(answer, &found), etag) {
            (Verdict::Written, Some(etag)) => Ok(etag),
            (Verdict::Changed, _) => Err(CloudLogError::Changed { machine }),
            (Verdict::Unsettled | Verdict::Written, _) => {
                Err(CloudLogError::Unsettled { machine, source })
            }
        }
    }
}
