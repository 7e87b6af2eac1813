//! Real processes, SIGKILL at random moments: process server, agent and applier, each many times,
//! over initial replication, live writes, upload and apply. No acknowledged write may be missing
//! from a later point, every point is one cut over both disks, an agent resends what may have
//! changed and not its disks, and no orphan stays.
//!
//! `HOLDFAST_KILLS` sets the number of kills (default 50), `HOLDFAST_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::ops::RangeInclusive;
use std::path::Path;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use support::oracle::History;
use support::workload::{Target, Workload};
use support::{AgentSite, Process, Site, eventually, have, pause};

const DISKS: [&str; 2] = ["root", "data"];
const DISK_BYTES: u64 = 32 << 20;
/// The workload stays in the first part of each disk, so that "what may have changed" is small.
const HOT_BYTES: u64 = 4 << 20;
const CHUNK_BYTES: u64 = 64 << 10;

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Server,
    Agent,
    Applier,
}

fn kills() -> u64 {
    std::env::var("HOLDFAST_KILLS").map_or(50, |text| text.parse().unwrap())
}

fn seed() -> u64 {
    let seed = std::env::var("HOLDFAST_SEED").map_or_else(
        |_| {
            let mut bytes = [0; 8];
            holdfast::clock::Entropy::fill(&holdfast::clock::System, &mut bytes);
            u64::from_le_bytes(bytes)
        },
        |text| text.parse().unwrap(),
    );
    println!("HOLDFAST_SEED={seed}");
    seed
}

struct Torture {
    site: Site,
    agent_site: AgentSite,
    random: StdRng,
    victim: Victim,
    server: Option<Process>,
    applier: Option<Process>,
    agent: Option<Process>,
    workload: Option<Workload>,
    points: Vec<(String, RangeInclusive<u64>)>,
}

impl Torture {
    fn new(victim: Victim) -> Self {
        let seed = seed();
        let site = Site::new();
        site.set("upload.orphan_grace_s", 1);
        if victim == Victim::Applier {
            site.set("apply.enabled", false);
        }
        let disks: Vec<(&str, u64)> = DISKS.iter().map(|name| (*name, DISK_BYTES)).collect();
        let agent_site = site.enroll("web-1", &disks);
        let server = Some(site.serve());
        let applier = (victim == Victim::Applier).then(|| site.apply());
        let agent = Some(agent_site.start(&DISKS));
        let target = |name: &&'static str| Target {
            name,
            socket: agent_site.socket(name),
            sectors: HOT_BYTES / 512,
        };
        let workload = Some(Workload::start(seed, DISKS.iter().map(target).collect()));
        let random = StdRng::seed_from_u64(seed);
        let points = Vec::new();
        Self { site, agent_site, random, victim, server, applier, agent, workload, points }
    }

    /// Kills the victim at a random moment and starts it again.
    fn kill_once(&mut self) {
        pause(self.random.random_range(20..400));
        match self.victim {
            Victim::Server => {
                self.server.take().unwrap().kill();
                self.server = Some(self.site.serve());
            }
            Victim::Applier => {
                self.applier.take().unwrap().kill();
                self.applier = Some(self.site.apply());
            }
            Victim::Agent => {
                self.agent.take().unwrap().kill();
                self.agent = Some(self.agent_site.start(&DISKS));
            }
        }
    }

    /// A bookmark while writes go on; remembers between which writes its cut must lie.
    fn bookmark(&mut self) {
        let name = format!("b{}", self.points.len());
        let allowed = eventually("a bookmark", 120, || {
            let workload = self.workload.as_ref().unwrap();
            let from = workload.acknowledged();
            let args = ["bookmark", "web-1", "--name", &name, "--wait", "recoverable"];
            let output = self.site.try_holdfast(&args);
            output.status.success().then(|| from..=workload.issued())
        });
        self.points.push((format!("name:{name}"), allowed));
    }

    fn run(mut self) {
        for kill in 0..kills() {
            self.kill_once();
            if kill % 10 == 4 {
                self.bookmark();
            }
        }
        self.bookmark();
        let history = self.finish_workload();
        self.check_points(&history);
        self.check_orphans();
    }

    fn finish_workload(&mut self) -> History {
        let history = self.workload.take().unwrap().finish();
        println!("{} writes, {} points", history.writes.len(), self.points.len());
        history
    }

    fn check(&self, history: &History, point: &str, allowed: RangeInclusive<u64>) -> u64 {
        let images: Vec<_> =
            DISKS.iter().map(|disk| self.site.export("web-1", disk, point)).collect();
        let paths: Vec<&Path> = images.iter().map(AsRef::as_ref).collect();
        let cut = history.check(&paths, allowed.clone());
        images.iter().for_each(|image| std::fs::remove_file(image).unwrap());
        cut.unwrap_or_else(|wrong| panic!("point {point}, allowed {allowed:?}: {wrong}"))
    }

    /// Every bookmark that was asked for, and a sample of the policy's own.
    fn check_points(&mut self, history: &History) {
        for (point, allowed) in self.points.clone() {
            self.check(history, &point, allowed);
        }
        let last = history.writes.last().map_or(0, |write| write.number);
        let points = self.site.points("web-1");
        assert!(!points.is_empty());
        let mut cuts = Vec::new();
        for _ in 0..8 {
            let point = &points[self.random.next_u32() as usize % points.len()];
            let sequence = point["sequence"].as_u64().unwrap();
            cuts.push((sequence, self.check(history, &format!("seq:{sequence}"), 0..=last)));
        }
        cuts.sort_unstable();
        assert!(cuts.is_sorted_by_key(|(_, cut)| *cut), "later points hold more: {cuts:?}");
        self.site.holdfast(&["verify", "web-1"]);
    }

    /// Deltas that no manifest names disappear after the grace time.
    fn check_orphans(&self) {
        let log = self.site.path("store");
        eventually("orphans are collected", 60, || {
            let objects = support::delta_objects(&log, "web-1");
            let named = support::named_deltas(&self.site, "web-1");
            let orphans: Vec<_> = objects.iter().filter(|name| !named.contains(*name)).collect();
            orphans.is_empty().then_some(())
        });
    }
}

