//! Three real process servers on one store, machines under load: one is killed again and again, all
//! are replaced one after the other, machines are moved. Nothing acknowledged is missing, nobody
//! begins anew, and every recovery point is one cut.
//!
//! `HOLDFAST_MACHINES` and `HOLDFAST_KILLS` make it larger (6 and 6; 30 and 20 for a figure).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::time::Duration;

use holdfast::clock::{Clock, System};
use support::fleet::Fleet;
use support::library::Library;
use support::workload::{Target, Workload};
use support::{AgentSite, Process, Site, eventually, have, pause};

const DISK: &str = "root";
const DISK_BYTES: u64 = 1 << 20;
const SERVERS: usize = 3;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

struct Machine {
    name: String,
    _agent: Process,
    workload: Option<Workload>,
    _site: AgentSite,
}

struct Town {
    machines: Vec<Machine>,
    fleet: Fleet,
    site: Site,
    /// Machine, point, least and last write that it may end with.
    asked: Vec<(usize, String, u64, u64)>,
}

impl Town {
    fn new(machines: usize) -> Self {
        let site = Site::new();
        let fleet = Fleet::start(&site, SERVERS);
        let pause_ms = (machines as u64).div_ceil(2); // together as busy, however many
        let machine = |number: usize| {
            let name = format!("m-{number}");
            let agent_site = site.enroll(&name, &[(DISK, DISK_BYTES)]);
            let agent = agent_site.start(&[DISK]);
            let socket = agent_site.socket(DISK);
            let target = Target { name: DISK, socket, sectors: DISK_BYTES / 512 };
            let workload = Some(Workload::start_paced(number as u64, vec![target], pause_ms));
            Machine { name, _agent: agent, workload, _site: agent_site }
        };
        let machines: Vec<_> = (0..machines).map(machine).collect();
        let town = Self { machines, fleet, site, asked: Vec::new() };
        for machine in &town.machines {
            eventually("every machine is served", 120, || town.fleet.serving(&machine.name));
        }
        town
    }

