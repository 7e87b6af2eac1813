//! The load generator itself, over QUIC: what it sent is in the store, and what was not is missed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

use std::path::Path;
use std::process::{Command, Output};

const LOAD: &[&str] = &[
    "--any-build",
    "--machines=3",
    "--disks=2",
    "--size=64",
    "--profile=mixed",
    "--rate=6",
    "--seconds=3",
    "--bookmark-interval=1",
    "--transport=quic",
    "--audit",
    "--json",
    "--set=cache.bytes_max=268435456",
];

fn load(more: &[&str]) -> Output {
    run(&[LOAD, more].concat())
}

/// Runs it against a process server of its own.
fn run(words: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_holdfast-loadtest"));
    let server = program.with_file_name("holdfast");
    assert!(server.is_file(), "{} is missing: cargo build --workspace", server.display());
    let directory = tempfile::tempdir().unwrap();
    Command::new(program).args(words).arg("--directory").arg(directory.path()).output().unwrap()
}

#[test]
fn a_load_over_quic_is_audited() {
    let output = load(&[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["transport"], "quic");
    let phase = &report["phases"][0];
    let (sent, audited) = (&phase["bytes"], &report["audited_bytes"]);
    assert!(sent.as_u64().unwrap() > 1 << 20, "{report}");
    assert!(audited.as_u64().unwrap() > 1 << 20, "{report}");
}

/// What the server says of the connections at the end of a second in which nobody writes.
fn standing(transport: &str) -> serde_json::Value {
    let output = run(&[
        "--any-build",
        "--machines=3",
        "--profile=idle-many",
        "--settle=1",
        "--seconds=1",
        "--json",
        "--set=cache.bytes_max=268435456",
        transport,
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["phases"][1]["standing"].clone()
}

#[test]
fn machines_are_connected_as_asked_for_and_stay_so() {
    let windows = |transport| {
        let standing = standing(transport);
        assert_eq!(standing["connections"], 3, "{standing}");
        standing["quic_window_bytes"].as_u64().unwrap()
    };
    assert_eq!(windows("--transport=tcp"), 0);
    assert!(windows("--transport=quic") > 0);
}

#[test]
fn a_byte_that_is_not_what_was_sent_is_found_over_quic() {
    let output = load(&["--tamper"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("disk0, byte 511"), "{said}");
}
