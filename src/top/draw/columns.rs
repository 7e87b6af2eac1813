//! A table whose columns give way to each other.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::Span;

use super::words::fit;

/// Blanks between two columns.
const GAP: usize = 2;

/// What the first column is cut to before another one is dropped.
const FIRST_WIDTH_MIN: usize = 20;

/// One column; the table's first one is never dropped, only cut.
#[derive(Clone, Debug)]
pub(super) struct Column {
    heading: String,
    cells: Vec<(String, Style)>,
    /// Numbers stand at the right.
    right: bool,
    /// What is dropped last is 0.
    rank: u8,
    width: usize,
}

impl Column {
    /// Texts, at the left.
    pub(super) fn left(heading: impl Into<String>, rank: u8) -> Self {
        let heading = heading.into();
        let width = Span::raw(&heading).width();
        Self { heading, cells: Vec::new(), right: false, rank, width }
    }

    /// Numbers, at the right.
    pub(super) fn right(heading: impl Into<String>, rank: u8) -> Self {
        Self { right: true, ..Self::left(heading, rank) }
    }

    /// At least this wide, so that the table does not jump with its figures.
    pub(super) fn least(mut self, width: usize) -> Self {
        self.width = self.width.max(width);
        self
    }

    /// One cell more.
    pub(super) fn cell(&mut self, text: String, style: Style) {
        self.width = self.width.max(Span::raw(&text).width());
        self.cells.push((text, style));
    }
}

/// Draws headings and cells. The first column gives way up to a point, then others are dropped by
/// their rank, and what room is left is the first one's.
pub(super) fn draw(mut columns: Vec<Column>, area: Rect, buf: &mut Buffer) {
    let room = usize::from(area.width);
    let given = |columns: &[Column]| columns[0].width.saturating_sub(FIRST_WIDTH_MIN);
    while columns.len() > 1 && wanted(&columns) - given(&columns) > room {
        let others = columns.iter().enumerate().skip(1);
        let least = others.max_by_key(|(_, column)| column.rank).map_or(0, |(at, _)| at);
        columns.remove(least);
    }
    let excess = wanted(&columns).saturating_sub(room);
    if let Some(first) = columns.first_mut() {
        first.width = first.width.saturating_sub(excess);
    }
    let mut x = area.x;
    for column in &columns {
        let heading = (column.heading.clone(), Style::new().add_modifier(Modifier::BOLD));
        let cells = std::iter::once(&heading).chain(&column.cells);
        for ((text, style), y) in cells.zip(area.top()..area.bottom()) {
            let text = fit(text, column.width);
            let blanks = if column.right { column.width - Span::raw(&text).width() } else { 0 };
            let at = x.saturating_add(blanks as u16);
            let left = area.right().saturating_sub(at);
            buf.set_span(at, y, &Span::styled(text, *style), left);
        }
        x = x.saturating_add((column.width + GAP) as u16).min(area.right());
    }
}

fn wanted(columns: &[Column]) -> usize {
    let widths: usize = columns.iter().map(|column| column.width + GAP).sum();
    widths.saturating_sub(GAP)
}
