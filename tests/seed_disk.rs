//! Seed disks are opened by programs that are not ours: real `qemu-img` must agree about them.

#![allow(clippy::unwrap_used, reason = "a test program")]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

use holdfast::format::seed_disk::{Footer, size_on_store, unique_id, virtual_bytes};
use holdfast::model::Epoch;

/// Runs qemu-img, or says loudly that it cannot; in CI that is a failure.
fn qemu_img(args: &[&str]) -> Option<Output> {
    match Command::new("qemu-img").args(args).output() {
        Ok(output) => Some(output),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "qemu-img: {error}");
            // Past the harness, which keeps what a passing test prints and may have begun a line.
            let line = format_args!("\nskipped: qemu-img cannot be run: {error}\n");
            std::io::Write::write_fmt(&mut std::io::stderr(), line).ok();
            None
        }
    }
}

fn vhd(path: &Path, disk_bytes: u64) {
    let id = unique_id(&"web-1".parse().unwrap(), &"root".parse().unwrap(), Epoch(1));
    let footer = Footer::new(disk_bytes, id).unwrap();
    let file = std::fs::File::create(path).unwrap();
    file.set_len(disk_bytes + 512).unwrap();
    file.write_all_at(&footer.encode(), disk_bytes).unwrap();
}

#[test]
fn qemu_takes_the_exact_size_whatever_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.vhd");
    let mut sizes: Vec<u64> =
        [20, 400, 504, 1024, 127 << 10, 2040 << 10].map(|mib: u64| mib << 20).to_vec();
    sizes.extend([1, 3, 63, 2047, 41_943_041, 999_999_937].map(|sectors: u64| sectors * 512));
    sizes.extend([1, 513, 20_000_001, (40 << 30) + 512].map(virtual_bytes));
    for disk_bytes in sizes {
        vhd(&path, disk_bytes);
        let text = path.to_str().unwrap();
        let Some(output) = qemu_img(&["info", "-f", "vpc", "--output=json", text]) else {
            return;
        };
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let json: serde_json::Value = serde_json::from_str(&shown).expect(&told);
        assert_eq!(json["virtual-size"], disk_bytes, "{shown}");
        assert_eq!(json["format"], "vpc");
    }
}

#[test]
fn qemu_reads_the_disk_and_nothing_of_the_footer() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let disk_bytes = virtual_bytes(5_000_001);
    assert_eq!(size_on_store(5_000_001), disk_bytes + 512);
    vhd(path("disk.vhd").as_ref(), disk_bytes);
    let content: Vec<u8> = (0..disk_bytes).map(|at| (at % 251) as u8).collect();
    let file = std::fs::OpenOptions::new().write(true).open(path("disk.vhd")).unwrap();
    file.write_all_at(&content, 0).unwrap();
    let convert = ["convert", "-f", "vpc", "-O", "raw", &path("disk.vhd"), &path("raw")];
    let Some(output) = qemu_img(&convert) else {
        return;
    };
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read(path("raw")).unwrap() == content);
    // vpc has no consistency check of its own: exit 63 says so, after the image was opened.
    let check = qemu_img(&["check", "-f", "vpc", &path("disk.vhd")]).unwrap();
    assert!(matches!(check.status.code(), Some(0 | 63)), "{check:?}");
}
