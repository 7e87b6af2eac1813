//! fio's iolog, versions 2 and 3: what a real machine wrote, and when.
//!
//! Owns: the text format (fio's HOWTO, "Trace file format"). Reads are left out: only changes are
//! replicated. `sync` and `datasync` are flushes, `trim` is a zero.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use holdfast::model::{DISKS_MAX, SECTOR_BYTES};

use crate::error::LoadError;

/// A line that is no iolog's.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("the first line is {0:?}, not \"fio version 2 iolog\" or \"fio version 3 iolog\"")]
    Version(String),
    #[error("line {line}: {text:?} is not {form}")]
    Line { line: usize, text: String, form: &'static str },
    #[error("line {line}: {offset}+{length} is not a run of whole sectors")]
    Unaligned { line: usize, offset: u64, length: u64 },
    #[error("more than {DISKS_MAX} files; a machine has that many disks at most")]
    Files,
    #[error("there is no write in it")]
    Empty,
}

/// What happens at one moment of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Write,
    Zero,
    Flush,
}

/// One step of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) disk: u16,
    pub(crate) action: Action,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A whole trace; each of its files is a disk.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Trace {
    pub(crate) steps: Vec<Step>,
    /// Bytes of each disk: up to the last write.
    pub(crate) disk_bytes: Vec<u64>,
}

impl Trace {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(LoadError::file(path, "reading it"))?;
        Self::parse(&text).map_err(|source| LoadError::Trace { path: path.to_owned(), source })
    }

    pub(crate) fn parse(text: &str) -> Result<Self, TraceError> {
        let first = text.lines().next().unwrap_or_default().trim();
        let timed = match first {
            "fio version 2 iolog" => false,
            "fio version 3 iolog" => true,
            other => return Err(TraceError::Version(other.chars().take(80).collect())),
        };
        let mut reading = Reading { timed, ..Reading::default() };
        for (line, text) in (2..).zip(text.lines().skip(1)) {
            if !text.trim().is_empty() {
                reading.line(line, text.trim())?;
            }
        }
        let writes = reading.trace.steps.iter().any(|step| step.action != Action::Flush);
        if writes { Ok(reading.trace) } else { Err(TraceError::Empty) }
    }

    /// From its first step to its last.
    pub(crate) fn span(&self) -> Duration {
        self.steps.last().map_or(Duration::ZERO, |step| step.at)
    }
}

#[derive(Default)]
struct Reading {
    timed: bool,
    now_us: u64,
    disks: HashMap<String, u16>,
    trace: Trace,
}

impl Reading {
    /// Version 2: `file action [offset length]`; version 3: the same behind a time in µs. In version 2
    /// time passes by `wait`, whose offset is µs.
    fn line(&mut self, line: usize, text: &str) -> Result<(), TraceError> {
        let wrong = |form| TraceError::Line { line, text: text.chars().take(80).collect(), form };
        let mut fields = text.split_ascii_whitespace();
        if self.timed {
            let time = fields.next().and_then(|field| field.parse().ok());
            let time: u64 = time.ok_or_else(|| wrong("TIME FILE ACTION [OFFSET LENGTH]"))?;
            self.now_us = self.now_us.max(time);
        }
        let (Some(file), Some(action)) = (fields.next(), fields.next()) else {
            return Err(wrong("FILE ACTION [OFFSET LENGTH]"));
        };
        let mut number = || fields.next().and_then(|field| field.parse::<u64>().ok());
        let (first, second) = (number(), number());
        let place = || first.zip(second).ok_or_else(|| wrong("FILE ACTION OFFSET LENGTH"));
        match action {
            "add" => self.disk(file).map(drop),
            "open" | "close" | "read" => Ok(()),
            "wait" if !self.timed => {
                self.now_us = self.now_us.saturating_add(place()?.0);
                Ok(())
            }
            "write" | "trim" => {
                let (offset, length) = place()?;
                let action = if action == "trim" { Action::Zero } else { Action::Write };
                self.touch(line, file, action, offset, length)
            }
            "sync" | "datasync" => {
                let disk = self.disk(file)?;
                self.step(disk, Action::Flush, 0, 0);
                Ok(())
            }
            _ => Err(wrong("an action: add, open, close, read, write, trim, sync, datasync, wait")),
        }
    }

