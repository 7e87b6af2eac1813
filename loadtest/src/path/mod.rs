//! The whole product: agents, NBD exports and bookmarks as users have them, real files, live
//! writes, an audit of every byte.
//!
//! Owns: the order of the phases. Does not own: the processes ([`crate::site`]).

mod figures;
mod phases;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::LoadError;
use crate::image;
use crate::site::{Disk, Site};
use figures::Figures;

/// The whole product: agents, disks, bookmarks, exports
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Machines, each with an agent of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    machines: u8,
    /// Disks of each machine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    disks: u8,
    /// Size of each disk, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..))]
    size: u32,
    /// Folder whose files fill the disks
    #[arg(long, value_name = "DIR", default_value = "/usr")]
    files: PathBuf,
    /// Take a copy of this image instead
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["files", "size"])]
    data: Option<PathBuf>,
    /// Seconds of live writes
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Live writes of each machine, MiB/s; 0: as fast as its agent takes them
    #[arg(long, value_name = "MIB", default_value_t = 20)]
    rate: u32,
    /// Leave out the audit: export at the last bookmark, comparison with the source
    #[arg(long)]
    no_audit: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Where the site and the disks live while it runs; several times the disks' size
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Keep site, store, disks and logs
    #[arg(long)]
    keep: bool,
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
    let say = |what: &str| eprintln!("{what}");
    say("making the disks");
    let machines = disks(args, work)?;
    let disk_bytes = image::size_bytes(&machines[0][0].image)?;
    let all_bytes = disk_bytes * u64::from(args.machines) * u64::from(args.disks);
    say("making a site, starting a process server, enrolling");
    let mut site = Site::start(program, work, &[])?;
    let mut enrolled = Vec::new();
    for (number, disks) in (1..).zip(machines) {
        enrolled.push(site.enrol(&format!("machine-{number}"), disks)?);
    }
    say("initial replication");
    let (mut machines, replication) = phases::replicate(&mut site, enrolled, all_bytes)?;
    let replication_ack = phases::ack(&site)?;
    say("live writes");
    let (rate, time) = (u64::from(args.rate) << 20, Duration::from_secs(args.seconds.into()));
    let live = phases::live(&mut site, &mut machines, rate, time)?;
    let ack = phases::ack(&site)?;
    let (server_memory, log_bytes) = (site.server.memory(), machines.iter());
    let log_bytes = log_bytes.map(|machine| image::used_bytes(&site.log(&machine.name))).sum();
    let agents = machines.iter().map(|machine| machine.agent.memory());
    let agent_memory = agents.max_by_key(|memory| memory.peak_bytes).unwrap_or_default();
    let seed_bytes = image::used_bytes(&site.seed());
    let audited_disks = if args.no_audit {
        None
    } else {
        say("audit");
        Some(phases::audit(&site, &machines, work)?)
    };
    machines.iter_mut().for_each(|machine| machine.agent.end());
    site.server.end();
    let quantile = |q| live.latency_us.value_at_quantile(q);
    Ok(Figures {
        version: env!("CARGO_PKG_VERSION"),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        machines: machines.len(),
        disks: usize::from(args.disks),
        disk_bytes,
        rate_bytes_per_second: rate,
        source_bytes: replication.source_bytes + live.phase.source_bytes,
        live_writes: live.writes,
        write_p50_us: quantile(0.5),
        write_p99_us: quantile(0.99),
        write_max_us: live.latency_us.max(),
        replication_ack,
        ack,
        rpo_under_load_seconds: live.rpo_under_load.map(|rpo| rpo.as_secs_f64()),
        last_byte_seconds: live.last_byte.as_secs_f64(),
        server_memory,
        agent_memory,
        log_bytes,
        seed_bytes,
        audited_disks,
        replication,
        live: live.phase,
    })
}

/// The images, by machine.
fn disks(args: &Args, work: &Path) -> Result<Vec<Vec<Disk>>, LoadError> {
    let first = work.join("machine-1-disk-1.img");
    match &args.data {
        Some(data) => {
            image::size_bytes(data)?;
            image::copy(data, &first)?;
        }
        None => image::make(&first, &work.join("files"), &args.files, u64::from(args.size) << 20)?,
    }
    let mut machines = Vec::new();
    for machine in 1..=args.machines {
        let mut disks = Vec::new();
        for disk in 1..=args.disks {
            let image = work.join(format!("machine-{machine}-disk-{disk}.img"));
            if image != first {
                image::copy(&first, &image)?;
            }
            disks.push(Disk { name: format!("disk{disk}"), image });
        }
        machines.push(disks);
    }
    Ok(machines)
}
