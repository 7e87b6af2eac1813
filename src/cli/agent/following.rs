//! What a running agent says of itself, from the moment on in which it was asked for something.
//!
//! Owns: that nothing is believed of what a life before that moment says, which goes on saying it while it
//! stops. Does not own: what is asked for ([`super::attach_qemu`]).

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::agent;
use crate::cli::Failure;
use crate::cli::output::{byte_bar, print, print_json};
use crate::clock::{Clock, System};
use crate::model::{DiskName, Timestamp};
use crate::settings::AgentSettings;

/// Pause between two looks at the agent's status.
pub(super) const LOOK: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 300 });
/// So many looks in a row without an agent, 9 s, mean that there is none: between two lives is a moment
/// without one, too.
const LOOKS_WITHOUT: u32 = 30;
/// Looks, for five minutes, until an agent must have begun anew: it waits for a minute until all is
/// published, and then opens its disks.
const LOOKS_ANEW: u32 = 1000;

/// What came of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    #[error(
        "the running agent did not take disk {disk}, which is out of its settings again: {why}"
    )]
    NotTaken { disk: DiskName, why: String },
    #[error(
        "the running agent does not go on without disk {disk}, which stays in its settings: {why}"
    )]
    Kept { disk: DiskName, why: String },
    #[error(
        "the running agent said nothing new for {seconds} s: disk {disk} is in its settings, and it may still \
         begin anew with it; see `holdfast agent status` and its log"
    )]
    Silent { disk: DiskName, seconds: u64 },
    #[error(
        "no agent runs on {path} any more; start it again: it has disk {disk} in its settings",
        path = .path.display()
    )]
    Ended { path: PathBuf, disk: DiskName },
}

/// From when on, and behind which life, something is news.
pub(super) struct News {
    begun: Timestamp,
    before: Value,
}

impl News {
    /// What this life and later ones say from now on.
    pub(super) fn from_now() -> Self {
        Self { begun: System.wall(), before: Value::Null }
    }

    /// What lives say that begin from now on.
    pub(super) async fn of_the_next_life(settings: &AgentSettings) -> Self {
        let before = status(settings).await.get("incarnation").cloned().unwrap_or_default();
        Self { before, ..Self::from_now() }
    }

    /// An agent of an earlier version does not say which life it is in.
    fn is(&self, status: &Value) -> bool {
        let life = &status["incarnation"];
        if !life.is_null() && !self.before.is_null() {
            return *life != self.before; // whatever became of the clock
        }
        let time = status["time"].as_str();
        time.is_some_and(|time| time >= self.begun.to_string().as_str())
    }
}

/// What the agent last said about itself.
pub(super) async fn status(settings: &AgentSettings) -> Value {
    let path = settings.state_directory.join("status.json");
    let text = tokio::fs::read_to_string(&path).await.unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Why the agent could not use the changed settings.
fn not_taken(status: &Value) -> Option<String> {
    let why = status["trouble"].as_str().filter(|why| why.starts_with(agent::NOT_TAKEN));
    why.map(ToOwned::to_owned)
}

pub(super) fn one_of<'a>(status: &'a Value, disk: &DiskName) -> Option<&'a Value> {
    let disks = status["disks"].as_array();
    disks.into_iter().flatten().find(|one| one["name"] == disk.as_str())
}

/// Counts looks without an agent.
#[derive(Default)]
struct Absence(u32);

impl Absence {
    /// Whether there is no agent.
    fn is_lasting(&mut self, settings: &AgentSettings) -> Result<bool, Failure> {
        self.0 = if agent::runs(settings)? { 0 } else { self.0 + 1 };
        Ok(self.0 >= LOOKS_WITHOUT)
    }
}

/// Waits until the agent has begun anew without the disk, or there is no agent.
pub(super) async fn goes_on_without(
    settings: &AgentSettings,
    disk: &DiskName,
    news: &News,
) -> Result<(), Failure> {
    let kept = |why| FollowError::Kept { disk: disk.clone(), why };
    let mut absence = Absence::default();
    for _ in 0..LOOKS_ANEW {
        let status = status(settings).await;
        if news.is(&status) {
            if let Some(why) = not_taken(&status) {
                return Err(kept(why).into());
            }
            if one_of(&status, disk).is_none() {
                return Ok(());
            }
        }
        if absence.is_lasting(settings)? {
            return Ok(());
        }
        System.sleep(LOOK).await;
    }
    let seconds = (LOOK * LOOKS_ANEW).as_secs();
    Err(kept(format!("it did not begin anew in {seconds} s; see `holdfast agent status`")).into())
}

/// Shows the disk's catch-up until every write is mirrored in order.
pub(super) async fn follow(
    settings: &AgentSettings,
    disk: &DiskName,
    news: &News,
    json: bool,
) -> Result<(), Failure> {
    let (mut bar, mut told, mut absence) = (None, String::new(), Absence::default());
    let mut looks_in_vain = 0;
    loop {
        let status = status(settings).await;
        let fresh = news.is(&status);
        looks_in_vain = if fresh { 0 } else { looks_in_vain + 1 };
        if looks_in_vain > LOOKS_ANEW {
            let (disk, seconds) = (disk.clone(), (LOOK * LOOKS_ANEW).as_secs());
            return Err(FollowError::Silent { disk, seconds }.into());
        }
        if let Some(one) = one_of(&status, disk).filter(|_| fresh) {
            let (size, dirty) = (&one["size_bytes"], &one["dirty_bytes"]);
            let (size, dirty) = (size.as_u64().unwrap_or(0), dirty.as_u64().unwrap_or(0));
            let bar = bar.get_or_insert_with(|| byte_bar(size, disk.as_str()));
            bar.set_position(size - dirty.min(size));
            let mirrored = one["capture"] == "ordered";
            if mirrored && status["mode"] == "ordered" {
                bar.finish_and_clear();
                let said = format!("disk {disk}: every write of the guest is mirrored in order");
                return if json { print_json(one) } else { print(&said) };
            }
            let why = if mirrored { &status["why"] } else { &one["capture_why"] };
            let why = why.as_str().unwrap_or("waiting");
            if why != told {
                bar.println(why);
                why.clone_into(&mut told);
            }
        } else if let Some(why) = not_taken(&status).filter(|_| fresh) {
            return Err(FollowError::NotTaken { disk: disk.clone(), why }.into());
        }
        if absence.is_lasting(settings)? {
            let (path, disk) = (settings.state_directory.clone(), disk.clone());
            return Err(FollowError::Ended { path, disk }.into());
        }
        System.sleep(LOOK).await;
    }
}
