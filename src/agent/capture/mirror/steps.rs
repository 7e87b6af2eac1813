//! What the agent has QEMU do for one disk: each step one or a few commands.
//!
//! Owns: their arguments. Does not own: their order ([`super::attach`]).

use serde_json::{Value, json};

use super::device;
use super::error::MirrorError;
use super::names::Names;
use super::qmp::{Qmp, QmpError};
use super::reach::Reach;

/// What one bit of a dirty bitmap stands for. QEMU itself would take less where a qcow2 has small clusters.
const BIT_BYTES: u32 = 64 << 10;
/// Most looks at a job until it is where it should be.
const LOOKS_MAX: u32 = 200;

type Result<T> = std::result::Result<T, MirrorError>;

/// How a mirror is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mirror {
    /// Every write of the guest reached the agent before the guest had its answer.
    Synced,
    /// It runs, and is not there yet.
    Behind(String),
    /// Somebody completed it. Until it is ended the guest stands still.
    Completed,
    /// There is none.
    Gone,
}

/// Carries out a command that may find nothing to do.
pub(super) fn if_there(qmp: &mut Qmp, command: &'static str, arguments: Value) -> Result<()> {
    match qmp.execute(command, arguments) {
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits between two looks at what QEMU does meanwhile; `false`: the agent is stopping.
pub(super) type Pause<'a> = &'a mut dyn FnMut() -> bool;

/// Looks until something is found.
fn repeat<T>(
    what: &str,
    pause: Pause<'_>,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    for _ in 0..LOOKS_MAX {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if !pause() {
            return Err(MirrorError::State("the agent is stopping".to_owned()));
        }
    }
    Err(MirrorError::State(format!("{what}: QEMU did not do it in time")))
}

/// Ends a mirror of an earlier life, or this one's, and takes its node away.
pub(super) fn end_mirror(qmp: &mut Qmp, names: &Names, pause: Pause<'_>) -> Result<()> {
    if_there(qmp, "block-job-cancel", json!({ "device": names.job, "force": true }))?;
    repeat("ending the mirror job", pause, || {
        Ok((mirror(qmp, names)? == Mirror::Gone).then_some(()))
    })?;
    if_there(qmp, "blockdev-del", json!({ "node-name": names.target }))
}

/// Takes an export away; its name is free afterwards.
pub(super) fn end_export(qmp: &mut Qmp, id: &str, pause: Pause<'_>) -> Result<()> {
    if_there(qmp, "block-export-del", json!({ "id": id, "mode": "hard" }))?;
    repeat("ending an export", pause, || {
        let exports = qmp.execute("query-block-exports", json!({}))?;
        let mut exports = exports.as_array().into_iter().flatten();
        Ok((!exports.any(|export| export["id"] == id)).then_some(()))
    })
}

/// Waits until the mirror has begun.
pub(super) fn await_mirror(qmp: &mut Qmp, names: &Names, pause: Pause<'_>) -> Result<()> {
    repeat("starting the mirror", pause, || match mirror(qmp, names)? {
        Mirror::Synced => Ok(Some(())),
        Mirror::Behind(_) => Ok(None),
        Mirror::Completed | Mirror::Gone => Err(ended(qmp, names)),
    })
}

/// Ends a mirror that somebody completed: the guest keeps its own disk, and goes on.
pub(super) fn end_completed(qmp: &mut Qmp, names: &Names, pause: Pause<'_>) -> MirrorError {
    let done = "the mirror job was completed by somebody; it was ended instead, for the guest's disk would \
                have been the agent: leave that job alone";
    let ended = end_mirror(qmp, names, pause);
    ended.err().unwrap_or_else(|| MirrorError::State(done.to_owned()))
}

/// Whether the guest's device that was above the mirror is there still.
pub(super) fn still_below(qmp: &mut Qmp, names: &Names, above: Option<&str>) -> Result<()> {
    let Some(above) = above else { return Ok(()) };
    if device::above(qmp, &names.filter)?.as_deref() == Some(above) {
        return Ok(());
    }
    let gone = format!("{above} has another disk in QEMU now than the one that is mirrored");
    Err(MirrorError::State(gone))
}

/// Why the mirror is gone, as far as QEMU said it.
pub(super) fn ended(qmp: &mut Qmp, names: &Names) -> MirrorError {
    let trouble = qmp.take_trouble(&names.job);
    MirrorError::State(trouble.unwrap_or_else(|| "the mirror job is gone".to_owned()))
}

