//! The one ordered family of positions: received ≥ durable ≥ published ≥ applied ≥ recoverable.

use crate::model::Sequence;

/// How far one machine's stream has come; each is inclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermarks {
    /// Taken from the wire.
    pub received: Sequence,
    /// fdatasync'ed in the cache log: survives a power cut of the process server.
    pub durable: Sequence,
    /// Named by the manifest: survives the loss of the process server.
    pub published: Sequence,
    /// Written to the seed disks.
    pub applied: Sequence,
    /// Newest snapshot point on the seed disks.
    pub recoverable: Sequence,
}

impl Watermarks {
    /// Whether the inequality holds.
    #[must_use]
    pub fn ordered(&self) -> bool {
        self.received >= self.durable
            && self.durable >= self.published
            && self.published >= self.applied
            && self.applied >= self.recoverable
    }
}
