//! The story from an empty directory to "verified".

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::disk;
use super::error::DemoError;
use super::live::Live;
use super::report::{Report, VerifiedPoint};
use crate::agent::Agent;
use crate::clock::{Clock, System};
use crate::model::{BookmarkKind, DiskName, MachineId, Sequence};
use crate::nbd::{Client, Server};
use crate::observe::{Metrics, Stage};
use crate::recover::{
    CACHE_BYTES, DiskReader, ExportFormat, Mounted, Pin, PointSpec, Recovery, export,
};
use crate::seal::KeyEncryptionKey;
use crate::server::ProcessServer;
use crate::settings::{AgentSettings, ServerSettings, StoreUrl, load_agent, load_server};

/// How long any single step may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a step is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Live writes between two bookmarks.
const BETWEEN: Duration = Duration::from_secs(4);

/// The disk that is replicated.
#[derive(Clone, Debug)]
pub enum Source {
    /// An ext4 image of this machine's files.
    Made,
    /// A copy of this file or device.
    Given(PathBuf),
}

/// Runs the demo in `work`, an empty directory, on `store`, which no site uses. `say` gets a line before each step.
///
/// # Errors
/// [`DemoError::Difference`] when a recovered byte differs; anything that kept it from running.
pub async fn run(
    work: &Path,
    source: Source,
    store: &StoreUrl,
    say: &dyn Fn(&str),
) -> Result<Report, DemoError> {
    say("making a disk");
    let image = work.join("disk.img");
    let places = prepare(&source, work, &image).await?;
    say("making a site, starting a process server");
    let site = work.join("site");
    let store = store.to_string();
    holdfast(&["init", text(&site), "--store", &store, "--listen", "127.0.0.1:0"])?;
    let config = site.join("holdfast.toml");
    let mut settings = load_server(&config).map_err(setting)?;
    settings.metrics_listen.set_port(0);
    let mut server =
        ProcessServer::start(settings.clone(), System::clock(), System::entropy()).await?;
    let agent_directory = work.join("agent");
    let disk = format!("root={}", image.display());
    let out = ["--out", text(&agent_directory), "--disk", &disk, "--config", text(&config)];
    holdfast(&[&["enroll", "demo"], &out[..]].concat())?;
    let agent_settings = load_agent(&agent_directory.join("agent.toml")).map_err(setting)?;
    let told = Telling { image, places, settings, agent_settings, say };
    let metrics = Arc::clone(server.metrics());
    let result = tokio::select! {
        result = told.replicate_and_recover(work, &metrics, &source) => result,
        failed = server.failed() => Err(failed.into()),
    };
    let drained = server.drain().await;
    let report = result?; // what happened first is what is told
    drained?;
    Ok(report)
}

struct Telling<'a> {
    image: PathBuf,
    places: Vec<Range<u64>>,
    settings: ServerSettings,
    agent_settings: AgentSettings,
    say: &'a dyn Fn(&str),
}

/// A bookmark, and what the disk held at it.
struct Taken {
    name: &'static str,
    sequence: Sequence,
    sha256: String,
    rpo: Duration,
}

