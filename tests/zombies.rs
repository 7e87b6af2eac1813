//! A process server stops itself (SIGSTOP) at a named place, another one takes over, and the first goes
//! on (SIGCONT): nothing of it is visible. Needs the feature `places`.
//!
//! `HOLDFAST_PLACES` names some of them, with commas.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use holdfast::clock::{Clock, System};
use holdfast::places::Place;
use holdfast::vault::{PointsDocument, Policy};
use support::fleet::Server;
use support::library::Library;
use support::workload::{Target, Workload};
use support::{AgentSite, Process, Site, eventually, have, pause};

const DISK: &str = "root";
const DISK_BYTES: u64 = 2 << 20;
const MACHINE: &str = "web-1";

struct Stage {
    agent: Option<Process>,
    workload: Workload,
    first: Server,
    second: Server,
    agent_site: AgentSite,
    site: Site,
    /// Point, least and last write that it may end with.
    asked: Vec<(String, u64, u64)>,
}

/// Places that only the first claim or the first applying come to.
fn is_early(place: Place) -> bool {
    matches!(place, Place::Claim | Place::Fence)
}

fn stop_file(site: &Site) -> PathBuf {
    site.path("stop")
}

impl Stage {
    fn new(place: Place) -> Self {
        let site = Site::new();
        site.set("upload.orphan_grace_s", 1);
        let (mut first, mut second) = (Server::new(&site, 1), Server::new(&site, 2));
        let file = stop_file(&site);
        let order =
            [("HOLDFAST_STOP_AT", place.name()), ("HOLDFAST_STOP_FILE", support::text(&file))];
        first.start_with(&order);
        second.start();
        let agent_site = site.enroll(MACHINE, &[(DISK, DISK_BYTES)]);
        let policy = Policy {
            bookmark_interval_s: 1,
            snapshot_interval_s: 1,
            journal_window_s: 2,
            ..Policy::default()
        };
        Library::open(&site, MACHINE).set_policy(policy);
        if is_early(place) {
            std::fs::write(&file, "").unwrap();
        }
        agent_site.set("servers", vec![format!("127.0.0.1:{}", first.port)]);
        let agent = Some(agent_site.start(&[DISK]));
        let socket = agent_site.socket(DISK);
        let target = Target { name: DISK, socket, sectors: DISK_BYTES / 512 };
        let workload = Workload::start(place as u64, vec![target]);
        Self { agent, workload, first, second, agent_site, site, asked: Vec::new() }
    }

    fn bookmark(&mut self) {
        let name = format!("b{}", self.asked.len());
        let asked = eventually("a bookmark", 120, || {
            let from = self.workload.acknowledged();
            let args = ["bookmark", MACHINE, "--name", &name, "--wait", "recoverable", "--json"];
            let output = self.site.try_holdfast(&args);
            let answer: serde_json::Value =
                output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())?;
            Some((format!("seq:{}", answer["sequence"]), from, self.workload.issued()))
        });
        self.asked.push(asked);
    }

    /// Whether the first server has stopped itself.
    fn has_stopped(&self) -> Option<()> {
        let pid = self.first.process.as_ref().unwrap().pid();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let state = stat.rsplit(')').next().unwrap().trim_start().chars().next();
        (state == Some('T')).then_some(())
    }

    /// Whether it holds a lock of the `dir:` store: whoever takes over would wait for it to go on, which
    /// is that store's answer to a holder that is stopped and not killed, and no other store's.
    fn holds_the_store(&self) -> bool {
        let pid = self.first.process.as_ref().unwrap().pid().to_string();
        let locks = std::fs::read_dir(self.site.store.join(".locks")).unwrap();
        let locks: Vec<String> = locks
            .map(|entry| std::os::unix::fs::DirEntryExt::ino(&entry.unwrap()).to_string())
            .collect();
        let held = std::fs::read_to_string("/proc/locks").unwrap();
        held.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let inode = fields
                .iter()
                .find_map(|field| field.rsplit_once(':').filter(|(d, _)| d.contains(':')));
            fields.contains(&pid.as_str())
                && inode.is_some_and(|(_, inode)| locks.iter().any(|lock| lock == inode))
        })
    }

    /// The agent goes to the second server, as an agent does whose server says nothing any more.
    fn take_over(&mut self) {
        self.agent.take().unwrap().kill();
        self.agent_site.set("servers", vec![format!("127.0.0.1:{}", self.second.port)]);
        self.agent = Some(self.agent_site.start(&[DISK]));
        eventually("the second server has the machine", 120, || {
            self.second.connected().iter().any(|(name, _)| name == MACHINE).then_some(())
        });
    }

    /// Everything up to the last bookmark is on the seed disks, by the second server.
    fn applied(&self, library: &Library) -> PointsDocument {
        let sequence: u64 = self.asked.last().unwrap().0[4..].parse().unwrap();
        eventually("it is applied", 120, || {
            library.points().filter(|points| points.applied >= sequence)
        })
    }
}

