//! Several process servers of one site, each a process on a port of its own that it keeps.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpSocket;

use crate::error::LoadError;
use crate::process::{Process, output};
use crate::site::{Addresses, Setting, change};
use crate::wait::eventually;

/// Time that a process server has to be ready: it may have to wait for its own old lease.
const READY: Duration = Duration::from_secs(120);

/// The site.
pub(crate) struct Servers {
    program: PathBuf,
    directory: PathBuf,
    all: Vec<Server>,
}

/// One process server.
struct Server {
    config: PathBuf,
    run: PathBuf,
    address: String,
    starts: u32,
    process: Option<Process>,
}

impl Servers {
    /// Makes a site over `store` and starts `count` servers.
    pub(crate) fn start(
        program: &Path,
        directory: &Path,
        store: &str,
        count: u8,
        settings: &[Setting],
    ) -> Result<Self, LoadError> {
        let site = directory.join("site");
        let mut args: Vec<OsString> = vec!["init".into(), site.clone().into()];
        args.extend(["--store", store, "--listen", "127.0.0.1:0"].map(OsString::from));
        output(program, &args)?;
        let first = site.join("holdfast.toml");
        let text = fs::read(&first).map_err(LoadError::file(&first, "reading it"))?;
        let mut all = Vec::new();
        for number in 1..=count {
            let config = match number {
                1 => first.clone(),
                _ => site.join(format!("holdfast-{number}.toml")),
            };
            fs::write(&config, &text).map_err(LoadError::file(&config, "writing it"))?;
            let address = free_address()?;
            let own = [
                ("server", format!("ps-{number}")),
                ("listen", address.clone()),
                ("advertise", address.clone()),
                ("metrics_listen", "127.0.0.1:0".to_owned()),
                ("run_directory", format!("run-{number}")),
                ("cache.directory", format!("cache-{number}")),
            ];
            let own = own.map(|(key, value)| (key.to_owned(), value.into()));
            change(&config, settings.iter().chain(&own))?;
            let run = site.join(format!("run-{number}"));
            all.push(Server { config, run, address, starts: 0, process: None });
        }
        let mut servers = Self { program: program.into(), directory: directory.into(), all };
        for number in 0..servers.all.len() {
            servers.begin(number)?;
        }
        Ok(servers)
    }

    /// The first one's settings: they say where store and keys are.
    pub(crate) fn config(&self) -> &Path {
        &self.all[0].config
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn address(&self, number: usize) -> &str {
        &self.all[number].address
    }

    /// Starts one that does not run, and waits until it serves.
    pub(crate) fn begin(&mut self, number: usize) -> Result<(), LoadError> {
        let server = &mut self.all[number];
        server.starts += 1;
        let log = self.directory.join(format!("serve-{}-{}.log", number + 1, server.starts));
        let args: [OsString; 3] = ["serve".into(), "--config".into(), server.config.clone().into()];
        let mut process = Process::start(&self.program, &args, &log)?;
        // The file of a life that was killed is still there.
        eventually("a process server", READY, || {
            process.expect_alive()?;
            Ok(Addresses::below(&server.run).filter(|addresses| addresses.pid == process.id()))
        })?;
        server.process = Some(process);
        Ok(())
    }

    /// Kills one.
    pub(crate) fn kill(&mut self, number: usize) {
        if let Some(process) = self.all[number].process.take() {
            process.kill();
        }
    }

    /// Stops one in order: it hands its machines over.
    pub(crate) fn stop(&mut self, number: usize) {
        if let Some(mut process) = self.all[number].process.take() {
            process.end();
        }
    }

    /// Fails when one that should run has ended.
    pub(crate) fn expect_alive(&mut self) -> Result<(), LoadError> {
        let mut running = self.all.iter_mut().filter_map(|server| server.process.as_mut());
        running.try_for_each(Process::expect_alive)
    }

    /// Makes a machine known whose one disk is `image`; its agent's settings.
    pub(crate) fn enrol(&self, machine: &str, image: &Path) -> Result<PathBuf, LoadError> {
        let directory = self.directory.join(format!("agent-{machine}"));
        let disk = format!("{}={}", super::machine::DISK, image.display());
        let mut args: Vec<OsString> = ["enroll", machine, "--disk", &disk].map(Into::into).to_vec();
        args.extend(["--out".into(), directory.clone().into_os_string()]);
        args.extend(["--config".into(), self.config().as_os_str().to_owned()]);
        output(&self.program, &args)?;
        let config = directory.join("agent.toml");
        // In this order for all, whatever enrolment prefers: losing one is worst for the next.
        let servers: Vec<_> = self.all.iter().map(|server| server.address.clone()).collect();
        change(&config, [("servers".to_owned(), servers.into())].iter())?;
        Ok(config)
    }
}

/// An address that the system gives to nobody else while this process lives: it stays bound, by a socket that
/// does not listen, so a server that was killed finds it free when it comes back.
fn free_address() -> Result<String, LoadError> {
    let looking = || LoadError::file("127.0.0.1", "looking for a free port");
    let bound = TcpSocket::new_v4().and_then(|socket| {
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = socket.local_addr()?;
        std::mem::forget(socket);
        Ok(address)
    });
    Ok(bound.map_err(looking())?.to_string())
}
