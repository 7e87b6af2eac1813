//! The table by stage: CPU time, bytes, latencies.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::super::model::Rates;
use super::super::reading::Reading;
use super::columns::{self, Column};
use super::words::{bytes, latency, rate};
use crate::observe::Stage;

/// Lines that the table takes.
pub(super) const LINES: u16 = 1 + Stage::ALL.len() as u16;

pub(super) fn draw(reading: &Reading, rates: &Rates, area: Rect, buf: &mut Buffer) {
    let mut table = vec![
        Column::left("stage", 0).least(9),
        Column::right("CPU s", 3).least(8),
        Column::right("cores now", 4),
        Column::right("out", 5).least(11),
        Column::right("in, all", 7).least(9),
        Column::right("out, all", 6).least(9),
        Column::right("p50", 2).least(7),
        Column::right("p99", 1).least(7),
    ];
    for (at, stage) in Stage::ALL.into_iter().enumerate() {
        let of = &reading.stages[at];
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        // What an ack waits for is the latency of the cache.
        let name = if stage == Stage::Cache { "cache ack" } else { stage.as_str() };
        let cells = [
            name.to_owned(),
            number(of.cpu_seconds, 1),
            number(rates.cores[at], 2),
            rate(rates.out[at]),
            bytes(of.in_bytes),
            bytes(of.out_bytes),
            latency(of.p50_seconds),
            latency(of.p99_seconds),
        ];
        for (column, cell) in table.iter_mut().zip(cells) {
            column.cell(cell, Style::new());
        }
    }
    columns::draw(table, area, buf);
}
