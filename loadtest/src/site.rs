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
    pub(crate) data: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

/// One setting of the server: `section.key`, and its value.
pub(crate) type Setting = (String, toml::Value);

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
pub(crate) struct Addresses {
    pub(crate) data: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) pid: u32,
}

impl Addresses {
    /// Of the running server whose files are below `site`; `None` while there is none.
    pub(crate) fn read(site: &Path) -> Option<Self> {
        Self::below(&site.join("run"))
    }

    /// Of the server whose run directory this is.
    pub(crate) fn below(run: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(run.join("addresses.json")).ok()?).ok()
    }
}

impl Site {
    /// Makes the site and starts its server on ports that are free; settings that are not given stay
    /// at their defaults.
    pub(crate) fn start(
        program: &Path,
        directory: &Path,
        settings: &[Setting],
    ) -> Result<Self, LoadError> {
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
        let free = ("metrics_listen".to_owned(), "127.0.0.1:0".into());
        change(&config, settings.iter().chain([&free]))?;
        let args: [OsString; 3] = ["serve".into(), "--config".into(), config.into()];
        let mut server = Process::start(program, &args, &directory.join("serve.log"))?;
        let addresses = eventually("the process server", READY, || {
            server.expect_alive()?;
            Ok(Addresses::read(&site))
        })?;
        let Addresses { data, metrics, .. } = addresses;
        let (program, directory) = (program.to_owned(), directory.to_owned());
        Ok(Self { program, directory, server, data, metrics })
    }

    /// The settings file.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join("site/holdfast.toml")
    }

    /// The store's directory.
    pub(crate) fn store(&self) -> PathBuf {
        self.directory.join("store")
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
        args.extend(["--config".into(), self.config().into_os_string()]);
        output(&self.program, &args)
    }
}

impl Machine {
    /// The socket of a disk.
    pub(crate) fn socket(&self, disk: &str) -> PathBuf {
        self.directory.join(format!("{disk}.sock"))
    }
}

/// Sets values in a settings file; its comments are lost.
pub(crate) fn change<'a>(
    config: &Path,
    settings: impl Iterator<Item = &'a Setting>,
) -> Result<(), LoadError> {
    let text = fs::read_to_string(config).map_err(LoadError::file(config, "reading it"))?;
    let wrong = |what: String| LoadError::Setting { what };
    let mut table: toml::Table = text.parse().map_err(|error| wrong(format!("{error}")))?;
    for (key, value) in settings {
        let mut place = &mut table;
        let (sections, last) = key.rsplit_once('.').map_or((None, &**key), |(s, l)| (Some(s), l));
        for section in sections.into_iter().flat_map(|sections| sections.split('.')) {
            let entry = place.entry(section).or_insert_with(|| toml::Table::new().into());
            let inside = entry.as_table_mut();
            place = inside.ok_or_else(|| wrong(format!("{key}: {section} is no section")))?;
        }
        place.insert(last.to_owned(), value.clone());
    }
    fs::write(config, table.to_string()).map_err(LoadError::file(config, "writing it"))
}

/// A zstd level as the server's settings allow it.
pub(crate) fn parse_level(text: &str) -> Result<i32, String> {
    let level: i32 = text.parse().map_err(|_| "not a whole number, such as 1".to_owned())?;
    match level {
        0 => Err("zstd takes 0 for its default; write 3".to_owned()),
        -7..=19 => Ok(level),
        _ => Err("not a level of the server: -7 to 19, without 0".to_owned()),
    }
}

/// Settings under which the server seals at `level` and does not adapt it: what is compared with
/// something at this level must not step aside to a cheaper one.
pub(crate) fn pinned_level(level: i32) -> [String; 3] {
    ["seal.level", "seal.level_min", "seal.level_max"].map(|key| format!("--set={key}={level}"))
}

/// `section.key=value` as people give it; text needs no quotes.
pub(crate) fn parse_setting(text: &str) -> Result<Setting, String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE, such as seal.level=3")?;
    let parsed: Result<toml::Table, _> = format!("value = {value}").parse();
    let value = match parsed {
        Ok(mut table) => table.remove("value").ok_or("no value")?,
        Err(_) => value.into(),
    };
    Ok((key.trim().to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_one_that_the_server_takes_and_is_pinned() {
        for (text, level) in [("1", 1), ("-7", -7), ("19", 19)] {
            assert_eq!(parse_level(text), Ok(level));
        }
        for wrong in ["0", "20", "-8", "x", ""] {
            assert!(parse_level(wrong).is_err(), "{wrong}");
        }
        assert!(parse_level("0").unwrap_err().contains("write 3"));
        let pinned = ["seal.level=7", "seal.level_min=7", "seal.level_max=7"];
        assert_eq!(pinned_level(7), pinned.map(|setting| format!("--set={setting}")));
    }

    #[test]
    fn settings_go_into_their_sections() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("holdfast.toml");
        fs::write(&config, "# head\nsite = \"s\"\n[seal]\n# level = 1\n").unwrap();
        let settings = ["seal.level=3", "apply.enabled=false", "site=other"]
            .map(|s| parse_setting(s).unwrap());
        change(&config, settings.iter()).unwrap();
        let table: toml::Table = fs::read_to_string(&config).unwrap().parse().unwrap();
        assert_eq!(table["seal"]["level"], 3.into());
        assert_eq!(table["apply"]["enabled"], false.into());
        assert_eq!(table["site"], "other".into());
        assert!(parse_setting("seal.level").is_err());
        assert!(change(&config, [("site.x".to_owned(), 1.into())].iter()).is_err());
    }
}
