//! Several process servers, the product's agents, and servers that go away under load.
//!
//! Owns: the order of a run. [`servers`] starts and takes away, [`machine`] writes, [`rounds`] watches,
//! [`history`] and [`audit`] prove.

mod audit;
mod history;
mod machine;
mod rounds;
mod servers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast::cli::site::Site;
use holdfast::clock::{Clock, System};
use serde::Serialize;

use crate::error::LoadError;
use crate::progress::Progress;
use crate::site::{Setting, parse_setting};
use crate::wait::eventually;
use audit::Audited;
use machine::Machine;
use rounds::{Going, Plan};
use servers::Servers;

/// Longest wait for the first copy, and for the last bookmark.
const PATIENCE: Duration = Duration::from_secs(600);

/// Process servers that go away under load, one after the other: what it costs, and an audit
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Process servers of the site
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    servers: u8,
    /// Machines, each with an agent of its own in this process
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=1000))]
    machines: u16,
    /// Size of each machine's disk, MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    size: u32,
    /// Writes of each machine, KiB/s
    #[arg(long, value_name = "KIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How often a server goes away
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How it goes
    #[arg(long, value_enum, default_value = "kill")]
    going: Going,
    /// Seconds from one going to the next
    #[arg(long, value_name = "S", default_value_t = 40)]
    every: u32,
    /// Seconds until it is started again
    #[arg(long, value_name = "S", default_value_t = 25)]
    away: u32,
    /// Seconds in which every machine must have a new durable ack
    #[arg(long, value_name = "S", default_value_t = 60)]
    patience: u32,
    /// Points of each machine that are read back beside the last one
    #[arg(long, default_value_t = 4)]
    points: usize,
    /// Store of the site, such as azure:…; a directory when left out
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// A setting of all servers, such as seal.level=3
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_setting)]
    set: Vec<Setting>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Where the site and the disks live while it runs
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Keep site, store, disks and logs
    #[arg(long)]
    keep: bool,
}

/// What it came to.
#[derive(Debug, Serialize)]
struct Figures {
    version: &'static str,
    servers: u8,
    machines: u16,
    rate_bytes_per_second: u64,
    going: Going,
    rounds: u32,
    /// Machines that had to go on elsewhere, over all rounds.
    moved: u64,
    /// From a server's going to a machine's first new durable ack.
    resumed_p50_ms: u64,
    resumed_p99_ms: u64,
    resumed_max_ms: u64,
    unpublished_bytes: u64,
    resent_bytes: u64,
    /// Looks at which a machine had lost its order.
    order_lost: u64,
    writes: u64,
    points: u64,
    longest_gap_seconds: f64,
    audited_points: u64,
    audited_bytes: u64,
}

/// Runs it; the text to print.
pub(crate) fn run(args: &Args, program: &Path) -> Result<String, LoadError> {
    let work = tempfile::Builder::new().prefix("holdfast-loadtest-").tempdir_in(&args.directory);
    let mut work = work.map_err(LoadError::file(&args.directory, "making a directory there"))?;
    let result = measure(args, program, work.path());
    if args.keep || result.is_err() {
        work.disable_cleanup(true);
        eprintln!("kept: {}", work.path().display());
    }
    let figures = result?;
    Ok(match args.json {
        true => serde_json::to_string_pretty(&figures).expect("plain values are JSON"),
        false => figures.table(),
    })
}

