//! What one life of an agent leaves to the next, in its state directory.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;

use super::dial::{Connection, Dial, Way};
use super::error::AgentError;
use super::opening;
use super::run::Agent;
use super::source_identity::Changed;
use super::stream::Stream;
use crate::clock::{Clock, System};
use crate::format::wire::{FromServer, Refusal, Refuse, Welcome, encode_from_server};
use crate::model::{Epoch, Generation, Sequence};
use crate::settings::{
    AgentDisk, AgentMode, AgentSettings, Capture, Congestion, MirrorTls, ScanSettings,
    TransportChoice,
};
use crate::store::Class;

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
        mirror: MirrorTls {
            ca_certificate: path("ca.pem"),
            certificate: path("agent.pem"),
            key: path("agent.key"),
            server_credentials: "server".into(),
            client_credentials: "client".into(),
        },
        bitmap_chunk_bytes: 65536,
        ebpf_ring_bytes: 256 << 10,
        application: None,
        disks: vec![AgentDisk { name: "root".parse().unwrap(), path: path("root.img"), capture }],
    }
}

/// A program that another test starts has this process's locks until it is run: they are waited for.
fn patient<T>(attempt: impl Fn() -> Result<T, AgentError>) -> T {
    loop {
        match attempt() {
            Err(error) if error.class() == Class::Fence => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

fn open(settings: &AgentSettings) -> Stream {
    patient(|| opening::open(settings, System::entropy().as_ref())).1
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

/// What was noted when the last life stopped is gone after one look; what follows from it is not.
#[test]
fn a_disk_that_was_written_or_replaced_meanwhile_is_sent_whoever_is_killed_before_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path(), nbd(directory.path()));
    let stopped = || {
        let stream = open(&settings);
        let disk = &stream.disks[0];
        let changed = disk.changed().unwrap();
        assert!(changed.is_some());
        disk.bitmap.mark_stopped(true, Sequence(9), changed).unwrap();
        changed
    };
    published(&settings);
    let noted = stopped();
    assert_eq!(next_life(&settings), (Epoch(1), 0), "nothing happened");
    assert_eq!(stopped(), noted);
    let path = &settings.disks[0].path;
    // A file system that counts in coarse steps may need more than one write.
    while Some(Changed::of(&std::fs::metadata(path).unwrap())) == noted {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&[8], 0).unwrap();
    }
    drop(open(&settings)); // killed before a server answered
    assert_eq!(next_life(&settings), (Epoch(1), DISK_BYTES));

    published(&settings);
    std::fs::rename(path, directory.path().join("old.img")).unwrap();
    std::fs::write(path, vec![7; DISK_BYTES as usize]).unwrap();
    drop(open(&settings));
    assert_eq!(next_life(&settings), (Epoch(2), DISK_BYTES));
}

/// A server that says that somebody else writes this stream.
struct Refusing;

#[async_trait]
impl Dial for Refusing {
    async fn dial(&self, _: &str, _: Way) -> Result<Connection, AgentError> {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let text = "somebody else writes it".to_owned();
        let refuse = FromServer::Refuse(Refuse { code: Refusal::Foreign, text });
        let frame = encode_from_server(&refuse);
        theirs.write_all(&frame.header).await.unwrap();
        for fragment in frame.payload.fragments() {
            theirs.write_all(fragment).await.unwrap();
        }
        tokio::spawn(async move { tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await });
        Ok(Connection::over(ours))
    }
}

/// The next life has given out nothing yet, so it could not notice.
#[test]
fn the_life_after_a_foreign_stream_begins_a_new_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path(), nbd(directory.path()));
    published(&settings);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let agent = patient(|| {
            let (clock, entropy) = (System::clock(), System::entropy());
            Agent::start_with(settings.clone(), clock, entropy, Arc::new(Refusing))
        });
        while !agent.shared().connection_state().halted {
            System.sleep(Duration::from_millis(5)).await;
        }
        agent.stop_within(Duration::ZERO).await;
    });
    drop(runtime); // and every task, with the files that they held
    assert_eq!(next_life(&settings), (Epoch(2), DISK_BYTES));
}
