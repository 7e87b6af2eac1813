//! What each part of the pipeline costs alone: the leanest code that does only that.
//!
//! Each is measured on the threads that do it (their CPU time, the kernel's part included), on the
//! bytes that the pipeline gets later, on all cores at once: the pipeline keeps them all busy, too,
//! and cores that share caches, memory and a disk make each other's seconds longer. Seconds per GiB
//! are per GiB of *source* bytes for all of them, also where a part sees the compressed bytes only.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use hdrhistogram::Histogram;
use holdfast::clock::{Clock, System};
use holdfast::observe::CpuTimer;
use serde::Serialize;
use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

use crate::error::LoadError;
use crate::tls::{RecordKey, SEALED_BYTES_MAX, Sealer, open};

const GIB: f64 = (1u64 << 30) as f64;
/// What the server compresses at once (`seal.frame_bytes`).
const FRAME_BYTES: usize = 256 << 10;
/// Source bytes of one object (`batch.bytes_max`).
pub(crate) const OBJECT_BYTES: usize = 8 << 20;
/// What one group commit of a busy log holds.
const APPEND_BYTES: usize = 1 << 20;
/// A write that is checked.
pub(crate) const WRITE_BYTES: usize = 64 << 10;
/// A cache segment.
pub(crate) const SEGMENT_BYTES: usize = 64 << 20;
/// Writes of 4 KiB that a bare commit holds at most: half of a segment.
pub(crate) const COMMIT_WRITES_MAX: u32 = (SEGMENT_BYTES / 2 / 4096) as u32;
/// The key of every frame: what it is costs nothing.
const KEY: [u8; 32] = [7; 32];
/// Of AES-GCM.
const TAG_BYTES: usize = 16;
/// Receive buffer: several records at once.
const RECEIVE_BYTES: usize = 512 << 10;

/// One part.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    /// Source bytes that it was measured on.
    bytes: f64,
    pub(crate) cpu_seconds_per_gib: f64,
    pub(crate) bytes_per_second: f64,
}

/// Measures one thread's work on `bytes` source bytes.
struct Stopwatch {
    name: &'static str,
    cpu: CpuTimer,
    begun: Duration,
}

impl Stopwatch {
    fn start(name: &'static str) -> Self {
        Self { name, cpu: CpuTimer::start(), begun: System.monotonic() }
    }

    fn stop(self, bytes: usize) -> Part {
        let cpu = self.cpu.spent().as_secs_f64();
        let wall = (System.monotonic() - self.begun).as_secs_f64();
        Part {
            name: self.name,
            bytes: bytes as f64,
            cpu_seconds_per_gib: cpu / (bytes as f64 / GIB),
            bytes_per_second: bytes as f64 / wall.max(1e-9),
        }
    }
}

/// Loopback to plain bytes: TLS records decrypted where they were received. The sender is another
/// thread and not counted.
pub(crate) fn receive(bytes: &[u8]) -> Result<Part, LoadError> {
    let failed = || LoadError::file("127.0.0.1", "sending to itself");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed())?;
    let address = listener.local_addr().map_err(failed())?;
    let key = || RecordKey::new(&[7; 32], &[9; 12], 0).expect("lengths of AES-256-GCM");
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || -> std::io::Result<()> {
            let mut socket = TcpStream::connect(address)?;
            let (mut key, mut out) = (key(), Vec::with_capacity(APPEND_BYTES + SEALED_BYTES_MAX));
            for piece in bytes.chunks(APPEND_BYTES / 2) {
                let mut sealer = Sealer::new(&mut key, &mut out);
                let sealed = sealer.push(piece).and_then(|()| sealer.seal());
                sealed.map_err(std::io::Error::other)?;
                socket.write_all(&out)?;
                out.clear();
            }
            Ok(())
        });
        let (mut socket, _) = listener.accept().map_err(failed())?;
        let (mut key, mut buffer) = (key(), vec![0; RECEIVE_BYTES]);
        let (mut filled, mut received) = (0, 0);
        let watch = Stopwatch::start("receive + TLS in place");
        while received < bytes.len() {
            let count = socket.read(&mut buffer[filled..]).map_err(failed())?;
            if count == 0 {
                break;
            }
            filled += count;
            let mut at = 0;
            loop {
                let opened = open(&mut key, &mut buffer[at..filled]);
                let opened = opened.map_err(|error| failed()(std::io::Error::other(error)))?;
                let Some((length, inside)) = opened else { break };
                received += inside.len();
                at += length;
            }
            buffer.copy_within(at..filled, 0); // less than one record
            filled -= at;
        }
        let part = watch.stop(received);
        sending.join().map_err(|_| LoadError::Thread("roofline"))?.map_err(failed())?;
        Ok(part)
    })
}

