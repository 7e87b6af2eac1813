//! Why there is nothing to show.

use crate::observe::SampleError;

/// A view that cannot be shown, or a page that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Nobody answers.
    #[error(
        "http://{address}/metrics: no answer; does `holdfast serve` run there? Its `metrics_listen` is asked unless --metrics names another address"
    )]
    Unreachable {
        /// Who was asked.
        address: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The answer does not come.
    #[error(
        "http://{address}/metrics: no answer within {seconds} s; the server is very busy, or stopped"
    )]
    Late {
        /// Who was asked.
        address: String,
        /// How long it had.
        seconds: u64,
    },
    /// The exchange broke off.
    #[error(
        "http://{address}/metrics: the answer broke off; is this the metrics address of a process server?"
    )]
    Broken {
        /// Who was asked.
        address: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something else answers.
    #[error(
        "http://{address}/metrics: {what}; give the `metrics_listen` address of a process server with --metrics"
    )]
    NotMetrics {
        /// Who was asked.
        address: String,
        /// What came instead.
        what: String,
    },
    /// It answers with something else than samples.
    #[error(
        "http://{address}/metrics: not understood; is this the metrics address of a process server?"
    )]
    Page {
        /// Who was asked.
        address: String,
        /// Which line.
        #[source]
        source: SampleError,
    },
    /// There is nothing to draw on.
    #[error("standard output is no terminal; --once prints one frame as plain text")]
    NoTerminal,
    /// The terminal cannot be used.
    #[error("the terminal cannot be used; --once prints one frame as plain text")]
    Terminal(#[source] std::io::Error),
}

impl TopError {
    /// The innermost cause: what fits on a line of the screen.
    pub(super) fn cause(&self) -> String {
        let mut cause: &dyn std::error::Error = self;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        cause.to_string()
    }
}
