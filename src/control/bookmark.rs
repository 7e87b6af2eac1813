//! A bookmark asked for by a person: the question to the process server and its answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sources::Sources;
use super::{Client, ControlError};
use crate::model::{BookmarkKind, MachineId, Timestamp};

/// Body of `POST /v1/machines/{machine}/bookmarks`, at the sidecar and at the process server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BookmarkQuestion {
    /// The user's name for it; at most 128 bytes.
    #[serde(default)]
    pub name: String,
    /// What it shall promise.
    #[serde(default = "crash_consistent")]
    pub kind: BookmarkKind,
    /// When to answer.
    #[serde(default)]
    pub wait: BookmarkWait,
}

/// When a bookmark request is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BookmarkWait {
    /// When it survives a power cut of the process server.
    #[default]
    Durable,
    /// When it can be recovered to: everything before it is published.
    Recoverable,
}

/// The process server's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BookmarkAnswer {
    /// The bookmark's id, hex.
    pub bookmark: String,
    /// Its name.
    pub name: String,
    /// What it promises.
    pub kind: BookmarkKind,
    /// Where it stands in the machine's stream.
    pub sequence: u64,
    /// When it was placed, as its record says: the point's time, unless the agent's clock is ahead of
    /// the process server's.
    pub time: Timestamp,
    /// How far it has come.
    pub reached: BookmarkWait,
}

fn crash_consistent() -> BookmarkKind {
    BookmarkKind::CrashConsistent
}

/// Longest name, bytes; as in the stream.
pub(super) const NAME_BYTES_MAX: usize = 128;

/// Time for the agent to place a bookmark and the server to make it durable; a little more than the
/// server itself waits.
const DURABLE_PATIENCE: Duration = Duration::from_secs(35);
/// Time for everything before it to be published, too.
const RECOVERABLE_PATIENCE: Duration = Duration::from_secs(160);

/// Asks the process server that owns `machine` for a bookmark.
///
/// # Errors
/// When the machine is not enrolled, nobody owns it, or its owner refuses or does not answer.
pub async fn bookmark(
    sources: &Sources,
    client: &Client,
    machine: &MachineId,
    question: &BookmarkQuestion,
) -> Result<BookmarkAnswer, ControlError> {
    let document = sources.document(machine).await?;
    let owner = sources.owner(&document).await?;
    let owner = owner.ok_or_else(|| ControlError::NoOwner { machine: machine.clone() })?;
    let path = format!("/v1/machines/{machine}/bookmarks");
    let patience = match question.wait {
        BookmarkWait::Durable => DURABLE_PATIENCE,
        BookmarkWait::Recoverable => RECOVERABLE_PATIENCE,
    };
    let client = client.with_timeout(patience);
    client.post(&owner.address, &path, question).await
}
