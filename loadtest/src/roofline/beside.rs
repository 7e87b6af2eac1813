//! What a commit takes while the machine does everything else that the pipeline does: the limit for
//! an ack's latency at a rate, where the bare commit is the limit of an idle machine.
//!
//! Owns: the leanest log beside sealing and storing at the same rate, on the same cores and the same
//! disk. Does not own: what the parts are (`parts`). Receiving and TLS are left out, so the pipeline
//! has more to do than this.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use holdfast::clock::{Clock, System};
use holdfast::turns::behind_acks;

use super::parts::{self, OBJECT_BYTES, WRITE_BYTES};
use crate::error::LoadError;
use crate::wait::pause;

/// Most writes that one commit takes: a busy log's (`APPEND_BYTES` of the part).
const WRITES_MAX: usize = 16;

/// Writes of 64 KiB come at `bytes_per_second`, are appended as they come and synced together; from
/// due to durable, µs. Meanwhile every core seals and stores `shares` at the same rate.
pub(crate) fn commits(
    shares: &[(&[u8], PathBuf)],
    level: i32,
    bytes_per_second: f64,
    time: Duration,
) -> Result<Histogram<u64>, LoadError> {
    let stop = AtomicBool::new(false);
    let (stop, rate) = (&stop, bytes_per_second / shares.len() as f64);
    std::thread::scope(|scope| {
        let beside: Vec<_> = shares
            .iter()
            .map(|(share, folder)| {
                scope.spawn(move || seal_and_store(share, folder, level, rate, stop))
            })
            .collect();
        let (_, folder) = shares.first().expect("there is at least one core");
        let seen = log(folder, bytes_per_second, time);
        stop.store(true, Ordering::Relaxed);
        for thread in beside {
            thread.join().map_err(|_| LoadError::Thread("roofline"))??;
        }
        seen
    })
}

/// One object after the other, each when its bytes would have come.
fn seal_and_store(
    share: &[u8],
    folder: &Path,
    level: i32,
    rate: f64,
    stop: &AtomicBool,
) -> Result<(), LoadError> {
    behind_acks(); // as the server's own
    let begun = System.monotonic();
    let objects = share.chunks(OBJECT_BYTES).cycle();
    for (number, object) in (1_u32..).zip(objects) {
        let due = begun + Duration::from_secs_f64(OBJECT_BYTES as f64 / rate) * number;
        while let Some(left) = due.checked_sub(System.monotonic()).filter(|left| !left.is_zero()) {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            pause(left.min(Duration::from_millis(50)));
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut frames = parts::frames(object, level)?;
        parts::encrypt(&mut frames, object.len());
        parts::store(&frames, object.len(), folder)?;
    }
    Ok(())
}

fn log(folder: &Path, bytes_per_second: f64, time: Duration) -> Result<Histogram<u64>, LoadError> {
    let (file, path) = parts::segment(folder)?;
    let mut seen = Histogram::new(3).expect("three digits are allowed");
    let content = vec![0x5A; WRITE_BYTES * WRITES_MAX];
    let every = Duration::from_secs_f64(WRITE_BYTES as f64 / bytes_per_second);
    let (begun, mut at, mut written) = (System.monotonic(), 0, 0_u32);
    loop {
        let now = System.monotonic() - begun;
        if now >= time {
            return Ok(seen);
        }
        let due = every * (written + 1);
        if due > now {
            pause(due - now);
            continue;
        }
        let waiting = (now.as_secs_f64() / every.as_secs_f64()) as usize - written as usize;
        let writes = waiting.clamp(1, WRITES_MAX);
        if at + writes * WRITE_BYTES > parts::SEGMENT_BYTES {
            at = 0;
        }
        parts::commit(&file, &content[..writes * WRITE_BYTES], at, &path)?;
        at += writes * WRITE_BYTES;
        let durable = System.monotonic() - begun;
        for _ in 0..writes {
            written += 1;
            let us = durable.saturating_sub(every * written).as_micros() as u64;
            seen.record(us.max(1)).expect("it grows by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_that_came_due_is_durable_and_objects_were_stored() {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..OBJECT_BYTES as u32).map(|n| (n / 7) as u8).collect();
        let shares = [(&bytes[..], directory.path().to_owned())];
        let (rate, time) = (64.0 * (1 << 20) as f64, Duration::from_secs(1));
        let seen = commits(&shares, 1, rate, time).unwrap();
        let come = rate as u64 / WRITE_BYTES as u64;
        assert!((1..=come).contains(&seen.len()), "{} of {come}", seen.len());
        assert!(directory.path().join("0.object").exists());
    }
}
