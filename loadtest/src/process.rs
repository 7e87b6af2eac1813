//! Child processes: started, watched through `/proc`, ended by their id.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::error::LoadError;
use crate::wait::{eventually, pause};

/// Time that a process has to end by itself: the server publishes what is left for 30 s.
const END: Duration = Duration::from_secs(45);

/// A process of this run. Dropping it ends it.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    watch: Option<Watch>,
}

/// Looks at the anonymous memory of a process from time to time.
struct Watch {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// Most memory that a process had.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Memory {
    /// `VmHWM`: everything in RAM, with file pages that the system may take back at any time.
    pub(crate) peak_bytes: u64,
    /// `RssAnon`, looked at 10 times a second: what only the process can give back.
    pub(crate) anonymous_bytes: u64,
}

impl Process {
    /// Starts `program`; what it says goes to `log`.
    pub(crate) fn start<S: AsRef<OsStr>>(
        program: &Path,
        args: &[S],
        log: &Path,
    ) -> Result<Self, LoadError> {
        let file = File::create(log).map_err(LoadError::file(log, "creating it"))?;
        let both = file.try_clone().map_err(LoadError::file(log, "sharing it"))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(file).stderr(both);
        let child = command.spawn().map_err(LoadError::file(program, "starting it"))?;
        let watch = Some(Watch::start(child.id()));
        Ok(Self { child, log: log.to_owned(), watch })
    }

    /// Fails when the process has ended, with the last of what it said.
    pub(crate) fn expect_alive(&mut self) -> Result<(), LoadError> {
        let failed = LoadError::file(&self.log, "waiting for its process");
        let Some(status) = self.child.try_wait().map_err(failed)? else { return Ok(()) };
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<_> = said.lines().rev().take(5).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join(" | ");
        let tool = self.log.display().to_string();
        Err(LoadError::Tool { tool, what: format!("ended with {status}: {last}") })
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU seconds of all its threads, dead ones included, kernel time included.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, LoadError> {
        cpu_seconds(self.child.id())
    }

    /// Most memory so far.
    pub(crate) fn memory(&self) -> Memory {
        Memory {
            peak_bytes: status_bytes(self.child.id(), "VmHWM:").unwrap_or(0),
            anonymous_bytes: self.watch.as_ref().map_or(0, |w| w.most.load(Ordering::Relaxed)),
        }
    }

    /// Kills it: what it did not sync or send is lost.
    pub(crate) fn kill(mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        self.end();
    }

    /// Asks it to stop and waits for that; kills it when it does not listen.
    pub(crate) fn end(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.stop.store(true, Ordering::Relaxed);
            drop(watch.thread.join());
        }
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM).ok(); // it may just have ended
        let ended = eventually("the end of a process", END, || {
            Ok((!matches!(self.child.try_wait(), Ok(None))).then_some(()))
        });
        if ended.is_err() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

impl Watch {
    fn start(pid: u32) -> Self {
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&most));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Some(bytes) = status_bytes(pid, "RssAnon:") else { return };
                seen.fetch_max(bytes, Ordering::Relaxed);
                pause(Duration::from_millis(100));
            }
        });
        Self { stop, most, thread }
    }
}

/// Sees to it that `needed` files can be open at once, in this process and in those that it starts:
/// thousands of machines are thousands of sockets. `who` needs them.
pub(crate) fn open_files(needed: u64, who: &str) -> Result<(), LoadError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let hard = maximum.unwrap_or(u64::MAX);
    // Above the hard limit only the super user may go; who may not is left with what there is.
    let wishes = [Some(hard.max(needed)), maximum];
    let raised = wishes.into_iter().find(|&wish| {
        let limit = Rlimit { current: wish, maximum: wish };
        current == wish || setrlimit(Resource::Nofile, limit).is_ok()
    });
    enough(raised.unwrap_or(current).unwrap_or(u64::MAX), needed, who)
}

fn enough(may: u64, needed: u64, who: &str) -> Result<(), LoadError> {
    if may >= needed {
        return Ok(());
    }
    Err(LoadError::Usage(format!(
        "{who} need {needed} open files, the limit is {may} (RLIMIT_NOFILE): raise it, such as with \
         `ulimit -Hn {needed}` as root or LimitNOFILE= of a systemd unit, or ask for fewer"
    )))
}

/// CPU seconds of all threads of a process, dead ones included, kernel time included.
pub(crate) fn cpu_seconds(id: u32) -> Result<f64, LoadError> {
    let path = PathBuf::from(format!("/proc/{id}/stat"));
    let stat = fs::read_to_string(&path).map_err(LoadError::file(&path, "reading it"))?;
    // The second field is the name in parentheses and may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .skip(11) // utime and stime: the 14th and 15th of the whole line
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// A line of `/proc/PID/status`.
pub(crate) fn status_bytes(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Runs a program to its end; what it printed.
pub(crate) fn output<S: AsRef<OsStr>>(program: &Path, args: &[S]) -> Result<String, LoadError> {
    // The super user's programs are often not on other users' path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = output.map_err(LoadError::file(program, "running it"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let first = args.first().map_or_else(String::new, |arg| arg.as_ref().display().to_string());
    let what = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LoadError::Tool { tool: format!("{} {first}", program.display()), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_open_files_name_the_limit_and_the_cure() {
        assert!(enough(1024, 1024, "512 machines").is_ok());
        let error = enough(1023, 1024, "512 machines").unwrap_err();
        let said = error.to_string();
        for word in ["512 machines need 1024", "is 1023", "RLIMIT_NOFILE", "ulimit -Hn 1024"] {
            assert!(said.contains(word), "{said}");
        }
        assert_eq!(error.exit_code(), 2);
    }
}
