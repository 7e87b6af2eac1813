//! :9443 → `Admitted`. Listener, TLS, identity, the sans-io session, admission, acks.
//!
//! Owns: who may speak for a machine, which record may come next, what an agent is told. Does not
//! own: durability, the manifest, policy. What it needs of them comes in through three things:
//!
//! ```text
//!  Machines::open ──▶ MachineLink          made by the pipeline when a machine's agent comes first
//!
//!  agent ──▶ session ──▶ LinkSetup::appends ──▶ cache log          Admitted, in order, one sender
//!  agent ◀── session ◀── MachineLink::made_durable(DurableThrough) the only source of durable acks
//!                    ◀── MachineLink::published_through(sequence)
//!                    ◀── LinkSetup::credit                         shrinks, withholds credit
//!                    ◀── MachineLink::end(refuse)                  fenced, log failed
//!                    ◀── Machines::knows                           asked now and then: revoked
//!  operator ──▶ MachineLink::bookmark ──▶ agent ──▶ its sequence
//! ```
//!
//! The way of a byte: [`Ingest::serve`] accepts (`listener`), TLS proves a certificate (`tls`) whose
//! URI says who it is (`identity`), HTTP upgrades (`http`); or [`Ingest::serve_quic`] does all that
//! over UDP and makes one sequence of several streams (`quic`). Then frames are cut out of the
//! plaintext (`chunks`, `pipe`) and paid for (`connection`), the session checks them (`session`,
//! `stream`, `credit`) and the machine's one seat (`machine`, `sitting`)
//! sends them on.

mod admission;
mod arena;
mod chunks;
mod connection;
mod credit;
mod handshakes;
mod http;
mod identity;
mod listener;
mod machine;
mod machines;
mod patience;
mod pipe;
mod present;
mod quic;
mod session;
mod sitting;
mod stream;
mod tally;
mod tls;

pub use admission::Admitted;
pub use credit::{CreditShare, CreditTerms};
pub use http::{HEALTH_PATH, REPLICATE_PATH};
pub use identity::{Identity, IdentityError, Role};
pub use listener::{Ingest, IngestSetup};
pub use machine::{BookmarkError, LinkSetup, MachineLink, PlacedBookmark};
pub use machines::{Fingerprint, LastWord, Machines, OpenError};
pub use quic::{QuicConfig, QuicEnd, QuicError, quic_config};
pub use session::{Event, Session, Standing, greet};
pub use stream::{Order, Step, StreamError, StreamState};
pub use tls::{TlsError, certificate_ends, server_config};
