//! The NBD server against the tools that people use: qemu-img, qemu-io, nbdinfo, nbdcopy.
//!
//! Needs `qemu-utils` and `libnbd-bin`. Where a tool is missing the test says so and skips; with
//! `CI` set in the environment it fails.

#![allow(clippy::unwrap_used, reason = "a test program")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use holdfast::nbd::{BlockStatus, Client, Export, Server};

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 64 * MIB;

/// A disk in memory that knows which of its 4 KiB blocks were ever written.
struct Disk {
    content: Mutex<(Vec<u8>, Vec<bool>)>,
    read_only: bool,
}

const BLOCK: u64 = 4096;

impl Disk {
    fn new(read_only: bool) -> Arc<Self> {
        let content = (vec![0; DISK_BYTES as usize], vec![false; (DISK_BYTES / BLOCK) as usize]);
        Arc::new(Self { content: Mutex::new(content), read_only })
    }

    fn bytes(&self) -> Vec<u8> {
        self.content.lock().unwrap().0.clone()
    }

    fn fill(&self, offset: u64, bytes: &[u8]) {
        let mut content = self.content.lock().unwrap();
        let end = offset + bytes.len() as u64;
        content.0[offset as usize..end as usize].copy_from_slice(bytes);
        for block in offset / BLOCK..end.div_ceil(BLOCK) {
            content.1[block as usize] = true;
        }
    }
}

impl Export for Disk {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        target.copy_from_slice(&self.content.lock().unwrap().0[start..start + target.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, payload: Bytes, _fua: bool) -> io::Result<()> {
        self.fill(offset, &payload);
        Ok(())
    }
    fn zero(&self, offset: u64, length: u64, _trim: bool, _fua: bool) -> io::Result<()> {
        self.fill(offset, &vec![0; length as usize]);
        let mut content = self.content.lock().unwrap();
        for block in offset.div_ceil(BLOCK)..(offset + length) / BLOCK {
            content.1[block as usize] = false;
        }
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<BlockStatus>> {
        let content = self.content.lock().unwrap();
        let (mut at, end) = (offset, offset + length);
        let mut extents = Vec::new();
        while at < end {
            let hole = !content.1[(at / BLOCK) as usize];
            let next = (at / BLOCK * BLOCK + BLOCK).min(end);
            extents.push(BlockStatus { length: next - at, hole, zero: hole });
            at = next;
        }
        Ok(extents)
    }
}

/// Whether the tools are there; says so when not.
fn have(tools: &[&str]) -> bool {
    for tool in tools {
        if Command::new(tool).arg("--version").output().is_err() {
            // Past the harness, which keeps what a passing test prints and may have begun a line.
            let line = format_args!("\nskipped: {tool} is not installed\n");
            std::io::Write::write_fmt(&mut std::io::stderr(), line).ok();
            assert!(std::env::var_os("CI").is_none(), "{tool} is not installed");
            return false;
        }
    }
    true
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}\n{out}\n{errors}");
    out
}

struct Served {
    directory: tempfile::TempDir,
    disk: Arc<Disk>,
    server: Server,
}

fn serve(read_only: bool) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(read_only);
    let socket = directory.path().join("disk.sock");
    let server = Server::bind(&socket, "disk", Arc::clone(&disk) as Arc<dyn Export>).unwrap();
    Served { directory, disk, server }
}

