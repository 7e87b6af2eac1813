//! The phases of a run, one after the other.

use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use holdfast::clock::{Clock, System};
use holdfast::observe::{AgentTracking, ServerFacts, Stage};

use super::figures::{Ack, Cpu, Phase};
use super::writer::{Writer, Written};
use crate::error::LoadError;
use crate::image;
use crate::page::{Page, status};
use crate::site::{Enrolled, Machine, Site};
use crate::wait::{eventually, pause};

/// Longest wait for any one thing.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Time between two attempts to place a bookmark while an agent catches up.
const RETRY: Duration = Duration::from_millis(250);
/// The bookmark that is audited.
const LAST: &str = "loadtest-last";

/// Everything that counts, at one moment.
struct Moment {
    at: Duration,
    cpu: f64,
    page: Page,
    facts: ServerFacts,
}

impl Moment {
    fn now(site: &Site) -> Result<Self, LoadError> {
        let (page, facts) = (Page::read(site.metrics)?, status(site.metrics)?);
        Ok(Self { at: System.monotonic(), cpu: site.server.cpu_seconds()?, page, facts })
    }

    fn sum(&self, of: impl Fn(&holdfast::observe::MachineFacts) -> u64) -> u64 {
        self.facts.machines.iter().map(of).sum()
    }

    /// What happened since `self`: published at `published`, applied now.
    fn phase(&self, site: &Site, published: Duration, disk_bytes: u64) -> Result<Phase, LoadError> {
        let now = Self::now(site)?;
        let spent = |stage| now.page.stage_cpu(stage) - self.page.stage_cpu(stage);
        let [ingest, cache, seal, upload, apply] = Stage::ALL.map(spent);
        let total = now.cpu - self.cpu;
        let other = total - ingest - cache - seal - upload - apply;
        Ok(Phase {
            seconds: published.saturating_sub(self.at).as_secs_f64(),
            applied_seconds: now.at.saturating_sub(self.at).as_secs_f64(),
            disk_bytes,
            source_bytes: now.sum(|m| m.source_bytes) - self.sum(|m| m.source_bytes),
            published_bytes: now.sum(|m| m.published_bytes) - self.sum(|m| m.published_bytes),
            commits: now.page.commits() - self.page.commits(),
            cpu: Cpu { total, ingest, cache, seal, upload, apply, other },
        })
    }
}

