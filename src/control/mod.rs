//! The sidecar's HTTP API, the private CA and enrolment.
//!
//! Owns: certificates, enrolment, the control API, status in words. Keeps no state: everything is in
//! the vault, so a sidecar can be killed and started anywhere. The data plane never waits for it.

mod answer;
mod auth;
mod body;
mod bookmark;
pub mod ca;
mod client;
mod enrol;
mod error;
mod limiter;
mod placing;
mod rate;
mod revoking;
mod routes;
mod sidecar;
mod sources;
mod status;
mod tls;
pub mod words;

pub use answer::{ErrorBody, ErrorDetail};
pub use bookmark::{BookmarkAnswer, BookmarkQuestion, BookmarkWait, bookmark};
pub use client::Client;
pub use enrol::{Enrolment, Registrar};
pub use error::ControlError;
pub use placing::{MoveAnswer, MoveOrder, ServerView, Wish, assign, move_machine};
pub use revoking::{
    CertificateView, Revoke, Standing as CertificateStanding, certificates, revoke,
};
pub use sidecar::Sidecar;
pub use sources::{Inquiry, Live, MachineFactsheet, Sources};
pub use status::{Health, HealthLine, MachineStatus, status};
