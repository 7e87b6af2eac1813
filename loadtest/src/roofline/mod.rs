//! How close the pipeline comes to what its parts cost alone on this machine, in one run.
//!
//! Owns: the order, and the comparison. The parts are [`parts`]; the pipeline is a process server
//! under the wire-level generator.

mod beside;
mod parts;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::error::LoadError;
use crate::load::{self, Content, Report};
use crate::progress::Progress;
use crate::site::{parse_level, pinned_level};
use parts::Part;
use report::{Commits, Roofline};

/// Measure each part alone, then the pipeline, on the same bytes
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder whose files are the bytes
    #[arg(long, value_name = "DIR", default_value = "/usr")]
    files: PathBuf,
    /// Pieces of this image instead
    #[arg(long, value_name = "IMAGE", conflicts_with = "files")]
    data: Option<PathBuf>,
    /// zstd level of the part and of the server, which does not adapt it here
    #[arg(long, default_value_t = 1, allow_hyphen_values = true, value_parser = parse_level)]
    level: i32,
    /// Seconds of each phase of the pipeline
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Times that each part is measured; the best counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Machines that send to the pipeline
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    machines: u32,
    /// Connections of the 4 KiB test
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Writes of 4 KiB that each of them has in flight
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: u32,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Where everything is written
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
}

/// MiB/s of the run that applies.
const APPLYING_MIB: u32 = 60;
/// Bytes of the cache log for each core, whose shard has at least four segments.
const CACHE_BYTES: u64 = 512 << 20;
/// How long commits are timed beside everything else.
const BESIDE: Duration = Duration::from_secs(10);
/// Bare commits that are timed.
const COMMITS: u32 = 2000;

/// Runs it; the text to print.
pub(crate) fn run(args: &Args, program: &Path) -> Result<String, LoadError> {
    let in_flight = in_flight(args.connections, args.depth)?;
    let work = tempfile::Builder::new().prefix("holdfast-roofline-").tempdir_in(&args.directory);
    let work = work.map_err(LoadError::file(&args.directory, "making a directory there"))?;
    let alone = all_parts(args, work.path())?;
    let progress = Progress::new("bare commits");
    let bare = parts::bare_commit(64 << 10, COMMITS, work.path())?;
    let group = parts::bare_commit(4096 * in_flight as usize, COMMITS / 4, work.path())?;
    drop(progress);
    let pipeline = pipeline(args, program)?;
    let half = pipeline.phases.last().map_or(0.0, |phase| phase.durable_bytes_per_second);
    let beside = beside(args, half, work.path())?;
    let small = small_writes(args, program)?;
    let commits = Commits {
        bare_p50_ms: at(&bare, 0.5),
        bare_p99_ms: at(&bare, 0.99),
        beside_p50_ms: at(&beside, 0.5),
        beside_p99_ms: at(&beside, 0.99),
        group_writes_per_second: f64::from(in_flight) / (group.mean() / 1e6),
    };
    let applying = applying(args, program)?;
    let roofline = Roofline::of(alone, commits, pipeline, small, applying)?;
    Ok(match args.json {
        true => serde_json::to_string_pretty(&roofline).expect("plain values are JSON"),
        false => roofline.table(),
    })
}

/// 4 KiB writes that are under way at once: one bare commit must hold them all.
fn in_flight(connections: u32, depth: u32) -> Result<u32, LoadError> {
    let all = connections * depth;
    if all > parts::COMMIT_WRITES_MAX {
        let most = parts::COMMIT_WRITES_MAX;
        return Err(LoadError::Usage(format!(
            "--connections {connections} with --depth {depth} are {all} writes in flight; the bare \
             commit beside them holds at most {most}: lower one of the two"
        )));
    }
    Ok(all)
}

fn at(us: &Histogram<u64>, quantile: f64) -> f64 {
    us.value_at_quantile(quantile) as f64 / 1e3
}

/// Commits of a lean log at this rate, beside sealing and storing at the same.
fn beside(args: &Args, rate: f64, work: &Path) -> Result<Histogram<u64>, LoadError> {
    let content = content(args)?;
    let _progress = Progress::new("commits beside sealing and storing");
    let shares = parts::shares(content.all(), cores());
    let folders = folders(shares.len(), work)?;
    let placed: Vec<_> = shares.into_iter().zip(folders).collect();
    beside::commits(&placed, args.level, rate.max(1.0), BESIDE)
}

/// Every part, on all cores at once.
struct Alone {
    parts: Vec<Part>,
    /// What applying is made of: beside the pipeline, not in it.
    applying: Part,
    /// Bytes in per byte that zstd leaves.
    ratio: f64,
}

fn all_parts(args: &Args, work: &Path) -> Result<Alone, LoadError> {
    let content = content(args)?;
    let mut best: Option<Alone> = None;
    for round in 1..=args.rounds {
        let _progress = Progress::new(&format!("parts, round {round}"));
        let found = one_round(args, content.all(), work)?;
        let Some(best) = &mut best else {
            best = Some(found);
            continue;
        };
        best.parts.push(best.applying.clone());
        for (best, found) in
            best.parts.iter_mut().zip(found.parts.into_iter().chain([found.applying]))
        {
            if found.cpu_seconds_per_gib < best.cpu_seconds_per_gib {
                *best = found;
            }
        }
        best.applying = best.parts.pop().expect("pushed above");
    }
    best.ok_or_else(|| LoadError::Usage("--rounds must be at least 1".into()))
}