/// Has QEMU serve `node` for reading.
pub(super) fn serve(qmp: &mut Qmp, reach: &Reach, node: &str, names: &Names) -> Result<()> {
    match qmp.execute("nbd-server-start", reach.reads_server()) {
        Ok(_) => {}
        // Ours of an earlier life, or for another disk of this guest.
        Err(QmpError::Refused { .. }) if reach.serves() => {}
        Err(QmpError::Refused { said, .. }) if said.contains("already running") => {
            return Err(MirrorError::OtherServer { socket: reach.monitor.to_string() });
        }
        Err(error) => return Err(error.into()),
    }
    let export =
        json!({ "type": "nbd", "id": names.reads, "name": names.reads, "node-name": node });
    qmp.execute("block-export-add", export)?;
    Ok(())
}

/// Starts the mirror: from here on each write of the guest waits for the agent. One that somebody
/// completes stops short of its end (`auto-finalize`), where QEMU would give the guest the agent for a disk.
/// `target` is where QEMU finds the agent.
pub(super) fn start(
    qmp: &mut Qmp,
    node: &str,
    disk: &str,
    names: &Names,
    target: &Value,
) -> Result<()> {
    let mut target = target.clone();
    for (key, value) in
        [("driver", json!("nbd")), ("node-name", json!(names.target)), ("export", json!(disk))]
    {
        target[key] = value;
    }
    qmp.execute("blockdev-add", target)?;
    let job = json!({
        "job-id": names.job, "device": node, "target": names.target, "sync": "none",
        "copy-mode": "write-blocking", "filter-node-name": names.filter,
        "on-target-error": "report", "on-source-error": "report", "auto-finalize": false,
    });
    qmp.execute("blockdev-mirror", job)?;
    Ok(())
}

/// How the mirror is now.
pub(super) fn mirror(qmp: &mut Qmp, names: &Names) -> Result<Mirror> {
    let jobs = qmp.execute("query-block-jobs", json!({}))?;
    let mut jobs = jobs.as_array().into_iter().flatten();
    let Some(job) = jobs.find(|job| job["device"] == names.job) else {
        return Ok(Mirror::Gone);
    };
    let status = job["status"].as_str().unwrap_or("?");
    if job.get("actively-synced").is_none() {
        let old =
            "this QEMU does not say whether a mirror is actively synced: 8.2 or later is needed";
        return Err(MirrorError::State(old.to_owned()));
    }
    if matches!(status, "waiting" | "pending") {
        return Ok(Mirror::Completed);
    }
    // `standby` is `ready` while QEMU holds everything still for a command.
    let lives = matches!(status, "ready" | "standby") && job["io-status"] == "ok";
    if lives && job["ready"] == true && job["actively-synced"] == true {
        return Ok(Mirror::Synced);
    }
    Ok(Mirror::Behind(format!("the mirror job is {status}, and not actively synced")))
}

/// Returns when every request of the guest that was in flight at the call is complete, on its disk and
/// at the agent: QEMU drains before any transaction, also one that does nothing.
pub(super) fn drain(qmp: &mut Qmp) -> Result<()> {
    qmp.execute("transaction", json!({ "actions": [] }))?;
    Ok(())
}

pub(super) fn add_bitmap(qmp: &mut Qmp, node: &str, name: &str) -> Result<()> {
    let bitmap = json!({ "node": node, "name": name, "granularity": BIT_BYTES });
    qmp.execute("block-dirty-bitmap-add", bitmap)?;
    Ok(())
}

/// A bitmap that records nothing and says something by being there.
pub(super) fn add_mark(qmp: &mut Qmp, node: &str, name: &str) -> Result<()> {
    let bitmap = json!({ "node": node, "name": name, "granularity": BIT_BYTES, "disabled": true });
    qmp.execute("block-dirty-bitmap-add", bitmap)?;
    Ok(())
}

/// `target` holds afterwards what the others held, too. They go on as they are.
pub(super) fn merge_bitmaps(
    qmp: &mut Qmp,
    node: &str,
    target: &str,
    others: &[&String],
) -> Result<()> {
    let merge = json!({ "node": node, "target": target, "bitmaps": others });
    qmp.execute("block-dirty-bitmap-merge", merge)?;
    Ok(())
}

pub(super) fn remove_bitmap(qmp: &mut Qmp, node: &str, name: &str) -> Result<()> {
    qmp.execute("block-dirty-bitmap-remove", json!({ "node": node, "name": name }))?;
    Ok(())
}

/// Stops a bitmap (QEMU shows none that still records) and serves it.
pub(super) fn serve_bitmap(qmp: &mut Qmp, node: &str, name: &str, names: &Names) -> Result<()> {
    qmp.execute("block-dirty-bitmap-disable", json!({ "node": node, "name": name }))?;
    let export = json!({
        "type": "nbd", "id": names.bits, "name": names.bits, "node-name": node, "bitmaps": [name],
    });
    qmp.execute("block-export-add", export)?;
    Ok(())
}
