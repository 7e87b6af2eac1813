//! fio's own verifying load over two disks, cut while it runs. It has one write under way at a time, so its
//! log is the order of all writes over both; each block says which write it is of, and carries a sum.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::support::captured::Machine;
use super::support::{Process, eventually, have, run, text};

const BLOCK: usize = 4096;
/// What fio writes of each disk.
const PART: usize = 4 << 20;
/// fio's header: the number of the write, which wraps, and the block's place.
const PLACE_AT: usize = 16;
const NUMBER_AT: usize = 34;

/// Writes that the devices have completed.
fn completed(devices: &[&Path]) -> u64 {
    let of = |device: &&Path| {
        let name = device.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        text.split_whitespace().nth(4).unwrap().parse::<u64>().unwrap()
    };
    devices.iter().map(of).sum()
}

/// Where each write went: disk and block, in order.
fn writes(log: &Path, devices: &[&Path]) -> Vec<(usize, usize)> {
    let log = fs::read_to_string(log).unwrap();
    let lines = log.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|words| words.get(2) == Some(&"write"))
        .map(|words| {
            let disk = devices.iter().position(|device| text(device) == words[1]).unwrap();
            (disk, words[3].parse::<usize>().unwrap() / BLOCK)
        })
        .collect()
}

/// How many writes the images hold, if those are the first so many and nothing else.
fn cut(writes: &[(usize, usize)], filled: &[Vec<u8>], images: &[Vec<u8>]) -> Result<u64, String> {
    let mut of_block: HashMap<(usize, usize), Vec<usize>> = HashMap::new();
    for (number, place) in writes.iter().enumerate() {
        of_block.entry(*place).or_default().push(number);
    }
    let mut shown = HashMap::new();
    for (disk, image) in images.iter().enumerate() {
        for (block, bytes) in image[..PART].chunks(BLOCK).enumerate() {
            let at = block * BLOCK;
            if *bytes == filled[disk][at..at + BLOCK] {
                continue;
            }
            let number = u16::from_le_bytes(bytes[NUMBER_AT..][..2].try_into().unwrap());
            let place = u64::from_le_bytes(bytes[PLACE_AT..][..8].try_into().unwrap());
            let written = of_block.get(&(disk, block)).into_iter().flatten();
            let write = written.copied().find(|write| *write as u16 == number);
            match write.filter(|_| place == at as u64) {
                Some(write) => drop(shown.insert((disk, block), write)),
                None => return Err(format!("disk {disk} block {block}: {number} of {place}")),
            }
        }
        if image[PART..].iter().any(|byte| *byte != 0) {
            return Err(format!("disk {disk} holds something where nobody wrote"));
        }
    }
    let cut = shown.values().max().map_or(0, |last| last + 1);
    for (place, all) in &of_block {
        let last = all.iter().rfind(|write| **write < cut);
        if shown.get(place) != last {
            return Err(format!("{place:?}: {:?}, not {last:?}, of {cut}", shown.get(place)));
        }
    }
    Ok(cut as u64)
}

#[test]
fn points_under_fios_load_are_prefixes_over_both_disks() {
    if !have(&["fio"]) {
        return;
    }
    let Some(machine) = Machine::new(64 << 20, 8 << 20) else { return };
    let devices: Vec<&Path> = machine.loops.iter().map(|one| &*one.path).collect();
    let verify = ["--bs=4k", "--verify=crc32c", "--verify_state_save=0"];
    let verified = |file: &Path, how: &[&str]| {
        let file = format!("--filename={}", text(file));
        run("fio", &[&["--name=all", &file, "--size=4m"], &verify[..], how].concat());
    };
    devices
        .iter()
        .for_each(|device| verified(device, &["--rw=write", "--direct=1", "--do_verify=0"]));
    let read = |paths: &[PathBuf]| paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let files: Vec<PathBuf> = machine.loops.iter().map(|one| one.file.clone()).collect();
    let filled: Vec<Vec<u8>> = read(&files);
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    machine.ordered();

    let (log, begun) = (machine.site.path("writes"), completed(&devices));
    let both = format!("--filename={}:{}", text(devices[0]), text(devices[1]));
    let (logged, random) =
        (format!("--write_iolog={}", text(&log)), ["--norandommap", "--randrepeat=0"]);
    let load = ["--name=load", &both, &logged, "--rw=randwrite", "--direct=1", "--do_verify=0"];
    // Without end, and no more than a debug build of the server takes.
    let endless = ["--ioengine=psync", "--size=8m", "--io_size=1t", "--rate_iops=400"];
    let args = [&load[..], &random, &endless, &verify].concat();
    let mut fio = Process::spawn_program(&machine.site.path("fio.log"), "fio", &args);
    let mut seen = Vec::new();
    for turn in 0..3 {
        let before = completed(&devices);
        eventually("a load", 60, || (completed(&devices) > before + 20).then_some(()));
        let (name, from) = (format!("cut{turn}"), completed(&devices) - begun);
        machine.bookmark(&name);
        seen.push((name, from, completed(&devices) - begun + 1));
    }
    fio.signal("INT");
    eventually("fio ends", 60, || fio.ended());
    let writes = writes(&log, &devices);
    for (name, from, to) in seen {
        let images = machine.images(&name);
        let found = cut(&writes, &filled, &read(&images));
        assert!(
            found.as_ref().is_ok_and(|cut| (from..=to).contains(cut)),
            "{found:?}, {from} to {to}"
        );
        images.iter().for_each(|image| verified(image, &["--rw=read"]));
    }
    // And it would be noticed: one disk of one moment, one of another.
    let (early, late) = (read(&machine.images("cut0")), read(&machine.images("cut2")));
    let (early, late): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (early, late);
    let mixed = [early[0].clone(), late[1].clone()];
    assert!(cut(&writes, &filled, &mixed).is_err());
    machine.lost_nothing();
    assert!(agent.stop().success());
    drop((apply, server));
}