fn content(args: &Args) -> Result<Content, LoadError> {
    let _progress = Progress::new("reading content");
    match &args.data {
        Some(image) => Content::of_image(image, load::IMAGE_BYTES),
        None => Content::of_files(&args.files, load::CONTENT_BYTES, 1),
    }
}

/// One for each core.
fn folders(count: usize, work: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let folders = (0..count).map(|number| {
        let folder = work.join(number.to_string());
        std::fs::create_dir_all(&folder).map_err(LoadError::file(&folder, "making it"))?;
        Ok(folder)
    });
    folders.collect()
}

fn one_round(args: &Args, bytes: &[u8], work: &Path) -> Result<Alone, LoadError> {
    let shares = parts::shares(bytes, cores());
    let folders = folders(shares.len(), work)?;
    let placed = || shares.iter().copied().zip(&folders);
    let (receive, _) = parts::together(placed(), |(share, _)| Ok((parts::receive(share)?, ())))?;
    let (checksum, _) = parts::together(placed(), |(share, _)| Ok((parts::checksum(share), ())))?;
    let (append, _) =
        parts::together(placed(), |(share, folder)| Ok((parts::append(share, folder)?, ())))?;
    let (compress, mut frames) =
        parts::together(placed(), |(share, _)| parts::compress(share, args.level))?;
    let left: usize = frames.iter().flatten().map(Vec::len).sum();
    let (encrypt, _) = parts::together(placed().zip(&mut frames), |((share, _), frames)| {
        Ok((parts::encrypt(frames, share.len()), ()))
    })?;
    let (store, _) = parts::together(placed().zip(&frames), |((share, folder), frames)| {
        Ok((parts::store(frames, share.len(), folder)?, ()))
    })?;
    let (applying, _) = parts::together(placed().zip(&frames), |((share, folder), frames)| {
        Ok((parts::apply(frames, share.len(), folder)?, ()))
    })?;
    let parts = vec![receive, checksum, append, compress, encrypt, store];
    Ok(Alone { parts, applying, ratio: bytes.len() as f64 / left.max(1) as f64 })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The same bytes through a process server: flat out, then at half of that. It does not apply: no
/// part here does. Its cache log is small, so that the warm-up fills it: who sends faster than is
/// published ends there, and from then on segments are used again, as those of the part are.
fn pipeline(args: &Args, program: &Path) -> Result<Report, LoadError> {
    let mut words = vec![
        "--profile=sequential".to_owned(),
        "--block=64".to_owned(),
        format!("--machines={}", args.machines),
    ];
    words.push("--set=apply.enabled=false".to_owned());
    words.push(format!("--set=cache.bytes_max={}", CACHE_BYTES * cores() as u64));
    words.push(format!("--warm-up={}", args.seconds));
    words.extend(pinned_level(args.level));
    words.extend(common(args));
    load::measure(&load::Args::of(&words), program)
}

/// The pipeline once more with the applier beside it, at a rate that leaves it room: what a GiB costs
/// that it applies.
fn applying(args: &Args, program: &Path) -> Result<Report, LoadError> {
    let mut words = vec![
        "--profile=sequential".to_owned(),
        "--block=64".to_owned(),
        format!("--machines={}", args.machines),
        format!("--rate={APPLYING_MIB}"),
    ];
    words.extend(pinned_level(args.level));
    words.extend(common(args));
    load::measure(&load::Args::of(&words), program)
}

/// 4 KiB writes from many connections, flat out.
fn small_writes(args: &Args, program: &Path) -> Result<Report, LoadError> {
    let mut words = vec![
        "--profile=4k".to_owned(),
        "--flat-out".to_owned(),
        format!("--machines={}", args.connections),
        format!("--depth={}", args.depth),
        "--set=apply.enabled=false".to_owned(),
    ];
    words.extend(common(args));
    load::measure(&load::Args::of(&words), program)
}

fn common(args: &Args) -> Vec<String> {
    let mut words = vec![
        format!("--seconds={}", args.seconds),
        format!("--directory={}", args.directory.display()),
    ];
    words.push(match &args.data {
        Some(image) => format!("--data={}", image.display()),
        None => format!("--files={}", args.files.display()),
    });
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_writes_in_flight_than_a_commit_holds_are_refused() {
        assert_eq!(in_flight(64, 16).unwrap(), 1024);
        assert_eq!(in_flight(64, 128).unwrap(), parts::COMMIT_WRITES_MAX);
        let error = in_flight(64, 129).unwrap_err();
        assert!(error.to_string().contains("lower one of the two"), "{error}");
        assert_eq!(error.exit_code(), 2);
        in_flight(1000, 4096).unwrap_err();
        // The largest that is allowed can be measured.
        let directory = tempfile::tempdir().unwrap();
        let bytes = 4096 * parts::COMMIT_WRITES_MAX as usize;
        assert_eq!(parts::bare_commit(bytes, 2, directory.path()).unwrap().len(), 2);
    }
}
