//! The wire-level generator: machines that speak the protocol, measured and audited.
//!
//! Owns: the order of a run. [`pattern`] says what is written where, [`pace`] when, [`machine`] speaks
//! the protocol (sans-io), [`crew`] drives sockets, [`tally`] counts, [`audit`] proves.

mod args;
mod audit;
mod content;
mod crew;
mod dial;
mod enrol;
mod fleet;
mod ledger;
mod link;
mod machine;
mod pace;
mod pattern;
mod plot;
mod quic_crew;
mod report;
mod scenario;
mod tally;
mod target;
mod trace;
mod zipf;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast::cli::site::Site;
use holdfast::clock::{Clock, System, random16};
use holdfast::model::{DiskIndex, DiskSpec, MachineId};
use holdfast::vault::Policy;

pub(crate) use args::Args;
pub(crate) use audit::AuditError;
pub(crate) use crew::CrewError;
pub(crate) use dial::DialError;
pub(crate) use trace::TraceError;

use crate::error::LoadError;
use crate::process::{self, Memory};
use crate::progress::Progress;
use crate::site::Setting;
use args::Granularity;
pub(crate) use content::Content;
use crew::Phase;
use dial::Dialer;
use fleet::Fleet;
use machine::{Machine, Setup};
use pace::Pace;
use pattern::{Pattern, Profile};
use report::PhaseReport;
pub(crate) use report::Report;
use scenario::{Outage, Step, Switch};
use tally::Tally;
use target::Target;
use trace::Trace;

/// Bytes of content that writes are cut from: far more than a compressor looks back.
pub(crate) const CONTENT_BYTES: usize = 256 << 20;
/// An image up to this size is used whole.
pub(crate) const IMAGE_BYTES: usize = 2 << 30;
/// Files beside the sockets of machines: segments, objects, logs.
const OTHER_FILES: u64 = 512;
/// The name of the bookmark that is audited.
const LAST: &str = "loadtest-last";

/// Runs it; the text to print.
pub(crate) fn run(args: &Args, program: &Path) -> Result<String, LoadError> {
    let report = measure(args, program)?;
    Ok(match args.json {
        true => serde_json::to_string_pretty(&report).expect("plain values are JSON"),
        false => report.table(),
    })
}

/// Runs it.
pub(crate) fn measure(args: &Args, program: &Path) -> Result<Report, LoadError> {
    let sockets = u64::from(args.machines) + OTHER_FILES;
    process::open_files(sockets, &format!("{} machines", args.machines))?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    let runtime = runtime.map_err(LoadError::file("tokio", "starting the runtime"))?;
    let _entered = runtime.enter();
    match &args.config {
        Some(config) => Run::new(args, Target::given(config)?, &runtime)?.whole(),
        None => {
            let work =
                tempfile::Builder::new().prefix("holdfast-loadtest-").tempdir_in(&args.directory);
            let mut work =
                work.map_err(LoadError::file(&args.directory, "making a directory there"))?;
            let report = Target::embedded(program, work.path(), &settings(args))
                .and_then(|target| Run::new(args, target, &runtime)?.whole());
            if args.keep || report.is_err() {
                work.disable_cleanup(true);
                eprintln!("kept: {}", work.path().display());
            }
            // Ten thousand machines' files: minutes on a file system that discards at once.
            let _removing =
                (!args.keep && report.is_ok()).then(|| Progress::new("removing what was written"));
            drop(work);
            report
        }
    }
}

/// Settings of the embedded server: room for the machines, then what was asked for.
fn settings(args: &Args) -> Vec<Setting> {
    let mut settings = Vec::new();
    if args.machines > 4000 {
        let key = "limits.connections_max".to_owned();
        settings.push((key, i64::from(args.machines + 64).into()));
    }
    settings.extend(args.set.iter().cloned());
    settings
}

/// A run against one server.
struct Run<'a> {
    args: &'a Args,
    target: Target,
    runtime: &'a tokio::runtime::Runtime,
    trace: Option<Arc<Trace>>,
    content: Content,
}

/// A phase that was run, and what was seen of it.
struct Ran {
    report: PhaseReport,
    tally: Tally,
}

/// What is known at the very end.
struct Closed {
    memory: Option<Memory>,
    audited_bytes: Option<u64>,
}

impl<'a> Run<'a> {
    fn new(
        args: &'a Args,
        target: Target,
        runtime: &'a tokio::runtime::Runtime,
    ) -> Result<Self, LoadError> {
        let trace = args.trace.as_deref().map(Trace::read).transpose()?.map(Arc::new);
        let progress = Progress::new("reading content");
        let content = match (&args.data, args.profile.is_incompressible()) {
            (Some(image), _) => Content::of_image(image, IMAGE_BYTES)?,
            (None, true) => Content::random(CONTENT_BYTES / 4, 1),
            (None, false) => Content::of_files(&args.files, CONTENT_BYTES, 1)?,
        };
        drop(progress);
        Ok(Self { args, target, runtime, trace, content })
    }

