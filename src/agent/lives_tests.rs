//! What one life of an agent leaves to the next, in its state directory.

use std::path::Path;
use std::time::Duration;

use super::opening;
use super::stream::Stream;
use crate::clock::System;
use crate::format::wire::Welcome;
use crate::model::{Epoch, Generation, Sequence};
use crate::settings::{
    AgentDisk, AgentMode, AgentSettings, Capture, Congestion, ScanSettings, TransportChoice,
};

const DISK_BYTES: u64 = 1 << 20;

fn nbd(directory: &Path) -> Capture {
    Capture::Nbd { socket: directory.join("root.sock") }
}

fn settings(directory: &Path, capture: Capture) -> AgentSettings {
    let path = |name: &str| directory.join(name);
    if !path("root.img").exists() {
        std::fs::write(path("root.img"), vec![7; DISK_BYTES as usize]).unwrap();
    }
    AgentSettings {
        machine: "web-1".parse().unwrap(),
        servers: vec!["ps-1:9443".into()],
        server_name: None,
        server_timeout: Duration::from_secs(60),
        ca_certificate: path("ca.pem"),
        certificate: path("agent.pem"),
        key: path("agent.key"),
        state_directory: path("state"),
        mode: AgentMode::Async,
        transport: TransportChoice::Tcp,
        quic_congestion: Congestion::Bbr,
        buffer_bytes_max: 1 << 20,
        bandwidth_bytes_per_second_max: None,
        bitmap_chunk_bytes: 65536,
        ebpf_ring_bytes: 256 << 10,
        application: None,
        disks: vec![AgentDisk { name: "root".parse().unwrap(), path: path("root.img"), capture }],
    }
}

fn open(settings: &AgentSettings) -> Stream {
    opening::open(settings, System::entropy().as_ref()).unwrap().1
}

/// A life in which everything was published in epoch 1, through record 9. It ends killed.
fn published(settings: &AgentSettings) {
    for disk in &open(settings).disks {
        disk.bitmap.begin_epoch(Epoch(1), Sequence::ZERO).unwrap();
        disk.bitmap.repaired(0..DISK_BYTES);
        disk.bitmap.begin_clearing(Vec::new);
        assert_eq!(disk.bitmap.finish_clearing(Sequence(9)).unwrap(), DISK_BYTES);
    }
}

/// The epoch of the next life, once a server has told it how far the stream is, and what it reads again.
fn next_life(settings: &AgentSettings) -> (Epoch, u64) {
    let stream = open(settings);
    let welcome = Welcome {
        server: "ps-1".parse().unwrap(),
        generation: Generation(1),
        epoch: Epoch(1),
        durable: Sequence(9),
        published: Sequence(9),
        credit_limit: u64::MAX,
        bookmark_interval_ms: 5000,
    };
    stream.attach(&welcome).unwrap();
    let epoch = stream.lock().epoch;
    (epoch, stream.disks[0].bitmap.dirty_bytes())
}

/// What was written while no agent ran is known to the way before alone.
#[test]
fn a_disk_that_is_captured_in_another_way_begins_a_new_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let scan = ScanSettings {
        interval: Duration::from_secs(60),
        read_bytes_per_second_max: None,
        hook: None,
    };
    let scanned = settings(directory.path(), Capture::Scan(scan));
    let served = settings(directory.path(), nbd(directory.path()));
    let mount = directory.path().join("mount");
    let mounted = settings(directory.path(), Capture::Fuse { mount });
    for (before, after, epoch) in [
        (&scanned, &scanned, 1),
        (&scanned, &served, 2),
        (&served, &served, 1),
        (&served, &mounted, 1), // neither lets a write past
        (&mounted, &scanned, 2),
    ] {
        let _of_the_case_before = std::fs::remove_dir_all(&before.state_directory);
        published(before);
        let expected = (Epoch(epoch), if epoch == 1 { 0 } else { DISK_BYTES });
        // A life that ends before any server answers changes nothing about that.
        drop(open(after));
        let found = next_life(after);
        assert_eq!(found, expected, "{before:?} then {after:?}");
    }
}
