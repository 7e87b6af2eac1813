//! Settings that change while the server runs.
//!
//! Owns: which settings these are with their bounds, units and costs (`table`), what cannot change
//! and why (`fixed`), how a change is checked and takes effect (`handle`), what is kept over a
//! restart (`overlay`). Does not own: who may ask for a change (the endpoint), and what a stage
//! makes of its values.
//!
//! A change is all or nothing: every rule of `holdfast.toml` is held over the settings as they would
//! be, then all of them are in force at once. To add one: a field in `raw` and `checked`, a row in
//! `table`, a line in docs/configuration.md; the stage reads it with [`Tuning::now`].

mod fixed;
mod handle;
mod overlay;
mod table;
#[cfg(test)]
mod tests;
mod value;

pub use handle::{Changed, Listed, Tuning, TuningError};
pub(super) use table::{Row, TABLE, row};
pub use value::{Bounds, Unit, Value};
