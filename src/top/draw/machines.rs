//! The table by machine.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::Span;

use super::super::reading::WATERMARKS;
use super::super::rows::{Order, Row, State};
use super::columns::{self, Column};
use super::words::{bytes, count, rate, span};

/// Ranks of the watermarks: published and durable go last.
const RANKS: [u8; WATERMARKS.len()] = [9, 6, 5, 7, 8];
/// Most columns that a name takes while others are there.
const NAME_WIDTH_MAX: usize = 64;

/// The rows from `first` on; the column that they are sorted by is marked.
pub(super) fn draw(rows: &[Row], first: usize, order: Order, area: Rect, buf: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    let heading = |of: Order| {
        let mark = if of == order { "▼" } else { "" };
        format!("{}{mark}", of.heading())
    };
    // As wide as the longest of all, so that scrolling moves nothing.
    let name = rows.iter().map(|row| Span::raw(&row.machine).width()).max().unwrap_or(0);
    let mut table = vec![
        Column::left(heading(Order::Machine), 0).least(name.min(NAME_WIDTH_MAX)),
        Column::left(heading(Order::State), 3).least(8),
        Column::right(heading(Order::Rpo), 1).least(6),
        Column::right(heading(Order::Backlog), 2).least(8),
        Column::right(heading(Order::Rate), 4).least(10),
    ];
    table.extend(
        WATERMARKS.iter().zip(RANKS).map(|(name, rank)| Column::right(*name, rank).least(7)),
    );
    for row in rows.iter().skip(first).take(area.height.into()) {
        let style = style(row.state);
        let cells = [
            row.machine.clone(),
            row.state.words(),
            span(row.rpo_seconds),
            bytes(row.backlog_bytes),
            rate(row.rate),
        ];
        let cells = cells.into_iter().chain(row.watermarks.map(count));
        for (column, cell) in table.iter_mut().zip(cells) {
            column.cell(cell, style);
        }
    }
    columns::draw(table, area, buf);
}

fn style(state: State) -> Style {
    match state {
        State::InOrder
        | State::NoPoint
        | State::Connected
        | State::FirstCopy(_)
        | State::Applied => Style::new(),
        State::CatchingUp(_) => Style::new().fg(Color::Yellow),
        State::Bitmap | State::Away => Style::new().fg(Color::Red),
    }
}
