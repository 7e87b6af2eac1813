//! A cache log that has no room: while the server drains, and when its machine is taken.

use std::path::Path;

use tokio::sync::oneshot;

use super::*;
use crate::cache::{self, CacheError, Opened};
use crate::model::Extent;
use crate::server::closing::{self, LOG_MAX, PUBLISH_MAX};
use crate::settings::CacheSettings;

/// One write and some marks fit a segment.
const SEGMENT_BYTES: u64 = (1 << 20) + 8192;
const WRITE_BYTES: u32 = 700 << 10;
/// One of them is recovery's.
const SEGMENTS: u64 = 4;

fn open(cache: &Path, clock: &Arc<Hands>) -> Opened {
    let settings = CacheSettings {
        directory: cache.to_owned(),
        segment_bytes: SEGMENT_BYTES,
        bytes_max: SEGMENTS * SEGMENT_BYTES,
        warn_fill: 0.5,
        slow_fill: 0.65,
        stop_fill: 0.85,
    };
    let (clock, metrics) = (Arc::clone(clock) as _, Arc::default());
    cache::open(&settings, 0, 1, clock, System::entropy(), metrics).unwrap()
}

/// What a power cut leaves: the process that has the directory may go on.
fn after_a_power_cut(cache: &Path, clock: &Arc<Hands>) -> Vec<(MachineKey, u64)> {
    let left = tempfile::tempdir().unwrap();
    let shard = left.path().join("shard-0");
    std::fs::create_dir(&shard).unwrap();
    for entry in std::fs::read_dir(cache.join("shard-0")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), shard.join(entry.file_name())).unwrap();
    }
    let found = open(left.path(), clock);
    let records = found.recovered.iter().map(|found| &found.record);
    records.map(|record| (record.machine(), record.sequence().0)).collect()
}

/// The log of a shard's thread, until it ends or `stop` is told.
struct Log {
    ended: oneshot::Receiver<Result<(), CacheError>>,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Log {
    fn start(writer: cache::Writer, admitted: mpsc::Receiver<Admitted>, routes: Routes) -> Self {
        let (tell, ended) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            tokio_uring::start(async move {
                let written = writer.run(admitted, |records| routes.durable(records));
                tokio::select! {
                    written = written => drop(tell.send(written)),
                    _ = stopped => {}
                }
            });
        });
        Self { ended, stop, thread }
    }
}

/// The marks that a stream begins with, then writes.
fn stream(machine: &MachineId, writes: u64) -> Vec<Admitted> {
    let disk = DiskSpec { index: DiskIndex(0), name: "root".parse().unwrap(), size_bytes: 1 << 30 };
    let marks = [
        Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks: vec![disk] }),
        Change::CatchUpBegin(CatchUp::InitialReplication),
        Change::CatchUpEnd,
    ];
    let write = |nth| Change::Write {
        disk: DiskIndex(0),
        extent: Extent::new(nth << 20, WRITE_BYTES.into(), WRITE_BYTES).unwrap(),
        payload: vec![nth as u8; WRITE_BYTES as usize].into(),
    };
    let changes = marks.into_iter().chain((0..writes).map(write));
    let admitted = |(sequence, change)| Admitted {
        machine: MachineKey::of(machine),
        generation: Generation(1),
        record: Record { sequence: Sequence(sequence), change },
        permit: crate::budget::Permit::none(),
        received_at: Duration::ZERO,
    };
    (1..).zip(changes).map(admitted).collect()
}

/// Room that comes while a drain publishes what is left is not for records that have no pipeline any more:
/// they would follow a gap, and what was acknowledged before it would count as published.
#[tokio::test]
async fn a_log_that_is_late_overwrites_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut site = Site::new(Kept::default()).await;
    let admitted = std::mem::replace(&mut site.admitted, mpsc::channel(1).1);
    let Site { registry, faulty, clock, .. } = &site;
    let [stays, goes] = [id("stays"), id("goes")];
    let mut links = Vec::new();
    for machine in [&stays, &goes] {
        site.enroll(machine).await;
        links.push(registry.open(machine, &CERTIFICATE).await.unwrap());
    }
    // Both can be published only when the test says so.
    let gates = [&stays, &goes].map(|machine| {
        let (gate, manifest) = (Gate::new(), names::manifest(machine));
        faulty.add(Rule::on(Op::Put, Fault::Hold(gate.clone())).named(manifest.as_str()));
        gate
    });
    let opened = open(directory.path(), clock);
    opened.recycling.begin();
    let log = Log::start(opened.writer, admitted, registry.routes());
    let appends = registry.shared().shards[0].appends().unwrap();
    // A segment with the first write of who stays, one with the write of who goes, one with the next of who
    // stays; and two more are wanted.
    let mut theirs = stream(&stays, 4);
    let later = theirs.split_off(4);
    for record in theirs.into_iter().chain(stream(&goes, 1)).chain(later) {
        appends.send(record).await.unwrap();
    }
    drop(appends);
    links[0].durable_at(Sequence(5)).await;
    links[1].durable_at(Sequence(4)).await;
    links.clear();
    let mut steps = 0..100_000;
    while faulty.calls(Op::Put, names::manifest(&goes).as_str()) < 2 {
        steps.next().expect("it is on its way to the manifest");
        clock.advance(Duration::from_secs(1)).await;
    }

    site.drain.send_replace(true);
    registry.close();
    let (left, time) = (Arc::clone(registry), Arc::clone(clock) as Arc<dyn Clock>);
    let (logs, recycling) = (vec![log.ended], vec![opened.recycling]);
    let finishing =
        tokio::spawn(async move { closing::finish(logs, recycling, &left, &time).await });
    clock.advance(LOG_MAX).await;
    gates[1].open();
    // The log's threads know nothing of this clock. With room it would end at once; there is none.
    let ends = async {
        while !log.thread.is_finished() {
            clock.advance(Duration::ZERO).await;
        }
    };
    let _ends_only_where_this_fails = tokio::time::timeout(Duration::from_secs(1), ends).await;
    clock.advance(PUBLISH_MAX).await;
    assert!(finishing.await.unwrap().late);
    let _it_may_have_ended = log.stop.send(());
    log.thread.join().unwrap();

    let found = after_a_power_cut(directory.path(), clock);
    let theirs = found.iter().filter(|(machine, _)| *machine == MachineKey::of(&stays));
    let theirs: Vec<_> = theirs.map(|(_, sequence)| *sequence).collect();
    assert!(theirs.starts_with(&[1, 2, 3, 4, 5]), "acknowledged, not published, found: {theirs:?}");
}
