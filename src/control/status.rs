//! How a machine is, in words: a function of plain facts.
//!
//! Owns: what the facts mean and how it is said. Does not own: fetching them (`sources`).

use serde::Serialize;

use super::rate::Rate;
use super::sources::{Live, MachineFactsheet};
use super::words::{bytes, span};
use crate::model::{MachineId, Timestamp};
use crate::observe::{AgentTracking, MachineFacts, Pressure, ServerFacts};

#[cfg(test)]
mod tests;

/// Silence of an agent that is worth a word, seconds.
const SILENCE_S: f64 = 60.0;
/// A backlog that takes longer to drain is worth a warning, seconds.
const DRAIN_WARN_S: f64 = 30.0 * 60.0;
/// Remaining life of the newest certificate that is worth a warning, seconds.
const CERTIFICATE_WARN_S: f64 = 30.0 * 86_400.0;
/// Snapshot intervals without a snapshot that are worth a warning.
const STANDSTILL_INTERVALS: f64 = 3.0;

/// How good or bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// As it should be.
    Good,
    /// Good to know.
    Notice,
    /// Somebody should look.
    Warning,
    /// Protection is at stake.
    Critical,
}

/// One sentence about a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthLine {
    /// How good or bad.
    pub health: Health,
    /// The sentence.
    pub text: String,
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachineStatus {
    /// Which.
    pub machine: MachineId,
    /// The worst of its lines.
    pub health: Health,
    /// The most important sentence first.
    pub lines: Vec<HealthLine>,
    /// Age of the newest moment that can be recovered to.
    pub rpo_seconds: Option<f64>,
    /// Newest moment that can be recovered to.
    pub recoverable_time: Option<Timestamp>,
    /// Published through this sequence.
    pub published: u64,
    /// On the seed disks through this sequence.
    pub applied: u64,
    /// Sequence of the newest snapshot point.
    pub recoverable: u64,
    /// Copied of all disks, percent, while an initial replication or a catch-up runs.
    pub copied_percent: Option<f64>,
    /// Time that the running copy still takes.
    pub copy_eta_seconds: Option<f64>,
    /// Payload bytes durable and not yet published.
    pub backlog_bytes: Option<u64>,
    /// Time until they are published.
    pub backlog_eta_seconds: Option<f64>,
    /// The process server that owns it.
    pub owner: Option<String>,
    /// What the process server says now; absent when it was not reached.
    pub live: Option<MachineFacts>,
}

/// How the machine of `sheet` is at `now`.
#[must_use]
pub fn status(sheet: &MachineFactsheet, now: Timestamp) -> MachineStatus {
    let live = match &sheet.live {
        Live::Facts { machine, .. } => machine.as_ref(),
        Live::Unasked | Live::Silent { .. } => None,
    };
    let manifest = sheet.manifest.as_ref();
    let rate = Rate::of(manifest.map_or(&[], |manifest| &manifest.entries), now);
    let recoverable_time = recoverable_time(sheet, live);
    let rpo_seconds = recoverable_time.map(|time| now.seconds_since(time).max(0.0));
    let copying = manifest.is_some_and(|manifest| manifest.catching_up)
        || live.is_some_and(|live| live.mode == AgentTracking::CatchingUp && live.dirty_bytes > 0);
    let copy = live.filter(|live| copying && live.total_bytes > 0);
    let mut status = MachineStatus {
        machine: sheet.document.machine.clone(),
        health: Health::Good,
        lines: Vec::new(),
        rpo_seconds,
        recoverable_time,
        published: manifest.map_or(0, |manifest| manifest.published.0),
        applied: sheet.points.as_ref().map_or(0, |points| points.applied),
        recoverable: sheet
            .points
            .as_ref()
            .and_then(|points| points.snapshots.last())
            .map_or(0, |point| point.sequence),
        copied_percent: copy.map(copied_percent),
        copy_eta_seconds: copy.and_then(|live| rate.seconds_for(live.dirty_bytes)),
        backlog_bytes: live.map(|live| live.backlog_bytes),
        backlog_eta_seconds: live.and_then(|live| rate.seconds_for(live.backlog_bytes)),
        owner: manifest.map(|manifest| manifest.owner.to_string()),
        live: live.cloned(),
    };
    let mut lines = vec![protection(sheet, &status, copying)];
    lines.extend(troubles(sheet, live));
    lines.extend(standstill(sheet));
    lines.extend(held(sheet));
    lines.extend(live.into_iter().flat_map(|live| agent(live, now)));
    lines.extend(server(&sheet.live));
    lines.extend(backlog(&status));
    lines.extend(certificate(sheet, now));
    // The first line says what the machine is; the others follow by how bad they are.
    lines[1..].sort_by_key(|line| std::cmp::Reverse(line.health));
    status.health = lines.iter().map(|line| line.health).max().unwrap_or(Health::Good);
    status.lines = lines;
    status
}

