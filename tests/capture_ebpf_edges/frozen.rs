//! A file system on a captured device, frozen on the host for a bookmark.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::support::captured::{DISKS, End, Ext4, Machine};
use super::support::ext4::{clean_without_journal, needs_recovery};
use super::support::loops::Loop;
use super::support::{eventually, have, pause, run, text};

#[test]
fn a_file_system_frozen_on_the_host_needs_no_journal() {
    if !have(&["fsfreeze", "dumpe2fs", "e2fsck"]) {
        return;
    }
    let Some(machine) = Machine::new(64 << 20, 32 << 20) else { return };
    let folder = machine.site.path("source");
    let hook = |what: &str| ["fsfreeze", what, text(&folder)].map(toml::Value::from).to_vec();
    machine.agent.set("application.freeze", hook("--freeze"));
    machine.agent.set("application.thaw", hook("--unfreeze"));
    run("mkfs.ext4", &["-q", text(&machine.loops[0].path)]);
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    let source = Ext4::on(&machine.loops[0].path, folder.clone());
    machine.ordered();
    let (done, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let count = || written.load(Ordering::Acquire);
    let (least, most) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let number = count() + 1;
                let file = File::create(folder.join(format!("f{number}"))).unwrap();
                file.write_all_at(format!("{number}").as_bytes(), 0).unwrap();
                file.sync_all().unwrap();
                written.store(number, Ordering::Release);
                pause(4); // a debug build of the server takes no more
            }
        });
        let _end = End(&done);
        eventually("a load", 60, || (count() > 3).then_some(()));
        machine.bookmark("crash");
        let least = count();
        let args =
            ["bookmark", &machine.name, "--name", "frozen", "--app", "--wait", "recoverable"];
        eventually("frozen", 60, || {
            machine.site.try_holdfast(&args).status.success().then_some(())
        });
        let after = count();
        eventually("thawed", 60, || (count() > after).then_some(()));
        done.store(true, Ordering::Release);
        load.join().unwrap();
        (least, after + 1)
    });
    let image =
        |point: &str| machine.site.export(&machine.name, DISKS[0], &format!("name:{point}"));
    let (crash, frozen) = (image("crash"), image("frozen"));
    assert!(needs_recovery(&crash), "the load leaves nothing in the journal: this shows nothing");
    assert!(!needs_recovery(&frozen));
    clean_without_journal(&frozen);
    let over = Loop::over(&frozen, &["--read-only"]).unwrap();
    let recovered = Ext4::on(&over.path, machine.site.path("recovered"));
    let held = (1..=most).take_while(|n| recovered.path.join(format!("f{n}")).exists()).count();
    assert!((least..=most).contains(&(held as u64)), "{held}, not {least} to {most}");
    recovered.unmount();
    source.unmount();
    machine.lost_nothing();
    assert!(agent.stop().success());
    drop((apply, server));
}
