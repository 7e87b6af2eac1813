//! Tables, JSON and progress bars, the same for every command.

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::Failure;

/// Prints one JSON document to standard output.
///
/// # Errors
/// When the document has no JSON form or standard output is closed.
pub fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(document)?)
}

/// Prints a line to standard output.
///
/// # Errors
/// When standard output is closed.
pub fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// An empty table with these headings.
#[must_use]
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headings);
    table
}

/// Prints a table without the blanks at its lines' ends.
///
/// # Errors
/// When standard output is closed.
pub fn print_table(table: &Table) -> Result<(), Failure> {
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    print(&lines.join("\n"))
}

/// A progress bar over `total` bytes with rate and remaining time; none when standard error is no
/// terminal.
#[must_use]
pub fn byte_bar(total: u64, what: &str) -> ProgressBar {
    let template =
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left";
    let style = ProgressStyle::with_template(template).expect("a constant template is valid");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_message(what.to_owned());
    bar
}

/// A line that shows which step runs; hidden when standard error is no terminal.
#[must_use]
pub fn step_spinner() -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    spinner.set_style(ProgressStyle::default_spinner());
    spinner
}
