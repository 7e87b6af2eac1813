//! A PostgreSQL that runs already, its data on one disk and its log on another, while it is written.
//! What a point must hold is what the database said was committed before the bookmark was asked for;
//! what it may hold is what had begun when the answer came; half of a transaction it must never hold.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::captured::{End, Ext4, Machine};
use crate::support::loops::Loop;
use crate::support::postgres::{Cluster, insist};
use crate::support::{eventually, free_port, have, pause, run, text};

const DISK_BYTES: u64 = 96 << 20;
const TOOLS: &[&str] = &["runuser", "initdb", "pg_ctl", "psql", "pg_amcheck", "dumpe2fs", "e2fsck"];
const TABLES: &str = "create extension amcheck;
    create table parts (writer int, number bigint, part int, filler text);
    create index on parts (writer, number);
    create table sums (writer int primary key, sum bigint);
    insert into sums values (0, 0), (1, 0)";

/// One who commits numbered transactions.
#[derive(Default)]
struct Writer {
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

/// Where the file systems of both disks are mounted.
struct Mounts {
    data: Ext4,
    log: Ext4,
}

impl Mounts {
    fn of(machine: &Machine, devices: &[Loop]) -> Self {
        let data = Ext4::on(&devices[0].path, machine.site.path("data"));
        Self { data, log: Ext4::on(&devices[1].path, machine.site.path("log")) }
    }

