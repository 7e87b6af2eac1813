//! `holdfast export`: a disk at a point as a file.

use std::path::PathBuf;

use super::site::ConfigArgs;
use crate::model::{DiskName, MachineId};

/// Write a disk as it was at a recovery point to a file
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
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Which site
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Form of an exported disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The bytes of the disk, sparse.
    Raw,
    /// Fixed VHD.
    Vhd,
    /// qcow2.
    Qcow2,
}
