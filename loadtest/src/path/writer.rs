//! Live writes to one disk: random places, 4 to 64 KiB, bytes that stood elsewhere on the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use holdfast::clock::{Clock, System};
use holdfast::nbd::{Client, NbdError};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::error::LoadError;
use crate::wait::pause;

/// Content that writes are cut from.
const PIECES: usize = 256;
const PIECE_BYTES: usize = 256 << 10;
const BLOCK: u64 = 4096;
const BLOCKS_MAX: u64 = 16;

/// What one writer does.
pub(crate) struct Writer {
    pub(crate) machine: String,
    pub(crate) disk: String,
    pub(crate) socket: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) seed: u64,
    /// Bytes per second; as fast as the agent takes them when 0.
    pub(crate) rate: u64,
    pub(crate) time: Duration,
}

/// What it saw.
pub(crate) struct Written {
    pub(crate) bytes: u64,
    pub(crate) writes: u64,
    /// From asking to the agent's answer, µs.
    pub(crate) latency_us: Histogram<u64>,
}

impl Writer {
    /// Writes for the time.
    pub(crate) fn run(self) -> Result<Written, LoadError> {
        let pool = self.pool()?;
        let failed = |source| LoadError::Writes { machine: self.machine.clone(), source };
        self.write(&pool).map_err(failed)
    }

    /// Pieces of the whole disk that are no holes: compressible as its content is.
    fn pool(&self) -> Result<Vec<u8>, LoadError> {
        let size = crate::image::size_bytes(&self.image)?;
        let file = File::open(&self.image).map_err(LoadError::file(&self.image, "opening it"))?;
        let mut pool = Vec::with_capacity(PIECES * PIECE_BYTES);
        let mut piece = vec![0; PIECE_BYTES];
        for number in 0..PIECES as u64 {
            let from = (size - PIECE_BYTES as u64) / PIECES as u64 * number;
            let read = file.read_exact_at(&mut piece, from);
            read.map_err(LoadError::file(&self.image, "reading it"))?;
            if piece.iter().filter(|byte| **byte == 0).count() < PIECE_BYTES / 2 {
                pool.extend_from_slice(&piece);
            }
        }
        if pool.is_empty() {
            pool = piece; // the disk is nearly empty, and so will be what is written
        }
        Ok(pool)
    }

    fn write(&self, pool: &[u8]) -> Result<Written, NbdError> {
        let mut client = Client::connect(&self.socket, &self.disk)?;
        let mut random = StdRng::seed_from_u64(self.seed);
        let latency_us = Histogram::new_with_bounds(1, 600_000_000, 3);
        let mut latency_us = latency_us.expect("constant bounds are valid");
        let (mut bytes, mut writes) = (0, 0);
        let start = System.monotonic();
        loop {
            let now = System.monotonic();
            let elapsed = now.saturating_sub(start);
            if elapsed >= self.time {
                return Ok(Written { bytes, writes, latency_us });
            }
            if self.rate > 0 {
                let due = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
                if let Some(early) = due.checked_sub(elapsed).filter(|early| !early.is_zero()) {
                    pause(early.min(self.time - elapsed));
                    continue;
                }
            }
            let length = random.random_range(1..=BLOCKS_MAX) * BLOCK;
            let offset = random.random_range(0..=(client.size_bytes() - length) / BLOCK) * BLOCK;
            let from = random.random_range(0..=pool.len() - length as usize);
            client.write(offset, &pool[from..from + length as usize], false)?;
            let took = System.monotonic().saturating_sub(now).as_micros();
            latency_us.saturating_record(u64::try_from(took).unwrap_or(u64::MAX).max(1));
            bytes += length;
            writes += 1;
        }
    }
}
