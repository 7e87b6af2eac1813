//! What the two sides say.

use crate::model::{
    BookmarkId, BookmarkKind, CaptureMode, DiskIndex, DiskSpec, Epoch, Generation, Incarnation,
    MachineId, Record, Sequence, ServerId, Timestamp, TrackingMode,
};

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// First frame of a connection.
    Hello(Hello),
    /// The next record of the stream; its sequence must be the previous one's plus one.
    Record(Record),
    /// How the agent is; at least every 5 s while connected, so that silence means trouble.
    Progress(Progress),
    /// Answer to a [`BookmarkRequest`].
    Bookmark(BookmarkReply),
    /// How well the changes of a disk are known.
    Capture(Capture),
    /// The agent leaves in an orderly way; nothing follows.
    Goodbye,
}

/// From the process server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromServer {
    /// Answer to [`Hello`].
    Welcome(Welcome),
    /// New watermarks and credit.
    Ack(Ack),
    /// Put a bookmark into the stream now.
    BookmarkRequest(BookmarkRequest),
    /// The connection ends, and why.
    Refuse(Refuse),
    /// The connection ends, and who serves the machine.
    Redirect(Redirect),
}

/// Who the agent claims to be (checked against its certificate) and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`super::VERSION`].
    pub version: u16,
    /// A claim, checked against the certificate.
    pub machine: MachineId,
    /// This life of the agent process.
    pub agent: Incarnation,
    /// The epoch it tracks in; `Epoch(0)` when none was begun yet.
    pub epoch: Epoch,
    /// Its disks.
    pub disks: Vec<DiskSpec>,
    /// Highest published sequence it was ever told (kept on its disk): a witness against rollback.
    pub witnessed: Sequence,
    /// Last record given out in this life, `Sequence::ZERO` when none: all after the server's
    /// durable position up to here will be sent again.
    pub last: Sequence,
}

/// Where to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Who answers.
    pub server: ServerId,
    /// Its ownership of the machine.
    pub generation: Generation,
    /// Last epoch in the stream, `Epoch(0)` when the stream is empty.
    pub epoch: Epoch,
    /// The stream is durable through here: the next record is this plus one.
    pub durable: Sequence,
    /// The stream is published through here.
    pub published: Sequence,
    /// Total payload-and-header bytes of record frames that may be sent on this connection so far.
    pub credit_limit: u64,
    /// How often the policy wants a bookmark, ms.
    pub bookmark_interval_ms: u32,
}

/// Watermarks of the stream and flow control of the connection. All values only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Survives a power cut of the process server.
    pub durable: Sequence,
    /// Survives the loss of the process server.
    pub published: Sequence,
    /// As in [`Welcome::credit_limit`].
    pub credit_limit: u64,
}

/// How the agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Agent's wall clock when it looked; everything it acknowledged to the workload before is
    /// at or before `last`, or is counted in `dirty_bytes`.
    pub time: Timestamp,
    /// How it tracks.
    pub mode: TrackingMode,
    /// Last record it gave a sequence to.
    pub last: Sequence,
    /// Bytes of the disks that still have to be read and sent by a running catch-up.
    pub dirty_bytes: u64,
    /// Bytes of all disks.
    pub total_bytes: u64,
    /// Bytes held for resending.
    pub buffered_bytes: u64,
}

/// How well the changes of one disk are known to the agent, from now until it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// One of the hello's.
    pub disk: DiskIndex,
    /// How well.
    pub mode: CaptureMode,
    /// Why not better, or what there is to say; for people, at most 512 bytes.
    pub why: String,
}

/// A bookmark somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookmarkRequest {
    /// Its identity.
    pub id: BookmarkId,
    /// What it shall promise.
    pub kind: BookmarkKind,
    /// Its name.
    pub name: String,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookmarkReply {
    /// Which.
    pub id: BookmarkId,
    /// How it went.
    pub outcome: BookmarkOutcome,
}

/// How a bookmark request ended at the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BookmarkOutcome {
    /// It stands in the stream here.
    Placed(Sequence),
    /// Not now, and why (for people; at most 512 bytes).
    Refused(String),
}

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// For programs.
    pub code: Refusal,
    /// For people: the thing and the cure; at most 512 bytes.
    pub text: String,
}

/// Another process server serves the machine, or will: go there. In answer to a hello, or inside a
/// session; then everything that was admitted up to here is durable, or will be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `host:port`, at most [`super::ADDRESS_BYTES_MAX`] bytes each, 1 to
    /// [`super::ADDRESSES_MAX`]: the first one that answers is meant.
    pub addresses: Vec<String>,
    /// For people; at most 512 bytes.
    pub reason: String,
}

/// Reasons, each with one answer of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another protocol version: stop, a human must upgrade.
    Version,
    /// Machine unknown, revoked or not the certificate's: stop, retry slowly.
    Identity,
    /// The bytes make no sense: reconnect.
    Protocol,
    /// The stream on the server is ahead of what this agent life gave out: somebody else writes
    /// it. Stop.
    Foreign,
    /// The server does not own the machine now, or drains: reconnect with back-off.
    NotOwner,
    /// Overloaded: reconnect with back-off.
    Busy,
    /// A newer connection of the same agent took over.
    Superseded,
}
