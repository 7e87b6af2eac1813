//! The first lines: server, whether it answers, cache, uploads.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::super::model::{Lost, Model, Taken};
use super::super::reading::Reading;
use super::words::{bytes, count, fit, joined, rate, span};
use crate::model::Timestamp;

/// Cells of the bar that shows the fill of the cache.
const BAR_CELLS: usize = 20;

/// As they are at `now`, `width` columns wide; the most important first.
pub(super) fn lines(model: &Model, now: Timestamp, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![plain(&title(model), width, Style::new().add_modifier(Modifier::BOLD))];
    if let Some(lost) = &model.lost {
        let style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        lines.push(Line::from(Span::styled(fit(&silence(lost, now), width), style)));
    }
    match (model.reading(), &model.lost) {
        (Some(reading), lost) => {
            // What is no longer true is not said aloud.
            let old = lost.is_some();
            let dim = if old { Modifier::DIM } else { Modifier::empty() };
            let style = Style::new().add_modifier(dim);
            let color = if old { style } else { style.patch(pressure_style(reading)) };
            lines.push(plain(&cache(reading), width, color));
            lines.push(plain(&uploads(reading, model.rates.retries), width, style));
        }
        (None, Some(_)) => {
            let cure = "it is asked again and again; --metrics names another address";
            lines.push(plain(&[cure.to_owned()], width, Style::new()));
        }
        (None, None) => lines.push(plain(&["no answer yet".to_owned()], width, Style::new())),
    }
    lines
}

fn plain(parts: &[String], width: usize, style: Style) -> Line<'static> {
    Line::from(Span::styled(joined(parts, width), style))
}

fn title(model: &Model) -> Vec<String> {
    let mut parts = vec![format!("holdfast {}", model.address)];
    let Some(Taken { wall, reading, .. }) = &model.last else { return parts };
    if let Some(started) = reading.started {
        parts.push(format!("up {}", span(Some(wall.0 as f64 / 1e6 - started))));
    }
    if let (Some(connected), Some(away)) = (reading.connected, reading.away) {
        let all = connected + away;
        parts.push(format!("{connected:.0} of {all:.0} agents connected"));
    }
    parts.extend(reading.memory_bytes.map(|memory| format!("memory {}", bytes(Some(memory)))));
    parts.extend(reading.version.as_ref().map(|version| format!("version {version}")));
    parts
}

fn silence(lost: &Lost, now: Timestamp) -> String {
    let Lost { since, why } = lost;
    let ago = span(Some(now.seconds_since(*since)));
    let whole = Timestamp(since.0.div_euclid(1_000_000).saturating_mul(1_000_000));
    format!("no answer since {whole} ({ago}): {why}")
}

fn cache(reading: &Reading) -> Vec<String> {
    let (used, max) = (reading.cache_used_bytes, reading.cache_max_bytes);
    let Some(fill) = used.zip(max).map(|(used, max)| used / max.max(1.0)) else {
        return vec!["cache -".to_owned()];
    };
    let level = reading.pressure.as_deref().unwrap_or("-");
    let percent = (fill * 100.0).clamp(0.0, 999.0);
    let mut parts = vec![format!(
        "cache {} {percent:.0} % of {}: {level}",
        bar(fill, &reading.marks),
        bytes(max)
    )];
    if !reading.marks.is_empty() {
        let marks: Vec<_> = reading
            .marks
            .iter()
            .map(|(level, fill)| format!("{level} {:.0} %", fill * 100.0))
            .collect();
        parts.push(format!("marks {}", marks.join(" ")));
    }
    parts.extend(reading.full_seconds.map(|full| format!("full in {}", span(Some(full)))));
    let credit = reading.credit_share.filter(|share| *share < 1.0);
    parts.extend(credit.map(|share| format!("agents get {:.0} % of their credit", share * 100.0)));
    parts
}

/// The fill, and the marks where they are.
fn bar(fill: f64, marks: &[(String, f64)]) -> String {
    let cell = |share: f64| (share * BAR_CELLS as f64) as usize;
    let filled = cell(fill);
    let mut cells: Vec<char> =
        (0..BAR_CELLS).map(|at| if at < filled { '█' } else { '░' }).collect();
    for (_, mark) in marks {
        if let Some(one) = cells.get_mut(cell(*mark)) {
            *one = '|';
        }
    }
    cells.into_iter().collect()
}

fn pressure_style(reading: &Reading) -> Style {
    match reading.pressure.as_deref() {
        Some("stop") => Style::new().fg(Color::Red),
        Some("slow" | "warn") => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

fn uploads(reading: &Reading, retries_rate: Option<f64>) -> Vec<String> {
    let (busy, streams) = (count(reading.streams_busy), count(reading.streams));
    let mut parts = vec![format!("uploads {busy} of {streams} streams")];
    let often = retries_rate.map_or_else(String::new, |rate| format!(" ({rate:.1}/s)"));
    parts.push(format!("retries {}{often}", count(reading.retries)));
    let breaker = reading.breaker.map_or("-", |state| match state as u8 {
        0 => "answers",
        1 => "is left alone",
        _ => "is tried",
    });
    parts.push(format!("store {breaker}"));
    let limit = reading.rate_limit.filter(|limit| *limit > 0.0);
    parts.extend(limit.map(|limit| format!("limit {}", rate(Some(limit)))));
    parts.extend(reading.drain_seconds.map(|drain| format!("drained in {}", span(Some(drain)))));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_fill_and_marks_whatever_they_are() {
        let marks: Vec<_> = [0.5, 0.9].map(|fill| ("warn".to_owned(), fill)).into();
        assert_eq!(bar(0.25, &marks), "█████░░░░░|░░░░░░░|░");
        assert_eq!(bar(0.0, &[]), "░".repeat(BAR_CELLS));
        for fill in [1.0, 7.0, f64::INFINITY] {
            assert_eq!(bar(fill, &[]), "█".repeat(BAR_CELLS));
        }
        for odd in [f64::NAN, -1.0, f64::NEG_INFINITY] {
            assert_eq!(bar(odd, &[("x".to_owned(), 2.0)]), "░".repeat(BAR_CELLS));
        }
    }
}