/// Starts the agents; ends when their disks are on the seed disks.
pub(crate) fn replicate(
    site: &mut Site,
    enrolled: Vec<Enrolled>,
    disk_bytes: u64,
) -> Result<(Vec<Machine>, Phase), LoadError> {
    let start = Moment::now(site)?;
    let mut machines = Vec::new();
    for machine in enrolled {
        machines.push(site.start_agent(machine)?);
    }
    let mut through = vec![None; machines.len()];
    eventually("initial replication", PATIENCE, || {
        expect_alive(site, &mut machines)?;
        let facts = status(site.metrics)?;
        for (machine, through) in machines.iter().zip(&mut through) {
            let Some(facts) = facts.machines.iter().find(|m| m.machine.as_str() == machine.name)
            else {
                return Ok(None);
            };
            let copied = facts.mode == AgentTracking::Ordered && facts.dirty_bytes == 0;
            if through.is_none() && copied && facts.total_bytes > 0 && facts.received > 0 {
                *through = Some(facts.received);
            }
            if through.is_none_or(|through| facts.published < through) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    let published = System.monotonic();
    applied(site, &mut machines)?;
    let phase = start.phase(site, published, disk_bytes)?;
    Ok((machines, phase))
}

/// What the live writes showed.
pub(crate) struct Live {
    pub(crate) phase: Phase,
    pub(crate) writes: u64,
    pub(crate) latency_us: Histogram<u64>,
    pub(crate) rpo_under_load: Option<Duration>,
    pub(crate) last_byte: Duration,
}

/// Writes for `time` with a bookmark in its middle; ends when all of it is on the seed disks.
pub(crate) fn live(
    site: &mut Site,
    machines: &mut [Machine],
    rate: u64,
    time: Duration,
) -> Result<Live, LoadError> {
    let start = Moment::now(site)?;
    let (written, rpo_under_load) = write(site, machines, rate, time)?;
    let ended = System.monotonic();
    each(machines, |machine| last_bookmark(site, &machine.name))?;
    let published = System.monotonic();
    applied(site, machines)?;
    let mut latency_us = written[0].latency_us.clone();
    for other in &written[1..] {
        latency_us.add(&other.latency_us).expect("all have the same bounds");
    }
    let bytes = written.iter().map(|w| w.bytes).sum();
    Ok(Live {
        phase: start.phase(site, published, bytes)?,
        writes: written.iter().map(|w| w.writes).sum(),
        latency_us,
        rpo_under_load,
        last_byte: published.saturating_sub(ended),
    })
}

fn write(
    site: &Site,
    machines: &[Machine],
    rate: u64,
    time: Duration,
) -> Result<(Vec<Written>, Option<Duration>), LoadError> {
    let writers = machines.iter().flat_map(|machine| {
        machine.disks.iter().map(|disk| Writer {
            machine: machine.name.clone(),
            disk: disk.name.clone(),
            socket: machine.socket(&disk.name),
            image: disk.image.clone(),
            seed: 0, // told apart below
            rate: rate / machine.disks.len() as u64,
            time,
        })
    });
    std::thread::scope(|scope| {
        let writing: Vec<_> = (1..)
            .zip(writers)
            .map(|(seed, writer)| scope.spawn(move || Writer { seed, ..writer }.run()))
            .collect();
        pause(time / 2);
        let asked = System.monotonic();
        let placed = each(machines, |machine| site.bookmark(&machine.name, "loadtest-middle"));
        let rpo = placed.is_ok().then(|| System.monotonic().saturating_sub(asked));
        let ended = writing.into_iter().map(|thread| thread.join());
        let written: Result<Vec<_>, _> =
            ended.map(|ended| ended.map_err(|_| LoadError::Thread("live writes"))?).collect();
        Ok((written?, rpo))
    })
}

/// A bookmark behind everything: refused while the agent catches up, so asked for again.
fn last_bookmark(site: &Site, machine: &str) -> Result<(), LoadError> {
    eventually("the last bookmark", PATIENCE, || {
        site.bookmark(machine, LAST).map(Some).inspect_err(|_| pause(RETRY))
    })
}

/// Does something for every machine at once.
fn each(
    machines: &[Machine],
    work: impl Fn(&Machine) -> Result<(), LoadError> + Sync,
) -> Result<(), LoadError> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            machines.iter().map(|machine| scope.spawn(move || work(machine))).collect();
        for thread in threads {
            thread.join().map_err(|_| LoadError::Thread("bookmarks"))??;
        }
        Ok(())
    })
}

/// Waits until what is published now is on the seed disks.
fn applied(site: &mut Site, machines: &mut [Machine]) -> Result<(), LoadError> {
    let wanted: Vec<_> = status(site.metrics)?.machines.iter().map(|m| m.published).collect();
    eventually("applying", PATIENCE, || {
        expect_alive(site, machines)?;
        let facts = status(site.metrics)?;
        let there = facts.machines.iter().zip(&wanted).all(|(m, wanted)| m.applied >= *wanted);
        Ok(there.then_some(()))
    })
}

/// A process that has ended is an error at once, not at the end of somebody's patience.
fn expect_alive(site: &mut Site, machines: &mut [Machine]) -> Result<(), LoadError> {
    site.server.expect_alive()?;
    machines.iter_mut().try_for_each(|machine| machine.agent.expect_alive())
}

/// Exports every disk at the last bookmark and compares it with its source, which nobody writes to.
pub(crate) fn audit(site: &Site, machines: &[Machine], work: &Path) -> Result<usize, LoadError> {
    let mut equal = 0;
    for machine in machines {
        for disk in &machine.disks {
            let out = work.join("audit.img");
            site.export(&machine.name, &disk.name, LAST, &out)?;
            let (expected, found) = (image::digest(&disk.image)?, image::digest(&out)?);
            std::fs::remove_file(&out).map_err(LoadError::file(&out, "removing it"))?;
            if found != expected {
                let (machine, disk) = (machine.name.clone(), disk.name.clone());
                return Err(LoadError::Difference { machine, disk, found, expected });
            }
            equal += 1;
        }
    }
    Ok(equal)
}

/// Latency of the cache stage so far.
pub(crate) fn ack(site: &Site) -> Result<Ack, LoadError> {
    let page = Page::read(site.metrics)?;
    let quantile = |quantile| page.latency(Stage::Cache, quantile);
    Ok(Ack { p50: quantile("0.5"), p99: quantile("0.99") })
}