#[test]
fn the_process_server_is_killed() {
    if have(&["curl"]) {
        Torture::new(Victim::Server).run();
    }
}

#[test]
fn the_applier_is_killed() {
    if have(&["curl"]) {
        Torture::new(Victim::Applier).run();
    }
}

#[test]
fn the_agent_is_killed_and_resends_only_what_may_have_changed() {
    if !have(&["curl"]) {
        return;
    }
    let mut torture = Torture::new(Victim::Agent);
    // Killed in the middle of the initial replication, too: only from its end on is the bound
    // the hot part of the disks.
    for _ in 0..kills() / 5 {
        torture.kill_once();
    }
    torture.bookmark();
    let before = source_bytes(&torture.site);
    let issued = torture.workload.as_ref().unwrap().issued();
    let rest = kills() - kills() / 5;
    for kill in 0..rest {
        torture.kill_once();
        if kill % 10 == 4 {
            torture.bookmark();
        }
    }
    torture.bookmark();
    let sent = source_bytes(&torture.site) - before;
    let history = torture.finish_workload();
    let written: u64 = history
        .writes
        .iter()
        .filter(|write| write.number > issued && !write.zero)
        .map(|write| write.sectors * 512)
        .sum();
    // Each restart may resend the chunks of the hot part of both disks, and each interrupted write.
    let hot = DISKS.len() as u64 * (HOT_BYTES + CHUNK_BYTES);
    let bound = written + rest * hot + (1 << 20);
    println!("sent {sent}, written {written}, bound {bound}");
    assert!(sent > 0, "the server counts what it receives");
    assert!(sent <= bound, "sent {sent} bytes, at most {bound} may have changed");
    torture.check_points(&history);
    torture.check_orphans();
}

/// Bytes of writes that the process server ever received (it is not restarted in that test).
fn source_bytes(site: &Site) -> u64 {
    site.status("web-1").unwrap()["source_bytes"].as_u64().unwrap()
}
