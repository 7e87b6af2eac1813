//! The command line's contract through the binary: one JSON document and nothing else, exit codes,
//! nothing on standard output when it failed, the thing and the cure named on standard error,
//! every way to say a point, and what is never overwritten or opened twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};

use holdfast::nbd::Client;
use serde_json::Value;
use support::{AgentSite, Process, Site, eventually, files, have, run, skipped, text};

const DISK_BYTES: u64 = 4 << 20;

/// A site with a protected machine and three points: `one`, `two` (of an application), `three`.
struct Protected {
    site: Site,
    agent_site: AgentSite,
    server: Process,
    agent: Process,
}

fn protect() -> Protected {
    protect_on(Site::new())
}

fn protect_on(site: Site) -> Protected {
    let agent_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
    for hook in ["application.freeze", "application.thaw"] {
        agent_site.set(hook, vec!["true"]);
    }
    let server = site.serve();
    let agent = agent_site.start(&["root"]);
    let protected = Protected { site, agent_site, server, agent };
    for (name, kind) in [("one", None), ("two", Some("--app")), ("three", None)] {
        let mut args = vec!["bookmark", "web-1", "--name", name, "--wait", "recoverable"];
        args.extend(kind);
        eventually("a bookmark", 120, || {
            protected.site.try_holdfast(&args).status.success().then_some(())
        });
    }
    protected
}

impl Protected {
    /// Nothing changes any more.
    fn stop(self) -> Site {
        self.agent.stop();
        self.server.stop();
        drop(self.agent_site);
        self.site
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails with this exit code, says all these words, and nothing on standard output.
fn fails(site: &Site, args: &[&str], code: i32, words: &[&str]) {
    let output = site.try_holdfast(args);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?} printed {:?}", output.stdout);
    for word in words {
        assert!(said.contains(word), "{args:?} does not say {word:?}: {said}");
    }
}

/// Prints one JSON document and nothing else.
fn document(site: &Site, args: &[&str], code: i32) -> Value {
    let output = site.try_holdfast(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{args:?}: {error}: {}", String::from_utf8_lossy(&output.stdout))
    })
}

/// Sequences of the named points.
fn named(site: &Site) -> BTreeMap<String, Value> {
    let points = site.points("web-1").into_iter();
    points.map(|point| (point["name"].as_str().unwrap().to_owned(), point)).collect()
}

#[test]
fn json_is_one_document_and_nothing_else() {
    if !have(&["curl"]) {
        return;
    }
    let protected = protect();
    let site = &protected.site;
    let bookmark = ["bookmark", "web-1", "--name", "four", "--wait", "recoverable", "--json"];
    let four = document(site, &bookmark, 0);
    assert_eq!((&four["name"], &four["time"]), (&"four".into(), &named(site)["four"]["time"]));
    let all = document(site, &["status", "--json"], 0);
    assert_eq!(all["machines"].as_array().unwrap().len(), 1, "{all}");
    let one = document(site, &["status", "web-1", "--json"], 0);
    assert_eq!(one["machines"][0]["machine"], "web-1");
    let points = document(site, &["points", "web-1", "--json"], 0);
    assert!(points["points"].as_array().unwrap().len() >= 4, "{points}");
    let out = site.path("one.img");
    let mut export = vec!["export", "web-1", "--disk", "root", "--point", "name:one"];
    export.extend(["--out", text(&out), "--json"]);
    assert_eq!(document(site, &export, 0)["file_bytes"], DISK_BYTES);
    let verified = document(site, &["verify", "web-1", "--json"], 0);
    assert_eq!(verified["failures"], Value::Array(Vec::new()), "{verified}");
    drop(protected);
}

/// Without `--json` it is run in tests/real_tools.rs, on the disk that it makes itself.
#[test]
fn the_demo_of_a_disk_of_ones_own_prints_one_json_document() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("own.img");
    fs::write(&disk, vec![7; 8 << 20]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    let output = command.args(["demo", "--json", "--disk", text(&disk)]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["disk_bytes"], 8 << 20, "{report}");
    assert!(report["live_bytes"].as_u64().unwrap() > 0, "{report}");
    let points = report["points"].as_array().unwrap();
    let read: Vec<_> = points.iter().map(|point| [&point["name"], &point["read_by"]]).collect();
    assert_eq!(read, [["first", "export"], ["second", "export"], ["first", "mount"]]);
    let hash = |point: usize| points[point]["sha256"].as_str().unwrap();
    assert_eq!(hash(0), hash(2), "{report}");
    assert_ne!(hash(0), hash(1), "{report}");
    assert!(fs::read(&disk).unwrap().iter().all(|byte| *byte == 7), "only its copy is written");
}

