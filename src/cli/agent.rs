//! `holdfast agent`: the mobility agent, and how it is.

mod attach_qemu;
mod following;
#[cfg(test)]
mod following_tests;
mod resync;

use std::error::Error;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::output::{print, print_json};
use super::{Failure, block_on};
use crate::agent::{self, Stopped};
use crate::control::words;
use crate::settings::{AgentSettings, load_agent};

/// Run the mobility agent of this machine until told to stop
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Settings of the agent
    #[arg(long, value_name = "AGENTDIR/agent.toml", default_value = "agent.toml", global = true)]
    pub config: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Take the eBPF program of a stopped agent out of the kernel: the next start reads all disks again
    Release,
    /// Show how this machine's agent is: its server, its mode, what is not published yet
    Status {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    AttachQemu(attach_qemu::Args),
    /// Have the running agent stop in order and begin anew with its changed settings
    Reload,
    /// Forget what is published of a stopped agent's disks: the next start sends everything again
    Resync,
}

/// What cannot be shown.
#[derive(Debug, thiserror::Error)]
#[error("{path}: no status of an agent; start it with `holdfast agent`", path = .path.display())]
struct NoStatus {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// What was shown is of an agent that is gone.
#[derive(Debug, thiserror::Error)]
#[error("no agent runs on {path}; start it with `holdfast agent`", path = .0.display())]
struct NotRunning(PathBuf);

/// Serves the machine's disks and replicates them until SIGTERM or Ctrl-C; or shows how that goes.
///
/// # Errors
/// When a disk, a certificate or the state directory cannot be used.
pub fn run(args: &Args) -> Result<(), Failure> {
    if let Some(Command::AttachQemu(attach)) = &args.command {
        return attach_qemu::run(attach, &args.config);
    }
    let settings = load_agent(&args.config)?;
    if let Some(Command::Status { json }) = args.command {
        return show(&settings, json);
    }
    if matches!(args.command, Some(Command::Release)) {
        let said = match agent::release(&settings)? {
            true => "the program is out of the kernel; the next start reads all disks again",
            false => "there was no program of this machine in the kernel",
        };
        return print(said);
    }
    if matches!(args.command, Some(Command::Resync)) {
        return resync::run(&settings);
    }
    if matches!(args.command, Some(Command::Reload)) {
        block_on(async { Ok(agent::reload(&settings).await?) })?;
        return print("the agent begins anew; `holdfast agent status` shows how far it is");
    }
    let changed = || changed_settings(&args.config);
    let stopped = block_on(async { Ok(agent::run(settings, changed).await?) })?;
    if stopped == Stopped::Unsettled {
        tracing::warn!("stopped before everything was published: the next start sends the rest");
    }
    Ok(())
}

/// Prints what the agent last said about itself.
///
/// # Errors
/// When it never said anything, or is not running any more.
fn show(settings: &AgentSettings, json: bool) -> Result<(), Failure> {
    let path = settings.state_directory.join("status.json");
    let runs = agent::runs(settings)?;
    let text = std::fs::read_to_string(&path).map_err(|source| NoStatus { path, source })?;
    let mut status: Value = serde_json::from_str(&text)?;
    if let Some(fields) = status.as_object_mut() {
        fields.insert("running".to_owned(), runs.into());
    }
    if json {
        print_json(&status)?;
    } else {
        print(&in_words(&status))?;
    }
    match runs {
        true => Ok(()),
        false => Err(NotRunning(settings.state_directory.clone()).into()),
    }
}

/// The settings as they are now, or on one line what is wrong with them.
fn changed_settings(config: &Path) -> Result<AgentSettings, String> {
    load_agent(config).map_err(|error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    })
}

/// The status for people.
fn in_words(status: &Value) -> String {
    let text = |key: &str| status[key].as_str().unwrap_or("-").to_owned();
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let bytes = |key: &str| words::bytes(number(key));
    let mut lines = vec![format!("machine    {}, {}", text("machine"), text("time"))];
    if status["running"] == false {
        lines.push(format!("running    no; this is how it was at {}", text("time")));
    }
    lines.extend([
        format!("mode       {}: {}", text("mode"), text("why")),
        match (status["server"].as_str(), status["transport"].as_str()) {
            (Some(server), Some(way)) => format!("server     {server} over {way}"),
            _ => format!("server     none: {}", text("last_error")),
        },
    ]);
    let switches = number("switches");
    if switches > 0 {
        let resent = bytes("resent_bytes");
        lines.push(format!(
            "switches   {switches}, {resent} sent again; last: {}",
            text("switched_because")
        ));
    }
    lines.push(format!(
        "sequence   given {}, sent {}, durable {}, published {}",
        number("last"),
        number("sent"),
        number("durable"),
        number("published")
    ));
    lines.push(format!(
        "bytes      {} on disks, {} to read again, {} not known to be published, buffer {} of {}",
        bytes("total_bytes"),
        bytes("dirty_bytes"),
        bytes("unsettled_bytes"),
        bytes("buffered_bytes"),
        bytes("buffered_bytes_max")
    ));
    for disk in status["disks"].as_array().into_iter().flatten() {
        let text = |key: &str| disk[key].as_str().unwrap_or("-");
        let (name, capture, why) = (text("name"), text("capture"), text("capture_why"));
        lines.push(format!("disk       {name}: {capture}, {why}"));
    }
    if status["halted"] == true {
        lines.push("halted     replication stopped; see last error, then restart it".to_owned());
    }
    if let Some(trouble) = status["trouble"].as_str() {
        lines.push(format!("trouble    {trouble}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_which_server_and_why_it_is_another_one() {
        let mut status = serde_json::json!({
            "machine": "web-1", "time": "now", "mode": "ordered", "why": "all goes in order",
            "server": "b:9443 (ps-2)", "transport": "tcp", "switches": 2, "resent_bytes": 1 << 20,
            "switched_because": "a:9443: the connection was lost", "published": 7, "last": 9, "running": true,
            "disks": [{"name": "root", "capture": "bitmap", "capture_why": "as of 3 s ago"}],
        });
        let text = in_words(&status);
        for line in [
            "server     b:9443 (ps-2) over tcp",
            "switches   2, 1.0 MiB sent again; last: a:9443: the connection was lost",
            "given 9, sent 0, durable 0, published 7",
            "disk       root: bitmap, as of 3 s ago",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("running"), "{text}");
        status["running"] = false.into();
        assert!(in_words(&status).contains("running    no; this is how it was at now"));
        status["server"] = Value::Null;
        status["last_error"] = "b:9443: connecting".into();
        assert!(in_words(&status).contains("server     none: b:9443: connecting"));
    }
}
