//! `holdfast enroll`: a machine becomes known and gets what its agent needs.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::files::{self, PUBLIC, SECRET};
use super::output::print;
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on};
use crate::control::Enrolment;
use crate::control::ca::SigningRequest;
use crate::model::{DISK_BYTES_MAX, DiskName, MachineId, SECTOR_BYTES};

/// Register a machine and write its agent's settings, certificate and key
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine
    machine: MachineId,
    /// Directory for the agent's files
    #[arg(long, value_name = "AGENTDIR")]
    out: PathBuf,
    /// A disk: file or block device. With SIZE (such as 10G) a sparse file is made when PATH does
    /// not exist. A device (below /dev) is one of the machine, and need not be here
    #[arg(long = "disk", value_name = "NAME=PATH[:SIZE]")]
    disks: Vec<DiskArg>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// `NAME=PATH[:SIZE]`
#[derive(Clone, Debug, PartialEq, Eq)]
struct DiskArg {
    name: DiskName,
    path: PathBuf,
    size_bytes: Option<u64>,
}

/// What is wrong with a disk.
#[derive(Debug, thiserror::Error)]
enum DiskError {
    #[error("{0:?} is not NAME=PATH[:SIZE], such as root=/var/lib/vm/root.img:10G")]
    Form(String),
    #[error(transparent)]
    Name(#[from] crate::model::NameError),
    #[error(
        "size {0} of disk {1} is not a multiple of {SECTOR_BYTES} up to {DISK_BYTES_MAX} bytes"
    )]
    Size(u64, DiskName),
    #[error("{path} does not exist; add :SIZE to make a sparse file there", path = .0.display())]
    Absent(PathBuf),
    #[error("{path} exists and has {found} bytes, not {asked}; leave :SIZE out to take it as it is", path = path.display())]
    OtherSize { path: PathBuf, found: u64, asked: u64 },
    #[error("{path}: cannot be used as a disk", path = .0.display())]
    Io(PathBuf, #[source] std::io::Error),
    #[error("disk {0} is named twice; each disk of a machine has its own name")]
    Twice(DiskName),
    #[error("{path} exists and names the disks already; change them there and leave --disk out", path = .0.display())]
    Settled(PathBuf),
}

impl FromStr for DiskArg {
    type Err = DiskError;
    fn from_str(text: &str) -> Result<Self, DiskError> {
        let form = || DiskError::Form(text.to_owned());
        let (name, rest) = text.split_once('=').ok_or_else(form)?;
        let name: DiskName = name.parse()?;
        let sized = rest.rsplit_once(':');
        let sized = sized.and_then(|(path, size)| Some((path, parse_size(size)?)));
        let (path, size_bytes) = match sized {
            Some((path, size)) => (path, Some(size)),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(form());
        }
        let good =
            |size: u64| size.is_multiple_of(SECTOR_BYTES) && (1..=DISK_BYTES_MAX).contains(&size);
        match size_bytes {
            Some(size) if !good(size) => Err(DiskError::Size(size, name)),
            _ => Ok(Self { name, path: path.into(), size_bytes }),
        }
    }
}

/// Bytes, or with `K`, `M`, `G`, `T` for powers of 1024.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Enrols the machine and writes its files. An `agent.toml` that exists stays as it is; certificate
/// and key are replaced.
///
/// # Errors
/// When the disks cannot be used, the vault refuses, or a file cannot be written.
pub fn run(args: &Args) -> Result<(), Failure> {
    let out = std::path::absolute(&args.out)?;
    let config = out.join("agent.toml");
    let known = config.exists();
    if known && !args.disks.is_empty() {
        return Err(Failure::Usage(Box::new(DiskError::Settled(config))));
    }
    let site = Site::open(&args.config.config)?;
    let disks = prepare_disks(&args.disks)?;
    let registrar = site.registrar()?;
    files::make_directory(&out)?;
    let (request, key) = SigningRequest::generate()?;
    let enrolment = block_on(async {
        site.sources.vault.expect_site(&site.settings.site).await?;
        Ok(registrar.enrol(&args.machine, &request).await?)
    })?;
    files::replace(&out.join("machine.key"), SECRET, &key)?;
    files::replace(&out.join("machine.crt"), PUBLIC, &enrolment.issued.certificate)?;
    files::replace(&out.join("ca.crt"), PUBLIC, &enrolment.ca_certificate)?;
    if !known {
        files::create(&config, PUBLIC, &settings_text(&args.machine, &enrolment, &disks))?;
    }
    let (machine, until) = (&args.machine, enrolment.issued.entry.not_after);
    let what = if enrolment.first { "enrolled" } else { "enrolled again, keys and policy kept" };
    print(&format!("machine {machine} is {what}; its certificate is good until {until}"))?;
    if disks.is_empty() && !known {
        print(&format!("name its disks in {}", config.display()))?;
    }
    print(&format!("next, on the machine: holdfast agent --config {}", config.display()))
}

