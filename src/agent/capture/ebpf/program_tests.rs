//! The bits and flights of the program in this machine's kernel, on loop devices. Takes root.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::device;
use super::kernel::{Kernel, Watched};
use super::proof::Aligned;
use super::reader::{Tracked, runs};
use super::reader_tests::{loaded, loaded_for};
use super::record::{Record, parse};
use super::shared::Shared;
use crate::agent::capture::{CaptureMode, fuse};
use crate::agent::stream_tests::CHUNK;
use crate::clock::{Clock, System};
use crate::model::{DiskIndex, Timestamp};
use crate::nbd::{BlockStatus, Export};

const SIZE_BYTES: u64 = 1 << 20;

fn done(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A loop device that is watched.
struct Device {
    path: PathBuf,
    disk: Tracked,
    watched: Watched,
}

impl Device {
    fn watched(kernel: &Kernel, file: &Path) -> Self {
        let path = PathBuf::from(done("losetup", &["--find", "--show", file.to_str().unwrap()]));
        let part = device::part(&path).unwrap();
        let disk = Tracked { bytes: part.end * 512, first_chunk: 1 };
        let (device, end) = (part.device, part.end);
        let watched = Watched { device, start: 0, end, first_chunk: 1, disk: 0 };
        kernel.watch(&[watched]).unwrap();
        Self { path, disk, watched }
    }

    fn direct(&self) -> File {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        File::options().write(true).custom_flags(direct).open(&self.path).unwrap()
    }

    fn dirty(&self, kernel: &Kernel, chunk_bytes: u64) -> Vec<(DiskIndex, std::ops::Range<u64>)> {
        runs(&kernel.dirty().unwrap(), std::slice::from_ref(&self.disk), chunk_bytes)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

#[test]
fn a_request_of_any_size_has_all_its_bits() {
    const BYTES: u64 = 3 << 30;
    // With a bit for each sector a discard has as many as a command to a disk of 384 GiB has, at 64 KiB.
    let Some((kernel, _rings)) = loaded_for(512, BYTES / 512 + 1) else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(BYTES).unwrap();
    let device = Device::watched(&kernel, file.path());
    kernel.attach().unwrap();
    done("blkdiscard", &[device.path.to_str().unwrap()]);
    assert_eq!(device.dirty(&kernel, 512), [(DiskIndex(0), 0..BYTES)]);
}

/// The disk that scsi_debug made.
fn scsi_debug() -> PathBuf {
    let adapter = "/sys/bus/pseudo/drivers/scsi_debug/adapter0/";
    let block = done("find", &[adapter, "-path", "*/block/*", "-name", "sd*"]);
    Path::new("/dev").join(Path::new(&block).file_name().unwrap())
}

/// Run where scsi_debug is loaded and answers after some seconds (its `delay` below /sys/bus/pseudo, in jiffies).
#[test]
#[ignore = "takes a kernel with scsi_debug, and sg_raw; docs/capture.md, eBPF, Tried"]
fn a_command_past_the_block_layer_flies_until_it_has_landed() {
    let (kernel, mut rings) = loaded().unwrap();
    let path = scsi_debug();
    let part = device::part(&path).unwrap();
    let (device, bytes) = (part.device, part.end * 512);
    kernel.watch(&[Watched { device, start: 0, end: part.end, first_chunk: 1, disk: 0 }]).unwrap();
    kernel.attach().unwrap();
    let block = tempfile::NamedTempFile::new().unwrap();
    block.as_file().write_all_at(&[7; 512], 0).unwrap();
    // WRITE (10) of the ninth sector.
    let mut command = Command::new("sg_raw");
    command.args(["-s", "512", "-i"]).args([block.path(), &path]);
    let mut written = command.args("2a 00 00 00 00 08 00 00 01 00".split(' ')).spawn().unwrap();
    let told = loop {
        if let Some(item) = rings.events.next() {
            break format!("{:?}", parse(&item));
        }
        assert!(written.try_wait().unwrap().is_none(), "it was not told");
    };
    assert_eq!(told, format!("Some(PassedBy(0, 0..{bytes}))"));
    let flights: Vec<_> =
        kernel.flights().unwrap().iter().map(|one| (one.start, one.end)).collect();
    assert_eq!(flights, [(0, bytes)]);
    assert!(written.wait().unwrap().success());
    assert_eq!(kernel.flights().unwrap(), []);
    let disk = [Tracked { bytes, first_chunk: 1 }];
    assert_eq!(runs(&kernel.dirty().unwrap(), &disk, CHUNK), [(DiskIndex(0), 0..bytes)]);
}

/// A disk that holds a write back until the test says so, and fails it then.
struct Failing {
    came: Sender<()>,
    go: Mutex<Receiver<()>>,
}

impl Export for Failing {
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, _: u64, target: &mut [u8]) -> io::Result<()> {
        target.fill(0);
        Ok(())
    }
    fn write(&self, _: u64, _: Bytes, _: bool) -> io::Result<()> {
        let _ = self.came.send(());
        let _ = self.go.lock().unwrap().recv();
        Err(io::Error::other("as the test wants it"))
    }
    fn zero(&self, _: u64, _: u64, _: bool, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn block_status(&self, _: u64, length: u64) -> io::Result<Vec<BlockStatus>> {
        Ok(vec![BlockStatus { length, hole: false, zero: false }])
    }
}

/// A write that a device has, and fails when it is let go.
struct Flying {
    device: Device,
    write: JoinHandle<io::Result<()>>,
    goes: Sender<()>,
    mounted: fuse::Mounted,
    _folder: tempfile::TempDir,
}

const HELD: Range<u64> = 3 * CHUNK..3 * CHUNK + 512;

impl Flying {
    fn over(kernel: &Kernel) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ((came, comes), (goes, go)) = (channel(), channel());
        let failing: Arc<dyn Export> = Arc::new(Failing { came, go: Mutex::new(go) });
        let mounted = fuse::mount(folder.path(), &[("d".parse().unwrap(), failing)]).unwrap();
        let device = Device::watched(kernel, &folder.path().join("d.img"));
        let file = device.direct();
        let write = std::thread::spawn(move || {
            file.write_all_at(Aligned::random(&System, 512).bytes(), HELD.start)
        });
        comes.recv_timeout(Duration::from_secs(60)).unwrap();
        Self { device, write, goes, mounted, _folder: folder }
    }

    /// Lets it fail; `rest` is asked before its device goes.
    fn fail(self, rest: impl FnOnce(&Device)) {
        self.goes.send(()).unwrap();
        assert!(self.write.join().unwrap().is_err());
        rest(&self.device);
        drop(self.device);
        self.mounted.stop();
    }
}

#[test]
fn a_write_that_fails_has_its_bit_again() {
    let all = ["issue", "complete", "failed"];
    // As it is; its flight could not be noted; the run at its completion was left out.
    for (attached, noted) in [(&all[..], true), (&all[..2], false), (&["issue", "failed"], true)] {
        let Some((kernel, mut rings)) = loaded() else { return };
        attached.iter().for_each(|name| kernel.attach_one(name).unwrap());
        let flying = Flying::over(&kernel);
        let flights = kernel.flights().unwrap();
        assert_eq!(flights.len(), 1, "{flights:?}");
        if !noted {
            kernel.note(flights[0].request, None);
        }
        // Told long ago, so no half has its bit any more.
        for _ in 0..2 {
            kernel.clear(kernel.turn().unwrap()).unwrap();
        }
        assert_eq!(flying.device.dirty(&kernel, CHUNK), []);
        flying.fail(|device| {
            let dirty = device.dirty(&kernel, CHUNK);
            assert_eq!(dirty, [(DiskIndex(0), 3 * CHUNK..4 * CHUNK)], "{attached:?}");
        });
        let mut told = false;
        while let Some(item) = rings.events.next() {
            told |= parse(&item) == Some(Record::Failed(0, HELD));
        }
        assert!(told, "{attached:?}");
        let completed = attached.contains(&"complete");
        assert_eq!(kernel.flights().unwrap().is_empty(), completed);
    }
}

/// Each look at it is half a minute later.
struct Hurrying(AtomicU64);

#[async_trait]
impl Clock for Hurrying {
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.fetch_add(30, Ordering::Relaxed))
    }
    async fn sleep(&self, _: Duration) {}
}

#[test]
fn a_write_flies_until_it_lands_and_one_whose_landing_was_missed_for_five_minutes() {
    let Some((kernel, _rings)) = loaded() else { return };
    kernel.attach().unwrap();
    let flying = Flying::over(&kernel);
    let clock: Arc<dyn Clock> = Arc::new(Hurrying(AtomicU64::new(0)));
    let mode = (CaptureMode::Ordered, String::new());
    let shared = Shared::new(kernel, clock, mode, vec![flying.device.watched]);
    let landed = |range: &Range<u64>| shared.landed(0, range).is_ok();
    // The device has answered this one, and no run of the program said so.
    let missed = 5 * CHUNK..5 * CHUNK + 512;
    shared.kernel.note(64, Some([0, missed.start, missed.end, 2 << 40, 1]));
    let looks = (0..100).take_while(|_| !landed(&missed)).count();
    assert!((2..100).contains(&looks), "after {looks} looks, with another write in flight");
    let looks = (0..100).take_while(|_| !landed(&HELD)).count();
    assert_eq!(looks, 100, "the device has it");
    // The kernel may count it for a moment longer than its writer waits.
    flying.fail(|_| assert!([HELD, missed].iter().all(|range| (0..100).any(|_| landed(range)))));
}