    fn unmount(self) {
        self.data.unmount();
        self.log.unmount();
    }
}

fn initialise(mounts: &Mounts) -> Cluster {
    let folders = [&mounts.data.path, &mounts.log.path];
    folders.iter().for_each(|folder| drop(run("chown", &["postgres:", text(folder)])));
    let (data, log) = (mounts.data.path.join("data"), mounts.log.path.join("wal"));
    let places = ["-D", text(&data), "--waldir", text(&log)];
    let rest = ["-A", "trust", "--data-checksums", "--wal-segsize=1"];
    insist(&[&["initdb"], &places[..], &rest[..]].concat());
    let mut settings = File::options().append(true).open(data.join("postgresql.conf")).unwrap();
    settings.write_all(b"min_wal_size = 8MB\nmax_wal_size = 32MB\n").unwrap();
    settings.sync_all().unwrap();
    let cluster = Cluster { folder: mounts.data.path.clone(), port: free_port().to_string() };
    cluster.start();
    cluster.sql(TABLES).unwrap();
    cluster
}

/// Commits one transaction after the other until `ended`.
fn transactions(cluster: &Cluster, id: usize, writer: &Writer, ended: &AtomicBool) {
    let args = cluster.args("psql", &["-X", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
    let mut psql = Command::new("runuser")
        .args(["-u", "postgres", "--", "env", "-C", "/", "LC_ALL=C"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = psql.stdin.take().unwrap();
    let mut said = BufReader::new(psql.stdout.take().unwrap()).lines();
    for number in 1.. {
        if ended.load(Ordering::Acquire) {
            break;
        }
        writer.begun.store(number, Ordering::Release);
        let part = |part: u8| {
            format!(
                "insert into parts values ({id}, {number}, {part}, repeat(md5('{number}'), 15));
                 update sums set sum = sum + 1 where writer = {id};"
            )
        };
        // Pages of the data and the place of the log's end change together.
        let checkpoint = if number % 50 == 0 { "checkpoint;" } else { "" };
        writeln!(input, "begin; {} {} commit; {checkpoint}", part(1), part(2)).unwrap();
        while said.next().unwrap().unwrap() != "COMMIT" {}
        writer.acknowledged.store(number, Ordering::Release);
        pause(10); // a debug build of the server takes no more
    }
    drop(input);
    assert!(psql.wait().unwrap().success());
}

/// A point, and what it must and may hold of each writer.
struct Cut {
    name: String,
    least: Vec<u64>,
    most: Vec<u64>,
}

fn numbers(writers: &[Writer], of: impl Fn(&Writer) -> &AtomicU64) -> Vec<u64> {
    writers.iter().map(|writer| of(writer).load(Ordering::Acquire)).collect()
}

fn cut(machine: &Machine, writers: &[Writer], name: &str) -> Cut {
    let args = ["bookmark", &machine.name, "--name", name, "--wait", "recoverable"];
    let least = eventually("a point", 60, || {
        let least = numbers(writers, |writer| &writer.acknowledged);
        machine.site.try_holdfast(&args).status.success().then_some(least)
    });
    Cut { name: name.to_owned(), least, most: numbers(writers, |writer| &writer.begun) }
}

/// Recovers both disks, mounts them where they were, and starts the database.
fn recovered(machine: &Machine, cut: &Cut) {
    let images = machine.images(&cut.name);
    for image in &images {
        let head = run("dumpe2fs", &["-h", text(image)]);
        let head = String::from_utf8_lossy(&head.stdout).into_owned();
        assert!(head.contains("needs_recovery"), "it was cut while it was mounted: {head}");
    }
    let devices: Vec<_> = images.iter().map(|image| Loop::over(image, &[]).unwrap()).collect();
    let mounts = Mounts::of(machine, &devices);
    let cluster = Cluster { folder: mounts.data.path.clone(), port: free_port().to_string() };
    // Whatever runs under that number now is not this database.
    std::fs::remove_file(cluster.folder.join("data/postmaster.pid")).unwrap();
    cluster.start();
    let asked = |statement: &str| cluster.sql(statement).unwrap();
    for (id, (least, most)) in cut.least.iter().zip(&cut.most).enumerate() {
        let newest =
            asked(&format!("select coalesce(max(number), 0) from parts where writer = {id}"));
        let newest: u64 = newest.parse().unwrap();
        let name = &cut.name;
        assert!((*least..=*most).contains(&newest), "{name}: {newest} of {least} to {most}");
        let of_writer = format!("from parts where writer = {id}");
        assert_eq!(asked(&format!("select count(*) {of_writer}")), (2 * newest).to_string());
        assert_eq!(
            asked(&format!("select sum from sums where writer = {id}")),
            (2 * newest).to_string()
        );
        println!("{name}: writer {id} committed {least}, {newest} recovered, {most} had begun");
    }
    let half = "select count(*) from (select from parts group by writer, number \
                having count(distinct part) <> 2) as half";
    assert_eq!(asked(half), "0");
    insist(&cluster.args("pg_amcheck", &["--all", "--heapallindexed"]));
    cluster.stop();
    mounts.unmount();
    for device in &devices {
        run("e2fsck", &["-fn", text(&device.path)]);
    }
}

#[test]
fn a_database_over_two_disks_starts_from_a_cut_under_load() {
    if !have(TOOLS) {
        return;
    }
    let Some(machine) = Machine::new(64 << 20, DISK_BYTES) else { return };
    run("chmod", &["755", text(machine.site.directory.path())]);
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let format = |path: &Path| drop(run("mkfs.ext4", &["-q", text(path)]));
    machine.loops.iter().for_each(|device| format(&device.path));
    let mounts = Mounts::of(&machine, &machine.loops);
    let cluster = initialise(&mounts);
    let (writers, ended) = ([Writer::default(), Writer::default()], AtomicBool::new(false));
    let mut cuts = Vec::new();
    let agent = std::thread::scope(|scope| {
        let (cluster, ended) = (&cluster, &ended);
        for (id, writer) in writers.iter().enumerate() {
            scope.spawn(move || transactions(cluster, id, writer, ended));
        }
        let _end = End(ended);
        // It is written already when capture begins, and while the first copy runs.
        let agent = machine.start();
        machine.ordered();
        cuts.push(cut(&machine, &writers, "first"));
        agent.kill();
        pause(300); // it goes on being written
        let agent = machine.start();
        cuts.push(cut(&machine, &writers, "second"));
        agent
    });
    cluster.stop();
    mounts.unmount();
    for cut in &cuts {
        assert!(cut.least.iter().all(|number| *number > 5), "no load: {:?}", cut.least);
        recovered(&machine, cut);
    }
    machine.same("last");
    machine.lost_nothing();
    assert!(agent.stop().success());
    drop((apply, server));
}