/// Cuts `bytes` into a share of whole objects for each core.
pub(crate) fn shares(bytes: &[u8], cores: usize) -> Vec<&[u8]> {
    let share = bytes.len().div_ceil(cores.max(1)).next_multiple_of(OBJECT_BYTES);
    bytes.chunks(share).collect()
}

/// Does a part for every share at the same time, each on a thread of its own. What they took, added
/// up, and what they made.
pub(crate) fn together<S: Send, T: Send>(
    shares: impl IntoIterator<Item = S>,
    work: impl Fn(S) -> Result<(Part, T), LoadError> + Sync,
) -> Result<(Part, Vec<T>), LoadError> {
    let done: Result<Vec<_>, _> = std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            shares.into_iter().map(|share| scope.spawn(move || work(share))).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|ended| ended.map_err(|_| LoadError::Thread("roofline"))?).collect()
    });
    let (parts, made): (Vec<Part>, Vec<T>) = done?.into_iter().unzip();
    let sum = |of: fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
    let bytes = sum(|part| part.bytes);
    let part = Part {
        name: parts.first().map_or("", |part| part.name),
        bytes,
        cpu_seconds_per_gib: sum(|part| part.cpu_seconds_per_gib * part.bytes) / bytes.max(1.0),
        bytes_per_second: sum(|part| part.bytes_per_second),
    };
    Ok((part, made))
}

/// The checksum over every write, from memory.
pub(crate) fn checksum(bytes: &[u8]) -> Part {
    let watch = Stopwatch::start("CRC-32");
    for write in bytes.chunks(WRITE_BYTES) {
        std::hint::black_box(crc32fast::hash(write));
    }
    watch.stop(bytes.len())
}

/// Append and fdatasync of 1 MiB after another, into segments that were used before.
pub(crate) fn append(bytes: &[u8], directory: &Path) -> Result<Part, LoadError> {
    let (file, path) = segment(directory)?;
    let watch = Stopwatch::start("append + fdatasync");
    for (number, piece) in bytes.chunks(APPEND_BYTES).enumerate() {
        commit(&file, piece, number * APPEND_BYTES % SEGMENT_BYTES, &path)?;
    }
    Ok(watch.stop(bytes.len()))
}

/// One append, durable.
pub(crate) fn commit(file: &File, bytes: &[u8], at: usize, path: &Path) -> Result<(), LoadError> {
    let written = file.write_all_at(bytes, at as u64).and_then(|()| file.sync_data());
    written.map_err(LoadError::file(path, "appending to it"))
}

/// zstd over independent frames, one context. The part, and the frames.
pub(crate) fn compress(bytes: &[u8], level: i32) -> Result<(Part, Vec<Vec<u8>>), LoadError> {
    let failed = || LoadError::file("zstd", "compressing");
    let mut compressor = Compressor::new(level).map_err(failed())?;
    let mut target = vec![0; compress_bound(FRAME_BYTES)];
    let mut lengths = Vec::with_capacity(bytes.len() / FRAME_BYTES + 1);
    let watch = Stopwatch::start("zstd");
    for frame in bytes.chunks(FRAME_BYTES) {
        let length = compressor.compress_to_buffer(frame, &mut target[..]).map_err(failed())?;
        lengths.push(length);
    }
    let part = watch.stop(bytes.len());
    // Again, to keep them: that is no part.
    Ok((part, frames(bytes, level)?))
}