fn measure(args: &Args, program: &Path, work: &Path) -> Result<Figures, LoadError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(LoadError::file("tokio", "starting the runtime"))?;
    let _entered = runtime.enter();
    let store = args.store.clone().unwrap_or(format!("dir:{}", work.join("store").display()));
    let progress = Progress::new("making a site, starting its servers");
    let mut servers = Servers::start(program, work, &store, args.servers, &args.set)?;
    drop(progress);
    let mut machines = machines(args, work, &servers)?;
    let progress = Progress::new("initial replication");
    eventually("initial replication", PATIENCE, || {
        servers.expect_alive()?;
        let copied = |machine: &Machine| {
            let status = machine.status();
            status.mode == "ordered" && status.published == status.last
        };
        Ok(machines.iter().all(copied).then_some(()))
    })?;
    drop(progress);
    let rate = u64::from(args.rate) << 10;
    let began = System.wall();
    for (seed, machine) in (1..).zip(&mut machines) {
        machine.write(seed, rate);
    }
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let plan = Plan {
        rounds: args.rounds,
        going: args.going,
        every: seconds(args.every),
        away: seconds(args.away),
        patience: seconds(args.patience),
    };
    let progress = Progress::new("servers go away");
    let seen = rounds::run(&mut servers, &machines, &plan)?;
    drop(progress);
    let last = finish(&mut servers, &mut machines)?;
    let progress = Progress::new("audit");
    let site = Site::open(servers.config());
    let site = site.map_err(LoadError::site("opening the site for the audit"))?;
    let mut audited = Audited::since(began);
    for (machine, last) in machines.iter().zip(last) {
        let epoch = machine.status().epoch;
        if epoch != 1 {
            let what = format!("it was resynchronised: its epoch is {epoch}");
            return Err(LoadError::Broken { machine: machine.id.to_string(), what });
        }
        runtime.block_on(audited.machine(&site, machine, last, args.points))?;
    }
    drop(progress);
    let written = |machine: &Machine| machine.history.lock().map_or(0, |history| history.last());
    Ok(Figures {
        version: env!("CARGO_PKG_VERSION"),
        servers: args.servers,
        machines: args.machines,
        rate_bytes_per_second: rate * u64::from(args.machines),
        going: args.going,
        rounds: args.rounds,
        moved: seen.moved,
        resumed_p50_ms: seen.resumed_ms.value_at_quantile(0.5),
        resumed_p99_ms: seen.resumed_ms.value_at_quantile(0.99),
        resumed_max_ms: seen.resumed_ms.max(),
        unpublished_bytes: seen.unpublished_bytes,
        resent_bytes: seen.resent_bytes,
        order_lost: seen.order_lost,
        writes: machines.iter().map(written).sum(),
        points: audited.points,
        longest_gap_seconds: audited.longest_gap.as_secs_f64(),
        audited_points: audited.compared,
        audited_bytes: audited.bytes,
    })
}

/// Enrolled, with blank disks and running agents.
fn machines(args: &Args, work: &Path, servers: &Servers) -> Result<Vec<Machine>, LoadError> {
    let progress = Progress::counting("enrolling machines", args.machines.into());
    let mut machines = Vec::new();
    for number in 1..=args.machines {
        let name = format!("machine-{number}");
        let image = work.join(format!("{name}.img"));
        let file = std::fs::File::create(&image);
        let made = file.and_then(|file| file.set_len(u64::from(args.size) << 20));
        made.map_err(LoadError::file(&image, "making a disk"))?;
        machines.push(Machine::start(&name, &servers.enrol(&name, &image)?)?);
        progress.step(1);
    }
    Ok(machines)
}

/// The last bookmark of every machine, once it is published.
fn finish(
    servers: &mut Servers,
    machines: &mut [Machine],
) -> Result<Vec<holdfast::model::Sequence>, LoadError> {
    let progress = Progress::new("last bookmark");
    let mut last = Vec::new();
    for machine in machines.iter_mut() {
        last.push(eventually("the last bookmark", PATIENCE, || machine.finish("loadtest-last"))?);
    }
    eventually("everything published", PATIENCE, || {
        servers.expect_alive()?;
        let mut all = machines.iter().zip(&last);
        Ok(all.all(|(machine, last)| machine.status().published >= last.0).then_some(()))
    })?;
    drop(progress);
    Ok(last)
}

impl Figures {
    fn table(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        format!(
            "holdfast {} · {} servers · {} machines at {:.1} MiB/s in all · {} × {:?}\n\n\
             machines moved      {}\n\
             time to resume      p50 {} ms · p99 {} ms · max {} ms\n\
             sent again          {:.1} MiB of {:.1} MiB that was not published\n\
             order lost          {}\n\
             points              {}, longest gap {:.1} s\n\
             audit               {} writes · {} points · {:.0} MiB compared, no difference",
            self.version,
            self.servers,
            self.machines,
            mib(self.rate_bytes_per_second),
            self.rounds,
            self.going,
            self.moved,
            self.resumed_p50_ms,
            self.resumed_p99_ms,
            self.resumed_max_ms,
            mib(self.resent_bytes),
            mib(self.unpublished_bytes),
            if self.order_lost == 0 {
                "never".to_owned()
            } else {
                format!("seen {} times", self.order_lost)
            },
            self.points,
            self.longest_gap_seconds,
            self.writes,
            self.audited_points,
            mib(self.audited_bytes),
        )
    }
}
