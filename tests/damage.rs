//! One flipped bit in a cache segment, a delta, its index, a manifest, a seed disk's footer: found,
//! named, never served as data.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use holdfast::format::segment::{
    RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SEGMENT_HEADER_SECTOR, SegmentHeader,
};
use support::mounts::Mounted;
use support::workload::{Target, Workload};
use support::{AgentSite, Process, Site, eventually, have};

const DISK_BYTES: u64 = 16 << 20;
const SEED_DISK: &str = "asrseeddisk-web-1-root-1";

/// Flips one bit of a file.
fn flip(path: &Path, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

struct Protected {
    site: Site,
    agent_site: AgentSite,
    server: Process,
    agent: Process,
    workload: Workload,
}

fn protect(site: Site, apply: bool) -> Protected {
    site.set("apply.enabled", apply);
    let agent_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
    let server = site.serve();
    let agent = agent_site.start(&["root"]);
    let sectors = DISK_BYTES / 512;
    let target = Target { name: "root", socket: agent_site.socket("root"), sectors };
    let workload = Workload::start(3, vec![target]);
    let protected = Protected { site, agent_site, server, agent, workload };
    protected.bookmark("first");
    protected
}

impl Protected {
    fn bookmark(&self, name: &str) {
        eventually("a bookmark", 120, || {
            let args = ["bookmark", "web-1", "--name", name, "--wait", "recoverable"];
            self.site.try_holdfast(&args).status.success().then_some(())
        });
    }

    /// Stops with a last point behind everything: each delta is needed by one.
    fn stop(self) -> Site {
        self.workload.held(|| self.bookmark("last"));
        self.workload.finish();
        self.agent.stop();
        self.server.stop();
        self.site
    }
}

/// `verify` exits with 3 and names `thing`; an export of the point fails and leaves no file.
fn found_and_named(site: &Site, thing: &str) {
    let output = site.try_holdfast(&["verify", "web-1"]);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(thing), "{thing:?} is not named in: {said}");
}

fn export_fails(site: &Site, thing: &str) {
    let out = site.path("never.img");
    let mut args = vec!["export", "web-1", "--disk", "root", "--point", "name:first"];
    args.extend(["--format", "raw", "--out", support::text(&out)]);
    let output = site.try_holdfast(&args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(thing), "{thing:?} is not named in: {said}");
    assert!(!out.exists(), "nothing that cannot be believed is left behind");
}

#[test]
fn a_flipped_bit_in_the_cloud_log_is_found_and_named() {
    if !have(&["curl"]) {
        return;
    }
    let site = protect(Site::new(), false).stop(); // without snapshots every point needs the whole log
    let store = site.store.clone();
    // A frame (behind the header) and the index (before the trailer) of one delta.
    let delta = support::delta_paths(&store, "web-1")
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len());
    let delta = delta.unwrap();
    let name = delta.file_name().unwrap().to_str().unwrap().to_owned();
    let length = fs::metadata(&delta).unwrap().len();
    let whole = fs::read(&delta).unwrap();
    for offset in [20, 1000, length / 2, length - 100, length - 10] {
        flip(&delta, offset);
        found_and_named(&site, &name);
        fs::write(&delta, &whole).unwrap();
    }
    site.holdfast(&["verify", "web-1"]);
    // The manifest.
    let manifest = support::object(&store, "machines/web-1/manifest");
    let whole = fs::read(&manifest).unwrap();
    flip(&manifest, whole.len() as u64 / 2);
    found_and_named(&site, "manifest");
    export_fails(&site, "manifest");
    fs::write(&manifest, &whole).unwrap();
}

#[test]
fn a_flipped_bit_beside_the_cloud_log_is_found_and_named() {
    if have(&["curl"]) {
        flipped_beside_the_cloud_log(Site::new());
    }
}

/// Where snapshots keep replaced bytes beside the seed disk, and where they are clones of it.
#[test]
fn a_flipped_bit_beside_the_cloud_log_is_found_on_every_file_system() {
    if !have(&["curl"]) {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs"] {
        if let Some(mounted) = Mounted::new(kind, 400) {
            println!("on {kind}");
            flipped_beside_the_cloud_log(Site::with_store(Some(mounted.path.join("store"))));
        }
    }
}

fn flipped_beside_the_cloud_log(site: Site) {
    let protected = protect(site, true);
    eventually("a snapshot point", 60, || {
        let points = protected.site.points("web-1");
        points.iter().any(|point| point["stored"] != "cloud-log").then_some(())
    });
    let site = protected.stop();
    let points = support::object(&site.store, "machines/web-1/points");
    let whole = fs::read(&points).unwrap();
    flip(&points, whole.len() as u64 / 2);
    export_fails(&site, "points");
    fs::write(&points, &whole).unwrap();
    flip_footers(&site.store);
    found_and_named(&site, SEED_DISK);
    flip_footers(&site.store);
    site.holdfast(&["verify", "web-1"]);
}

/// Flips a bit of the footer wherever a snapshot may have it from: the seed disk, or a snapshot's
/// own file, which holds all bytes (a clone) or those that were replaced since.
fn flip_footers(store: &Path) {
    let beside = store.join(".pages/seed").join(SEED_DISK);
    let own = support::files(&beside).into_iter();
    let own = own.filter(|path| path.extension().is_some_and(|end| end == "pages"));
    for file in own.chain([support::seed_disk(store, SEED_DISK)]) {
        let length = fs::metadata(&file).unwrap().len();
        flip(&file, length - 400);
    }
}