    fn whole(mut self) -> Result<Report, LoadError> {
        let begun = System.monotonic();
        let fleet = self.connect()?;
        self.phase(&fleet, &Step::nothing("opening"))?;
        let connect_seconds = (System.monotonic() - begun).as_secs_f64();
        if let Some(seconds) = self.args.settle.filter(|_| !self.is_idle()) {
            let time = Duration::from_secs(seconds.into());
            self.phase(&fleet, &Step { time, ..Step::paced("settling", Pace::Writes(0.0)) })?;
        }
        if let (1.., Some(first)) = (self.args.warm_up, self.plan().first()) {
            let time = Duration::from_secs(self.args.warm_up.into());
            self.phase(&fleet, &Step { name: "warming up", time, ..*first })?;
        }
        let mut phases = Vec::new();
        let mut courses = Vec::new();
        for step in self.plan() {
            let ran = self.phase(&fleet, &step.settled(phases.last()))?;
            courses.push((step.name, ran.tally.course));
            phases.push(ran.report);
        }
        let closed = self.close(fleet)?;
        if let Some(path) = &self.args.plot {
            plot::draw(path, &courses)?;
        }
        Ok(self.report(connect_seconds, phases, closed))
    }

    fn is_idle(&self) -> bool {
        self.args.trace.is_none() && self.args.profile == Profile::IdleMany
    }

    /// The phases.
    fn plan(&self) -> Vec<Step> {
        let args = self.args;
        let flat = Pace::Flat { depth: args.depth };
        let bytes = |rate: f64| Pace::Bytes(rate * f64::from(1 << 20));
        let time = Duration::from_secs(args.seconds.into());
        let step = |name, pace| Step { time, ..Step::paced(name, pace) };
        if self.is_idle() {
            let settling = Duration::from_secs(args.settle_s().into());
            let name = "connected a moment ago";
            return vec![Step { time: settling, ..step(name, flat) }, step("idle", flat)];
        }
        let open = args.rate.map(bytes).or(args.writes.map(Pace::Writes));
        if args.loud {
            let quiet = open.unwrap_or(bytes(f64::from(args.machines)));
            let loud = Step { loud: Some(flat), ..step("one machine flat out", quiet) };
            return vec![step("all quiet", quiet), loud];
        }
        let first = match open {
            Some(pace) => step("open loop", pace),
            None if args.trace.is_some() && !args.flat_out => step("as traced", Pace::Trace),
            None => step("flat out", flat),
        };
        let single = open.is_some() || args.flat_out || args.trace.is_some();
        let half = Step { pace: None, ..step("half of that rate", flat) };
        match args.outage {
            Some(seconds) => {
                let outage = Outage::of(Duration::from_secs(seconds.into()), time);
                let name = "half of that rate, the store offline in between";
                vec![first, Step { name, time: outage.whole(), outage: Some(outage), ..half }]
            }
            None if single => vec![first],
            None => vec![first, half],
        }
    }

    fn connect(&mut self) -> Result<Fleet, LoadError> {
        let ids = self.ids();
        let site = Site::open(self.target.config());
        let site = site.map_err(LoadError::site("opening the site"))?;
        let policy = Policy {
            bookmark_interval_s: self.args.bookmark_interval_s(),
            snapshot_interval_s: self.args.bookmark_interval_s().max(300),
            keep_every_write: self.args.granularity == Granularity::Write,
            ..Policy::default()
        };
        let progress = Progress::counting("enrolling machines", ids.len() as u64);
        let enrolling = enrol::enrol(&site, &ids, &policy, || progress.step(1));
        let enrolled = self.runtime.block_on(enrolling)?;
        drop(progress);
        let dialer = Dialer::new(self.target.data(), enrolled.roots, enrolled.key);
        let machines = (0..).zip(ids).map(|(number, id)| self.machine(number, id));
        let machines: Vec<_> = machines.zip(enrolled.certificates).collect();
        let progress = Progress::counting("connecting machines", machines.len() as u64);
        Fleet::connect(&dialer, self.args.transport, machines, self.args.threads, || {
            progress.step(1)
        })
    }

    /// Names that no other run has: a given server knows its machines for ever.
    fn ids(&self) -> Vec<MachineId> {
        let run = hex::encode(&random16(&System)[..4]);
        let id = |number| format!("load-{run}-{number}").parse();
        let ids = (0..self.args.machines).map(|number| id(number).expect("a legal name"));
        ids.collect()
    }