/// The frames of `bytes`, compressed.
pub(crate) fn frames(bytes: &[u8], level: i32) -> Result<Vec<Vec<u8>>, LoadError> {
    let failed = || LoadError::file("zstd", "compressing");
    let mut compressor = Compressor::new(level).map_err(failed())?;
    let frames = bytes.chunks(FRAME_BYTES).map(|frame| compressor.compress(frame));
    frames.collect::<Result<_, _>>().map_err(failed())
}

/// AES-256-GCM over the compressed frames where they lie.
pub(crate) fn encrypt(sealed: &mut [Vec<u8>], source_bytes: usize) -> Part {
    let cipher = Aes256Gcm::new(&KEY.into());
    let watch = Stopwatch::start("AES-256-GCM");
    for (number, frame) in (0u64..).zip(sealed) {
        let nonce = nonce(number);
        let tag = cipher.encrypt_inout_detached(&nonce.into(), b"", frame.as_mut_slice().into());
        frame.extend_from_slice(&tag.expect("frames are far below the cipher's limit"));
    }
    watch.stop(source_bytes)
}

fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce
}

/// Objects as a directory store needs them: written, synced, placed, the directory synced.
pub(crate) fn store(
    frames: &[Vec<u8>],
    source_bytes: usize,
    directory: &Path,
) -> Result<Part, LoadError> {
    let failed = || LoadError::file(directory, "writing objects");
    let folder = File::open(directory).map_err(failed())?;
    let objects: Vec<_> = frames.chunks(OBJECT_BYTES / FRAME_BYTES).map(<[_]>::concat).collect();
    let watch = Stopwatch::start("store write");
    for (number, object) in objects.iter().enumerate() {
        let (fresh, placed) = (directory.join("fresh"), directory.join(format!("{number}.object")));
        let mut file = File::create(&fresh).map_err(failed())?;
        file.write_all(object).and_then(|()| file.sync_all()).map_err(failed())?;
        std::fs::rename(&fresh, placed).and_then(|()| folder.sync_all()).map_err(failed())?;
    }
    Ok(watch.stop(source_bytes))
}

/// Objects of [`store`] onto a disk: read back, opened, decompressed, written to a sparse file, which
/// is synced after every second object. Source bytes as `compress` had them.
pub(crate) fn apply(
    frames: &[Vec<u8>],
    source_bytes: usize,
    directory: &Path,
) -> Result<Part, LoadError> {
    let path = directory.join("disk");
    let failed = || LoadError::file(&path, "applying to it");
    let disk = File::create(&path).map_err(failed())?;
    disk.set_len(source_bytes as u64).map_err(failed())?;
    let cipher = Aes256Gcm::new(&KEY.into());
    let mut decompressor = zstd::bulk::Decompressor::new().map_err(failed())?;
    let (mut sealed, mut plain) = (Vec::new(), vec![0; FRAME_BYTES]);
    let (mut number, mut at) = (0, 0);
    let watch = Stopwatch::start("read, open, decompress, write");
    for (object, frames) in frames.chunks(OBJECT_BYTES / FRAME_BYTES).enumerate() {
        let object_path = directory.join(format!("{object}.object"));
        let mut file = File::open(&object_path).map_err(failed())?;
        for frame in frames {
            sealed.resize(frame.len(), 0);
            file.read_exact(&mut sealed).map_err(failed())?;
            let (body, tag) = sealed.split_last_chunk_mut::<TAG_BYTES>().expect("sealed with one");
            let opened = cipher.decrypt_inout_detached(
                &nonce(number).into(),
                b"",
                body.as_mut().into(),
                &(*tag).into(),
            );
            opened.map_err(|error| failed()(std::io::Error::other(error.to_string())))?;
            let length = decompressor.decompress_to_buffer(body, &mut plain[..]);
            let length = length.map_err(failed())?;
            disk.write_all_at(&plain[..length], at).map_err(failed())?;
            (number, at) = (number + 1, at + length as u64);
        }
        if object % 2 == 1 {
            disk.sync_data().map_err(failed())?;
        }
    }
    disk.sync_data().map_err(failed())?;
    let part = watch.stop(source_bytes);
    std::fs::remove_file(&path).map_err(failed())?;
    Ok(part)
}