/// False: it stopped while another of its threads was inside a call of the `dir:` store.
fn play(place: Place) -> bool {
    let mut stage = Stage::new(place);
    let file = stop_file(&stage.site);
    let library = Library::open(&stage.site, MACHINE);
    let mut moving = None;
    if !is_early(place) {
        stage.bookmark();
        stage.applied(&library);
        library.plant_orphan();
        std::fs::write(&file, "").unwrap();
        if place == Place::GiveUp {
            moving = Some(stage.site.spawn(&["move", MACHINE, "ps-2"]));
        }
    }
    eventually("the first server comes to the place", 120, || stage.has_stopped());
    if stage.holds_the_store() {
        return false;
    }
    stage.take_over();
    stage.bookmark();
    let points = stage.applied(&library);
    let manifest = library.manifest();
    assert_eq!(manifest.owner.as_str(), "ps-2");

    let first = stage.first.process.as_ref().unwrap();
    first.signal("CONT");
    // It has time to do harm; what it did and the second one wrote over is seen, too.
    let since = System.monotonic();
    while System.monotonic() - since < Duration::from_secs(3) {
        let now = library.manifest();
        assert_eq!((now.owner.as_str(), now.generation), ("ps-2", manifest.generation));
        let applier = library.points().unwrap().applier_generation;
        assert_eq!(applier, points.applier_generation, "the applier");
        pause(5);
    }
    eventually("the first server goes on", 60, || {
        support::curl(&stage.first.url("healthz")).map(drop)
    });
    stage.bookmark();
    let after = stage.applied(&library);
    let now = library.manifest();
    assert_eq!((now.owner.as_str(), now.generation), ("ps-2", manifest.generation));
    assert_eq!(after.applier_generation, points.applier_generation, "one applier since");
    let taken: Vec<_> = library.entries();
    let theirs = taken.iter().filter(|entry| entry.first > manifest.published);
    assert!(theirs.clone().count() > 0);
    for entry in theirs {
        assert_eq!(entry.generation, manifest.generation, "{entry:?}");
    }
    drop(moving);
    let history = stage.workload.finish();
    for (point, from, to) in &stage.asked {
        let disks = library.read(&[DISK], point, DISK_BYTES);
        let cut = disks.and_then(|disks| history.check_bytes(&disks, *from..=*to));
        cut.unwrap_or_else(|wrong| panic!("{} {point}: {wrong}", place.name()));
    }
    stage.site.holdfast(&["verify", MACHINE]);
    assert_eq!(stage.first.process.as_mut().unwrap().ended(), None, "it lives on");
    true
}

#[test]
fn nothing_of_a_zombie_is_visible_wherever_it_stopped() {
    if !have(&["curl"]) {
        return;
    }
    let chosen = std::env::var("HOLDFAST_PLACES").ok();
    let wanted =
        |place: &Place| chosen.as_ref().is_none_or(|all| all.split(',').any(|n| n == place.name()));
    for place in Place::ALL.into_iter().filter(wanted) {
        println!("{}", place.name());
        let played = (0..20).any(|_| play(place));
        assert!(played, "{}: never without a lock of the store", place.name());
    }
}
