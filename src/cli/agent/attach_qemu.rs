//! `holdfast agent attach-qemu`: a guest's disk into the agent's settings, and out again.
//!
//! Owns: the text of the settings. Does not own: mirroring (`agent`).

use std::path::{Path, PathBuf};

use serde_json::json;

use super::changed_settings;
use super::following::{FollowError, LOOK, News, follow, goes_on_without, one_of, status};
use crate::agent::{self, GuestDevice};
use crate::cli::files::{self, PUBLIC};
use crate::cli::output::{print, print_json};
use crate::cli::{Failure, block_on};
use crate::clock::{Clock, System};
use crate::model::DiskName;
use crate::settings::{AgentDisk, AgentSettings, Capture, QemuAddress, load_agent};

/// Protect a disk of a running QEMU guest
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A QMP monitor of QEMU that nobody else uses: its socket, or its port on another host, over TLS
    #[arg(long, value_name = "SOCKET|tls:HOST:PORT")]
    qmp: String,
    /// The disk's device in QEMU: a drive's or device's id, or the name of its node
    #[arg(long, value_name = "DEVICE")]
    device: String,
    /// Its name in this machine
    #[arg(long, value_name = "NAME", default_value = "root")]
    disk: DiskName,
    /// Where the agent takes the writes of a QEMU on another host
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// The same as that QEMU reaches it, if it is another
    #[arg(long, value_name = "HOST:PORT", requires = "listen")]
    address: Option<String>,
    /// Where that QEMU serves its disks to the agent; the same for all of them
    #[arg(long, value_name = "PORT", requires = "listen")]
    reads_port: Option<u16>,
    /// Protect it no longer, and leave nothing in QEMU
    #[arg(long)]
    detach: bool,
    /// Print one JSON document when it is done
    #[arg(long)]
    json: bool,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("{path} has a disk {disk} already, which is another one; choose another name (--disk)", path = .path.display())]
    Other { path: PathBuf, disk: DiskName },
    #[error("{path} has no disk {disk} that is mirrored from a guest", path = .path.display())]
    NotMirrored { path: PathBuf, disk: DiskName },
    #[error(
        "the agent of {path} runs, and has no other disk or another one of this guest; stop it first, \
         detach, and start it again",
        path = .0.display()
    )]
    Runs(PathBuf),
}

/// Writes the disk into the agent's settings when it can be mirrored, and runs the agent until it is
/// stopped; where one runs already, has that begin anew with the disk and waits until it is mirrored
/// in order.
///
/// # Errors
/// When the device cannot be mirrored, or the settings cannot be changed.
pub(super) fn run(args: &Args, config: &Path) -> Result<(), Failure> {
    if args.detach {
        return detach(args, config);
    }
    let text = std::fs::read_to_string(config)?;
    let settings = match block_of(&text, &args.disk)? {
        Some(_) => {
            let settings = load_agent(config)?;
            same(&settings, args, config)?;
            settings
        }
        None => add(args, config, &text)?,
    };
    if agent::runs(&settings)? {
        return block_on(join(&settings, args, config, &text));
    }
    if !args.json {
        let said =
            "the agent runs here until it is stopped; from now on `holdfast agent` does the same";
        print(said)?;
    }
    let disk = (settings.clone(), args.disk.clone(), args.json);
    block_on(async move {
        let (settings, name, json) = disk;
        let watched = settings.clone();
        let news = News::of_the_next_life(&watched).await;
        tokio::select! {
            ended = agent::run(settings, || changed_settings(config)) => { ended?; }
            shown = async {
                follow(&watched, &name, &news, json).await?;
                std::future::pending::<Result<(), Failure>>().await
            } => shown?,
        }
        Ok(())
    })
}

/// Asks QEMU, and writes the settings with the disk.
fn add(args: &Args, config: &Path, text: &str) -> Result<AgentSettings, Failure> {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mut block = format!(
        "\n[[disk]]\nname = \"{}\"\ncapture = \"mirror\"\nqmp = {}\ndevice = {}\n",
        args.disk,
        quoted(&monitor(args)?),
        quoted(&args.device)
    );
    for (key, value) in [
        ("listen", args.listen.as_deref().map(quoted)),
        ("address", args.address.as_deref().map(quoted)),
        ("reads_port", args.reads_port.map(|port| port.to_string())),
    ] {
        block.extend(value.map(|value| format!("{key} = {value}\n")));
    }
    let text = format!("{}\n{block}", text.trim_end());
    let settings = checked(config, &text)?;
    let runs = agent::runs(&settings)?;
    if !runs {
        agent::may_run(&settings)?;
    }
    let disk = settings.disks.iter().find(|disk| disk.name == args.disk);
    if let Some(guest) = disk.and_then(GuestDevice::of) {
        // A running agent that mirrors another disk of this guest holds the monitor, and looks itself.
        let held = |disk: &AgentDisk| disk.name != args.disk && mirrors(disk, guest.monitor);
        if !(runs && settings.disks.iter().any(held)) {
            guest.probe(&settings)?;
        }
    }
    files::replace(config, PUBLIC, &text)?;
    Ok(settings)
}

/// The monitor as the settings name it.
fn monitor(args: &Args) -> Result<String, Failure> {
    if args.qmp.contains(':') && !args.qmp.contains('/') {
        return Ok(args.qmp.clone()); // the settings' rules say what is wrong with it
    }
    Ok(std::path::absolute(&args.qmp)?.to_string_lossy().into_owned())
}

