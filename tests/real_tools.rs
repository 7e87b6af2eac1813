//! The path as its users drive it: unmodified qemu-img, qemu-io, nbdinfo and nbdcopy in front of
//! the agent and behind a mount, images compared by qemu-img.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rand::{Rng, SeedableRng, rngs::StdRng};
use support::{AgentSite, Process, Site, have, run, text};

const SIZE: u64 = 64 << 20;

/// An ext4 image made of files of this machine.
fn ext4(path: &Path, size: u64) {
    fs::File::create(path).unwrap().set_len(size).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-d", "/usr/share/doc/apt", text(path)]);
}

fn qemu_io(url: &str, commands: &[String]) {
    let mut args = vec!["-f".to_owned(), "raw".to_owned(), url.to_owned()];
    for command in commands {
        args.extend(["-c".to_owned(), command.clone()]);
    }
    let output = run("qemu-io", &args);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(!out.contains("failed") && !out.contains("rror"), "{out}");
}

/// Random writes, zeroes, trims and flushes.
fn scribble(url: &str, random: &mut StdRng) {
    let mut commands = Vec::new();
    for _ in 0..60 {
        let offset = u64::from(random.next_u32()) % (SIZE - (1 << 20)) / 512 * 512;
        let length = (u64::from(random.next_u32()) % (256 << 10) / 512 + 1) * 512;
        let pattern = random.next_u32() % 255 + 1;
        commands.push(match random.next_u32() % 8 {
            0 => format!("write -z {offset} {length}"),
            1 => format!("write -z -u {offset} {length}"),
            2 => format!("discard {offset} {length}"),
            3 => "flush".to_owned(),
            4 => format!("write -f -P {pattern} {offset} {length}"),
            _ => format!("write -P {pattern} {offset} {length}"),
        });
    }
    commands.push("flush".to_owned());
    qemu_io(url, &commands);
}

fn identical(a: &Path, format_a: &str, b: &Path, format_b: &str) {
    let output = run("qemu-img", &["compare", "-f", format_a, "-F", format_b, text(a), text(b)]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("identical"));
}

struct Protected {
    site: Site,
    agent_site: AgentSite,
    _server: Process,
    _agent: Process,
    copies: Vec<PathBuf>,
}

/// `qemu-img convert` through the agent, then three rounds of scribbling, each with a bookmark and
/// a copy of the source taken at that moment.
fn protect() -> Protected {
    let site = Site::new();
    let image = site.path("image.img");
    ext4(&image, SIZE);
    let agent_site = site.enroll("web-1", &[("root", SIZE)]);
    let server = site.serve();
    let agent = agent_site.start(&["root"]);
    let url = agent_site.url("root");
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&image), &url]);
    let mut random = StdRng::seed_from_u64(7);
    let mut copies = Vec::new();
    for round in 0..3 {
        scribble(&url, &mut random);
        let name = format!("round-{round}");
        support::eventually("a bookmark", 60, || {
            let args = ["bookmark", "web-1", "--name", &name, "--wait", "recoverable"];
            site.try_holdfast(&args).status.success().then_some(())
        });
        let copy = site.path(&format!("copy-{round}.img"));
        fs::copy(site.disk("web-1", "root"), &copy).unwrap();
        copies.push(copy);
    }
    Protected { site, agent_site, _server: server, _agent: agent, copies }
}

#[test]
fn exports_at_three_bookmarks_equal_copies_taken_then() {
    if !have(&["qemu-img", "qemu-io", "mkfs.ext4", "curl"]) {
        return;
    }
    let protected = protect();
    let site = &protected.site;
    for (round, copy) in protected.copies.iter().enumerate() {
        let raw = site.export("web-1", "root", &format!("name:round-{round}"));
        identical(&raw, "raw", copy, "raw");
    }
    let vhd = site.path("root.vhd");
    let args = ["export", "web-1", "--disk", "root", "--point", "name:round-1", "--format", "vhd"];
    let mut args = args.to_vec();
    args.extend(["--out", text(&vhd)]);
    site.holdfast(&args);
    let output = run("qemu-img", &["info", "--output=json", "-f", "vpc", text(&vhd)]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["virtual-size"].as_u64(), Some(SIZE));
    identical(&vhd, "vpc", &protected.copies[1], "raw");
    let sparse = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&vhd).unwrap()) * 512;
    assert!(sparse < SIZE, "the output is sparse: {sparse} of {SIZE} bytes");
    // The seed disk itself is a VHD that qemu opens.
    let seed = support::seed_disk(&site.path("store"), "asrseeddisk-web-1-root-1");
    run("qemu-img", &["info", "-f", "vpc", text(&seed)]);
    // An existing output is never overwritten.
    assert_eq!(site.try_holdfast(&args).status.code(), Some(1));
}

#[test]
fn nbd_clients_read_a_mount_and_a_writable_mount_leaves_the_point_alone() {
    if !have(&["qemu-img", "qemu-io", "nbdinfo", "nbdcopy", "mkfs.ext4", "curl"]) {
        return;
    }
    let protected = protect();
    let site = &protected.site;
    let config = site.config();
    let mount = |name: &str, writable: bool| {
        let socket = site.path(name);
        let mut args = vec!["mount", "web-1", "--disk", "root", "--point", "name:round-2"];
        args.extend(["--socket", text(&socket), "--config", text(&config)]);
        if writable {
            args.push("--writable");
        }
        let process = Process::spawn(&site.path(&format!("{name}.log")), &args);
        process.ready("the mount", 30, || {
            std::os::unix::net::UnixStream::connect(&socket).ok().map(drop)
        });
        (process, format!("nbd+unix:///root?socket={}", socket.display()))
    };
    let (reading, url) = mount("read.sock", false);
    let output = run("nbdinfo", &["--json", &url]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["exports"][0]["export-size"].as_u64(), Some(SIZE));
    assert_eq!(facts["exports"][0]["is_read_only"].as_bool(), Some(true));
    run("nbdinfo", &["--map", &url]);
    let copy = site.path("nbdcopy.img");
    run("nbdcopy", &[url.as_str(), text(&copy)]);
    identical(&copy, "raw", &protected.copies[2], "raw");
    let refused = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 4k", &url])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!refused.success(), "a read-only mount takes no writes");
    let (writing, writable) = mount("write.sock", true);
    qemu_io(&writable, &["write -P 9 1M 3M".to_owned(), "read -P 9 1M 3M".to_owned()]);
    qemu_io(&writable, &["discard 2M 64k".to_owned(), "flush".to_owned()]);
    run("nbdcopy", &[url.as_str(), text(&copy)]);
    identical(&copy, "raw", &protected.copies[2], "raw");
    writing.stop();
    reading.stop();
    let raw = site.export("web-1", "root", "name:round-2");
    identical(&raw, "raw", &protected.copies[2], "raw");
    let _ = &protected.agent_site;
}

#[test]
fn the_demo_ends_verified() {
    if !have(&["mkfs.ext4"]) {
        return;
    }
    let binary = env!("CARGO_BIN_EXE_holdfast");
    let output = run(binary, &["demo"]);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.trim_end().ends_with("verified"), "{out}");
}
