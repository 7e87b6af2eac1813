//! The log against a model of page cache, disk and power: what was acknowledged comes back.

mod computer;
mod damage;
mod history;
mod oracle;
mod planted;

pub(super) use computer::{Computer, Shared};
pub(super) use history::GEOMETRY;
