//! What the server says about itself: `/metrics` and `/v1/status`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use holdfast::observe::{ServerFacts, Stage, samples};

use crate::error::LoadError;

/// Longest wait for an answer: the machine may be busy with the run itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Samples of the metrics page by `name{labels}`.
pub(crate) struct Page(BTreeMap<String, f64>);

impl Page {
    /// Reads the page.
    pub(crate) fn read(address: SocketAddr) -> Result<Self, LoadError> {
        Ok(Self::parse(&get(address, "/metrics")?))
    }

    fn parse(text: &str) -> Self {
        let samples = samples(text).flatten();
        Self(samples.map(|sample| (sample.series.to_owned(), sample.value)).collect())
    }

    /// CPU seconds of a stage.
    pub(crate) fn stage_cpu(&self, stage: Stage) -> f64 {
        self.sample(&format!("holdfast_stage_cpu_seconds_total{{stage=\"{}\"}}", stage.as_str()))
    }

    /// Bytes that went into a stage.
    pub(crate) fn stage_in_bytes(&self, stage: Stage) -> f64 {
        self.sample(&format!("holdfast_stage_in_bytes_total{{stage=\"{}\"}}", stage.as_str()))
    }

    /// Latency of a stage since the server started, seconds.
    pub(crate) fn latency(&self, stage: Stage, quantile: &str) -> f64 {
        let stage = stage.as_str();
        let labels = format!("{{stage=\"{stage}\",quantile=\"{quantile}\"}}");
        self.sample(&format!("holdfast_stage_latency_quantile_seconds{labels}"))
    }

    /// Bytes of deltas published, all machines.
    pub(crate) fn published_bytes(&self) -> f64 {
        const NAME: &str = "holdfast_published_bytes_total";
        let of_name = |name: &&String| name.split('{').next() == Some(NAME);
        let samples = self.0.iter().filter(|(name, _)| of_name(name));
        samples.map(|(_, value)| value).sum()
    }

    /// Group commits of the cache log.
    pub(crate) fn commits(&self) -> f64 {
        self.sample("holdfast_cache_commits_total")
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> f64 {
        self.sample("holdfast_connections")
    }

    /// Bytes of QUIC's windows that connections hold: none without one.
    pub(crate) fn quic_window_bytes(&self) -> f64 {
        self.sample("holdfast_queue_bytes{queue=\"quic-windows\"}")
    }

    fn sample(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(f64::NAN)
    }
}

/// Reads the server's status.
pub(crate) fn status(address: SocketAddr) -> Result<ServerFacts, LoadError> {
    const PAGE: &str = "/v1/status";
    serde_json::from_str(&get(address, PAGE)?).map_err(|error| LoadError::Page {
        address,
        page: PAGE,
        what: error.to_string(),
    })
}

fn get(address: SocketAddr, page: &'static str) -> Result<String, LoadError> {
    let ask = || -> std::io::Result<String> {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        write!(socket, "GET {page} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let failed = |what: String| LoadError::Page { address, page, what };
    let answer = ask().map_err(|error| failed(error.to_string()))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(failed(answer.lines().next().unwrap_or("no answer").to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let page = Page::parse(
            "# TYPE holdfast_stage_cpu_seconds_total counter\n\
             holdfast_stage_cpu_seconds_total{stage=\"seal\"} 1.5\n\
             holdfast_stage_latency_quantile_seconds{stage=\"cache\",quantile=\"0.5\"} 0.002\n\
             holdfast_published_bytes_total{machine=\"a\"} 5\n\
             holdfast_published_bytes_total{machine=\"b\"} 6\n\
             holdfast_connections 9\n\
             holdfast_queue_bytes{queue=\"quic-windows\"} 10\n\
             holdfast_cache_commits_total 7\n\
             holdfast_stage_in_bytes_total{stage=\"apply\"} 8\n",
        );
        assert_eq!(page.stage_cpu(Stage::Seal), 1.5);
        assert_eq!(page.latency(Stage::Cache, "0.5"), 0.002);
        assert_eq!(page.commits(), 7.0);
        assert_eq!(page.connections(), 9.0);
        assert_eq!(page.quic_window_bytes(), 10.0);
        assert_eq!(page.published_bytes(), 11.0);
        assert_eq!(page.stage_in_bytes(Stage::Apply), 8.0);
        assert!(page.stage_cpu(Stage::Apply).is_nan());
    }
}