/// A bare append and fdatasync of `bytes`, µs.
pub(crate) fn bare_commit(
    bytes: usize,
    count: u32,
    directory: &Path,
) -> Result<Histogram<u64>, LoadError> {
    let (file, path) = segment(directory)?;
    let mut seen = Histogram::new(3).expect("three digits are allowed");
    let content = vec![0x5A; bytes];
    for number in 0..count as usize {
        let at = number * bytes % (SEGMENT_BYTES - bytes);
        let begun = System.monotonic();
        commit(&file, &content, at, &path)?;
        let us = (System.monotonic() - begun).as_micros() as u64;
        seen.record(us.max(1)).expect("it grows by itself");
    }
    Ok(seen)
}

/// A segment that was written once, as a recycled one was.
pub(crate) fn segment(directory: &Path) -> Result<(File, std::path::PathBuf), LoadError> {
    let path = directory.join("segment");
    let failed = || LoadError::file(&path, "preparing it");
    let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
    let file = file.map_err(failed())?;
    let zeros = vec![0; APPEND_BYTES];
    for number in 0..SEGMENT_BYTES / APPEND_BYTES {
        file.write_all_at(&zeros, (number * APPEND_BYTES) as u64).map_err(failed())?;
    }
    file.sync_all().map_err(failed())?;
    Ok((file, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_does_its_work_on_all_bytes() {
        let bytes: Vec<u8> = (0..3 << 20).map(|n: u32| (n / 7) as u8).collect();
        let directory = tempfile::tempdir().unwrap();
        let received = receive(&bytes).unwrap();
        assert!(received.bytes_per_second > 0.0 && received.cpu_seconds_per_gib > 0.0);
        assert!(checksum(&bytes).cpu_seconds_per_gib > 0.0);
        append(&bytes, directory.path()).unwrap();
        let (_, mut frames) = compress(&bytes, 1).unwrap();
        assert_eq!(frames.len(), 12);
        let plain = zstd::bulk::decompress(&frames[11], FRAME_BYTES).unwrap();
        assert_eq!(plain, bytes[11 * FRAME_BYTES..]);
        encrypt(&mut frames, bytes.len());
        assert!(zstd::bulk::decompress(&frames[11], FRAME_BYTES).is_err());
        store(&frames, bytes.len(), directory.path()).unwrap();
        let objects = std::fs::read_dir(directory.path()).unwrap().flatten();
        let stored: u64 = objects
            .filter(|entry| entry.path().extension().is_some_and(|end| end == "object"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert_eq!(stored, frames.iter().map(|frame| frame.len() as u64).sum::<u64>());
        assert!(apply(&frames, bytes.len(), directory.path()).unwrap().cpu_seconds_per_gib > 0.0);
        frames[11][0] ^= 1; // of another length than what stands there: not opened
        frames[11].push(0);
        assert!(apply(&frames, bytes.len(), directory.path()).is_err());
        assert_eq!(bare_commit(4096, 10, directory.path()).unwrap().len(), 10);
    }

    #[test]
    fn shares_are_whole_objects_and_their_costs_add_up() {
        let bytes = vec![0; 5 * OBJECT_BYTES + 7];
        let lengths: Vec<usize> = shares(&bytes, 2).iter().map(|share| share.len()).collect();
        assert_eq!(lengths, [3 * OBJECT_BYTES, 2 * OBJECT_BYTES + 7]);
        let (sum, made) = together([(1.0, 30.0), (3.0, 10.0)], |(bytes, cost)| {
            let part = Part { name: "x", bytes, cpu_seconds_per_gib: cost, bytes_per_second: 2.0 };
            Ok((part, bytes))
        })
        .unwrap();
        assert_eq!((sum.cpu_seconds_per_gib, sum.bytes_per_second), (15.0, 4.0));
        assert_eq!(made, [1.0, 3.0]);
    }
}
