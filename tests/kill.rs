//! Real processes, SIGKILL at random moments: process server, agent and applier, each many times,
//! over initial replication, live writes, upload and apply. Behind every kill lies a bookmark: no
//! acknowledged write may be missing from it, it is one cut over both disks, and an agent has
//! resent what may have changed and not its disks. The applier gets on between kills, each bookmark
//! becomes a snapshot, and nothing that a killed run left behind stays.
//!
//! `HOLDFAST_KILLS` sets the number of kills (default 50), `HOLDFAST_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use support::library::{Library, snapshot_files, staging_owners};
use support::oracle::{History, noise};
use support::workload::{Target, Workload};
use support::{AgentSite, Process, Site, eventually, have, pause};

const DISKS: [&str; 2] = ["root", "data"];
/// Full of noise, so that replicating a disk takes its time and its bytes.
const DISK_BYTES: u64 = 32 << 20;
/// The workload stays in the first part of each disk, so that "what may have changed" is small.
const HOT_BYTES: u64 = 1 << 20;
const CHUNK_BYTES: u64 = 64 << 10;
/// What one restart of the agent may resend beside new writes: the hot part of both disks, and
/// again where a connection was lost on the way. Far less than the disks.
const RESENT_BYTES_MAX: u64 = 4 * DISKS.len() as u64 * HOT_BYTES;
const _: () = assert!(RESENT_BYTES_MAX * 4 < DISKS.len() as u64 * DISK_BYTES);
/// So many kills in a row the applier may be without progress.
const IDLE_KILLS_MAX: u64 = 5;

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Server,
    Agent,
    Applier,
}

fn kills() -> u64 {
    std::env::var("HOLDFAST_KILLS").map_or(50, |text| text.parse().unwrap())
}

/// So many of them before the first bookmark, over the initial replication.
fn early_kills() -> u64 {
    kills().div_ceil(5)
}

