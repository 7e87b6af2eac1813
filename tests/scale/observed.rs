//! What the kernel says about a process.

use std::fs;

/// Memory and time of one process.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// Memory that is not the file cache, bytes.
    pub anonymous: u64,
    /// CPU time, ms.
    pub cpu_ms: u64,
}

impl Observed {
    pub fn of(pid: u32) -> Self {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
        let anonymous = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Self { anonymous, cpu_ms: ticks * 10 }
    }
}

/// As many open files as the system lets this process and its children have.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
}
