//! What the demo saw.

use serde::Serialize;

/// Figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes that the process server received as writes (zeros cost nothing).
    pub source_bytes: u64,
    /// Of those, written live while the disk was being replicated and after.
    pub live_bytes: u64,
    /// Time from the agent's start to the end of the initial replication.
    pub replication_seconds: f64,
    /// Disk bytes per second of that.
    pub replication_mb_per_second: f64,
    /// Time from the last byte of a record to its durable ack, median.
    pub ack_p50_us: u64,
    /// The same, 99th percentile.
    pub ack_p99_us: u64,
    /// Bytes of deltas in the store.
    pub published_bytes: u64,
    /// `source_bytes / published_bytes`.
    pub compression: f64,
    /// From asking for a bookmark to its being recoverable, worst of all.
    pub rpo_seconds: f64,
    /// From asking for a mount to its first block.
    pub mount_seconds: f64,
    /// Recovered points, each equal to the disk at its bookmark.
    pub points: Vec<VerifiedPoint>,
    /// Whether e2fsck looked at the recovered file systems and found them whole. It does not look at
    /// a disk of the user, nor where it is not installed.
    pub file_system_checked: bool,
}

/// A point that was compared.
#[derive(Clone, Debug, Serialize)]
pub struct VerifiedPoint {
    /// Its name.
    pub name: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// Of the disk at the bookmark, and of what was recovered.
    pub sha256: String,
    /// How it was read: export or mount.
    pub read_by: &'static str,
}