#[test]
fn what_is_unknown_is_named_with_its_cure_and_exit_code_1() {
    if !have(&["curl"]) {
        return;
    }
    let site = protect().stop();
    let out = site.path("never.img");
    let export = |machine, disk, point| {
        let mut args = vec!["export", machine, "--disk", disk, "--point", point];
        args.extend(["--out", text(&out)]);
        args
    };
    let unknown = ["web-9", "not enrolled"];
    for args in [vec!["points", "web-9"], vec!["status", "web-9"], vec!["verify", "web-9"]] {
        fails(&site, &args, 1, &unknown);
        fails(&site, &[&args[..], &["--json"]].concat(), 1, &unknown);
    }
    fails(&site, &["bookmark", "web-9", "--name", "x"], 1, &unknown);
    fails(&site, &export("web-9", "root", "latest"), 1, &unknown);
    fails(&site, &export("web-1", "swap", "latest"), 1, &["swap", "web-1", "only root"]);
    let points = ["name:never", "seq:999999", "time:2001-01-01T00:00:00Z"];
    for point in points {
        fails(&site, &export("web-1", "root", point), 1, &["web-1", "sequence"]);
        fails(&site, &["verify", "web-1", "--point", point], 1, &["web-1"]);
    }
    assert!(!out.exists(), "nothing is left behind");
    fs::write(&out, b"mine").unwrap();
    let taken = ["exists already", "choose another name"];
    fails(&site, &export("web-1", "root", "latest"), 1, &taken);
    assert_eq!(fs::read(&out).unwrap(), b"mine");
    // Nobody answers: the server has stopped.
    fails(&site, &["bookmark", "web-1", "--name", "x"], 1, &["holdfast serve"]);
}

#[test]
fn wrong_usage_and_settings_are_named_all_at_once_with_exit_code_2() {
    let site = Site::new();
    let agent = site.enroll("web-1", &[("root", DISK_BYTES)]);
    let export =
        |point| ["export", "web-1", "--disk", "root", "--point", point, "--out", "/nonexistent/x"];
    for point in ["yesterday", "name:", "seq:-1", "time:noon", "Latest"] {
        fails(&site, &export(point), 2, &[point, "latest-processed", "time:RFC3339"]);
        fails(&site, &["verify", "web-1", "--point", point], 2, &[point, "latest-app"]);
    }
    fails(&site, &["points", "web-1", "--yesterday"], 2, &["--yesterday"]);
    fails(&site, &["points"], 2, &["MACHINE"]);
    fails(&site, &["points", "Not A Machine"], 2, &["Not A Machine"]);
    fails(&site, &["recover"], 2, &["recover"]);
    fails(&site, &["init", text(&site.path("third")), "--store", "ftp:x"], 2, &["ftp:x"]);

    site.set("shards", 0);
    site.set("seal.level", 99);
    site.set("cache.segment_bytes", 1);
    let broken = ["shards = 0", "seal.level = 99", "cache.segment_bytes = 1"];
    let json = ["status", "--json"];
    for args in [&["serve"][..], &["apply"], &["sidecar"], &["points", "web-1"], &json] {
        fails(&site, args, 2, &broken);
    }
    site.set("shards", 1);
    site.set("no_such_setting", 1);
    fails(&site, &["status"], 2, &["no_such_setting", "docs/configuration.md"]);

    agent.set("mode", "fast");
    agent.set("buffer_bytes_max", 1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    let output = command.args(["agent", "--config", text(&agent.config())]).output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("mode = \"fast\"") && said.contains("buffer_bytes_max = 1"), "{said}");
}

#[test]
fn a_difference_is_exit_code_3() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    site.set("apply.enabled", false); // without snapshots every delta is needed
    let site = protect_on(site).stop();
    let delta = support::delta_paths(&site.store, "web-1").into_iter().next().unwrap();
    let file = fs::File::options().write(true).open(&delta).unwrap();
    file.write_all_at(b"?", 200).unwrap();
    let plain = site.try_holdfast(&["verify", "web-1"]);
    assert_eq!(plain.status.code(), Some(3));
    let name = delta.file_name().unwrap().to_str().unwrap();
    assert!(String::from_utf8_lossy(&plain.stdout).contains(name), "what differs is named");
    assert!(said(&plain).contains("cannot be recovered"), "{}", said(&plain));
    let found = document(&site, &["verify", "web-1", "--json"], 3);
    assert!(found["failures"].to_string().contains(name), "{found}");
}

