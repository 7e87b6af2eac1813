//! `holdfast top`: the metrics of a process server, live in a terminal.
//!
//! Owns: what is made of one metrics page and the next (`reading`, `model`, `rows`), what keys do
//! (`view`), how it is drawn (`draw`, a function onto a buffer), the terminal and its restoring
//! (`terminal`), asking and its rhythm (`fetch`, `live`). Does not own: what is measured and how the
//! page is taken apart (observe). It knows nothing but the page: what is not exposed is not shown.

mod draw;
mod error;
mod fetch;
mod history;
mod live;
mod model;
mod reading;
mod rows;
mod terminal;
#[cfg(test)]
mod tests;
mod view;

pub use error::TopError;
pub use fetch::Source;
pub use live::{live, once};
