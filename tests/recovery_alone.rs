//! Recovery with the store and the key and nothing else: everything that the site and its machine
//! had besides is gone, and points, export, mount, verify and status still work.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Output};

use holdfast::nbd::Client;
use support::loops::Loop;
use support::workload::{Target, Workload};
use support::{Process, Site, eventually, files, have, run, text};

const DISK_BYTES: u64 = 8 << 20;

/// Replicates under writes, keeps what two bookmarks held, and gives the site when all has stopped.
fn replicated() -> (Site, Vec<(&'static str, Vec<u8>)>) {
    let site = Site::new();
    let agent_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
    let source = site.disk("web-1", "root");
    fs::write(&source, support::oracle::noise(0, DISK_BYTES / 512)).unwrap();
    let server = site.serve();
    let agent = agent_site.start(&["root"]);
    let socket = agent_site.socket("root");
    let workload =
        Workload::start(5, vec![Target { name: "root", socket, sectors: DISK_BYTES / 512 }]);
    let mut held = Vec::new();
    for name in ["first", "second"] {
        let now = workload.acknowledged();
        eventually("writes", 60, || (workload.acknowledged() > now + 50).then_some(()));
        held.push(workload.held(|| {
            eventually("a bookmark", 120, || {
                let args = ["bookmark", "web-1", "--name", name, "--wait", "recoverable"];
                site.try_holdfast(&args).status.success().then_some(())
            });
            (name, fs::read(&source).unwrap())
        }));
    }
    workload.finish();
    agent.stop();
    server.stop();
    (site, held)
}

/// The block of docs/operations.md that writes the settings.
fn settings_block() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("```sh recovery\n").unwrap();
    rest.split_once("\n```").unwrap().0.to_owned()
}

/// Copies store and key, writes the settings as the page shows, and removes everything else.
fn only_store_and_key(site: Site) -> tempfile::TempDir {
    let settings: toml::Table = fs::read_to_string(site.config()).unwrap().parse().unwrap();
    let rest = tempfile::tempdir().unwrap();
    let store = rest.path().join("store");
    run("cp", &["-a", text(&site.store), text(&store)]);
    fs::copy(site.root().join("kek.hex"), rest.path().join("kek.hex")).unwrap();
    let block = Command::new("sh")
        .args(["-eu", "-c", &settings_block()])
        .current_dir(rest.path())
        .env("SITE_ID", settings["site"].as_str().unwrap())
        .env("STORE", &store)
        .output()
        .unwrap();
    assert!(block.status.success(), "{block:?}");
    site.directory.close().unwrap();
    let others = files(rest.path()).into_iter().filter(|path| !path.starts_with(&store));
    assert_eq!(others.count(), 2, "the key and the settings");
    rest
}

fn holdfast(config: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    let output = command.args(args).arg("--config").arg(config).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn the_store_and_the_key_are_enough() {
    if !have(&["curl"]) {
        return;
    }
    let (site, held) = replicated();
    let rest = only_store_and_key(site);
    let config = rest.path().join("holdfast.toml");
    let points = holdfast(&config, &["points", "web-1", "--json"]);
    let points: serde_json::Value = serde_json::from_slice(&points.stdout).unwrap();
    for (name, bytes) in &held {
        let listed = points["points"].as_array().unwrap().iter();
        assert!(listed.into_iter().any(|point| point["name"] == *name), "{points}");
        let (point, out) = (format!("name:{name}"), rest.path().join(name));
        let mut args = vec!["export", "web-1", "--disk", "root", "--point", &point];
        args.extend(["--out", text(&out)]);
        holdfast(&config, &args);
        assert!(fs::read(&out).unwrap() == *bytes, "export of {name}");
        assert!(mounted(rest.path(), &config, &point) == *bytes, "mount of {name}");
    }
    onto_devices(rest.path(), &config, &held[1].1);
    holdfast(&config, &["verify", "web-1"]);
    let status = holdfast(&config, &["status", "web-1"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("web-1"), "{status:?}");
    holdfast(&config, &["status", "--json"]);
}

/// The disk at the second point, onto a device that held something else.
fn onto_devices(folder: &Path, config: &Path, expected: &[u8]) {
    let tail = 1 << 20;
    let backing = folder.join("new-disk");
    fs::write(&backing, vec![0xff; expected.len() + tail]).unwrap();
    let Some(device) = Loop::over(&backing, &[]) else { return };
    let export = |onto: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(["export", "web-1", "--disk", "root", "--point", "name:second", "--onto"]);
        command.arg(onto).arg("--config").arg(config).output().unwrap()
    };
    let refused = |onto: &Path, words: &str| {
        let output = export(onto);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(words), "{words}: {output:?}");
    };
    refused(&backing, "is no block device");
    {
        let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
        let _user =
            fs::File::options().read(true).custom_flags(exclusive).open(&device.path).unwrap();
        refused(&device.path, "is in use");
    }
    let Some(small) = Loop::new(&folder.join("small"), 1 << 20) else { return };
    refused(&small.path, "name a device that is as large");
    assert!(fs::read(&backing).unwrap().iter().all(|byte| *byte == 0xff), "nothing was touched");
    let output = export(&device.path);
    assert!(output.status.success(), "{output:?}");
    drop(device);
    let found = fs::read(&backing).unwrap();
    assert!(found[..expected.len()] == *expected, "the device holds the disk");
    assert!(found[expected.len()..].iter().all(|byte| *byte == 0xff), "and behind it what it held");
}

/// The whole disk, read through a mount.
fn mounted(folder: &Path, config: &Path, point: &str) -> Vec<u8> {
    let socket = folder.join("mount.sock");
    let mut args = vec!["mount", "web-1", "--disk", "root", "--point", point];
    args.extend(["--socket", text(&socket), "--config", text(config)]);
    let mount = Process::spawn(&folder.join("mount.log"), &args);
    let mut client = None;
    mount.ready("the mount answers", 60, || {
        client = Client::connect(&socket, "root").ok();
        client.as_ref().map(drop)
    });
    let mut client = client.unwrap();
    let mut bytes = vec![0; DISK_BYTES as usize];
    for (at, part) in bytes.chunks_mut(1 << 20).enumerate() {
        client.read((at as u64) << 20, part).unwrap();
    }
    drop(client);
    mount.stop();
    bytes
}
