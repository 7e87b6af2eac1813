//! `Sealed` → `Published`: parallel upload, ordered retirement, the manifest's compare-and-swap.
//!
//! Owns: everything in the store that belongs to a machine's log and is written: delta objects,
//! manifest, pages; who owns a machine; what may be deleted. Does not own: sealing, the decision how
//! much of the log may go, acks (the session makes them from [`Published`]).
//!
//! ```text
//! claim ─▶ Claim ─▶ Upload::run(channel of Sealed, on_published)
//!                     │ accept    records stay in the queue, bytes travel
//!                     │ stream    put, or blocks and commit, only if absent; lost answers are settled
//!                     │ queue     publishable(): the gapless uploaded prefix
//!                     ▼ publish   one compare-and-swap names the run; mints Published; drops records
//! ```
//!
//! How a server wires it, per machine: `claim`, give the claimed manifest to the batcher
//! (`StreamState::after`) and the sealer (generation, `last_delta`), run [`Upload::run`] as a task
//! fed by the seal pool, and turn each [`Published`] into acks. When it returns [`Stopped`], look at
//! the error's class: `Fence` means that another server has the machine; everything else needs the
//! operator or a new claim. Now and then, as the owner: [`truncate`] with what retention gave up, and
//! [`remove_orphans`].

mod claim;
mod context;
mod error;
mod machine;
mod orphan;
mod publish;
mod queue;
mod stream;
#[cfg(test)]
mod tests;
mod truncate;
mod uplink;

pub use claim::{Claim, claim, claim_over, give_up, look, resume};
pub use context::{Patience, UploadContext};
pub use error::UploadError;
pub use machine::{Stopped, Upload};
pub use orphan::{Removal, remove_orphans};
pub use publish::Published;
pub use truncate::{Cut, Truncated, truncate};
pub use uplink::Uplink;
