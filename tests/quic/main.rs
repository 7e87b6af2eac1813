//! The whole path over QUIC with real processes: agent, process server, store, export. The path in
//! between loses datagrams, changes addresses, or lets only UDP or only TCP through.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod relay;
#[path = "../support/mod.rs"]
mod support;

use std::net::TcpListener;
use std::path::Path;

use relay::Relay;
use support::workload::{Target, Workload};
use support::{AgentSite, Process, Site, eventually, have, pause, run};

const DISKS: [&str; 2] = ["root", "data"];
const DISK_BYTES: u64 = 16 << 20;

/// A site with one machine that reaches its server through `relay`.
struct Ground {
    site: Site,
    machine: AgentSite,
    server: Option<Process>,
    relay: Relay,
}

impl Ground {
    fn new(transport: &str) -> Self {
        let site = Site::new();
        let disks: Vec<(&str, u64)> = DISKS.iter().map(|name| (*name, DISK_BYTES)).collect();
        let machine = site.enroll("web-1", &disks);
        let relay = Relay::to(site.port);
        machine.set("servers", vec![format!("127.0.0.1:{}", relay.port)]);
        machine.set("transport", transport);
        let server = Some(site.serve());
        Self { site, machine, server, relay }
    }

    fn workload(&self) -> Workload {
        let target = |name: &&'static str| Target {
            name,
            socket: self.machine.socket(name),
            sectors: DISK_BYTES / 512,
        };
        Workload::start(7, DISKS.iter().map(target).collect())
    }

    /// The agent's word on how it is connected.
    fn transport(&self) -> Option<String> {
        let status = self.machine.status()?;
        status["transport"].as_str().map(ToOwned::to_owned)
    }

    /// A bookmark, exported and compared with what was written.
    fn check(&self, workload: Workload) {
        let point = eventually("a bookmark", 120, || {
            let from = workload.acknowledged();
            let args = ["bookmark", "web-1", "--name", "b", "--wait", "recoverable"];
            let output = self.site.try_holdfast(&args);
            output.status.success().then(|| from..=workload.issued())
        });
        let history = workload.finish();
        let images: Vec<_> =
            DISKS.iter().map(|disk| self.site.export("web-1", disk, "name:b")).collect();
        let paths: Vec<&Path> = images.iter().map(AsRef::as_ref).collect();
        history.check(&paths, point.clone()).unwrap_or_else(|wrong| panic!("{point:?}: {wrong}"));
    }
}

#[test]
fn what_was_written_is_exported_over_a_path_that_loses_and_moves() {
    if !have(&["curl"]) {
        return;
    }
    let ground = Ground::new("quic");
    ground.relay.lose(30);
    let agent = ground.machine.start(&DISKS);
    let workload = ground.workload();
    eventually("connected over QUIC", 60, || ground.transport().filter(|way| way == "quic"));
    let connected = ground.machine.status().unwrap()["server"].clone();
    for _ in 0..5 {
        pause(300);
        ground.relay.move_away();
    }
    let status = ground.machine.status().unwrap();
    assert_eq!((&status["server"], &status["last_error"]), (&connected, &serde_json::Value::Null));
    ground.check(workload);
    agent.stop();
}

#[test]
fn a_server_that_restarts_or_drains_is_found_again() {
    if !have(&["curl"]) {
        return;
    }
    let mut ground = Ground::new("quic");
    let agent = ground.machine.start(&DISKS);
    let workload = ground.workload();
    for round in 0..4 {
        pause(700);
        let server = ground.server.take().unwrap();
        if round % 2 == 0 {
            server.kill();
        } else {
            server.stop();
        }
        ground.server = Some(ground.site.serve());
    }
    eventually("connected over QUIC", 60, || ground.transport().filter(|way| way == "quic"));
    ground.check(workload);
    agent.stop();
}

#[test]
fn a_path_that_dies_is_left_while_the_machine_is_idle() {
    if !have(&["curl"]) {
        return;
    }
    let ground = Ground::new("quic");
    let near = format!("127.0.0.1:{}", ground.relay.port);
    let direct = format!("127.0.0.1:{}", ground.site.port);
    ground.machine.set("servers", vec![near.clone(), direct.clone()]);
    let agent = ground.machine.start(&DISKS);
    let at = |address: &str| {
        let status = ground.machine.status()?;
        status["server"].as_str()?.starts_with(address).then_some(status)
    };
    let quiet = || at(&near).filter(|status| status["published"] == status["last"]);
    eventually("all published through the relay", 60, quiet);
    ground.relay.lose(1000);
    // Five seconds by default; what the server calls silence is thirty.
    let status = eventually("at the next address", 20, || at(&direct));
    assert_eq!(status["switches"], 0, "it is the same server");
    let config = ground.machine.config();
    let config = config.to_str().unwrap();
    let told = run(env!("CARGO_BIN_EXE_holdfast"), &["agent", "status", "--config", config]);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains(&format!("server     {direct} (")), "{told}");
    ground.relay.lose(0);
    agent.stop();
}

#[test]
fn auto_takes_the_way_that_gets_through() {
    if !have(&["curl"]) {
        return;
    }
    // Through the relay there is only UDP, at the server's own port both.
    let ground = Ground::new("auto");
    let agent = ground.machine.start(&DISKS);
    eventually("only UDP gets through", 60, || ground.transport().filter(|way| way == "quic"));
    assert!(ground.relay.passed() > 0);
    agent.stop();
    let before = ground.relay.passed();
    ground.machine.set("servers", vec![format!("127.0.0.1:{}", ground.site.port)]);
    let agent = ground.machine.start(&DISKS);
    eventually("both get through", 60, || ground.transport().filter(|way| way == "tcp"));
    assert_eq!(ground.relay.passed(), before);
    agent.stop();
}

#[test]
fn the_data_port_is_one_number_for_both() {
    if !have(&["curl"]) {
        return;
    }
    let ground = Ground::new("tcp");
    let taken = TcpListener::bind(("127.0.0.1", ground.site.port));
    assert!(taken.is_err(), "TCP");
    assert!(std::net::UdpSocket::bind(("127.0.0.1", ground.site.port)).is_err(), "UDP");
}