#[test]
fn an_applier_that_meets_damage_says_so_and_goes_on_after_the_cure() {
    if !have(&["curl"]) {
        return;
    }
    let site = protect(Site::new(), false).stop();
    let points = site.points("web-1");
    let last = points.iter().find(|point| point["name"] == "last").unwrap();
    // A bookmark closes its delta, and a delta's name says where it ends.
    let end = format!("-{:016x}-", last["sequence"].as_u64().unwrap());
    let deltas = support::delta_paths(&site.store, "web-1");
    let damaged = deltas.iter().find(|path| support::text(path).contains(&end)).unwrap();
    let name = damaged.file_name().unwrap().to_str().unwrap();
    let middle = fs::metadata(damaged).unwrap().len() / 2;
    flip(damaged, middle);
    let applier = site.apply();
    let status = || site.try_holdfast(&["status", "web-1"]);
    eventually("status names what applying stopped before", 60, || {
        let said = String::from_utf8_lossy(&status().stdout).into_owned();
        (said.contains("applying stopped") && said.contains(name)).then_some(())
    });
    let stored = |point: &str| {
        let points = site.points("web-1");
        let found = points.iter().find(|found| found["name"] == point).unwrap();
        found["stored"].as_str().unwrap().to_owned()
    };
    assert_eq!((stored("first").as_str(), stored("last").as_str()), ("both", "cloud-log"));
    fs::remove_file(site.export("web-1", "root", "name:first")).unwrap();
    flip(damaged, middle);
    eventually("the later point is kept as a snapshot", 60, || {
        (stored("last") == "both").then_some(())
    });
    let said = String::from_utf8_lossy(&status().stdout).into_owned();
    assert!(!said.contains("applying stopped"), "{said}");
    applier.stop();
}

#[test]
fn a_lost_seed_disk_is_left_behind_by_the_words_of_its_error() {
    if !have(&["curl"]) {
        return;
    }
    let Protected { site, agent_site, server, agent, workload } = protect(Site::new(), true);
    server.stop();
    fs::remove_file(support::seed_disk(&site.store, SEED_DISK)).unwrap();
    let server = site.serve();
    let status =
        || String::from_utf8_lossy(&site.try_holdfast(&["status", "web-1"]).stdout).into_owned();
    let said = eventually("status says what to do", 60, || {
        let said = status();
        (said.contains("applying stopped") && said.contains(SEED_DISK)).then_some(said)
    });
    let words = said.split('`').nth(1).unwrap_or_else(|| panic!("no command: {said}"));
    let (program, args) = words.split_once(' ').unwrap();
    assert_eq!(program, "holdfast", "{said}");
    let resync = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(args.split(' ')).arg("--config").arg(agent_site.config());
        let output = command.output().unwrap();
        let all = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&all).into_owned())
    };
    let (code, refused) = resync();
    assert_eq!(code, Some(1), "{refused}");
    assert!(refused.contains("running agent; stop that one first"), "{refused}");
    workload.finish();
    agent.stop();
    let (code, done) = resync();
    assert_eq!(code, Some(0), "{done}");
    assert!(done.contains("published of root") && done.contains("new epoch"), "{done}");
    let agent = agent_site.start(&["root"]);
    eventually("a bookmark", 120, || {
        let args = ["bookmark", "web-1", "--name", "after", "--wait", "recoverable"];
        site.try_holdfast(&args).status.success().then_some(())
    });
    eventually("the point is applied", 60, || {
        let points = site.points("web-1");
        let after = points.iter().find(|point| point["name"] == "after")?;
        (after["stored"] == "both").then_some(())
    });
    let image = fs::read(site.export("web-1", "root", "name:after")).unwrap();
    assert!(image == fs::read(site.disk("web-1", "root")).unwrap());
    assert!(!status().contains("applying stopped"), "{}", status());
    drop((agent, server));
}

#[test]
fn a_flipped_bit_in_the_cache_log_is_reported_and_repaired_by_the_agent() {
    if !have(&["curl"]) {
        return;
    }
    let protected = protect(Site::new(), true);
    let Protected { site, agent_site, server, agent, workload } = protected;
    server.kill();
    let segment = newest_written(&site.root().join("cache"));
    flip_first_record(&segment);
    let server = site.serve();
    let damage = eventually("the damage is counted", 30, || {
        let page = site.metrics();
        let line = page.lines().find(|line| line.starts_with("holdfast_cache_damage_total"))?;
        line.rsplit(' ').next()?.parse::<f64>().ok().filter(|count| *count > 0.0)
    });
    assert!(damage > 0.0);
    let name = segment.file_name().unwrap().to_str().unwrap();
    assert!(server.log().contains(name), "the log names {name}");
    let from = workload.acknowledged();
    eventually("a bookmark", 120, || {
        let args = ["bookmark", "web-1", "--name", "repaired", "--wait", "recoverable"];
        site.try_holdfast(&args).status.success().then_some(())
    });
    let to = workload.issued();
    let history = workload.finish();
    let image = site.export("web-1", "root", "name:repaired");
    history.check(&[image.as_path()], from..=to).unwrap();
    drop((agent, agent_site));
}

/// The newest segment with a record in it.
fn newest_written(folder: &Path) -> PathBuf {
    let ordinal = |path: &PathBuf| {
        let bytes = fs::read(path).ok()?;
        let header = SegmentHeader::decode(bytes.get(..SEGMENT_HEADER_SECTOR)?).ok()??;
        let first = bytes.get(SEGMENT_HEADER_BYTES as usize..)?.get(..RECORD_HEADER_BYTES)?;
        first.iter().any(|byte| *byte != 0).then_some(header.ordinal)
    };
    support::files(folder)
        .into_iter()
        .filter(|path| ordinal(path).is_some())
        .max_by_key(ordinal)
        .unwrap()
}

/// Flips a bit in the payload of the segment's first record: many later ones prove it durable.
fn flip_first_record(segment: &Path) {
    flip(segment, SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES as u64 + 40);
}
