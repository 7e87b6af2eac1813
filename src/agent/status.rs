//! How the agent is, in words and numbers, for people and scripts.
//!
//! Owns: `status.json` in the state directory. Does not own: the facts.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::format::wire::Capture;
use crate::model::{DiskIndex, DiskName, MachineId, Timestamp, TrackingMode};
use crate::settings::AgentMode;

use super::capture::{Age, CaptureMode};
use super::dial::Way;
use super::run::{ConnectionState, Shared};
use super::stream::Stream;

/// Everything worth knowing about an agent at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentStatus {
    /// Which machine.
    pub machine: MachineId,
    /// When this was written.
    pub time: Timestamp,
    /// Names the life of the agent that wrote it; `reload` begins another.
    pub incarnation: String,
    /// `ordered`, `catching-up` or `bitmap`.
    pub mode: &'static str,
    /// Why it is in this mode.
    pub why: String,
    /// The epoch it tracks; 0 before the first.
    pub epoch: u32,
    /// The process server it is connected to.
    pub server: Option<String>,
    /// What carries that connection: `tcp` or `quic`.
    pub transport: Option<&'static str>,
    /// How often another process server than before welcomed it in this life.
    pub switches: u64,
    /// Why that happened last: how the connection to the one before ended.
    pub switched_because: Option<String>,
    /// Why the last connection ended, or the last attempt was in vain.
    pub last_error: Option<String>,
    /// Replication stopped for good and a human must act.
    pub halted: bool,
    /// What keeps the source disk or the bitmap from being used.
    pub trouble: Option<String>,
    /// `async`, `sync`, or `sync-suspended` while a sync agent cannot wait for the server.
    pub acknowledge: &'static str,
    /// Last record given out.
    pub last: u64,
    /// Last record handed to the connection.
    pub sent: u64,
    /// Last record that survives a power cut of the server.
    pub durable: u64,
    /// Last record that survives the loss of the server.
    pub published: u64,
    /// Payload that was sent more than once in this life: a server was lost before it had published
    /// it.
    pub resent_bytes: u64,
    /// Bytes held for resending.
    pub buffered_bytes: u64,
    /// Most bytes held for resending.
    pub buffered_bytes_max: u64,
    /// Bytes of all disks.
    pub total_bytes: u64,
    /// Bytes that a catch-up still has to read and send.
    pub dirty_bytes: u64,
    /// Bytes that may differ from what is published (bits set): what a restart reads again.
    pub unsettled_bytes: u64,
    /// Bytes of the disks that catch-ups placed in this life.
    pub caught_up_bytes: u64,
    /// Bytes per second that the running catch-up places.
    pub catch_up_bytes_per_s: f64,
    /// Seconds until it ends at that rate.
    pub catch_up_eta_s: Option<f64>,
    /// The disks.
    pub disks: Vec<DiskStatus>,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: DiskName,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes that a catch-up still has to read and send.
    pub dirty_bytes: u64,
    /// Bytes that may differ from what is published.
    pub unsettled_bytes: u64,
    /// How well its changes are known: `ordered`, `extents` or `bitmap`.
    pub capture: &'static str,
    /// Why not better, or what there is to say.
    pub capture_why: String,
    /// Where a point shows an older state than that of its bookmark (a scan): how old the newest one is now.
    pub rpo_s: Option<f64>,
    /// How old the one before was when that took its place, as measured: interval and duration of a scan.
    pub rpo_s_max: Option<f64>,
}

fn words(mode: TrackingMode) -> &'static str {
    match mode {
        TrackingMode::Ordered => "ordered",
        TrackingMode::CatchingUp => "catching-up",
        TrackingMode::Bitmap => "bitmap",
    }
}

/// How well each disk's changes are known now. Asked without the stream's lock: observers take it
/// themselves.
pub(super) fn captures(stream: &Stream) -> Vec<Capture> {
    let observers = stream.observers();
    let observed = observers.iter().flat_map(|observer| observer.modes());
    let mut observed: BTreeMap<DiskIndex, (CaptureMode, String)> =
        observed.map(|(disk, mode, why)| (disk, (mode, why))).collect();
    let disks = stream.disks.iter().map(|disk| {
        let inline = || (CaptureMode::Ordered, "in the way of every write".to_owned());
        let (mode, why) = observed.remove(&disk.index).unwrap_or_else(inline);
        Capture { disk: disk.index, mode, why }
    });
    disks.collect()
}

impl AgentStatus {
    /// Looks at the agent. The catch-up's rate is the caller's: it knows two moments.
    pub(super) fn of(shared: &Shared, catch_up_bytes_per_s: f64) -> Self {
        let ConnectionState { server, switches, switched_because, last_error, halted, .. } =
            shared.connection_state();
        let (server, way) = server.unzip();
        let captures = captures(&shared.stream);
        let observers = shared.stream.observers();
        let ages: BTreeMap<DiskIndex, Age> =
            observers.iter().flat_map(|observer| observer.ages()).collect();
        let seconds = |age: Option<Duration>| age.map(|age| age.as_secs_f64());
        let core = shared.stream.lock();
        let disks: Vec<DiskStatus> = (shared.stream.disks.iter().zip(captures))
            .map(|(disk, capture)| (disk, capture, ages.get(&disk.index).copied()))
            .map(|(disk, capture, age)| DiskStatus {
                rpo_s: seconds(age.and_then(|age| age.now)),
                rpo_s_max: seconds(age.and_then(|age| age.max)),
                capture: capture.mode.as_str(),
                capture_why: capture.why,
                name: disk.name.clone(),
                size_bytes: disk.size_bytes,
                dirty_bytes: disk.bitmap.dirty_bytes(),
                unsettled_bytes: disk.bitmap.set_bytes(),
            })
            .collect();
        let dirty_bytes = disks.iter().map(|disk| disk.dirty_bytes).sum();
        let moving = core.mode == TrackingMode::CatchingUp && catch_up_bytes_per_s >= 1.0;
        Self {
            machine: shared.settings.machine.clone(),
            time: shared.clock.wall(),
            incarnation: shared.incarnation.to_string(),
            mode: words(core.mode),
            why: core.why.clone(),
            epoch: core.epoch.0,
            server,
            transport: way.map(Way::as_str),
            switches,
            switched_because,
            last_error,
            halted,
            trouble: core.trouble.clone(),
            acknowledge: match (shared.settings.mode, core.mode) {
                (AgentMode::Async, _) => "async",
                (AgentMode::Sync, TrackingMode::Bitmap) => "sync-suspended",
                (AgentMode::Sync, _) => "sync",
            },
            last: core.last.0,
            sent: core.sent.0,
            durable: core.durable.0,
            published: core.witnessed.0,
            resent_bytes: core.resent_bytes,
            buffered_bytes: core.buffer.bytes(),
            buffered_bytes_max: core.buffer.bytes_max(),
            total_bytes: disks.iter().map(|disk| disk.size_bytes).sum(),
            dirty_bytes,
            unsettled_bytes: disks.iter().map(|disk| disk.unsettled_bytes).sum(),
            caught_up_bytes: core.repaired_bytes,
            catch_up_bytes_per_s,
            catch_up_eta_s: moving.then(|| dirty_bytes as f64 / catch_up_bytes_per_s),
            disks,
        }
    }

    /// Replaces `status.json`: a reader sees the old one or the new one.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let unfinished = directory.join("status.json.new");
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        std::fs::write(&unfinished, text)?;
        std::fs::rename(unfinished, directory.join("status.json"))
    }
}
