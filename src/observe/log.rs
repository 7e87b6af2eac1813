//! The log: structured events on standard error.

use tracing_subscriber::EnvFilter;

/// Which events: filters as `tracing` writes them, such as `info` or `holdfast::upload=debug,warn`.
const FILTER: &str = "HOLDFAST_LOG";
/// `text` (default) or `json`.
const FORMAT: &str = "HOLDFAST_LOG_FORMAT";

/// A log that cannot be started as asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is no filter.
    #[error(
        "{FILTER}={text:?} is no filter; write it like \"info\" or \"holdfast::upload=debug,warn\""
    )]
    Filter {
        /// What it says.
        text: String,
        /// The cause.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The format is unknown.
    #[error("{FORMAT}={text:?} is not known; use \"text\" or \"json\"")]
    Format {
        /// What it says.
        text: String,
    },
}

/// Starts the process's log as the environment asks, with the filter `unless_asked` by default. A log that runs already stays.
///
/// # Errors
/// When the environment asks for something that does not exist.
pub fn start_log(unless_asked: &str) -> Result<(), LogError> {
    let text = std::env::var(FILTER).unwrap_or_default();
    let text = if text.is_empty() { unless_asked } else { &text };
    let filter = EnvFilter::try_new(text)
        .map_err(|source| LogError::Filter { text: text.to_owned(), source })?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr);
    let format = std::env::var(FORMAT).unwrap_or_default();
    let started = match format.as_str() {
        "" | "text" => builder.try_init(),
        "json" => builder.json().try_init(),
        _ => return Err(LogError::Format { text: format }),
    };
    started.ok(); // one that runs already is good enough
    Ok(())
}
