//! Real processes for integration tests: a site in a temporary directory, its server, agents and
//! applier as children of the test, ended by process id when dropped.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod captured;
pub mod ext4;
pub mod fleet;
pub mod guest;
pub mod held;
pub mod library;
pub mod loops;
pub mod mounts;
pub mod oracle;
pub mod postgres;
pub mod qemu;
pub mod workload;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use holdfast::clock::{Clock, System};

const BINARY: &str = env!("CARGO_BIN_EXE_holdfast");

/// Polls until `probe` answers; panics with `what` after `seconds`. Waits for a condition that
/// another process brings about; it never makes a race come out right.
#[allow(clippy::disallowed_methods, reason = "polling another process")]
pub fn eventually<T>(what: &str, seconds: u64, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = System.monotonic();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        let waited = System.monotonic() - start;
        assert!(waited < Duration::from_secs(seconds), "{what}: not within {seconds} s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lets `millis` pass, for killing at a random moment.
#[allow(clippy::disallowed_methods, reason = "a random moment is what the test is about")]
pub fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// Says loudly that something is missing; under CI that is a failure.
pub fn skipped(why: &str) {
    // Past the harness, which keeps what a passing test prints and may have begun a line.
    let line = format_args!("\nskipped: {why}\n");
    std::io::Write::write_fmt(&mut std::io::stderr(), line).ok();
    assert!(std::env::var_os("CI").is_none(), "CI never skips: {why}");
}

/// Whether all tools are there; says which is not.
pub fn have(tools: &[&str]) -> bool {
    let missing = tools.iter().find(|tool| {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
        !found.is_ok_and(|output| output.status.success())
    });
    if let Some(tool) = missing {
        skipped(&format!("{tool} is not installed"));
    }
    missing.is_none()
}

/// Whether a file can be exported through FUSE; says why not. An ordinary container lacks the
/// device, or may not open it.
pub fn have_fuse() -> bool {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => true,
        Err(error) => {
            skipped(&format!("/dev/fuse: {error}"));
            false
        }
    }
}

/// A port that the system gives to nobody else while this test runs: it stays bound, by a socket that does
/// not listen. Whoever asks for it by number (with SO_REUSEADDR, as servers do) gets it.
pub fn free_port() -> u16 {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::mem::forget(socket);
    port
}

/// Runs a command to its end and insists on success.
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Output {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("{program}: {error}");
    });
    let args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
    assert!(
        output.status.success(),
        "{program} {}: {}\n{}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// One installation in a temporary directory.
pub struct Site {
    pub directory: tempfile::TempDir,
    pub store: PathBuf,
    pub port: u16,
    pub metrics_port: u16,
}

impl Site {
    /// `holdfast init` with small limits, so that rotation and back-pressure happen in every run.
    pub fn new() -> Self {
        Self::with_store(None)
    }

    /// The same with its store in another place.
    pub fn with_store(store: Option<PathBuf>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, metrics_port) = (free_port(), free_port());
        let store = store.unwrap_or_else(|| directory.path().join("store"));
        let site = Self { directory, store, port, metrics_port };
        let root = site.root();
        let store = format!("dir:{}", site.store.display());
        let listen = format!("127.0.0.1:{port}");
        site.holdfast(&["init", root.to_str().unwrap(), "--store", &store, "--listen", &listen]);
        site.set("metrics_listen", format!("127.0.0.1:{metrics_port}"));
        site.set("cache.segment_bytes", 4 << 20);
        site.set("cache.bytes_max", 64 << 20);
        site.set("batch.bytes_max", 1 << 20);
        site.set("batch.age_max_ms", 100);
        site.set("apply.interval_ms", 100);
        site.set("sidecar.snapshot_interval_min_s", 1);
        site
    }

    pub fn root(&self) -> PathBuf {
        self.path("site")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.root().join("holdfast.toml")
    }

    /// Changes one setting of `holdfast.toml`, named by its dotted path.
    pub fn set(&self, key: &str, value: impl Into<toml::Value>) {
        set(&self.config(), key, value.into());
    }

    /// Runs the binary with `--config` where the subcommand takes one.
    pub fn try_holdfast(&self, args: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        command.args(args);
        if args[0] != "init" {
            command.arg("--config").arg(self.config());
        }
        command.output().unwrap()
    }

    /// As [`Site::try_holdfast`], insisting on success; gives standard output.
    pub fn holdfast(&self, args: &[&str]) -> String {
        let output = self.try_holdfast(args);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "holdfast {args:?}: {}\n{out}{err}", output.status);
        out
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut with_json = args.to_vec();
        with_json.push("--json");
        let text = self.holdfast(&with_json);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// Enrols a machine whose disks are sparse files made here.
    pub fn enroll(&self, machine: &str, disks: &[(&str, u64)]) -> AgentSite {
        let directory = self.path(&format!("agent-{machine}"));
        let mut args = vec!["enroll".to_owned(), machine.to_owned(), "--out".to_owned()];
        args.push(directory.display().to_string());
        for (name, size) in disks {
            let path = self.disk(machine, name);
            if !path.exists() {
                File::create(&path).unwrap().set_len(*size).unwrap();
            }
            args.push("--disk".to_owned());
            args.push(format!("{name}={}", path.display()));
        }
        self.holdfast(&args.iter().map(String::as_str).collect::<Vec<_>>());
        AgentSite { directory }
    }

    /// The source file of a machine's disk.
    pub fn disk(&self, machine: &str, disk: &str) -> PathBuf {
        self.path(&format!("{machine}-{disk}.img"))
    }

    pub fn serve(&self) -> Process {
        let config = self.config();
        let serve = Process::spawn(&self.path("serve.log"), &["serve", "--config", text(&config)]);
        let url = format!("http://127.0.0.1:{}/healthz", self.metrics_port);
        serve.ready("the process server answers", 60, || curl(&url).map(drop));
        serve
    }

    /// A command that goes on beside the test.
    pub fn spawn(&self, args: &[&str]) -> Process {
        let config = self.config();
        let args = [args, &["--config", text(&config)]].concat();
        Process::spawn(&self.path("command.log"), &args)
    }

    pub fn apply(&self) -> Process {
        let config = self.config();
        Process::spawn(&self.path("apply.log"), &["apply", "--config", text(&config)])
    }

    /// The metrics page.
    pub fn metrics(&self) -> String {
        let url = format!("http://127.0.0.1:{}/metrics", self.metrics_port);
        eventually("metrics", 20, || curl(&url))
    }

    /// Live status of a machine from the process server.
    pub fn status(&self, machine: &str) -> Option<serde_json::Value> {
        let text = curl(&format!("http://127.0.0.1:{}/v1/status", self.metrics_port))?;
        let all: serde_json::Value = serde_json::from_str(&text).ok()?;
        all["machines"].as_array()?.iter().find(|m| m["machine"] == machine).cloned()
    }

    /// All recovery points of a machine, from the store.
    pub fn points(&self, machine: &str) -> Vec<serde_json::Value> {
        self.json(&["points", machine])["points"].as_array().unwrap().clone()
    }

    /// Exports a disk at a point as raw.
    pub fn export(&self, machine: &str, disk: &str, point: &str) -> PathBuf {
        let name = point.replace([':', '/'], "-");
        let out = self.path(&format!("{machine}-{disk}-{name}.out"));
        let _ = fs::remove_file(&out);
        let args = ["export", machine, "--disk", disk, "--point", point, "--format", "raw"];
        let mut args = args.to_vec();
        args.extend(["--out", text(&out)]);
        self.holdfast(&args);
        out
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets a dotted key of a TOML file.
pub fn set(file: &Path, key: &str, value: toml::Value) {
    let mut table: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap();
    let mut at = &mut table;
    for part in parts {
        let entry = at.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = entry.as_table_mut().unwrap();
    }
    at.insert(last.to_owned(), value);
    fs::write(file, toml::to_string(&table).unwrap()).unwrap();
}

/// Body of a successful GET.
pub fn curl(url: &str) -> Option<String> {
    let output = Command::new("curl").args(["-sf", "--max-time", "5", url]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An enrolled machine's agent directory.
pub struct AgentSite {
    pub directory: PathBuf,
}

impl AgentSite {
    pub fn config(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    pub fn set(&self, key: &str, value: impl Into<toml::Value>) {
        set(&self.config(), key, value.into());
    }

    pub fn socket(&self, disk: &str) -> PathBuf {
        self.directory.join(format!("{disk}.sock"))
    }

    pub fn url(&self, disk: &str) -> String {
        format!("nbd+unix:///{disk}?socket={}", self.socket(disk).display())
    }

    /// Starts the agent and waits until its disks are served.
    pub fn start(&self, disks: &[&str]) -> Process {
        let log = self.directory.with_extension("log");
        let agent = Process::spawn(&log, &["agent", "--config", text(&self.config())]);
        for disk in disks {
            let socket = self.socket(disk);
            agent.ready("the agent serves its disk", 60, || {
                std::os::unix::net::UnixStream::connect(&socket).ok().map(drop)
            });
        }
        agent
    }

    /// Chunks whose bits are set in a disk's write-intent bitmap as it stands in its file
    /// (docs/agent.md): what the next start sends again.
    pub fn intents(&self, disk: &str) -> u64 {
        let name = format!("{disk}.bitmap");
        let all = files(&self.directory);
        let path = all.iter().find(|path| path.file_name().is_some_and(|end| *end == *name));
        let bytes = fs::read(path.unwrap()).unwrap();
        let pages = bytes[8192..].chunks(512);
        pages.flat_map(|page| &page[8..]).map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// What the agent last said about itself.
    pub fn status(&self) -> Option<serde_json::Value> {
        let mut found = Vec::new();
        let mut folders = vec![self.directory.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).ok()?.flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else if entry.file_name() == "status.json" {
                    found.push(entry.path());
                }
            }
        }
        serde_json::from_str(&fs::read_to_string(found.first()?).ok()?).ok()
    }
}

/// A child process with its output in a file.
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    pub fn spawn(log: &Path, args: &[&str]) -> Self {
        Self::spawn_with(log, args, &[])
    }

    pub fn spawn_with(log: &Path, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(BINARY);
        command.args(args).envs(variables.iter().copied());
        Self::run(log, args[0], command)
    }

    /// Another program than ours.
    pub fn spawn_program(log: &Path, program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self::run(log, program, command)
    }

    fn run(log: &Path, name: &str, mut command: Command) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log: log.to_owned(), name: name.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `probe`; shows the log when it does not come or the process ended.
    pub fn ready(&self, what: &str, seconds: u64, mut probe: impl FnMut() -> Option<()>) {
        let start = System.monotonic();
        while probe().is_none() {
            let gone = !Path::new(&format!("/proc/{}/exe", self.pid())).exists();
            let late = System.monotonic() - start > Duration::from_secs(seconds);
            assert!(!gone && !late, "{what}: {} ended or is late\n{}", self.name, self.log());
            pause(20);
        }
    }

    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let from = text.len().saturating_sub(8000);
        text.get(from..).unwrap_or(&text).to_owned()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for an orderly end.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.signal("TERM");
        let status = eventually("an orderly end", 60, || self.child.try_wait().unwrap());
        assert!(status.success(), "{} ended with {status}\n{}", self.name, self.log());
        status
    }

    pub fn signal(&self, name: &str) {
        run("kill", &[&format!("-{name}"), &self.pid().to_string()]);
    }

    /// Exit status, if it ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("── {} ──\n{}", self.log.display(), self.log());
        }
    }
}

/// All files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => found.push(path),
            }
        }
    }
    found
}

/// Paths of all delta objects of a machine: in a `dir:` store an object is the file of its name.
pub fn delta_paths(store: &Path, machine: &str) -> Vec<PathBuf> {
    files(&store.join("machines").join(machine).join("log"))
}

/// Their names.
pub fn delta_objects(store: &Path, machine: &str) -> Vec<String> {
    let prefix = format!("machines/{machine}/log/");
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    delta_paths(store, machine).iter().map(|path| prefix.clone() + &name(path)).collect()
}

/// The file of an object.
pub fn object(store: &Path, name: &str) -> PathBuf {
    store.join(name)
}

/// The file of a seed disk: it is the fixed VHD itself.
pub fn seed_disk(store: &Path, name: &str) -> PathBuf {
    store.join("seed").join(name)
}
