//! The source side: capture, initial replication, resend buffer, bitmap, connection.
//!
//! A write of the workload comes in at `disk`, by NBD or one of the ways of `capture`, is intended in the `bitmap`, written to
//! the `source` and placed in the `stream`; the `session` sends it. What could not be sent in
//! order is read again by `catchup`; `clearing` forgets what is published. The rules, the
//! bitmap's layout and the decision tables are in `docs/agent.md`.

mod anew;
mod attach;
mod bandwidth;
mod beats;
mod bitmap;
mod bits;
mod buffer;
mod capture;
mod catchup;
mod clearing;
mod connection;
mod control;
#[cfg(test)]
mod crash_tests;
mod dial;
mod dial_quic;
mod dial_tcp;
mod disk;
mod error;
mod frozen;
mod guest_agent;
mod hook;
mod keeping;
mod life;
#[cfg(test)]
mod lives_tests;
mod locks;
mod medium;
mod observed;
#[cfg(test)]
mod observed_tests;
mod opening;
mod outgoing;
mod pulse;
mod quiesce;
#[cfg(test)]
mod quiesce_tests;
mod readings;
mod replies;
mod resumption;
mod route;
mod run;
mod session;
mod source;
mod source_identity;
mod status;
mod stream;
#[cfg(test)]
mod stream_tests;
mod syncs;
mod tls;
mod turnover;
mod watchdog;
#[cfg(test)]
mod watchdog_tests;
mod welcome;

pub use anew::resync;
pub use capture::mirror::GuestDevice;
pub use capture::release;
pub use control::reload;
pub use dial::{Connection, Dial, Way};
pub use dial_quic::QuicDial;
pub use error::AgentError;
pub use life::{NOT_TAKEN, run};
pub use opening::{may_run, runs};
pub use outgoing::Outgoing;
pub use pulse::Pulse;
pub use run::{Agent, Stopped};
pub use status::{AgentStatus, DiskStatus};