impl Telling<'_> {
    async fn replicate_and_recover(
        &self,
        work: &Path,
        metrics: &Arc<Metrics>,
        source: &Source,
    ) -> Result<Report, DemoError> {
        let (machine, disk) = (name::<MachineId>("demo"), name::<DiskName>("root"));
        (self.say)("starting an agent; replicating under live writes");
        let started = System.monotonic();
        let agent = Agent::start(self.agent_settings.clone(), System::clock(), System::entropy())?;
        let socket = self.agent_settings.state_directory.join("root.sock");
        let live = Live::start(socket, disk.to_string(), self.places.clone());
        replicated(&agent).await?;
        let replication = System.monotonic().saturating_sub(started);
        let recovery = self.recovery(&machine).await?;
        let mut taken = Vec::new();
        for name in ["first", "second"] {
            System.sleep(BETWEEN).await;
            (self.say)(&format!("placing the bookmark {name:?} under live writes"));
            taken.push(self.bookmark(&agent, &live, &recovery, name).await?);
        }
        System.sleep(BETWEEN / 4).await; // writes after the last point must not be in it
        let live_bytes = live.bytes();
        let stop = tokio::task::spawn_blocking(move || live.stop());
        stop.await.map_err(|_| DemoError::Thread("live writes"))??;
        let mut points = Vec::new();
        let mut checked = false;
        for point in &taken {
            (self.say)(&format!("recovering {:?} and comparing every byte", point.name));
            let file = work.join(format!("{}.img", point.name));
            points.push(exported(&recovery, &disk, point, &file).await?);
            if matches!(source, Source::Made) {
                let whole = disk::check(&file);
                if whole == Some(false) {
                    return Err(DemoError::NotWhole { point: point.name.to_owned() });
                }
                checked = whole.is_some();
            }
        }
        (self.say)("mounting \"first\" over NBD and comparing every byte");
        let (mounted, mount) = mounted(&recovery, &disk, &taken[0], work).await?;
        points.push(mounted);
        agent.stop().await;
        Ok(self.report(metrics, replication, live_bytes, &taken, mount, points, checked))
    }

    async fn recovery(&self, machine: &MachineId) -> Result<Arc<Recovery>, DemoError> {
        let settings = &self.settings;
        let store =
            crate::store::open(&settings.store).map_err(crate::server::ServerError::from)?;
        let kek = KeyEncryptionKey::load(&settings.key_file);
        let kek = kek.map_err(crate::server::ServerError::from)?;
        Ok(Arc::new(Recovery::open(store, &kek, machine).await?))
    }

    /// Holds the writes, bookmarks, hashes the disk, lets the writes go on, and waits until the
    /// point can be recovered to.
    async fn bookmark(
        &self,
        agent: &Agent,
        live: &Live,
        recovery: &Recovery,
        name: &'static str,
    ) -> Result<Taken, DemoError> {
        let asked = System.monotonic();
        let (placed, sha256, hashing) = tokio::task::block_in_place(|| {
            live.held(|| {
                let placed = agent.bookmark(name, BookmarkKind::CrashConsistent);
                let hashing = System.monotonic();
                let sha256 = disk::digest(&self.image);
                (placed, sha256, System.monotonic().saturating_sub(hashing))
            })
        });
        let ((_, sequence), sha256) = (placed?, sha256?);
        eventually("the point being recoverable", async || {
            let points = recovery.points().await?;
            Ok(points.iter().any(|point| point.sequence == sequence).then_some(()))
        })
        .await?;
        let waited = System.monotonic().saturating_sub(asked);
        // Hashing the disk is the demo's own business, not the product's.
        let rpo = waited.saturating_sub(hashing);
        Ok(Taken { name, sequence, sha256, rpo })
    }

    #[allow(clippy::too_many_arguments, reason = "everything that was seen, once")]
    fn report(
        &self,
        metrics: &Metrics,
        replication: Duration,
        live_bytes: u64,
        taken: &[Taken],
        mount: Duration,
        points: Vec<VerifiedPoint>,
        file_system_checked: bool,
    ) -> Report {
        let (_, _, _, acks) = metrics.stage(Stage::Cache);
        let (source_bytes, _, _, _) = metrics.stage(Stage::Seal);
        let machine = metrics.machine(&name("demo"));
        let published_bytes = machine.published_bytes.load(std::sync::atomic::Ordering::Relaxed);
        let disk_bytes = std::fs::metadata(&self.image).map_or(0, |facts| facts.len());
        let seconds = replication.as_secs_f64();
        Report {
            disk_bytes,
            source_bytes,
            live_bytes,
            replication_seconds: seconds,
            replication_mb_per_second: disk_bytes as f64 / 1e6 / seconds.max(1e-3),
            ack_p50_us: acks.value_at_quantile(0.5),
            ack_p99_us: acks.value_at_quantile(0.99),
            published_bytes,
            compression: source_bytes as f64 / published_bytes.max(1) as f64,
            rpo_seconds: taken.iter().map(|t| t.rpo.as_secs_f64()).fold(0.0, f64::max),
            mount_seconds: mount.as_secs_f64(),
            points,
            file_system_checked,
        }
    }
}

async fn prepare(source: &Source, work: &Path, image: &Path) -> Result<Vec<Range<u64>>, DemoError> {
    let (source, image) = (source.clone(), image.to_owned());
    let staging = work.join("files");
    let made = tokio::task::spawn_blocking(move || match source {
        Source::Made => disk::make(&image, &staging),
        Source::Given(path) => disk::copy(&path, &image),
    });
    made.await.map_err(|_| DemoError::Thread("disk"))?
}

async fn replicated(agent: &Agent) -> Result<(), DemoError> {
    eventually("initial replication", async || {
        let status = agent.status();
        Ok((status.mode == "ordered" && status.published > 0).then_some(()))
    })
    .await
}

