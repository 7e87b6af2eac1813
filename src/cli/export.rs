//! `holdfast export`: a disk at a point as a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::output::{byte_bar, print, print_json};
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on};
use crate::clock::System;
use crate::control::words;
use crate::model::{DiskName, MachineId};
use crate::recover::{
    CACHE_BYTES, DiskReader, ExportFormat, Exported, Pin, PointSpec, Progress, export, export_onto,
};

/// Write a disk as it was at a recovery point to a file, or onto a block device
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine
    pub machine: MachineId,
    /// Which disk
    #[arg(long, value_name = "NAME")]
    pub disk: DiskName,
    /// latest, latest-processed, latest-app, name:NAME, seq:N or time:RFC3339
    #[arg(long, value_name = "POINT")]
    pub point: String,
    /// Form of the file
    #[arg(long, value_enum, default_value = "raw")]
    pub format: Format,
    /// The file; it must not exist
    #[arg(long, value_name = "FILE", required_unless_present = "onto")]
    pub out: Option<PathBuf>,
    /// Overwrite a block device instead, one that nobody uses
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["out", "format"])]
    pub onto: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Which site
    #[command(flatten)]
    pub config: ConfigArgs,
}

impl Args {
    /// One of both is there, as they are declared.
    fn target(&self) -> &Path {
        self.onto.as_deref().or(self.out.as_deref()).unwrap_or(Path::new(""))
    }
}

/// Form of an exported disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The bytes of the disk, sparse.
    Raw,
    /// Fixed VHD.
    Vhd,
}

/// What was written.
#[derive(Serialize)]
struct Report<'a> {
    machine: &'a MachineId,
    disk: &'a DiskName,
    sequence: u64,
    file: &'a std::path::Path,
    file_bytes: u64,
    copied_bytes: u64,
}

/// Writes the file, of which nothing is left behind when it fails, or the device.
///
/// # Errors
/// When the point or the disk is unknown, something it needs cannot be believed, the file exists, or the
/// device cannot be overwritten.
pub fn run(args: &Args) -> Result<(), Failure> {
    let spec: PointSpec = args.point.parse().map_err(Failure::usage)?;
    let site = Site::open(&args.config.config)?;
    let format = match args.format {
        Format::Raw => ExportFormat::Raw,
        Format::Vhd => ExportFormat::Vhd,
    };
    block_on(async {
        let recovery = site.recovery(&args.machine).await?;
        let clock = System::clock();
        let (point, pin) = Pin::take(&recovery, &spec, &clock, &System).await?;
        let reader = DiskReader::open(&recovery, &point, &args.disk, CACHE_BYTES).await;
        let exported = match reader {
            Ok(reader) => {
                let reader = Arc::new(reader);
                let bar = byte_bar(reader.size_bytes(), args.disk.as_str());
                let progress = |now: Progress| {
                    bar.set_length(now.total_bytes);
                    bar.set_position(now.done_bytes);
                };
                let done = match args.onto {
                    Some(_) => export_onto(&reader, args.target(), &progress).await,
                    None => export(&args.machine, &reader, format, args.target(), &progress).await,
                };
                bar.finish_and_clear();
                done
            }
            Err(error) => Err(error),
        };
        pin.release().await;
        let exported = exported?;
        report(args, point.sequence.0, &exported)
    })
}

fn report(args: &Args, sequence: u64, exported: &Exported) -> Result<(), Failure> {
    let (file_bytes, copied_bytes) = (exported.file_bytes, exported.copied_bytes);
    if args.json {
        let (machine, disk, file) = (&args.machine, &args.disk, args.target());
        return print_json(&Report { machine, disk, sequence, file, file_bytes, copied_bytes });
    }
    print(&format!(
        "{}: disk {} of {} at sequence {sequence}, {}, of which {} are no holes",
        args.target().display(),
        args.disk,
        args.machine,
        words::bytes(file_bytes),
        words::bytes(copied_bytes)
    ))
}
