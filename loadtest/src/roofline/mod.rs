//! How close the pipeline comes to what its parts cost alone on this machine, in one run.
//!
//! Owns: the order, and the comparison. The parts are [`parts`]; the pipeline is a process server
//! under the wire-level generator.

mod parts;
mod report;

use std::path::{Path, PathBuf};

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

/// Bare commits that are timed.
const COMMITS: u32 = 2000;

/// Runs it; the text to print.
pub(crate) fn run(args: &Args, program: &Path) -> Result<String, LoadError> {
    let in_flight = in_flight(args.connections, args.depth)?;
    let work = tempfile::Builder::new().prefix("holdfast-roofline-").tempdir_in(&args.directory);
    let work = work.map_err(LoadError::file(&args.directory, "making a directory there"))?;
    let (parts, ratio) = all_parts(args, work.path())?;
    let progress = Progress::new("bare commits");
    let bare = parts::bare_commit(64 << 10, COMMITS, work.path())?;
    let group = parts::bare_commit(4096 * in_flight as usize, COMMITS / 4, work.path())?;
    drop(progress);
    let pipeline = pipeline(args, program)?;
    let small = small_writes(args, program)?;
    let commits = Commits {
        bare_p50_ms: at(&bare, 0.5),
        bare_p99_ms: at(&bare, 0.99),
        group_writes_per_second: f64::from(in_flight) / (group.mean() / 1e6),
    };
    let roofline = Roofline::of(parts, ratio, commits, pipeline, small)?;
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

/// Every part, and bytes in per byte that zstd leaves.
fn all_parts(args: &Args, work: &Path) -> Result<(Vec<Part>, f64), LoadError> {
    let progress = Progress::new("reading content");
    let content = match &args.data {
        Some(image) => Content::of_image(image, load::IMAGE_BYTES)?,
        None => Content::of_files(&args.files, load::CONTENT_BYTES, 1)?,
    };
    drop(progress);
    let bytes = content.all();
    let mut best: Vec<Part> = Vec::new();
    let mut ratio = 1.0;
    for round in 1..=args.rounds {
        let _progress = Progress::new(&format!("parts, round {round}"));
        let mut sealed = parts::compress(bytes, args.level)?;
        let left: usize = sealed.frames.iter().map(Vec::len).sum();
        ratio = bytes.len() as f64 / left.max(1) as f64;
        let found = [
            parts::receive(bytes)?,
            parts::checksum(bytes),
            parts::append(bytes, work)?,
            sealed.part.clone(),
            parts::encrypt(&mut sealed.frames, bytes.len()),
            parts::store(&sealed.frames, bytes.len(), work)?,
        ];
        if best.is_empty() {
            best = found.to_vec();
            continue;
        }
        for (best, found) in best.iter_mut().zip(found) {
            if found.cpu_seconds_per_gib < best.cpu_seconds_per_gib {
                *best = found;
            }
        }
    }
    Ok((best, ratio))
}

/// The same bytes through a process server: flat out, then at half of that. It does not apply: no
/// part here does.
fn pipeline(args: &Args, program: &Path) -> Result<Report, LoadError> {
    let mut words = vec![
        "--profile=sequential".to_owned(),
        "--block=64".to_owned(),
        format!("--machines={}", args.machines),
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
    ];
    words.extend(common(args));
    load::measure(&load::Args::of(&words), program)
}

fn common(args: &Args) -> Vec<String> {
    let mut words = vec![
        "--set=apply.enabled=false".to_owned(),
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
