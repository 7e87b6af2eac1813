//! NBD: the server that stands in front of a source disk (agent) and of a recovery point (mount),
//! and a small client for the demo, the load generator and tests.
//!
//! Owns: the protocol (newstyle fixed negotiation, structured replies, block status). Does not
//! own: what the bytes mean; that is behind [`Export`].

mod export;

pub use export::{BlockStatus, Export};
