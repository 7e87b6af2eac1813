//! `Admitted` → `Durable`: the cache log in recycled segments with group commit.

mod durable;
mod segment;

pub use durable::{Durable, DurableChange};
