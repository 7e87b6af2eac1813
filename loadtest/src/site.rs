//! A site in a directory, driven as its users drive it: by the `holdfast` program.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::LoadError;
use crate::process::{Process, output};
use crate::wait::eventually;

/// Time that a process has to be ready.
const READY: Duration = Duration::from_secs(60);

/// A site with a running process server.
pub(crate) struct Site {
    program: PathBuf,
    directory: PathBuf,
    pub(crate) server: Process,
    pub(crate) metrics: SocketAddr,
}

/// One disk: a file that only its agent writes to.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) name: String,
    pub(crate) image: PathBuf,
}

/// A machine that is known.
pub(crate) struct Enrolled {
    name: String,
    disks: Vec<Disk>,
    directory: PathBuf,
}

/// One machine: its disks and its running agent.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) disks: Vec<Disk>,
    directory: PathBuf,
    pub(crate) agent: Process,
}

/// What `addresses.json` says.
#[derive(serde::Deserialize)]
struct Addresses {
    metrics: SocketAddr,
}

impl Site {
    /// Makes the site and starts its server on ports that are free.
    pub(crate) fn start(program: &Path, directory: &Path) -> Result<Self, LoadError> {
        let site = directory.join("site");
        let store = format!("dir:{}", directory.join("store").display());
        let args: [OsString; 6] = [
            "init".into(),
            site.clone().into(),
            "--store".into(),
            store.into(),
            "--listen".into(),
            "127.0.0.1:0".into(),
        ];
        output(program, &args)?;
        let config = site.join("holdfast.toml");
        let read = fs::read_to_string(&config).map_err(LoadError::file(&config, "reading it"))?;
        // Every other setting stays at its default.
        let (of, to) =
            ("# metrics_listen = \"127.0.0.1:9445\"", "metrics_listen = \"127.0.0.1:0\"");
        fs::write(&config, read.replacen(of, to, 1))
            .map_err(LoadError::file(&config, "writing it"))?;
        let args: [OsString; 3] = ["serve".into(), "--config".into(), config.into()];
        let mut server = Process::start(program, &args, &directory.join("serve.log"))?;
        let told = site.join("run/addresses.json");
        let addresses: Addresses = eventually("the process server", READY, || {
            server.expect_alive()?;
            let text = fs::read(&told).unwrap_or_default();
            Ok(serde_json::from_slice(&text).ok())
        })?;
        let (program, directory) = (program.to_owned(), directory.to_owned());
        Ok(Self { program, directory, server, metrics: addresses.metrics })
    }

    /// Makes a machine known.
    pub(crate) fn enrol(&self, name: &str, disks: Vec<Disk>) -> Result<Enrolled, LoadError> {
        let directory = self.directory.join(format!("agent-{name}"));
        let mut args: Vec<OsString> = vec!["enroll".into(), name.into()];
        args.extend(["--out".into(), directory.clone().into_os_string()]);
        for disk in &disks {
            args.push("--disk".into());
            args.push(format!("{}={}", disk.name, disk.image.display()).into());
        }
        self.run(args)?;
        Ok(Enrolled { name: name.to_owned(), disks, directory })
    }

    /// Starts a machine's agent.
    pub(crate) fn start_agent(&self, machine: Enrolled) -> Result<Machine, LoadError> {
        let Enrolled { name, disks, directory } = machine;
        let config = directory.join("agent.toml");
        let args: [OsString; 3] = ["agent".into(), "--config".into(), config.into()];
        let log = self.directory.join(format!("agent-{name}.log"));
        let agent = Process::start(&self.program, &args, &log)?;
        Ok(Machine { name, disks, directory, agent })
    }

    /// Asks for a bookmark and waits until it can be recovered to.
    pub(crate) fn bookmark(&self, machine: &str, name: &str) -> Result<(), LoadError> {
        let args = ["bookmark", machine, "--name", name, "--wait", "recoverable"];
        self.run(args.map(OsString::from).to_vec()).map(drop)
    }

    /// Exports a disk at a bookmark.
    pub(crate) fn export(
        &self,
        machine: &str,
        disk: &str,
        bookmark: &str,
        out: &Path,
    ) -> Result<(), LoadError> {
        let point = format!("name:{bookmark}");
        let mut args: Vec<OsString> =
            ["export", machine, "--disk", disk, "--point", &point, "--out"]
                .map(OsString::from)
                .to_vec();
        args.push(out.into());
        self.run(args).map(drop)
    }

    /// A machine's part of the cloud log.
    pub(crate) fn log(&self, machine: &str) -> PathBuf {
        self.directory.join("store/machines").join(machine).join("log")
    }

    /// The seed disks.
    pub(crate) fn seed(&self) -> PathBuf {
        self.directory.join("store/seed")
    }

    fn run(&self, mut args: Vec<OsString>) -> Result<String, LoadError> {
        let config = self.directory.join("site/holdfast.toml");
        args.extend(["--config".into(), config.into_os_string()]);
        output(&self.program, &args)
    }
}

impl Machine {
    /// The socket of a disk.
    pub(crate) fn socket(&self, disk: &str) -> PathBuf {
        self.directory.join(format!("{disk}.sock"))
    }
}
