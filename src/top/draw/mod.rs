//! A model as a frame: a function onto a buffer, for a terminal and for paper.
//!
//! Owns: what stands where in how much room, and what gives way first. Does not own: the terminal.

mod columns;
mod graphs;
mod header;
mod machines;
mod plan;
mod stages;
mod words;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::Span;

use self::plan::Plan;
use super::model::Model;
use super::rows::rows;
use super::view::{Footer, Seen, View};
use crate::model::Timestamp;

/// Width of a frame on paper: every column of machines with names of ordinary length.
const PAPER_WIDTH: u16 = 150;
/// Its height without the rows of machines.
const PAPER_HEIGHT: u16 = 20;

/// Draws the frame; gives what of the table there was room for.
pub(super) fn draw(model: &Model, view: &View, now: Timestamp, buf: &mut Buffer) -> Seen {
    let lines = header::lines(model, now, buf.area.width.into());
    let plan = Plan::of(buf.area, lines.len(), view.footer);
    for (line, y) in lines.iter().zip(plan.header.top()..plan.header.bottom()) {
        buf.set_line(plan.header.x, y, line, plan.header.width);
    }
    let Some(reading) = model.reading() else { return Seen::default() };
    graphs::draw(model, plan.graphs, buf);
    stages::draw(reading, &model.rates, plan.stages, buf);
    let rows = rows(model, view.order);
    let fit = usize::from(plan.machines.height.saturating_sub(1)); // below the headings
    let seen = Seen { rows: rows.len(), fit };
    let first = view.first.min(seen.last_first());
    machines::draw(&rows, first, view.order, plan.machines, buf);
    if model.lost.is_some() {
        for area in [plan.graphs.area, plan.stages, plan.machines] {
            buf.set_style(area, Style::new().add_modifier(Modifier::DIM));
        }
    }
    footer(view, first, seen, plan.footer, buf);
    seen
}

fn footer(view: &View, first: usize, seen: Seen, area: Rect, buf: &mut Buffer) {
    let parts = match view.footer {
        Footer::None => return,
        Footer::Keys => {
            ["q quit", "s sort by the next column", "↑ ↓ PgUp PgDn Home End scroll", "? less"]
                .map(str::to_owned)
                .to_vec()
        }
        Footer::Hint => {
            let last = (first + seen.fit).min(seen.rows);
            let from = (first + 1).min(seen.rows);
            let shown = format!("machines {from}-{last} of {}", seen.rows);
            vec![
                "q quit".to_owned(),
                "? keys".to_owned(),
                format!("by {}", view.order.heading()),
                shown,
            ]
        }
    };
    if !area.is_empty() {
        let text = words::joined(&parts, area.width.into());
        buf.set_span(area.x, area.y, &Span::styled(text, Modifier::REVERSED), area.width);
    }
}

/// A frame as plain text, with all machines.
pub(super) fn paper(model: &Model, now: Timestamp) -> String {
    let machines = model.reading().map_or(0, |reading| reading.machines.len());
    let height = usize::from(PAPER_HEIGHT).saturating_add(machines);
    let area = Rect::new(0, 0, PAPER_WIDTH, u16::try_from(height).unwrap_or(u16::MAX));
    let mut buf = Buffer::empty(area);
    draw(model, &View { footer: Footer::None, ..View::default() }, now, &mut buf);
    text(&buf)
}

/// The symbols of a buffer, without blanks at the end of lines and lines at the end.
pub(super) fn text(buf: &Buffer) -> String {
    let mut text = String::new();
    for y in buf.area.rows() {
        let mut x = y.x;
        let mut line = String::new();
        while x < y.right() {
            let symbol = buf[(x, y.y)].symbol();
            line.push_str(symbol);
            x += (Span::raw(symbol).width() as u16).max(1); // a wide one hides what is behind it
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let end = text.trim_end().len();
    text.truncate(end);
    text
}
