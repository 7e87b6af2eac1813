//! The whole product on this machine in about a minute: a process server with an embedded store, an
//! agent, a real disk under live writes, two points recovered and compared byte for byte.
//!
//! Owns: the story and its report. Does not own: anything of the product: it starts the same server
//! and agent, and writes through the same NBD export, as users do.

mod disk;
mod error;
mod live;
mod report;
mod story;

pub use error::DemoError;
pub use report::Report;
pub use story::{Source, run};