    fn disk(&mut self, file: &str) -> Result<u16, TraceError> {
        if let Some(disk) = self.disks.get(file) {
            return Ok(*disk);
        }
        if self.disks.len() >= DISKS_MAX {
            return Err(TraceError::Files);
        }
        let disk = self.disks.len() as u16;
        self.disks.insert(file.to_owned(), disk);
        self.trace.disk_bytes.push(0);
        Ok(disk)
    }

    fn touch(
        &mut self,
        line: usize,
        file: &str,
        action: Action,
        offset: u64,
        length: u64,
    ) -> Result<(), TraceError> {
        let whole = |bytes: u64| bytes.is_multiple_of(SECTOR_BYTES);
        let end = offset.checked_add(length).filter(|_| length > 0);
        let (true, true, Some(end)) = (whole(offset), whole(length), end) else {
            return Err(TraceError::Unaligned { line, offset, length });
        };
        let disk = self.disk(file)?;
        let size = &mut self.trace.disk_bytes[usize::from(disk)];
        *size = (*size).max(end);
        self.step(disk, action, offset, length);
        Ok(())
    }

    fn step(&mut self, disk: u16, action: Action, offset: u64, length: u64) {
        let at = Duration::from_micros(self.now_us);
        self.trace.steps.push(Step { at, disk, action, offset, length });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(us: u64, disk: u16, action: Action, offset: u64, length: u64) -> Step {
        Step { at: Duration::from_micros(us), disk, action, offset, length }
    }

    #[test]
    fn version_2_waits() {
        let trace = Trace::parse(
            "fio version 2 iolog\n/dev/vda add\n/dev/vdb add\n/dev/vda open\n\
             /dev/vda write 4096 8192\n/dev/vda wait 250 0\n/dev/vdb read 0 4096\n\
             /dev/vdb trim 0 1048576\n/dev/vda datasync 0 0\n/dev/vda close\n",
        );
        let expected = vec![
            step(0, 0, Action::Write, 4096, 8192),
            step(250, 1, Action::Zero, 0, 1 << 20),
            step(250, 0, Action::Flush, 0, 0),
        ];
        let trace = trace.unwrap();
        assert_eq!(trace.steps, expected);
        assert_eq!(trace.disk_bytes, [12288, 1 << 20]);
        assert_eq!(trace.span(), Duration::from_micros(250));
    }

    #[test]
    fn version_3_has_times() {
        let trace = Trace::parse(
            "fio version 3 iolog\n2 Nvme1n1 add\n872 Nvme1n1 open\n878 Nvme1n1 write 0 16384\n\
             888 Nvme1n1 write 512 512\n1000 Nvme1n1 close\n",
        );
        let expected =
            vec![step(878, 0, Action::Write, 0, 16384), step(888, 0, Action::Write, 512, 512)];
        assert_eq!(trace.unwrap().steps, expected);
    }

    #[test]
    fn nonsense_is_named_with_its_line() {
        let error = |text: &str| Trace::parse(text).unwrap_err().to_string();
        assert!(error("blktrace").contains("first line"));
        assert!(error("fio version 3 iolog\n").contains("no write"));
        let head = "fio version 2 iolog\na add\n";
        assert!(error(&format!("{head}a write 5 512")).starts_with("line 3: 5+512"));
        assert!(error(&format!("{head}a write 0 0")).contains("line 3"));
        assert!(error(&format!("{head}a write x 512")).contains("line 3"));
        assert!(error(&format!("{head}a explode")).contains("an action"));
        assert!(error("fio version 3 iolog\na write 0 512").contains("TIME"));
        assert!(error(&format!("{head}a wait")).contains("line 3"));
        let many: String = (0..=DISKS_MAX).map(|n| format!("f{n} add\n")).collect();
        assert_eq!(
            Trace::parse(&format!("fio version 2 iolog\n{many}")).unwrap_err(),
            TraceError::Files
        );
    }
}