fn line(health: Health, text: impl Into<String>) -> HealthLine {
    HealthLine { health, text: text.into() }
}

fn copied_percent(live: &MachineFacts) -> f64 {
    let total = live.total_bytes.max(1) as f64;
    (100.0 - 100.0 * live.dirty_bytes as f64 / total).clamp(0.0, 100.0)
}

/// The process server's word if it has one, else the newest bookmark that is published.
fn recoverable_time(sheet: &MachineFactsheet, live: Option<&MachineFacts>) -> Option<Timestamp> {
    let entries = sheet.manifest.iter().flat_map(|manifest| &manifest.entries);
    let published = entries.flat_map(|entry| entry.bookmarks.iter().map(|b| entry.moment(b)));
    let snapshots = sheet.points.iter().flat_map(|points| &points.snapshots);
    let snapshots = snapshots.map(|point| point.time);
    let live = live.and_then(|live| live.recoverable_time);
    published.chain(snapshots).chain(live).max()
}

/// What the machine is, first of all.
fn protection(sheet: &MachineFactsheet, status: &MachineStatus, copying: bool) -> HealthLine {
    let progress = match (status.copied_percent, status.copy_eta_seconds) {
        (Some(percent), Some(eta)) => format!(" {percent:.0} %, about {} left", span(eta)),
        (Some(percent), None) => format!(" {percent:.0} %"),
        (None, _) => String::new(),
    };
    let rpo_warn = f64::from(sheet.document.policy.rpo_warn_s);
    match (status.rpo_seconds, copying) {
        (None, true) => line(Health::Notice, format!("initial replication{progress}")),
        (Some(rpo), true) => {
            let old = span(rpo);
            let text = format!("catching up{progress}; newest recovery point is {old} old");
            line(Health::Warning, text)
        }
        (Some(rpo), false) if rpo > rpo_warn => {
            let (rpo, warn) = (span(rpo), span(rpo_warn));
            line(Health::Warning, format!("protected, but RPO {rpo} is above {warn}"))
        }
        (Some(rpo), false) => line(Health::Good, format!("protected, RPO {}", span(rpo))),
        (None, false) if status.published == 0 => {
            line(Health::Notice, "nothing received yet: start `holdfast agent` on the machine")
        }
        (None, false) => line(Health::Notice, "no recovery point yet"),
    }
}

/// What stops a stage.
fn troubles(sheet: &MachineFactsheet, live: Option<&MachineFacts>) -> Vec<HealthLine> {
    let quarantine = sheet.points.iter().filter_map(|points| points.quarantine.as_ref());
    let quarantine =
        quarantine.map(|why| line(Health::Critical, format!("applying stopped: {why}")));
    let trouble = live.and_then(|live| live.trouble.as_ref());
    let trouble = trouble.map(|why| line(Health::Critical, why.clone()));
    quarantine.chain(trouble).collect()
}

/// Bookmarks go on and no snapshot follows: nobody applies, or applying cannot keep up. Nothing is
/// lost by that, but the log grows and recovering takes longer.
fn standstill(sheet: &MachineFactsheet) -> Option<HealthLine> {
    let points = sheet.points.as_ref();
    if points.is_some_and(|points| points.quarantine.is_some()) {
        return None; // said already, with its cause
    }
    let entries = &sheet.manifest.as_ref()?.entries;
    let moments = || entries.iter().flat_map(|e| e.bookmarks.iter().map(|b| e.moment(b)));
    let newest = points.and_then(|points| points.snapshots.last()).map(|point| point.time);
    let age = moments().max()?.seconds_since(newest.or(moments().min())?);
    let intervals = STANDSTILL_INTERVALS * f64::from(sheet.document.policy.snapshot_interval_s);
    (age > intervals).then(|| {
        let text = format!(
            "no snapshot for {} although bookmarks go on: is an applier running (`holdfast serve` \
             with apply.enabled, or `holdfast apply`)?",
            span(age)
        );
        line(Health::Warning, text)
    })
}

