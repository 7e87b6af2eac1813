//! A disk that is another one, or was written, when its agent begins again.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast::agent::{Agent, AgentStatus, Dial, Stopped};
use holdfast::clock::System;
use holdfast::model::{BookmarkKind, DiskIndex};
use holdfast::settings::Capture;

use crate::machine::{Fast, Machine, SPEED, blocking, export, noise, settled, until};
use crate::server::{Direct, Server};
use crate::stream::{equals_source, no_violations};

const DISK_BYTES: u64 = 2 << 20;

async fn write(agent: &Agent, offset: u64, seed: u64) {
    let disk = export(agent, 0);
    blocking(move || disk.write(offset, noise(4096, seed).into(), false).unwrap()).await;
}

/// A life that writes on both sides of a bookmark and stops in order; gives the disk as of the bookmark.
async fn lived(machine: &Machine, server: &Arc<Server>) -> Vec<u8> {
    let agent = machine.start(Arc::new(Direct(Arc::clone(server)))).await;
    settled(&agent).await;
    write(&agent, 0, 11).await;
    let (_, through) = agent.bookmark("a", BookmarkKind::CrashConsistent).unwrap();
    write(&agent, 300 << 10, 12).await;
    write(&agent, 0, 13).await;
    settled(&agent).await;
    assert_eq!(agent.stop().await, Stopped::Clean);
    server.goodbye().await;
    let image = server.held().images(through.0)[&DiskIndex(0)].clone();
    assert_ne!(image, machine.source(0));
    image
}

/// The next life, once all is well and it has written; gives the status in which it took up the stream.
async fn lives_on(machine: &Machine, server: &Arc<Server>) -> AgentStatus {
    server.stalled.store(true, Ordering::Relaxed); // a copy that needs more than its buffer stays
    let agent = machine.start(Arc::new(Direct(Arc::clone(server)))).await;
    let begun = until(&agent, "taken up", |status| status.mode != "bitmap").await;
    server.stalled.store(false, Ordering::Relaxed);
    settled(&agent).await;
    write(&agent, 700 << 10, 14).await;
    agent.bookmark("c", BookmarkKind::CrashConsistent).unwrap();
    settled(&agent).await;
    no_violations(server);
    equals_source(server, machine);
    assert_eq!(agent.stop().await, Stopped::Clean);
    begun
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_disk_of_the_same_size_begins_a_new_epoch() {
    let machine = Machine::new(&[DISK_BYTES], 1 << 20);
    let server = Server::new(4 << 20);
    let before = lived(&machine, &server).await;
    let path = &machine.settings.disks[0].path;
    std::fs::rename(path, machine.path("old")).unwrap();
    std::fs::write(path, before).unwrap();
    let status = lives_on(&machine, &server).await;
    assert_eq!(server.held().epoch.0, 2);
    assert!(status.why.contains("another disk lies there"), "{}", status.why);
    assert!(status.why.contains("disk0.img"), "{}", status.why);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_written_while_no_agent_ran_is_read_as_a_whole() {
    let machine = Machine::new(&[DISK_BYTES], 1 << 20);
    let server = Server::new(4 << 20);
    let before = lived(&machine, &server).await;
    // A start that comes to nothing forgets nothing of what the stop noted.
    let Capture::Nbd { socket } = &machine.settings.disks[0].capture else { panic!("nbd") };
    std::fs::create_dir_all(socket.join("taken")).unwrap();
    let dial: Arc<dyn Dial> = Arc::new(Direct(Arc::clone(&server)));
    let settings = machine.settings.clone();
    let failed = Agent::start_with(settings, Arc::new(Fast(SPEED)), System::entropy(), dial);
    assert!(failed.is_err(), "{failed:?}");
    std::fs::remove_dir_all(socket).unwrap();
    let file = File::options().write(true).open(&machine.settings.disks[0].path).unwrap();
    let changed = || file.metadata().map(|found| (found.ctime(), found.ctime_nsec())).unwrap();
    let noted = changed();
    // A file system that counts in coarse steps may need more than one write.
    while changed() == noted {
        file.write_all_at(&before, 0).unwrap();
    }
    let status = lives_on(&machine, &server).await;
    assert_eq!(server.held().epoch.0, 1, "the old points stay in their epoch");
    assert!(status.why.contains("was changed while no agent ran"), "{}", status.why);
}
