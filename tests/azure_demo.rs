//! The whole product on Azure's emulator, and its seed disk in the hands of strangers: Azure's own
//! client for Python downloads it, qemu-img opens it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test program")]

#[path = "support/azurite.rs"]
mod azurite;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use azurite::{Azurite, installed};

const DISK_BYTES: usize = 24 << 20;

fn run(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    let output = command.args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{args:?}: {said}\n{}",
        String::from_utf8_lossy(&output.stdout)
    );
    output
}

fn holdfast(args: &[&str]) -> serde_json::Value {
    let output = run(env!("CARGO_BIN_EXE_holdfast"), args);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A disk with bytes in its first and last third, and none between.
fn disk(path: &Path) {
    let mut state = 1_u64;
    let mut content = vec![0; DISK_BYTES];
    for (at, byte) in content.iter_mut().enumerate() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if !(DISK_BYTES / 3..DISK_BYTES / 3 * 2).contains(&at) {
            *byte = (state >> 56) as u8;
        }
    }
    std::fs::write(path, content).unwrap();
}

/// The newest point that stands as a snapshot of the seed disk. The demo does not wait for the
/// applier; alone it goes on where the demo's ended.
fn point_on_a_seed_disk(config: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    let mut applier = command.args(["apply", "--config", text(config)]).spawn().unwrap();
    let found = (0..300).find_map(|_| {
        let points = holdfast(&["points", "demo", "--json", "--config", text(config)]);
        let points = points["points"].as_array().unwrap();
        let kept = points.iter().rev().find(|point| point["stored"] != "cloud-log");
        if kept.is_none() {
            pause();
        }
        kept.map(|point| point["sequence"].to_string())
    });
    applier.kill().unwrap();
    applier.wait().unwrap();
    found.expect("a minute is enough for the first snapshot")
}

#[allow(clippy::disallowed_methods, reason = "looks again a little later")]
fn pause() {
    std::thread::sleep(Duration::from_millis(200));
}

#[test]
fn a_seed_disk_on_azure_is_what_was_recovered() {
    let (Some(python), Some(azurite)) =
        (installed("python/bin/python"), Azurite::start(false, &[]))
    else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    disk(&path("disk.img"));
    let store = azurite.address("demo", azurite.port);
    let kept = path("kept");
    let source = path("disk.img");
    let args =
        ["demo", "--json", "--store", &store, "--keep", text(&kept), "--disk", text(&source)];
    let report = holdfast(&args);
    assert_eq!(report["points"].as_array().unwrap().len(), 3, "compared byte for byte: {report}");
    let config = kept.join("site/holdfast.toml");
    let sequence = point_on_a_seed_disk(&config);
    let (recovered, seed) = (path("recovered.img"), path("seed.vhd"));
    let point = format!("seq:{sequence}");
    let export = ["export", "demo", "--disk", "root", "--point", &point, "--out", text(&recovered)];
    holdfast(&[&export[..], &["--json", "--config", text(&config)]].concat());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/seed_disk.py");
    let key = azurite.key_file();
    run(python, &[script, &azurite.endpoint(), "demo", text(&key), &sequence, text(&seed)]);
    let opened = run("qemu-img", &["info", "-f", "vpc", "--output=json", text(&seed)]);
    let opened: serde_json::Value = serde_json::from_slice(&opened.stdout).unwrap();
    assert_eq!(opened["format"], "vpc");
    assert_eq!(opened["virtual-size"], DISK_BYTES as u64);
    run("qemu-img", &["compare", "-f", "vpc", "-F", "raw", text(&seed), text(&recovered)]);
    assert_eq!(std::fs::metadata(&seed).unwrap().len(), DISK_BYTES as u64 + 512);

    // The other commands stand on the same address.
    let verified =
        run(env!("CARGO_BIN_EXE_holdfast"), &["verify", "demo", "--config", text(&config)]);
    assert!(verified.status.success());
    let again = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["init", text(&path("other")), "--store", &store])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("in use by another site"), "{said}");
}