/// Rows K3 and K5 of docs/scale-out.md.
fn held(sheet: &MachineFactsheet) -> impl Iterator<Item = HealthLine> {
    sheet.held.iter().map(|(server, records)| {
        let text = format!(
            "{records} acknowledged records are held on process server {server}, unpublished: start its agent, \
             which has them or reads them again. If the machine is gone for good, keep the cache directory of \
             {server}: they may be nowhere else"
        );
        line(Health::Warning, text)
    })
}

fn agent(live: &MachineFacts, now: Timestamp) -> Vec<HealthLine> {
    let mut lines = Vec::new();
    let silence = live.heard.map(|heard| now.seconds_since(heard));
    match (live.connected, silence) {
        (false, Some(silence)) => {
            let text = format!("agent silent for {}", span(silence));
            lines.push(line(Health::Critical, text));
        }
        (false, None) => lines
            .push(line(Health::Critical, "agent not connected since the process server started")),
        (true, Some(silence)) if silence > SILENCE_S => {
            let text = format!("agent connected, but silent for {}", span(silence));
            lines.push(line(Health::Warning, text));
        }
        (true, _) => {}
    }
    if live.mode == AgentTracking::Bitmap {
        let dirty = bytes(live.dirty_bytes);
        let text = format!(
            "agent remembers changed extents only ({dirty}): no new points until it caught up"
        );
        lines.push(line(Health::Warning, text));
    }
    lines
}

fn server(live: &Live) -> Vec<HealthLine> {
    match live {
        Live::Unasked => Vec::new(),
        Live::Silent { server, reason } => {
            let text = format!("process server {} does not answer: {reason}", server.server);
            vec![line(Health::Critical, text)]
        }
        Live::Facts { machine, server } => {
            let mut lines: Vec<_> = cache(server).into_iter().collect();
            lines.extend(server.cache_damages.iter().map(|damage| {
                let text = format!("cache log damaged at the last start: {damage}");
                line(Health::Warning, text)
            }));
            if machine.is_none() {
                let text = "its process server has not seen the machine since it started";
                lines.push(line(Health::Warning, text));
            }
            lines
        }
    }
}

fn cache(server: &ServerFacts) -> Option<HealthLine> {
    let max = server.cache_max_bytes;
    let percent = server.cache_used_bytes as f64 * 100.0 / max.max(1) as f64;
    let used = format!("{} of {}", bytes(server.cache_used_bytes), bytes(max));
    let outlook = &server.cache;
    let (health, mut text) = match outlook.pressure {
        Pressure::Free => return None,
        Pressure::Warn => {
            let text = format!("cache {percent:.0} % full ({used}): uploads are behind");
            (Health::Warning, text)
        }
        Pressure::Slow => {
            let credit = outlook.credit_share * 100.0;
            let text = format!(
                "cache {percent:.0} % full ({used}): agents are slowed to {credit:.0} % of their credit"
            );
            (Health::Warning, text)
        }
        Pressure::Stop => {
            let text = format!(
                "cache full: {used}; agents get no credit and remember dirty extents until the \
                 store takes more"
            );
            (Health::Critical, text)
        }
    };
    if let Some(seconds) = outlook.drained_in_seconds {
        text.push_str(&format!("; drained in about {}", span(seconds)));
    } else if let Some(seconds) = outlook.full_in_seconds
        && outlook.pressure != Pressure::Stop
    {
        text.push_str(&format!("; full in about {}", span(seconds)));
    }
    Some(line(health, text))
}

fn backlog(status: &MachineStatus) -> Option<HealthLine> {
    let backlog = status.backlog_bytes.filter(|backlog| *backlog > 0)?;
    let size = bytes(backlog);
    Some(match status.backlog_eta_seconds {
        Some(eta) if eta > DRAIN_WARN_S => {
            let text = format!("backlog {size} takes about {} to publish", span(eta));
            line(Health::Warning, text)
        }
        Some(eta) => line(Health::Good, format!("backlog {size}, about {}", span(eta))),
        None => line(Health::Good, format!("backlog {size}")),
    })
}

fn certificate(sheet: &MachineFactsheet, now: Timestamp) -> Option<HealthLine> {
    let valid = sheet.document.certificates.iter().filter(|entry| !entry.revoked);
    let Some(newest) = valid.map(|entry| entry.not_after).max() else {
        return Some(line(Health::Critical, "no certificate is valid: enrol the machine again"));
    };
    let left = newest.seconds_since(now);
    if left <= 0.0 {
        let text = format!("certificate expired at {newest}: enrol the machine again");
        return Some(line(Health::Critical, text));
    }
    (left < CERTIFICATE_WARN_S).then(|| {
        let text = format!("certificate expires in {}: enrol the machine again", span(left));
        line(Health::Warning, text)
    })
}
