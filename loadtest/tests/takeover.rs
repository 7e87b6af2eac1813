//! The run in which servers go away: with one server, which comes back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

use std::path::Path;
use std::process::Command;

#[test]
fn a_server_that_is_killed_and_comes_back_costs_no_order_and_no_point() {
    let program = Path::new(env!("CARGO_BIN_EXE_holdfast-loadtest"));
    let server = program.with_file_name("holdfast");
    assert!(server.is_file(), "{} is missing: cargo build --workspace", server.display());
    let directory = tempfile::tempdir().unwrap();
    let words = "takeover --any-build --servers=1 --machines=3 --size=4 --rate=128 --rounds=1 \
        --every=3 --away=1 --points=2 --json --set=cache.bytes_max=268435456";
    let output = Command::new(program)
        .args(words.split_whitespace())
        .arg("--directory")
        .arg(directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |key: &str| figures[key].as_u64().unwrap();
    assert_eq!((number("moved"), number("order_lost")), (3, 0), "{figures}");
    assert!(number("resent_bytes") <= number("unpublished_bytes"), "{figures}");
    assert!(number("resumed_max_ms") >= 1000, "it was away for a second: {figures}");
    assert!(number("audited_points") >= 3 && number("points") >= 3, "{figures}");
    assert!(number("writes") > 10, "{figures}");
}
