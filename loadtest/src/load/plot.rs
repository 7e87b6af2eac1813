//! Throughput and ack latency over time, as an SVG.

use std::path::Path;

use plotters::prelude::*;

use super::tally::Course;
use crate::error::LoadError;

const SIZE: (u32, u32) = (1200, 800);

/// A line: its name, its colour, its points.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

/// Draws phases one behind the other.
pub(crate) fn draw(path: &Path, phases: &[(&'static str, Course)]) -> Result<(), LoadError> {
    let drawn = try_draw(path, phases);
    drawn.map_err(|source| LoadError::Plot { path: path.to_owned(), source })
}

/// What is drawn.
struct Lines {
    throughput: [Line; 2],
    latency: [Line; 3],
    /// Seconds of all phases.
    end: f64,
    title: String,
}

fn lines(phases: &[(&'static str, Course)]) -> Lines {
    let mut throughput: [Line; 2] = [
        ("durable, MB/s", RGBColor(31, 119, 180), Vec::new()),
        ("published, MB/s", RGBColor(44, 160, 44), Vec::new()),
    ];
    let mut latency: [Line; 3] = [
        ("durable ack p50, ms", RGBColor(31, 119, 180), Vec::new()),
        ("durable ack p99, ms", RGBColor(214, 39, 40), Vec::new()),
        ("worst RPO, ms", RGBColor(148, 103, 189), Vec::new()),
    ];
    let (mut end, mut title) = (0.0, Vec::new());
    for (name, course) in phases {
        title.push(format!("{name} from {end:.0} s"));
        let slot = course.slot.as_secs_f64();
        for one in &course.slots {
            let mb = |bytes: u64| (end, bytes as f64 / slot / 1e6);
            throughput[0].2.push(mb(one.durable_bytes));
            throughput[1].2.push(mb(one.published_bytes));
            if !one.durable.is_empty() {
                for (line, quantile) in [(0, 0.5), (1, 0.99)] {
                    let us = one.durable.value_at_quantile(quantile).max(10);
                    latency[line].2.push((end, us as f64 / 1e3));
                }
            }
            if one.rpo_us > 0 {
                latency[2].2.push((end, one.rpo_us.max(10) as f64 / 1e3));
            }
            end += slot;
        }
    }
    Lines { throughput, latency, end: f64::max(end, 1.0), title: title.join(", ") }
}

fn try_draw(
    path: &Path,
    phases: &[(&'static str, Course)],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Lines { throughput, latency, end, title } = lines(phases);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(SIZE.1 / 2);
    let top = highest(&throughput) * 1.05;
    let mut chart = ChartBuilder::on(&above)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart.configure_mesh().y_desc("MB/s").draw()?;
    for (name, colour, points) in throughput {
        chart
            .draw_series(LineSeries::new(points, colour))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    let top = highest(&latency) * 2.0;
    let mut chart = ChartBuilder::on(&below)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, (0.01..top).log_scale())?;
    chart.configure_mesh().x_desc("seconds").y_desc("ms").draw()?;
    for (name, colour, points) in latency {
        chart
            .draw_series(LineSeries::new(points, colour))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}

fn highest(lines: &[Line]) -> f64 {
    let all = lines.iter().flat_map(|(_, _, points)| points.iter().map(|(_, y)| *y));
    all.fold(1.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tally::Tally;
    use std::time::Duration;

    #[test]
    fn a_plot_has_its_lines_and_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plot.svg");
        let second = Duration::from_secs(1);
        let mut tally = Tally::new(Duration::ZERO, second);
        for n in 0..20 {
            tally.durable(second * n, second * n + second / 100, 50_000_000);
            tally.published(second * n, second * n + second / 3, 50_000_000, false);
        }
        draw(&path, &[("flat out", tally.course)]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for part in ["<svg", "polyline", "durable, MB/s", "durable ack p99, ms", "flat out"] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(draw(Path::new("/nonexistent/plot.svg"), &[]).is_err());
    }
}
