//! Where records go in a segment: positions, checksums, chain. Pure.
//!
//! Owns: the layout of what is appended. Does not own: files (`file`), and what counts as durable
//! (`flush`).

use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::durable::DurableChange;
use super::entry::{header_fields, split};
use crate::budget::Permit;
use crate::format::segment::{
    KIND_END, KIND_VOID, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader,
    record_bytes, record_crc,
};
use crate::ingest::Admitted;
use crate::model::{Checksum, DiskIndex, Generation, Incarnation, MachineKey, Payload, Sequence};
use crate::settings::RECORDS_MEMORY_PART;

/// Most buffers of one append: the kernel's limit on vectors (UIO_MAXIOV).
pub(super) const APPEND_BUFFERS_MAX: usize = 1024;
/// Buffers of an append beside a record's payload: what stands before it, and behind all.
const GLUE_BUFFERS: usize = 2;
/// Bytes after which an append takes no further record.
pub(super) const APPEND_BYTES: u64 = 4 << 20;

/// The part of the smallest segment that settings allow; tests have smaller ones.
const MEMORY_BYTES_MIN: u64 = (4 << 20) / RECORDS_MEMORY_PART;

/// An admitted record on its way into the log.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) machine: MachineKey,
    pub(super) generation: Generation,
    pub(super) sequence: Sequence,
    pub(super) change: DurableChange,
    pub(super) payload: Payload,
    pub(super) received_at: Duration,
    pub(super) permit: Permit,
}

impl From<Admitted> for Entry {
    fn from(admitted: Admitted) -> Self {
        let (change, payload) = split(admitted.record.change);
        Self {
            machine: admitted.machine,
            generation: admitted.generation,
            sequence: admitted.record.sequence,
            change,
            payload,
            received_at: admitted.received_at,
            permit: admitted.permit,
        }
    }
}

/// How far a segment is written, and how far it is known to be on the disk.
#[derive(Debug)]
pub(super) struct Layout {
    incarnation: Incarnation,
    segment_bytes: u64,
    at: u64,
    durable: u64,
    previous_crc: u32,
    /// Memory that its records take while they are held.
    memory_bytes: u64,
}

impl Layout {
    /// A segment in which nothing stands yet.
    pub(super) fn new(header: &SegmentHeader) -> Self {
        Self {
            incarnation: header.incarnation,
            segment_bytes: header.segment_bytes,
            at: SEGMENT_HEADER_BYTES,
            durable: SEGMENT_HEADER_BYTES,
            previous_crc: 0,
            memory_bytes: 0,
        }
    }

    /// Where the next record goes.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == SEGMENT_HEADER_BYTES
    }

    /// Whether a record with such a payload fits, and the end record after it.
    pub(super) fn fits(&self, payload_bytes: usize) -> bool {
        let payload_bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        self.at + record_bytes(payload_bytes) + record_bytes(0) <= self.segment_bytes
    }

    /// Whether a record belongs here: it fits, and what the segment's records take in memory stays
    /// within the segment's part. So segments, which are counted, bound the records that are not.
    pub(super) fn takes(&self, entry: &Entry) -> bool {
        let memory_max = (self.segment_bytes / RECORDS_MEMORY_PART).max(MEMORY_BYTES_MIN);
        let memory = self.memory_bytes + entry.change.memory_bytes();
        self.fits(entry.payload.len()) && (self.is_empty() || memory <= memory_max)
    }

    /// Everything laid out so far is on the disk.
    pub(super) fn synced(&mut self) {
        self.durable = self.at;
    }

    /// Places a record: its header, and where its payload lies in the segment.
    pub(super) fn add(
        &mut self,
        (machine, generation): (MachineKey, Generation),
        sequence: Sequence,
        change: &DurableChange,
        payload: Checksum,
    ) -> ([u8; RECORD_HEADER_BYTES], Range<usize>) {
        self.memory_bytes += change.memory_bytes();
        let (kind, disk, offset, extent_bytes) = header_fields(change);
        let header = RecordHeader {
            kind,
            disk,
            extent_bytes,
            offset,
            machine,
            generation,
            sequence,
            ..self.blank()
        };
        let start = usize::try_from(self.at).expect("a segment fits the address space")
            + RECORD_HEADER_BYTES;
        (self.put(header, payload), start..start + payload.bytes() as usize)
    }

    /// Places a record that voids.
    pub(super) fn void(
        &mut self,
        machine: MachineKey,
        sequence: Sequence,
    ) -> [u8; RECORD_HEADER_BYTES] {
        let header = RecordHeader { kind: KIND_VOID, machine, sequence, ..self.blank() };
        self.put(header, Checksum::default())
    }

    /// Places the end record. It says that everything before it is on the disk, so that must be so.
    pub(super) fn end(&mut self) -> [u8; RECORD_HEADER_BYTES] {
        assert_eq!(self.durable, self.at, "a segment is closed before its records are synced");
        self.put(self.blank(), Checksum::default())
    }

    /// An end record for the present place: what all records have in common.
    fn blank(&self) -> RecordHeader {
        RecordHeader {
            payload_bytes: 0,
            kind: KIND_END,
            disk: DiskIndex(0),
            extent_bytes: 0,
            offset: 0,
            machine: MachineKey([0; 16]),
            sequence: Sequence::ZERO,
            generation: Generation(0),
            position: self.at,
            durable_before: self.durable,
            previous_crc: self.previous_crc,
        }
    }

    fn put(&mut self, mut header: RecordHeader, payload: Checksum) -> [u8; RECORD_HEADER_BYTES] {
        header.payload_bytes = u32::try_from(payload.bytes()).expect("payloads are at most 1 MiB");
        let encoded = header.encode(self.incarnation, payload);
        self.previous_crc = record_crc(&encoded);
        self.at += record_bytes(header.payload_bytes);
        assert!(self.at <= self.segment_bytes, "a record was placed over the segment's end");
        encoded
    }
}