/// Exports a point and compares it with what the disk was.
async fn exported(
    recovery: &Arc<Recovery>,
    disk: &DiskName,
    taken: &Taken,
    file: &Path,
) -> Result<VerifiedPoint, DemoError> {
    let spec = PointSpec::Name(taken.name.to_owned());
    let (point, pin) = Pin::take(recovery, &spec, &System::clock(), &System).await?;
    let reader = Arc::new(DiskReader::open(recovery, &point, disk, CACHE_BYTES).await?);
    export(recovery.machine(), &reader, ExportFormat::Raw, file, &|_| ()).await?;
    pin.release().await;
    let path = file.to_owned();
    let found = tokio::task::spawn_blocking(move || disk::digest(&path)).await;
    compared(taken, found.map_err(|_| DemoError::Thread("comparison"))??, "export")
}

/// Mounts a point, reads all of it through NBD and compares. Also: the time to its first block.
async fn mounted(
    recovery: &Arc<Recovery>,
    disk: &DiskName,
    taken: &Taken,
    work: &Path,
) -> Result<(VerifiedPoint, Duration), DemoError> {
    let asked = System.monotonic();
    let spec = PointSpec::Name(taken.name.to_owned());
    let (point, pin) = Pin::take(recovery, &spec, &System::clock(), &System).await?;
    let reader = DiskReader::open(recovery, &point, disk, CACHE_BYTES).await?;
    let mounted = Mounted::read_only(reader, tokio::runtime::Handle::current());
    let (socket, export) = (work.join("mount.sock"), disk.to_string());
    let read = tokio::task::spawn_blocking(move || {
        let server = Server::bind(&socket, &export, Arc::new(mounted))
            .map_err(DemoError::file(&socket, "serving a mount there"))?;
        let read = read_all(&socket, &export, asked);
        server.stop();
        read
    });
    let (found, first) = read.await.map_err(|_| DemoError::Thread("mount"))??;
    pin.release().await;
    Ok((compared(taken, found, "mount")?, first))
}

fn read_all(socket: &Path, export: &str, asked: Duration) -> Result<(String, Duration), DemoError> {
    use sha2::Digest;
    let mut client = Client::connect(socket, export).map_err(DemoError::Writes)?;
    let size = client.size_bytes();
    let mut hash = sha2::Sha256::new();
    let (mut at, mut first) = (0, None);
    while at < size {
        let mut block = vec![0; (size - at).min(1 << 20) as usize];
        client.read(at, &mut block).map_err(DemoError::Writes)?;
        first.get_or_insert_with(|| System.monotonic().saturating_sub(asked));
        hash.update(&block);
        at += block.len() as u64;
    }
    Ok((hex::encode(hash.finalize()), first.unwrap_or_default()))
}

fn compared(
    taken: &Taken,
    found: String,
    read_by: &'static str,
) -> Result<VerifiedPoint, DemoError> {
    let (point, expected) = (format!("{} by {read_by}", taken.name), taken.sha256.clone());
    if found != expected {
        return Err(DemoError::Difference { point, found, expected });
    }
    let (name, sequence) = (taken.name.to_owned(), taken.sequence.0);
    Ok(VerifiedPoint { name, sequence, sha256: found, read_by })
}

/// Looks again and again until something is there.
async fn eventually<T>(
    what: &'static str,
    mut look: impl AsyncFnMut() -> Result<Option<T>, DemoError>,
) -> Result<T, DemoError> {
    let until = System.monotonic() + PATIENCE;
    let mut why = "it has not happened".to_owned();
    while System.monotonic() < until {
        match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => why = crate::observe::error_chain(&error),
        }
        System.sleep(LOOK).await;
    }
    Err(DemoError::Late { what, seconds: PATIENCE.as_secs(), why })
}

/// Runs this very program as a user would.
fn holdfast(args: &[&str]) -> Result<(), DemoError> {
    let program = std::env::current_exe().map_err(DemoError::file("holdfast", "finding it"))?;
    let output = Command::new(&program).args(args).output();
    let output = output.map_err(DemoError::file(&program, "running it"))?;
    if output.status.success() {
        return Ok(());
    }
    let what = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(DemoError::Tool { tool: "holdfast", what })
}

fn setting(error: crate::settings::SettingsError) -> DemoError {
    DemoError::Tool { tool: "holdfast init", what: error.to_string() }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("a constant name of the alphabet")
}
