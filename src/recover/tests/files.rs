//! Exported files.

use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use super::*;

#[tokio::test]
async fn raw_and_vhd_hold_the_disk_and_holes_stay_holes() {
    let world = World::after(&story()).await;
    world.snapshot(7).await;
    let directory = tempfile::tempdir().unwrap();
    let reader = world.reader("seq:12", "root").await.unwrap();
    let expected = &world.states[12].disks[0];

    let raw = directory.path().join("disk.raw");
    let seen = Mutex::new(Vec::new());
    let note = |progress: Progress| seen.lock().unwrap().push(progress);
    let exported = export(&world.machine, &reader, ExportFormat::Raw, &raw, &note).await.unwrap();
    assert_eq!(std::fs::read(&raw).unwrap(), *expected);
    assert_eq!(exported.file_bytes, reader.size_bytes());
    assert!(exported.copied_bytes < exported.file_bytes, "holes are not copied");
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.first().unwrap().done_bytes, 0);
    assert_eq!(seen.last().unwrap().done_bytes, exported.copied_bytes);
    assert!(seen.iter().all(|progress| progress.total_bytes == exported.copied_bytes));
    let blocks = raw.metadata().unwrap().blocks() * 512;
    assert!(blocks < exported.file_bytes, "{blocks} bytes are allocated");

    let vhd = directory.path().join("disk.vhd");
    export(&world.machine, &reader, ExportFormat::Vhd, &vhd, &|_| {}).await.unwrap();
    let bytes = std::fs::read(&vhd).unwrap();
    assert_eq!(bytes[..expected.len()], **expected);
    let footer = Footer::decode(&bytes[expected.len()..]).unwrap();
    assert_eq!(footer.disk_bytes(), reader.size_bytes());
}

#[tokio::test]
async fn nothing_is_overwritten_and_nothing_is_left_behind() {
    let world = World::after(&story()).await;
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("disk.raw");
    std::fs::write(&out, "precious").unwrap();
    let reader = world.reader("seq:12", "root").await.unwrap();
    let export = async || export(&world.machine, &reader, ExportFormat::Raw, &out, &|_| {}).await;
    let error = export().await.unwrap_err();
    assert!(matches!(error, RecoverError::OutputExists { .. }), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");

    std::fs::remove_file(&out).unwrap();
    let entries = world.entries().await;
    let entry = entries.iter().find(|entry| entry.first == Sequence(8)).unwrap();
    world.flip(&delta_name(&world.machine, entry), 200).await;
    let error = export().await.unwrap_err().line();
    assert!(error.contains("frame 0"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn qemu_takes_the_vhd() {
    if std::process::Command::new("qemu-img").arg("--version").output().is_err() {
        // Past the harness, which keeps what a passing test prints and may have begun a line.
        let line = format_args!("\nskipped: qemu-img is not installed\n");
        std::io::Write::write_fmt(&mut std::io::stderr(), line).ok();
        assert!(std::env::var_os("CI").is_none(), "qemu-img is not installed");
        return;
    }
    let world = World::after(&story()).await;
    let directory = tempfile::tempdir().unwrap();
    let reader = world.reader("seq:12", "root").await.unwrap();
    let (raw, vhd) = (directory.path().join("disk.raw"), directory.path().join("disk.vhd"));
    export(&world.machine, &reader, ExportFormat::Raw, &raw, &|_| {}).await.unwrap();
    export(&world.machine, &reader, ExportFormat::Vhd, &vhd, &|_| {}).await.unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new("qemu-img").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (raw, vhd) = (raw.to_str().unwrap(), vhd.to_str().unwrap());
    let described = run(&["info", "-f", "vpc", "--output", "json", vhd]);
    let size = format!("\"virtual-size\": {}", reader.size_bytes());
    assert!(described.contains(&size), "{described}");
    run(&["compare", "-f", "raw", "-F", "vpc", raw, vhd]);
}
