//! `holdfast mount`: a disk at a point over NBD.

use std::path::{Path, PathBuf};

use std::sync::Arc;

use super::output::print;
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on, stopped};
use crate::clock::System;
use crate::model::{DiskName, MachineId};
use crate::nbd::{Export, Server};
use crate::recover::{CACHE_BYTES, DiskReader, Mounted, Pin, PointSpec, Recovery, ResolvedPoint};

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

/// Serves the disk until SIGTERM or Ctrl-C.
///
/// # Errors
/// When the point or the disk is unknown, something it needs cannot be believed, or the socket is
/// in use.
pub fn run(args: &Args) -> Result<(), Failure> {
    let spec: PointSpec = args.point.parse().map_err(Failure::usage)?;
    let site = Site::open(&args.config.config)?;
    let socket = std::path::absolute(&args.socket)?;
    block_on(async {
        let recovery = site.recovery(&args.machine).await?;
        let clock = System::clock();
        let (point, pin) = Pin::take(&recovery, &spec, &clock, &System).await?;
        let served = serve(args, &recovery, &point, &socket).await;
        pin.release().await; // also when it could not be served: else retention waits for it
        served
    })
}

async fn serve(
    args: &Args,
    recovery: &Recovery,
    point: &ResolvedPoint,
    socket: &Path,
) -> Result<(), Failure> {
    let reader = DiskReader::open(recovery, point, &args.disk, CACHE_BYTES).await?;
    let runtime = tokio::runtime::Handle::current();
    let mounted = if args.writable {
        let beside = socket.parent().unwrap_or(Path::new("."));
        Mounted::writable(reader, runtime, beside)?
    } else {
        Mounted::read_only(reader, runtime)
    };
    let export: Arc<dyn Export> = Arc::new(mounted);
    let server = Server::bind(socket, args.disk.as_str(), export)?;
    print(&format!(
        "disk {} of {} at sequence {}: nbd+unix:///{}?socket={}",
        args.disk,
        args.machine,
        point.sequence,
        args.disk,
        socket.display()
    ))?;
    stopped().await?;
    tokio::task::spawn_blocking(move || server.stop()).await?;
    Ok(())
}