    /// A bookmark of one machine while writes go on.
    fn bookmark(&mut self, at: usize) {
        let machine = &self.machines[at];
        let name = format!("b{}", self.asked.len());
        let (point, from, to) = eventually("a bookmark", 120, || {
            let workload = machine.workload.as_ref().unwrap();
            let from = workload.acknowledged();
            let args = ["bookmark", &machine.name, "--name", &name, "--wait", "recoverable"];
            let output = self.site.try_holdfast(&[&args[..], &["--json"]].concat());
            let answer: serde_json::Value =
                output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())?;
            Some((format!("seq:{}", answer["sequence"]), from, workload.issued()))
        });
        self.asked.push((at, point, from, to));
    }

    fn bookmarks(&mut self) {
        (0..self.machines.len()).for_each(|at| self.bookmark(at));
    }

    /// Kills one server; how long its machines take to go on elsewhere.
    fn kill(&mut self, at: usize) -> Vec<Duration> {
        let theirs = self.fleet.servers[at].connected();
        let since = System.monotonic();
        self.fleet.servers[at].process.take().unwrap().kill();
        self.fleet.resumed(&theirs, since)
    }

    /// What a server asks for an agent that comes to it again and again is not done while an agent of that
    /// machine is connected: the two need not be the same.
    fn stays_while_its_agent_is_connected(&self, at: usize, machine: &str, target: &str) {
        let file = |name: &str| self.site.root().join(name).display().to_string();
        let url =
            format!("https://localhost:{}/v1/machines/{machine}/move", self.fleet.servers[at].port);
        let order = format!(r#"{{"to":"{target}","unless_connected":true}}"#);
        let (ca, certificate, key) = (file("ca.crt"), file("operator.crt"), file("operator.key"));
        let arguments = ["-sS", "--cacert", &ca, "--cert", &certificate, "--key", &key];
        let arguments = [&arguments[..], &["-H", "content-type: application/json"]].concat();
        let answer = support::run("curl", &[&arguments[..], &["-d", &order, &url]].concat());
        let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(answer.contains(r#""code":"connected""#), "{answer}");
    }

    /// Each asked point is one cut between the writes it was asked between; no machine began anew, or
    /// lost its order.
    fn check(mut self) {
        self.bookmarks();
        let asked = std::mem::take(&mut self.asked);
        for (at, machine) in self.machines.iter_mut().enumerate() {
            let history = machine.workload.take().unwrap().finish();
            let library = Library::open(&self.site, &machine.name);
            for (_, point, from, to) in asked.iter().filter(|(of, ..)| *of == at) {
                let cut = library.read(&[DISK], point, DISK_BYTES);
                let cut = cut.and_then(|disks| history.check_bytes(&disks, *from..=*to));
                cut.unwrap_or_else(|wrong| panic!("{} {point}: {wrong}", machine.name));
            }
            let manifest = library.manifest();
            assert_eq!(manifest.epochs.len(), 1, "{} began anew", machine.name);
            let caught_up = library.entries().into_iter().filter(|entry| entry.catch_up).count();
            let first = library.entries().iter().take_while(|entry| entry.catch_up).count();
            assert_eq!(caught_up, first, "{}: order was lost after the first copy", machine.name);
            self.site.holdfast(&["verify", &machine.name]);
        }
    }
}

#[test]
fn a_server_is_killed_and_its_machines_go_on_elsewhere() {
    if !have(&["curl"]) {
        return;
    }
    let mut town = Town::new(number("HOLDFAST_MACHINES", 6));
    town.bookmarks();
    let mut took = Vec::new();
    for nth in 0..number("HOLDFAST_KILLS", 6) {
        let victim = nth % SERVERS;
        took.extend(town.kill(victim));
        let at = nth % town.machines.len();
        town.bookmark(at);
        town.fleet.servers[victim].start();
        pause(500);
    }
    took.sort_unstable();
    let at = |part: f64| took[((took.len() - 1) as f64 * part).round() as usize];
    println!("{} resumed: p50 {:?}, p99 {:?}, max {:?}", took.len(), at(0.5), at(0.99), at(1.0));
    assert!(!took.is_empty(), "no killed server had a machine");
    town.check();
}

#[test]
fn servers_are_replaced_one_after_the_other_and_machines_moved_without_a_gap() {
    if !have(&["curl"]) {
        return;
    }
    let mut town = Town::new(number("HOLDFAST_MACHINES", 4).min(8));
    town.bookmarks();
    for at in 0..SERVERS {
        // Whoever looks finds two others.
        let alive = |server: &support::fleet::Server| server.metric("holdfast_peers_alive") == 2;
        eventually("they know of each other", 60, || {
            town.fleet.servers.iter().all(alive).then_some(())
        });
        let theirs = town.fleet.servers[at].connected();
        let before = System.monotonic();
        town.fleet.servers[at].process.take().unwrap().stop();
        let took = town.fleet.resumed(&theirs, before);
        println!("{} machines left {}: {took:?}", theirs.len(), town.fleet.servers[at].name);
        town.bookmarks();
        town.fleet.servers[at].start();
    }
    let name = town.machines[0].name.clone();
    let there = eventually("it is served", 60, || town.fleet.serving(&name)).0;
    let target = town.fleet.servers[(there + 1) % SERVERS].name.clone();
    town.stays_while_its_agent_is_connected(there, &name, &target);
    let moved = town.site.json(&["move", &name, &target]);
    assert_eq!((&moved["server"], &moved["moved"]), (&target.into(), &true.into()));
    eventually("its agent followed", 60, || {
        town.fleet.serving(&name).filter(|(at, _)| *at == (there + 1) % SERVERS)
    });
    let status = town.site.json(&["status"]);
    let servers = status["servers"].as_array().unwrap();
    let alive: Vec<_> = servers.iter().filter(|server| server["alive"] == true).collect();
    assert_eq!(alive.len(), SERVERS, "{servers:?}");
    town.check();
}

#[test]
fn a_second_server_of_one_name_is_refused() {
    let site = Site::new();
    let fleet = Fleet::start(&site, 1);
    let other = support::fleet::Server::new(&site, 1);
    support::set(&other.config, "cache.directory", "cache-other".into());
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["serve", "--config", support::text(&other.config)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("another process serves as ps-1"), "{said}");
    drop(fleet);
}
