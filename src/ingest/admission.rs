//! The product of ingest: a record that is the next one of its machine's stream.
//!
//! Owns: what it means to be admitted. Does not own: durability; nothing here may be acknowledged.

use std::time::Duration;

use crate::budget::Permit;
use crate::model::{Generation, MachineKey, Record};

/// A record that passed every check of the session: right machine, next sequence, a disk and an
/// extent that exist, within credit. In memory only.
#[derive(Debug)]
pub struct Admitted {
    /// Whose stream.
    pub machine: MachineKey,
    /// The ownership of the machine under which it was taken.
    pub generation: Generation,
    /// The record.
    pub record: Record,
    /// Its share of the receive budget.
    pub permit: Permit,
    /// Monotonic time at which its last byte was received.
    pub received_at: Duration,
}
