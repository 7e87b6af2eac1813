//! Sparklines with their newest value.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Span;
use ratatui::widgets::{Sparkline, Widget};

use super::super::history::History;
use super::super::model::Model;
use super::plan::{GRAPHS, Graphs};
use super::words::{bytes, joined, rate, span};

/// Blank columns between two graphs.
const GAP: u16 = 1;
/// What the largest value is drawn as; fine enough for any height.
const SCALE: f64 = 1e6;

/// One graph.
type Graph<'a> = (&'static str, &'a History, Option<f64>, fn(Option<f64>) -> String);

pub(super) fn draw(model: &Model, plan: Graphs, buf: &mut Buffer) {
    if plan.area.is_empty() {
        return;
    }
    let (histories, rates) = (&model.histories, &model.rates);
    let reading = model.reading();
    let of: [Graph<'_>; GRAPHS as usize] = [
        ("ingest", &histories.ingest, rates.ingest, rate),
        ("published", &histories.published, rates.published, rate),
        ("RPO, worst", &histories.rpo, reading.and_then(|r| r.rpo_worst_seconds), span),
        ("backlog", &histories.backlog, reading.and_then(|r| r.backlog_bytes), bytes),
    ];
    let Graphs { area, columns, bars } = plan;
    let wide = (area.width.saturating_add(GAP) / columns).saturating_sub(GAP);
    for (at, graph) in (0..).zip(&of) {
        let (column, row) = (at % columns, at / columns);
        let place = Rect {
            x: area.x + column * (wide + GAP),
            y: area.y + row * (bars + 1),
            width: wide,
            height: bars + 1,
        };
        one(graph, place.intersection(area), buf);
    }
}

fn one((name, history, newest, words): &Graph<'_>, area: Rect, buf: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    let values = history.last(area.width.into());
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    let mut label = vec![format!("{name} {}", words(*newest))];
    if most > newest.unwrap_or(0.0) {
        label.push(format!("≤ {}", words(Some(most))));
    }
    let label = joined(&label, area.width.into());
    buf.set_span(area.x, area.y, &Span::raw(label), area.width);
    let scaled =
        values.iter().map(|value| value.map(|value| (value / most.max(1e-9) * SCALE) as u64));
    let bars = Rect { y: area.y + 1, height: area.height - 1, ..area };
    Sparkline::default()
        .data(scaled.collect::<Vec<Option<u64>>>())
        .max(SCALE as u64)
        .render(bars, buf);
}