#[test]
fn each_way_to_say_a_point_finds_it() {
    if !have(&["curl"]) {
        return;
    }
    let protected = protect();
    eventually("the points are kept as snapshots", 60, || {
        named(&protected.site).values().all(|point| point["stored"] != "cloud-log").then_some(())
    });
    let site = protected.stop();
    let all = site.points("web-1");
    let named = named(&site);
    let sequence = |name: &str| named[name]["sequence"].as_u64().unwrap();
    let newest = all.last().unwrap()["sequence"].as_u64().unwrap();
    let processed = all.iter().rfind(|point| point["stored"] != "cloud-log").unwrap();
    let two = &named["two"];
    assert_eq!(two["kind"], "application-consistent");
    let cases = [
        ("latest".to_owned(), newest),
        ("latest-processed".to_owned(), processed["sequence"].as_u64().unwrap()),
        ("latest-app".to_owned(), sequence("two")),
        ("name:one".to_owned(), sequence("one")),
        (format!("seq:{}", sequence("three")), sequence("three")),
        (format!("time:{}", two["time"].as_str().unwrap()), sequence("two")),
    ];
    for (point, expected) in cases {
        let out = site.path("point.img");
        let mut args = vec!["export", "web-1", "--disk", "root", "--point", &point];
        args.extend(["--out", text(&out), "--json"]);
        let exported = document(&site, &args, 0);
        assert_eq!(exported["sequence"], expected, "{point}");
        assert_eq!(fs::metadata(&out).unwrap().len(), DISK_BYTES);
        fs::remove_file(&out).unwrap();
        document(&site, &["verify", "web-1", "--point", &point, "--json"], 0);
    }
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    let server = site.serve();
    // The same directories behind other ports, so that nothing else can refuse it.
    let second = site.root().join("second.toml");
    fs::copy(site.config(), &second).unwrap();
    for key in ["listen", "metrics_listen"] {
        support::set(&second, key, format!("127.0.0.1:{}", support::free_port()).into());
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    let output = command.args(["serve", "--config", text(&second)]).output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty());
    let holder = format!("in use by process {}", server.pid());
    assert!(said.contains(&holder) && said.contains(text(&site.root().join("cache"))), "{said}");
    assert!(support::curl(&format!("http://127.0.0.1:{}/healthz", site.metrics_port)).is_some());
    server.stop();
}

/// A clone, a drill with network, an old host that was switched on again: here with a certificate of its own.
#[test]
fn a_second_agent_of_one_machine_waits_until_the_firsts_certificate_is_revoked() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    let first_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
    let server = site.serve();
    let first = first_site.start(&["root"]);
    eventually("the first has a point", 60, || {
        site.status("web-1").filter(|status| !status["recoverable_time"].is_null())
    });
    let second_site = AgentSite { directory: site.path("agent-second") };
    let disk = format!("root={}:4M", site.path("second.img").display());
    site.holdfast(&["enroll", "web-1", "--out", text(&second_site.directory), "--disk", &disk]);
    let second = second_site.start(&["root"]);
    let status = eventually("status says that there are two", 60, || {
        let status = site.json(&["status", "web-1"])["machines"][0].clone();
        status["lines"].to_string().contains("another agent of this machine").then_some(status)
    });
    assert_eq!(status["health"], "critical", "{status}");
    assert!(second.log().contains("another agent of machine web-1 is connected"));
    assert!(!first.log().contains("not connected"), "{}", first.log());

    let states = |listed: &Value, key: &str| {
        let certificates = listed["certificates"].as_array().unwrap().iter();
        certificates.map(|one| one[key].clone()).collect::<Vec<_>>()
    };
    let listed = document(&site, &["revoke", "web-1", "--json"], 0);
    assert_eq!(states(&listed, "state"), ["good", "good"]);
    fails(&site, &["revoke", "web-1", "ffffffff"], 1, &["ffffffff", "`holdfast revoke web-1`"]);
    fails(&site, &["revoke", "web-1", "ffffffff", "--but-newest"], 2, &["--but-newest"]);
    fails(&site, &["revoke", "web-9"], 1, &["not enrolled"]);
    let revoked = document(&site, &["revoke", "web-1", "--but-newest", "--json"], 0);
    assert_eq!(states(&revoked, "state"), ["revoked", "good"]);
    assert_eq!(states(&revoked, "revoked_now"), [true, false]);
    eventually("the first is refused", 60, || {
        first.log().contains("refused (Identity)").then_some(())
    });
    eventually("the second is let in", 60, || {
        second_site.status().filter(|status| !status["server"].is_null())
    });
    drop((first, second, server));
}

#[test]
fn half_a_request_on_the_metrics_port_does_not_hold_up_the_end() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    // Longer than the test waits: the end itself cuts it.
    site.set("limits.idle_timeout_ms", 600_000);
    site.set("limits.handshake_timeout_ms", 60_000);
    let server = site.serve();
    let mut half = TcpStream::connect(("127.0.0.1", site.metrics_port)).unwrap();
    half.write_all(b"GET /met").unwrap();
    let url = format!("http://127.0.0.1:{}/healthz", site.metrics_port);
    assert!(support::curl(&url).is_some(), "accepted after it");
    server.stop();
    drop(half);
}