/// One append in the making. Payloads of writes stay where they are; headers, padding and the
/// bodies of marks are gathered between them.
#[derive(Debug)]
pub(super) struct Batch {
    /// Offset in the segment.
    pub(super) start: u64,
    /// Records, in order, each with the place of its payload.
    pub(super) entries: Vec<(Entry, Range<usize>)>,
    /// Whether it is the end record.
    pub(super) closes: bool,
    buffers: Vec<Bytes>,
    glue: BytesMut,
}

impl Batch {
    /// An empty append at the layout's present end.
    pub(super) fn new(layout: &Layout) -> Self {
        Self {
            start: layout.at(),
            entries: Vec::new(),
            closes: false,
            buffers: Vec::new(),
            glue: BytesMut::new(),
        }
    }

    /// Whether `entry` is better left to the next append.
    pub(super) fn is_full_for(&self, entry: &Entry, layout: &Layout) -> bool {
        let buffers = self.buffers.len() + GLUE_BUFFERS + entry.payload.fragments().len();
        buffers > APPEND_BUFFERS_MAX || layout.at() - self.start >= APPEND_BYTES
    }

    /// Adds a record that fits.
    pub(super) fn add(&mut self, layout: &mut Layout, mut entry: Entry) {
        let mut payload = std::mem::take(&mut entry.payload);
        if payload.fragments().len() + GLUE_BUFFERS > APPEND_BUFFERS_MAX {
            payload = payload.to_bytes().into();
        }
        let (header, range) = layout.add(
            (entry.machine, entry.generation),
            entry.sequence,
            &entry.change,
            payload.checksum(),
        );
        self.glue.extend_from_slice(&header);
        let padding = padding(payload.len());
        if matches!(entry.change, DurableChange::Write { .. }) {
            self.buffers.push(self.glue.split().freeze());
            self.buffers.extend(payload.into_fragments());
        } else {
            payload.fragments().iter().for_each(|body| self.glue.extend_from_slice(body));
        }
        self.glue.resize(self.glue.len() + padding, 0);
        self.entries.push((entry, range));
    }

    /// The end record, alone.
    pub(super) fn end(layout: &mut Layout) -> Self {
        let mut batch = Self::new(layout);
        batch.glue.extend_from_slice(&layout.end());
        batch.glue.resize(batch.glue.len() + padding(0), 0);
        batch.closes = true;
        batch
    }

    /// What to write, in order.
    pub(super) fn take_buffers(&mut self) -> Vec<Bytes> {
        let mut buffers = std::mem::take(&mut self.buffers);
        if !self.glue.is_empty() {
            buffers.push(self.glue.split().freeze());
        }
        buffers
    }
}

/// Zeros behind a payload, up to the next record.
pub(super) fn padding(payload_bytes: usize) -> usize {
    let record = RECORD_HEADER_BYTES + payload_bytes;
    record.next_multiple_of(crate::format::segment::RECORD_ALIGN as usize) - record
}