fn late_kills() -> u64 {
    kills() - early_kills()
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

/// A bookmark that was asked for, and between which writes its cut must lie.
struct Asked {
    id: String,
    point: String,
    allowed: RangeInclusive<u64>,
}

struct Torture {
    // Ended and, when the test failed, heard before the site's directory goes.
    server: Option<Process>,
    applier: Option<Process>,
    agent: Option<Process>,
    workload: Option<Workload>,
    site: Site,
    agent_site: AgentSite,
    random: StdRng,
    victim: Victim,
    asked: Vec<Asked>,
    /// Bytes that the process server had received at the last bookmark.
    received: u64,
    applied: u64,
}

impl Torture {
    fn new(victim: Victim) -> Self {
        let seed = seed();
        let site = Site::new();
        site.set("upload.orphan_grace_s", 1);
        if victim == Victim::Applier {
            site.set("apply.enabled", false);
        }
        for (number, name) in DISKS.iter().enumerate() {
            fs::write(site.disk("web-1", name), noise(number as u16, DISK_BYTES / 512)).unwrap();
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
        let workload = Workload::start(seed, DISKS.iter().map(target).collect());
        workload.history.lock().unwrap().on_noise = true;
        let random = StdRng::seed_from_u64(seed);
        Self {
            site,
            agent_site,
            random,
            victim,
            server,
            applier,
            agent,
            workload: Some(workload),
            asked: Vec::new(),
            received: 0,
            applied: 0,
        }
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

    /// Kills from the initial replication on: the first certainly lies in it.
    fn kill_early(&mut self) {
        let begun = || self.received_bytes().filter(|bytes| *bytes > 0);
        let received = eventually("the initial replication begins", 60, begun);
        assert!(received < DISKS.len() as u64 * DISK_BYTES, "it is over already: {received}");
        for _ in 0..early_kills() {
            self.kill_once();
        }
    }

    /// Bytes of writes that the process server has received in its life.
    fn received_bytes(&self) -> Option<u64> {
        self.site.status("web-1")?["source_bytes"].as_u64()
    }

    /// A bookmark while writes go on.
    fn bookmark(&mut self) {
        let name = format!("b{}", self.asked.len());
        let asked = eventually("a bookmark", 120, || {
            let workload = self.workload.as_ref().unwrap();
            let from = workload.acknowledged();
            let args = ["bookmark", "web-1", "--name", &name, "--wait", "recoverable", "--json"];
            let output = self.site.try_holdfast(&args);
            let answer: serde_json::Value =
                output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())?;
            Some(Asked {
                id: answer["bookmark"].as_str().unwrap().to_owned(),
                point: format!("seq:{}", answer["sequence"]),
                allowed: from..=workload.issued(),
            })
        });
        self.asked.push(asked);
    }

    fn run(mut self) {
        self.kill_early();
        self.bookmark();
        for kill in 0..late_kills() {
            self.kill_once();
            self.bookmark();
            if self.victim == Victim::Applier && kill % IDLE_KILLS_MAX == 0 {
                self.applier_gets_on();
            }
        }
        self.check();
    }

    /// However often it is killed, it applies more than it had the last time.
    fn applier_gets_on(&mut self) {
        let library = Library::open(&self.site, "web-1");
        let before = self.applied;
        self.applied = eventually("the applier gets on", 120, || {
            library.points().map(|points| points.applied).filter(|applied| *applied > before)
        });
    }

    /// Of what came in since the last bookmark nothing but new writes and what may have changed.
    fn check_resent(&mut self) {
        let last = &self.asked[self.asked.len() - 2];
        // Everything up to here had been received when that bookmark could be recovered to.
        let known = *last.allowed.start();
        let received = self.received_bytes().unwrap();
        let came = received - std::mem::replace(&mut self.received, received);
        let history = self.workload.as_ref().unwrap().history.lock().unwrap();
        let new = history.writes.iter().rev().take_while(|write| write.number > known);
        let written: u64 = new.filter(|write| !write.zero).map(|write| write.sectors * 512).sum();
        let most = written + RESENT_BYTES_MAX;
        assert!(came <= most, "{came} bytes came, {written} were written: at most {most}");
    }

    fn check(mut self) {
        let history = self.workload.take().unwrap().finish();
        println!("{} writes, {} bookmarks", history.writes.len(), self.asked.len());
        self.check_applied();
        self.check_asked(&history);
        self.check_whole_disks(&history);
        self.check_leftovers();
        self.site.holdfast(&["verify", "web-1"]);
    }

    /// Everything published is applied, and each bookmark is kept as a snapshot.
    fn check_applied(&self) {
        let library = Library::open(&self.site, "web-1");
        // However slow the machine: it must get on until it is there.
        let (mut before, mut over) = (0, false);
        while !over {
            (before, over) = eventually("everything is applied", 120, || {
                let (published, _) = library.published();
                let applied = library.points()?.applied;
                (applied == published || applied > before)
                    .then_some((applied, applied == published))
            });
        }
        let points = self.site.points("web-1");
        for asked in &self.asked {
            let found = points.iter().find(|point| point["bookmark"] == *asked.id);
            let stored = found.map(|point| point["stored"].as_str().unwrap());
            assert!(matches!(stored, Some("both" | "snapshot")), "{}: {stored:?}", asked.point);
        }
    }

    /// The cut of every bookmark; only the hot part can tell one from another.
    fn check_asked(&self, history: &History) {
        let library = Library::open(&self.site, "web-1");
        for Asked { point, allowed, .. } in &self.asked {
            let disks = library.read(&DISKS, point, HOT_BYTES);
            let cut = disks.and_then(|disks| history.check_bytes(&disks, allowed.clone()));
            cut.unwrap_or_else(|wrong| panic!("point {point}, allowed {allowed:?}: {wrong}"));
        }
    }

    /// Whole exports of some bookmarks and some of the policy's own points.
    fn check_whole_disks(&mut self, history: &History) {
        let last = history.writes.last().map_or(0, |write| write.number);
        let points = self.site.points("web-1");
        let mut chosen: BTreeSet<u64> = BTreeSet::new();
        for _ in 0..3 {
            let any = &points[self.random.next_u32() as usize % points.len()];
            chosen.insert(any["sequence"].as_u64().unwrap());
        }
        let mut whole: Vec<_> =
            chosen.iter().map(|sequence| (format!("seq:{sequence}"), 0..=last)).collect();
        let newest = self.asked.last().unwrap();
        whole.push((newest.point.clone(), newest.allowed.clone()));
        let mut cuts = Vec::new();
        for (point, allowed) in whole {
            let images = DISKS.map(|disk| self.site.export("web-1", disk, &point));
            let cut = history.check(&[&images[0], &images[1]], allowed.clone());
            cuts.push(cut.unwrap_or_else(|wrong| panic!("point {point}, {allowed:?}: {wrong}")));
            images.iter().for_each(|image| fs::remove_file(image).unwrap());
        }
        let policy = &cuts[..cuts.len() - 1];
        assert!(policy.is_sorted(), "later points hold more: {cuts:?}");
    }

    /// What killed runs left disappears: deltas that no manifest names, snapshots that no point
    /// names, temporary files of processes that are gone.
    fn check_leftovers(&self) {
        let library = Library::open(&self.site, "web-1");
        let store = &self.site.store;
        eventually("orphans are collected", 90, || {
            let objects = support::delta_objects(store, "web-1");
            let (_, named) = library.published();
            objects.iter().all(|name| named.contains(name)).then_some(())
        });
        for disk in DISKS {
            eventually("snapshots that no point names are removed", 90, || {
                let points = library.points()?.snapshots;
                let disks = points.iter().flat_map(|point| &point.disks);
                let of_disk = disks.filter(|one| one.name.as_str() == disk);
                let named: BTreeSet<_> = of_disk.map(|one| one.snapshot.0.to_string()).collect();
                let there = snapshot_files(store, &format!("asrseeddisk-web-1-{disk}-1"));
                (there == named).then_some(())
            });
        }
        let children = [&self.server, &self.applier].into_iter().flatten().map(Process::pid);
        let alive: BTreeSet<u32> = children.chain([std::process::id()]).collect();
        eventually("temporary files of the dead are removed", 60, || {
            staging_owners(store).is_subset(&alive).then_some(())
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
    torture.kill_early();
    torture.bookmark();
    // From here on the bound is the hot part: what the last start copied is known to be published.
    let hot = HOT_BYTES / CHUNK_BYTES;
    eventually("the rest of the disks is settled", 120, || {
        DISKS.iter().all(|disk| torture.agent_site.intents(disk) <= hot).then_some(())
    });
    torture.bookmark();
    torture.received = torture.received_bytes().unwrap();
    for _ in 0..late_kills() {
        torture.kill_once();
        torture.bookmark();
        torture.check_resent();
    }
    torture.check();
}