impl Served {
    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.server.socket().display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// An image with data, holes and zeros in it.
fn image(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES as usize];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for range in [0..3 * MIB, 9 * MIB + 512..17 * MIB, DISK_BYTES - 1024..DISK_BYTES] {
        for chunk in bytes[range.start as usize..range.end as usize].chunks_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
    }
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn qemu_img_converts_in_both_directions() {
    if !have(&["qemu-img"]) {
        return;
    }
    let served = serve(false);
    let (source, back) = (served.path("source.raw"), served.path("back.qcow2"));
    let bytes = image(&source);
    let (source, back, uri) = (source.to_str().unwrap(), back.to_str().unwrap(), served.uri());
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", source, &uri]);
    assert!(served.disk.bytes() == bytes, "what qemu-img wrote differs from its source");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, back]);
    let compared = run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", source, back]);
    assert!(compared.contains("identical"), "{compared}");
    let described = run("qemu-img", &["info", "-f", "raw", &uri]);
    assert!(described.contains("64 MiB (67108864 bytes)"), "{described}");
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    if !have(&["qemu-io"]) {
        return;
    }
    let served = serve(false);
    let uri = served.uri();
    let commands = [
        "write -P 0xaa 0 4M",
        "write -P 0xbb 1M 512",
        "write -z 2M 64k",
        "write -z -u 3M 128k",
        "discard 3584k 256k",
        "write -f -P 0xcc 8M 4k",
        "flush",
        "aio_write -P 0xdd 16M 16M",
        "aio_write -P 0xee 40M 8M",
        "aio_flush",
        "read -P 0xaa 0 1M",
        "read -P 0xbb 1M 512",
        "read -P 0 2M 64k",
        "read -P 0xdd 16M 16M",
        "read -P 0 60M 4M",
    ];
    let mut arguments = vec!["-f", "raw", "-d", "unmap"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let out = run("qemu-io", &arguments);
    assert!(!out.contains("verification failed") && !out.contains("failed:"), "{out}");
    let bytes = served.disk.bytes();
    let all = |range: std::ops::Range<u64>, byte: u8| {
        bytes[range.start as usize..range.end as usize].iter().all(|b| *b == byte)
    };
    assert!(all(0..MIB, 0xaa) && all(MIB..MIB + 512, 0xbb) && all(2 * MIB..2 * MIB + 65_536, 0));
    assert!(all(3 * MIB..3 * MIB + 131_072, 0) && all(3584 * 1024..3840 * 1024, 0));
    assert!(all(16 * MIB..32 * MIB, 0xdd) && all(40 * MIB..48 * MIB, 0xee));
}

#[test]
fn qemu_io_is_refused_where_it_must_be() {
    if !have(&["qemu-io"]) {
        return;
    }
    let served = serve(true);
    let uri = served.uri();
    let arguments = ["-f", "raw", "-c", "write 0 4k", &uri];
    let output = Command::new("qemu-io").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "a read-only export opened for writing");
    assert!(text.contains("Permission denied"), "{text}");
    run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 4M", &uri]);
}

#[test]
fn nbdinfo_shows_size_flags_and_map() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let served = serve(false);
    served.disk.fill(MIB, &vec![1; 2 * MIB as usize]);
    let uri = served.uri();
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), DISK_BYTES.to_string());
    let facts = run("nbdinfo", &["--json", &uri]);
    for expected in [
        "\"export-name\": \"disk\"",
        "\"structured\": true",
        "\"can_multi_conn\": true",
        "\"can_fua\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_df\": true",
        "\"can_cache\": false",
        "\"block_size_minimum\": 512",
        "\"block_size_maximum\": 33554432",
        "base:allocation",
    ] {
        assert!(facts.contains(expected), "no {expected} in {facts}");
    }
    let map = run("nbdinfo", &["--map", &uri]);
    let rows: Vec<Vec<&str>> =
        map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let rest = (DISK_BYTES - 3 * MIB).to_string();
    let expected =
        [vec!["0", "1048576", "3"], vec!["1048576", "2097152", "0"], vec!["3145728", &rest, "3"]];
    assert_eq!(rows, expected, "{map}");
    let list = run(
        "nbdinfo",
        &["--list", &format!("nbd+unix:///?socket={}", served.server.socket().display())],
    );
    assert!(list.contains("export=\"disk\""), "{list}");
}

#[test]
fn nbdcopy_copies_over_several_connections() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let served = serve(false);
    let (source, back) = (served.path("source.raw"), served.path("back.raw"));
    let bytes = image(&source);
    let (source, back, uri) = (source.to_str().unwrap(), back.to_str().unwrap(), served.uri());
    run("nbdcopy", &["--connections=4", "--flush", source, &uri]);
    assert!(served.disk.bytes() == bytes, "what nbdcopy wrote differs from its source");
    run("nbdcopy", &["--connections=4", &uri, back]);
    assert!(std::fs::read(back).unwrap() == bytes, "what nbdcopy read differs");
    run("nbdcopy", &["--synchronous", &uri, back]);
    assert!(std::fs::read(back).unwrap() == bytes, "what nbdcopy read in turn differs");
}

#[test]
fn our_client_reads_what_qemu_wrote_and_qemu_reads_ours() {
    if !have(&["qemu-io"]) {
        return;
    }
    let served = serve(false);
    let uri = served.uri();
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x5a 5M 1M", &uri]);
    let mut client = Client::connect(served.server.socket(), "disk").unwrap();
    let mut bytes = vec![0; MIB as usize];
    client.read(5 * MIB, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0x5a));
    client.write(7 * MIB, &bytes, true).unwrap();
    run("qemu-io", &["-f", "raw", "-c", "read -P 0x5a 7M 1M", &uri]);
}