/// Makes paths absolute and missing files.
fn prepare_disks(disks: &[DiskArg]) -> Result<Vec<DiskArg>, Failure> {
    let mut prepared: Vec<DiskArg> = Vec::with_capacity(disks.len());
    for disk in disks {
        if prepared.iter().any(|other| other.name == disk.name) {
            return Err(Failure::Usage(Box::new(DiskError::Twice(disk.name.clone()))));
        }
        let path = std::path::absolute(&disk.path)?;
        prepare_disk(&path, disk.size_bytes)?;
        prepared.push(DiskArg { path, ..disk.clone() });
    }
    Ok(prepared)
}

fn prepare_disk(path: &Path, size_bytes: Option<u64>) -> Result<(), DiskError> {
    let failed = |source| DiskError::Io(path.to_owned(), source);
    match (path.metadata(), size_bytes) {
        (Ok(found), Some(asked)) if found.is_file() && found.len() != asked => {
            Err(DiskError::OtherSize { path: path.to_owned(), found: found.len(), asked })
        }
        (Ok(_), _) => Ok(()),
        (Err(error), Some(size)) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut options = OpenOptions::new();
            let file: File = options.write(true).create_new(true).open(path).map_err(failed)?;
            file.set_len(size).map_err(failed)
        }
        // A device of the machine; that may be another one than where it is enrolled.
        (Err(error), None)
            if error.kind() == std::io::ErrorKind::NotFound && path.starts_with("/dev") =>
        {
            Ok(())
        }
        (Err(error), None) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(DiskError::Absent(path.to_owned()))
        }
        (Err(error), _) => Err(failed(error)),
    }
}

fn settings_text(machine: &MachineId, enrolment: &Enrolment, disks: &[DiskArg]) -> String {
    let mut text = format!(
        "# Holdfast mobility agent. Every setting: docs/configuration.md.\n\
         # Relative paths are resolved against this file's directory.\n\n\
         machine = {:?}\n\
         servers = {:?}\n\n\
         # \"async\": a write is acknowledged when it is on the source disk; \"sync\": when it is durable at the\n\
         # process server, too.\n\
         # mode = \"async\"\n\
         # transport = \"tcp\"\n\
         # buffer_bytes_max = 67108864\n\
         # state_directory = \".\"\n",
        machine.as_str(),
        enrolment.servers,
    );
    if disks.is_empty() {
        text.push_str(
            "\n# [[disk]]\n# name = \"root\"\n# path = \"/dev/vdb\"\n# capture = \"nbd\"\n",
        );
    }
    for disk in disks {
        let path = toml::Value::from(disk.path.to_string_lossy().into_owned());
        let name = &disk.name;
        text.push_str(&format!(
            "\n# Served at nbd+unix:///{name}?socket=AGENTDIR/{name}.sock\n\
             [[disk]]\nname = \"{name}\"\npath = {path}\ncapture = \"nbd\"\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_understood() {
        let disk = |text: &str| text.parse::<DiskArg>();
        let root = disk("root=/d/root.img:10G").unwrap();
        assert_eq!(root.path, Path::new("/d/root.img"));
        assert_eq!(root.size_bytes, Some(10 << 30));
        let colon = disk("a=/dev/disk/by-path/pci:x").unwrap();
        assert_eq!(colon.path, Path::new("/dev/disk/by-path/pci:x"));
        assert_eq!(colon.size_bytes, None);
        assert!(matches!(disk("root"), Err(DiskError::Form(_))));
        assert!(matches!(disk("Root=/x"), Err(DiskError::Name(_))));
        assert!(matches!(disk("a=/x:1000"), Err(DiskError::Size(1000, _))));
        assert!(matches!(disk("a=:1M"), Err(DiskError::Form(_))));
    }

    #[test]
    fn a_device_need_not_be_where_its_machine_is_enrolled() {
        assert!(prepare_disk(Path::new("/dev/no-such-disk"), None).is_ok());
        let absent = prepare_disk(Path::new("/no/such/disk"), None);
        assert!(matches!(absent, Err(DiskError::Absent(_))), "{absent:?}");
    }
}