/// The settings that a text would give at `config`.
fn checked(config: &Path, text: &str) -> Result<AgentSettings, Failure> {
    let mut beside = config.as_os_str().to_owned();
    beside.push(".check");
    let beside = PathBuf::from(beside);
    files::replace(&beside, PUBLIC, text)?;
    let settings = load_agent(&beside);
    std::fs::remove_file(&beside)?;
    Ok(settings?)
}

/// Whether a disk is a guest's behind that monitor.
fn mirrors(disk: &AgentDisk, monitor: &QemuAddress) -> bool {
    matches!(&disk.capture, Capture::Mirror { monitor: other, .. } if other == monitor)
}

fn same(settings: &AgentSettings, args: &Args, config: &Path) -> Result<(), Failure> {
    let wanted = (monitor(args)?, args.device.as_str());
    let same = settings.disks.iter().any(|disk| {
        disk.name == args.disk
            && GuestDevice::of(disk)
                .is_some_and(|guest| (guest.monitor.to_string(), guest.device) == wanted)
    });
    if same {
        return Ok(());
    }
    Err(AttachError::Other { path: config.to_owned(), disk: args.disk.clone() }.into())
}

fn detach(args: &Args, config: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(config)?;
    let settings = load_agent(config)?;
    let disk = settings.disks.iter().find(|disk| disk.name == args.disk);
    let guest = disk.and_then(GuestDevice::of);
    let Some((guest, block)) = guest.zip(block_of(&text, &args.disk)?) else {
        let (path, disk) = (config.to_owned(), args.disk.clone());
        return Err(AttachError::NotMirrored { path, disk }.into());
    };
    same(&settings, args, config)?;
    let without = text.replacen(&block, "", 1);
    if agent::runs(&settings)? {
        // One agent has a disk at least, and as long as it mirrors another one it holds the monitor.
        let others = settings.disks.iter().filter(|disk| disk.name != args.disk);
        if settings.disks.len() == 1 || others.into_iter().any(|disk| mirrors(disk, guest.monitor))
        {
            return Err(AttachError::Runs(config.to_owned()).into());
        }
        files::replace(config, PUBLIC, &without)?;
        if let Err(failure) = block_on(leave(&settings, args)) {
            files::replace(config, PUBLIC, &text)?;
            return Err(failure);
        }
    }
    block_on(async {
        let forgotten = tokio::task::block_in_place(|| {
            let wait = || tokio::runtime::Handle::current().block_on(System.sleep(LOOK / 10));
            guest.forget(&settings, wait)
        });
        Ok(forgotten?)
    })?;
    files::replace(config, PUBLIC, &without)?;
    let said = format!("disk {} is not protected any more; its points stay", args.disk);
    if args.json {
        print_json(&json!({ "disk": args.disk.as_str(), "attached": false }))
    } else {
        print(&said)
    }
}

/// Has the running agent begin anew without the disk; returns when it did.
async fn leave(settings: &AgentSettings, args: &Args) -> Result<(), Failure> {
    let news = News::of_the_next_life(settings).await;
    agent::reload(settings).await?;
    goes_on_without(settings, &args.disk, &news).await
}

/// Has the running agent take the disk, unless it has it, and waits for it. `before` is the text of the
/// settings without it.
async fn join(
    settings: &AgentSettings,
    args: &Args,
    config: &Path,
    before: &str,
) -> Result<(), Failure> {
    let mut news = News::from_now();
    if one_of(&status(settings).await, &args.disk).is_none() {
        news = News::of_the_next_life(settings).await;
        let said = "the running agent begins anew with this disk: every disk is sent again, in a \
                    new epoch";
        if !args.json {
            print(said)?;
        }
        if let Err(error) = agent::reload(settings).await {
            files::replace(config, PUBLIC, before)?;
            return Err(error.into());
        }
    }
    let shown = tokio::select! {
        shown = follow(settings, &args.disk, &news, args.json) => shown,
        stopped = crate::cli::stopped() => return stopped,
    };
    if let Err(Failure::Failed(error)) = &shown
        && let Some(FollowError::NotTaken { .. }) = error.downcast_ref()
    {
        files::replace(config, PUBLIC, before)?;
    }
    shown
}

/// The `[[disk]]` table of that name as it stands in the text.
fn block_of(text: &str, disk: &DiskName) -> Result<Option<String>, Failure> {
    let mut blocks: Vec<String> = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with('[') {
            blocks.push(String::new());
        }
        let last = blocks.len() - 1;
        blocks[last].push_str(line);
    }
    for block in blocks {
        if block.trim_start().starts_with("[[disk]]") {
            let table: toml::Table = block.parse()?;
            if table["disk"][0].get("name").and_then(toml::Value::as_str) == Some(disk.as_str()) {
                return Ok(Some(block));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disk_is_found_in_the_settings_and_the_others_stay() {
        let text = "machine = \"m\" # mine\n\n[[disk]]\nname = \"a\"\npath = \"x\"\n[[disk]]\n\
                    name = \"b\"\ncapture = \"mirror\"\n\n[application]\nfreeze = [\"x\"]\n";
        let block = block_of(text, &"b".parse().unwrap()).ok().unwrap().unwrap();
        assert_eq!(block, "[[disk]]\nname = \"b\"\ncapture = \"mirror\"\n\n");
        assert!(block_of(text, &"c".parse().unwrap()).ok().unwrap().is_none());
    }
}
