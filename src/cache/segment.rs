//! One segment of the log in memory: bytes that can be read while anybody holds it.

/// A segment whose records are still needed by somebody. Dropped by its last holder, it may be
/// recycled.
#[derive(Debug)]
pub(crate) struct Segment {
    bytes: SegmentBytes,
}

#[derive(Debug)]
enum SegmentBytes {
    /// The twin for tests and simulation.
    Memory(Vec<u8>),
}

impl Segment {
    pub(crate) fn in_memory(bytes: Vec<u8>) -> Self {
        Self {
            bytes: SegmentBytes::Memory(bytes),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            SegmentBytes::Memory(bytes) => bytes,
        }
    }
}
