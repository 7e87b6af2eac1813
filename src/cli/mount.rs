//! `holdfast mount`: a disk at a point over NBD.

use std::path::PathBuf;

use super::site::ConfigArgs;
use crate::model::{DiskName, MachineId};

/// Serve a disk as it was at a recovery point over NBD, within seconds
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
    /// Unix socket to serve at
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Take writes into an overlay; the point stays as it is
    #[arg(long)]
    pub writable: bool,
    /// Which site
    #[command(flatten)]
    pub config: ConfigArgs,
}
