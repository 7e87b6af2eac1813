//! `holdfast top` through the binary: one frame from a real server, and what it says when it cannot.
//! What a terminal shows is told by the unit tests; here a terminal is one that `script` makes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};

use support::{Site, eventually, have, text};

const DISK_BYTES: u64 = 4 << 20;

#[test]
fn one_frame_of_a_real_server_is_printed() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    let agent_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
    let disk = File::options().write(true).open(site.disk("web-1", "root")).unwrap();
    disk.write_all_at(&[7; 1 << 20], 0).unwrap();
    let server = site.serve();
    let agent = agent_site.start(&["root"]);
    eventually("a recovery point", 120, || {
        let status = site.status("web-1")?;
        (status["mode"] == "ordered" && !status["recoverable_time"].is_null()).then_some(())
    });
    let address = format!("127.0.0.1:{}", site.metrics_port);
    let frame = site.holdfast(&["top", "--once", "--interval", "0.1"]);
    for words in [
        format!("holdfast {address}  up ").as_str(),
        "1 of 1 agents connected",
        " MiB: free  marks warn 50 % slow 65 % stop 85 %",
        " streams  retries 0 (0.0/s)  store answers",
        "RPO, worst ",
    ] {
        assert!(frame.contains(words), "{words}\n{frame}");
    }
    let cells = |name: &str| {
        let line = frame.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name}\n{frame}"));
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    let machine: Vec<String> = cells("web-1 ");
    assert_eq!(machine[1], "in order", "{frame}");
    let watermarks: Vec<u64> = machine[5..].iter().map(|cell| cell.parse().unwrap()).collect();
    assert_eq!(watermarks.len(), 5, "{frame}");
    assert!(watermarks.is_sorted_by(|a, b| a >= b) && watermarks[0] > 0, "{frame}");
    let acks: Vec<String> = cells("cache ack ");
    assert!(acks[7].ends_with('s'), "an ack took some time: {frame}");
    assert!(!frame.contains('\u{1b}'), "plain text");

    // The address alone is enough.
    let binary = env!("CARGO_BIN_EXE_holdfast");
    let alone = ["top", "--once", "--interval", "0.1", "--metrics", &address];
    let alone = support::run(binary, &alone);
    assert!(String::from_utf8_lossy(&alone.stdout).contains("web-1"));

    let output = site.try_holdfast(&["top"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
    assert!(said.contains("no terminal") && said.contains("--once"), "{said}");

    agent.stop();
    server.stop();
    let output = site.try_holdfast(&["top", "--once"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{said}");
    assert!(said.contains(&address) && said.contains("--metrics names another"), "{said}");
}

/// `holdfast top` on a terminal of its own; what it draws goes to a file.
fn on_a_terminal(site: &Site, typed: &str) -> Child {
    let (binary, drawn) = (env!("CARGO_BIN_EXE_holdfast"), site.path(typed));
    let config = site.config();
    // `script` ends with the exit code of what it runs; the pid is that of `holdfast`.
    let command = format!(
        "stty rows 24 cols 80; echo $$ > {}.pid; exec {binary} top --interval 0.1 --config {}",
        text(&drawn),
        text(&config)
    );
    Command::new("script")
        .args(["-q", "-e", "-f", "-c", &command, text(&drawn)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_terminal_shows_a_server_come_go_and_come_again_and_is_given_back() {
    if !have(&["curl", "script"]) {
        return;
    }
    const TAKEN: &str = "\u{1b}[?1049h";
    const GIVEN_BACK: &str = "\u{1b}[?1049l";
    let site = Site::new();
    site.enroll("web-1", &[("root", DISK_BYTES)]);
    let read = |name: &str| {
        String::from_utf8_lossy(&std::fs::read(site.path(name)).unwrap_or_default()).into_owned()
    };
    let shows = |name: &str, what: &str, from: usize| {
        eventually(what, 60, || read(name).get(from..)?.contains(what).then_some(()));
        read(name).len()
    };
    let mut keys = on_a_terminal(&site, "keys");
    let mut signal = on_a_terminal(&site, "signal");
    let seen = shows("keys", "no answer since", 0);
    assert!(read("keys").contains(TAKEN));
    let server = site.serve();
    let seen = shows("keys", "agents connected", seen);
    server.stop();
    let seen = shows("keys", "no answer since", seen);
    let server = site.serve();
    shows("keys", "store answers", seen);

    std::io::Write::write_all(keys.stdin.as_mut().unwrap(), b"q").unwrap();
    assert!(keys.wait().unwrap().success(), "{}", read("keys"));
    shows("signal", "agents connected", 0);
    let pid = std::fs::read_to_string(site.path("signal.pid")).unwrap();
    support::run("kill", &["-TERM", pid.trim()]);
    assert!(signal.wait().unwrap().success(), "{}", read("signal"));
    for name in ["keys", "signal"] {
        assert!(read(name).contains(GIVEN_BACK), "{name}");
    }
    server.stop();
}