#[test]
fn init_overwrites_nothing() {
    let site = Site::new();
    let contents = || {
        let files = support::files(&site.root()).into_iter();
        files.map(|path| (fs::read(&path).unwrap(), path)).collect::<Vec<_>>()
    };
    let mut before = contents();
    let elsewhere = format!("dir:{}", site.path("elsewhere").display());
    let root = site.root();
    let again = ["init", text(&root), "--store", &elsewhere];
    fails(&site, &again, 1, &["exists already and is never overwritten"]);
    // Also when only one of its files is left.
    fs::remove_file(site.config()).unwrap();
    before.retain(|(_, path)| *path != site.config());
    fails(&site, &again, 1, &["exists already and is never overwritten"]);
    let mut after = contents();
    before.sort();
    after.sort();
    assert!(before == after, "init changed or added a file");
    assert!(!site.path("elsewhere").join("vault").exists());
}

fn agent_command(agent_site: &AgentSite, args: &[&str]) -> Output {
    let (config, mut command) = (agent_site.config(), Command::new(env!("CARGO_BIN_EXE_holdfast")));
    command.arg("agent").args(args).arg("--config").arg(config).output().unwrap()
}

/// A pod's probe is this exit code.
#[test]
fn the_status_of_an_agent_that_is_gone_says_so_and_fails() {
    let site = Site::new();
    let agent_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
    let shows = |args: &[&str], code| {
        let output = agent_command(&agent_site, args);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        (String::from_utf8(output.stdout.clone()).unwrap(), said(&output))
    };
    let json = ["status", "--json"];
    let agent = agent_site.start(&["root"]);
    eventually("a status", 20, || agent_site.status());
    let status: Value = serde_json::from_str(&shows(&json, 0).0).unwrap();
    assert_eq!(status["running"], true, "{status}");
    assert!(!shows(&["status"], 0).0.contains("running"));
    // With such files no next life could begin, and none like this one: it is not even tried.
    let key = agent_site.directory.join("machine.key");
    let usable = fs::read(&key).unwrap();
    fs::write(&key, "half of a k").unwrap();
    eventually("a reload is refused", 20, || {
        let output = agent_command(&agent_site, &["reload"]);
        (output.status.code() == Some(1) && said(&output).contains("machine.key")).then_some(())
    });
    fs::write(&key, usable).unwrap();
    assert!(Client::connect(&agent_site.socket("root"), "root").is_ok(), "it serves on");
    agent.kill();
    let (document, why) = shows(&json, 1);
    let status: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(status["running"], false, "{status}");
    assert!(why.contains("no agent runs on") && why.contains("holdfast agent"), "{why}");
    assert!(shows(&["status"], 1).0.contains("running    no; this is how it was at 2"));
}

/// What root leaves in the directory would keep its user's agent from starting for good.
#[test]
fn root_does_not_run_the_agent_of_another_user() {
    if !rustix::process::geteuid().is_root() {
        return skipped("a directory can be given away by root alone");
    }
    let site = Site::new();
    let agent_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
    run("chown", &["-R", "nobody", text(&agent_site.directory)]);
    let (before, settings) = (files(&agent_site.directory), fs::read(agent_site.config()).unwrap());
    let attach = ["attach-qemu", "--qmp", "/no/monitor", "--device", "vda", "--disk", "more"];
    for args in [&[][..], &attach[..]] {
        let output = agent_command(&agent_site, args);
        let why = said(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {why}");
        assert!(why.contains("runuser -u nobody -- holdfast"), "{args:?}: {why}");
        assert_eq!(files(&agent_site.directory), before, "{args:?}");
    }
    assert_eq!(fs::read(agent_site.config()).unwrap(), settings);
    // What an agent of root's left in the kernel root takes out, whose directory it may be by now.
    let output = agent_command(&agent_site, &["release"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(files(&agent_site.directory), before);
}

/// A device is somewhere else, with its machine; a file that is not here is a mistake, or to be made.
#[test]
fn a_machine_is_enrolled_with_a_device_that_is_not_here() {
    let site = Site::new();
    let out = site.path("agent-web-1");
    let enroll = |disk| ["enroll", "web-1", "--out", text(&out), "--disk", disk];
    let file = "/no/such/disk does not exist";
    fails(&site, &enroll("root=/no/such/disk"), 1, &[file, "add :SIZE"]);
    assert!(!out.exists(), "nothing was written");
    site.holdfast(&enroll("root=/dev/no-such-disk"));
    let agent_site = AgentSite { directory: out.clone() };
    let settings: toml::Table = fs::read_to_string(agent_site.config()).unwrap().parse().unwrap();
    assert_eq!(settings["disk"][0]["path"].as_str(), Some("/dev/no-such-disk"));
    let output = agent_command(&agent_site, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("/dev/no-such-disk"), "{}", said(&output));
}
