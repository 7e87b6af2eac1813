//! The process server that is measured: one of this run, or one that runs already.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast::clock::{Clock, System};
use holdfast::observe::Stage;

use crate::error::LoadError;
use crate::page::Page;
use crate::process::{Memory, cpu_seconds, status_bytes};
use crate::site::{Addresses, Setting, Site};

/// A process server.
pub(crate) struct Target {
    config: PathBuf,
    data: SocketAddr,
    metrics: SocketAddr,
    process: u32,
    own: Option<Site>,
}

/// Everything that counts, at one moment.
pub(crate) struct Moment {
    pub(crate) at: Duration,
    cpu: f64,
    own_cpu: f64,
    page: Page,
}

/// CPU seconds of the process server between two moments.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Cpu {
    pub(crate) total: f64,
    pub(crate) ingest: f64,
    pub(crate) cache: f64,
    pub(crate) seal: f64,
    pub(crate) upload: f64,
    pub(crate) apply: f64,
    /// The kernel's I/O workers, the runtimes, this run's own questions.
    pub(crate) other: f64,
    /// Of this program: it shares the cores.
    pub(crate) generator: f64,
}

/// What the server did between two moments.
pub(crate) struct Between {
    pub(crate) cpu: Cpu,
    pub(crate) published_bytes: f64,
    /// Source bytes of what was applied.
    pub(crate) applied_bytes: f64,
    pub(crate) commits: f64,
    pub(crate) standing: Standing,
}

/// What the server holds at the end of a phase.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Standing {
    pub(crate) connections: u64,
    /// Of the windows that those over QUIC were given.
    pub(crate) quic_window_bytes: u64,
    /// `RssAnon`: what only the process can give back.
    pub(crate) anonymous_bytes: u64,
    /// `VmRSS`: with file pages.
    pub(crate) resident_bytes: u64,
}

impl Target {
    /// Starts one below `directory`.
    pub(crate) fn embedded(
        program: &Path,
        directory: &Path,
        settings: &[Setting],
    ) -> Result<Self, LoadError> {
        let own = Site::start(program, directory, settings)?;
        let (config, data, metrics) = (own.config(), own.data, own.metrics);
        let process = own.server.id();
        Ok(Self { config, data, metrics, process, own: Some(own) })
    }

    /// The running server of the site whose settings are `config`.
    pub(crate) fn given(config: &Path) -> Result<Self, LoadError> {
        let site = config.parent().unwrap_or(Path::new("."));
        let Some(Addresses { data, metrics, pid }) = Addresses::read(site) else {
            let text = format!(
                "no process server runs for {}: holdfast serve --config {0}",
                config.display()
            );
            return Err(LoadError::Usage(text));
        };
        Ok(Self { config: config.to_owned(), data, metrics, process: pid, own: None })
    }

    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    pub(crate) fn data(&self) -> SocketAddr {
        self.data
    }

    /// The embedded site.
    pub(crate) fn own(&self) -> Option<&Site> {
        self.own.as_ref()
    }

    /// This moment; the page is read first, so that asking costs the phase that begins nothing.
    pub(crate) fn begin(&self) -> Result<Moment, LoadError> {
        let page = Page::read(self.metrics)?;
        let (cpu, own_cpu) = self.cpu()?;
        Ok(Moment { at: System.monotonic(), cpu, own_cpu, page })
    }

    /// What happened since `begun`.
    pub(crate) fn since(&self, begun: &Moment) -> Result<Between, LoadError> {
        let (cpu, own_cpu) = self.cpu()?;
        let page = Page::read(self.metrics)?;
        let spent = |stage| page.stage_cpu(stage) - begun.page.stage_cpu(stage);
        let [ingest, cache, seal, upload, apply] = Stage::ALL.map(spent);
        let total = cpu - begun.cpu;
        let other = total - ingest - cache - seal - upload - apply;
        let generator = own_cpu - begun.own_cpu;
        Ok(Between {
            cpu: Cpu { total, ingest, cache, seal, upload, apply, other, generator },
            published_bytes: page.published_bytes() - begun.page.published_bytes(),
            applied_bytes: page.stage_in_bytes(Stage::Apply)
                - begun.page.stage_in_bytes(Stage::Apply),
            commits: page.commits() - begun.page.commits(),
            standing: Standing {
                connections: page.connections() as u64,
                quic_window_bytes: page.quic_window_bytes() as u64,
                anonymous_bytes: status_bytes(self.process, "RssAnon:").unwrap_or(0),
                resident_bytes: status_bytes(self.process, "VmRSS:").unwrap_or(0),
            },
        })
    }

    fn cpu(&self) -> Result<(f64, f64), LoadError> {
        Ok((cpu_seconds(self.process)?, cpu_seconds(std::process::id())?))
    }

    /// Fails when the server has ended.
    pub(crate) fn expect_alive(&mut self) -> Result<(), LoadError> {
        match &mut self.own {
            Some(site) => site.server.expect_alive(),
            None => cpu_seconds(self.process).map(drop),
        }
    }

    /// Most memory so far; of the embedded one.
    pub(crate) fn memory(&self) -> Option<Memory> {
        self.own.as_ref().map(|site| site.server.memory())
    }

    /// Ends the embedded one, in order.
    pub(crate) fn end(&mut self) {
        if let Some(site) = &mut self.own {
            site.server.end();
        }
    }
}
