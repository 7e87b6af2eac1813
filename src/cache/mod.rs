//! `Admitted` → `Durable`: the cache log in recycled segments with group commit.
//!
//! In reading order: [`open`] locks a shard's directory and lets `recovery` decide what of the last
//! process counts (`scan`, `streams`, `rewrite`); `writer` takes admitted records, `log` lays them
//! out, `flush` appends, syncs and mints [`Durable`]; `pool` prepares segments and recycles them when
//! the last holder of a `segment` lets go; `retire` removes empty logs. `file` is the seam to the file system (`disk`, `append`,
//! `map`). Layout, write ordering and every failure's answer: `docs/formats/cache-segment.md`.

mod append;
mod damage;
mod disk;
mod durable;
mod entry;
mod error;
mod file;
mod fill;
mod flush;
mod lineage;
mod log;
mod map;
#[cfg(test)]
mod model;
mod open;
mod pool;
mod recovery;
mod retire;
mod rewrite;
mod scan;
mod segment;
mod streams;
#[cfg(test)]
mod tests;
mod writer;

pub use damage::{Damage, Finding};
pub use durable::{Durable, DurableChange, DurableThrough, Survivor};
pub use error::CacheError;
pub use fill::Fill;
pub use open::{Opened, open};
pub use pool::Recycling;
pub use retire::retire;
pub use writer::Writer;