    fn machine(&self, number: u64, id: MachineId) -> Machine {
        let args = self.args;
        let (pattern, sizes) = match &self.trace {
            Some(trace) => (Pattern::of_trace(Arc::clone(trace)), trace.disk_bytes.clone()),
            None => {
                let size = u64::from(args.size) << 20;
                let block = args.block.map(|kib| kib << 10);
                let pattern =
                    Pattern::of_profile(args.profile, args.disks, size, block, number + 1);
                (pattern, vec![size; args.disks.into()])
            }
        };
        let disks = (0..).zip(sizes).map(|(index, size_bytes)| DiskSpec {
            index: DiskIndex(index),
            name: format!("disk{index}").parse().expect("a legal name"),
            size_bytes: size_bytes.next_multiple_of(1 << 20),
        });
        Machine::new(Setup {
            id,
            disks: disks.collect(),
            pattern,
            content: self.content.clone(),
            audited: args.audit,
            loud: args.loud && number == 0,
            marked_every: match &self.trace {
                None if args.audit => args.profile.zeroes(args.block.map(|kib| kib << 10)),
                _ => None,
            },
        })
    }

    /// One phase, from its begin until all of it is published.
    fn phase(&mut self, fleet: &Fleet, step: &Step) -> Result<Ran, LoadError> {
        let progress = Progress::timed(step.name, step.time);
        let begun = self.target.begin()?;
        let pace = step.pace.unwrap_or(Pace::Flat { depth: 1 });
        let phase = Phase {
            start: begun.at,
            until: begun.at + step.time,
            slot: (step.time / 300).max(Duration::from_millis(500)),
            pace: pace.scaled(1.0 / f64::from(self.args.machines)),
            loud: step.loud,
            bursts: self.args.profile == Profile::Burst && self.trace.is_none(),
        };
        let store = self.target.own().map(|site| site.store());
        let mut switch = step.outage.zip(store).map(|(outage, store)| Switch::new(outage, &store));
        let target = &mut self.target;
        let tally = fleet.run(&phase, || {
            progress.look();
            if let Some(switch) = &mut switch {
                switch.look(System.monotonic().saturating_sub(begun.at))?;
            }
            target.expect_alive()
        })?;
        let server = self.target.since(&begun)?;
        let mut report = PhaseReport::of(step, begun.at, &tally, &server);
        report.outage = step.outage.map(|outage| outage.seen(&tally.course));
        Ok(Ran { report, tally })
    }

    /// The last bookmark, the end of the server, the audit.
    fn close(&mut self, fleet: Fleet) -> Result<Closed, LoadError> {
        let progress = Progress::new("last bookmark");
        let target = &mut self.target;
        fleet.finish(LAST, self.args.tamper, || target.expect_alive())?;
        let expected = fleet.close()?;
        drop(progress);
        let progress = Progress::new("stopping the server");
        let memory = self.target.memory();
        self.target.end();
        drop(progress);
        if !self.args.audit {
            return Ok(Closed { memory, audited_bytes: None });
        }
        if expected.len() != self.args.machines as usize {
            let text = format!("{} of {}", expected.len(), self.args.machines);
            return Err(LoadError::Audit { machine: text, source: AuditError::NoBookmark });
        }
        let site = Site::open(self.target.config());
        let site = site.map_err(LoadError::site("opening the site for the audit"))?;
        let progress = Progress::bytes("audit");
        let audit = audit::audit(&site, &self.content, expected, |bytes| progress.step(bytes));
        let audited_bytes = Some(self.runtime.block_on(audit)?);
        Ok(Closed { memory, audited_bytes })
    }

    fn report(&self, connect_seconds: f64, phases: Vec<PhaseReport>, closed: Closed) -> Report {
        let args = self.args;
        Report {
            version: env!("CARGO_PKG_VERSION"),
            optimised: !cfg!(debug_assertions),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            machines: args.machines,
            disks: self.trace.as_ref().map_or(args.disks, |trace| trace.disk_bytes.len() as u16),
            disk_bytes: match &self.trace {
                Some(trace) => trace.disk_bytes.iter().copied().max().unwrap_or(0),
                None => u64::from(args.size) << 20,
            },
            profile: self.trace.is_none().then_some(args.profile),
            trace: args.trace.as_ref().map(|path| path.display().to_string()),
            transport: args.transport,
            granularity: args.granularity,
            bookmark_interval_seconds: args.bookmark_interval_s(),
            threads: args.threads,
            connect_seconds,
            phases,
            server_memory: closed.memory,
            audited_bytes: closed.audited_bytes,
        }
    }
}
