//! NBD: the server that stands in front of a source disk (agent) and of a recovery point (mount),
//! and a small client for the demo, the load generator and tests.
//!
//! Owns: the protocol (newstyle fixed negotiation, structured replies, block status), as written in
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. Does not own: what the
//! bytes mean; that is behind [`Export`].
//!
//! From the outside in: [`Server`] accepts; `connection` reads requests and hands them to workers;
//! `answer` turns one request into calls of the export and replies; `negotiate`, `request` and
//! `reply` are the sans-io protocol; `protocol` holds its numbers. `tls` and `channel` are the two ends of
//! what goes over TCP, which is never plain.

mod answer;
mod channel;
mod client;
mod connection;
mod error;
mod export;
mod gate;
mod negotiate;
mod protocol;
mod reply;
mod request;
mod server;
mod socket;
mod tls;

pub use channel::{Channel, Peer};
pub use client::Client;
pub use error::NbdError;
pub use export::{BlockStatus, Export};
pub use protocol::{BLOCK_BYTES_MIN, REQUEST_BYTES_MAX};
pub use server::{CONNECTIONS_MAX, Server};
pub use tls::ServerTls;

#[cfg(test)]
mod tests;
