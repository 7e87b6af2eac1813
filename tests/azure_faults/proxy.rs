//! The program `fault-proxy` (`tests/tools/fault_proxy`) as the tests command it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::azurite::skipped;
use super::words::{Answer, Command as Told, Fault};

impl Fault {
    /// One of all kinds.
    pub(crate) fn of(number: u64) -> Self {
        let after = 1 + number / 9 % 6;
        match number % 9 {
            0 => Self::FailedBefore,
            1 => Self::FailedAfter,
            2 => Self::Busy,
            3 => Self::ResetBefore,
            4 => Self::ResetAfter,
            5 => Self::SilentBefore,
            6 => Self::SilentAfter,
            7 => Self::Again(after),
            _ => Self::Late(after),
        }
    }
}

/// A running proxy; it ends with its standard input.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    child: Mutex<Child>,
}

/// Where cargo put it: only with the feature `places`, as `tests/run` builds.
const PROGRAM: Option<&str> = option_env!("CARGO_BIN_EXE_fault-proxy");

fn heard(out: &mut BufReader<ChildStdout>) -> Answer {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    serde_json::from_str(&line).expect("the proxy has ended")
}

impl Proxy {
    /// Whether there is one; says so when not.
    pub(crate) fn built() -> bool {
        if PROGRAM.is_none() {
            skipped("the fault proxy is built with `--features places`; tests/run does it");
        }
        PROGRAM.is_some()
    }

    pub(crate) fn start(behind: u16) -> Arc<Self> {
        let program = PROGRAM.expect("asked for by `built`");
        let mut child = Command::new(program)
            .arg(behind.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let input = child.stdin.take().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let Answer::Listens { port } = heard(&mut out) else { panic!("it says where it listens") };
        Arc::new(Self { port, pipes: Mutex::new((input, out)), child: Mutex::new(child) })
    }

    fn tell(&self, command: &Told) -> Answer {
        let mut pipes = self.pipes.lock().unwrap();
        let line = serde_json::to_string(command).unwrap();
        writeln!(pipes.0, "{line}").unwrap();
        heard(&mut pipes.1)
    }

    /// The n-th request (from 0) of `container` fails so.
    pub(crate) fn plan(&self, container: &str, faults: HashMap<u64, Fault>) {
        self.tell(&Told::Plan { container: container.to_owned(), faults });
    }

    /// Begins or ends an outage.
    pub(crate) fn away(&self, container: &str, away: bool) {
        self.tell(&Told::Away { container: container.to_owned(), away });
    }

    /// Requests that came, and faults that happened.
    pub(crate) fn counts(&self, container: &str) -> (u64, u64) {
        match self.tell(&Told::Counts { container: container.to_owned() }) {
            Answer::Counts { requests, fired } => (requests, fired),
            other => panic!("{other:?}"),
        }
    }

    /// Delivers what is still on its way; how many that was.
    pub(crate) fn deliver_all(&self, container: &str) -> usize {
        match self.tell(&Told::Deliver { container: container.to_owned() }) {
            Answer::Delivered { requests } => requests,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ended = child.kill().and_then(|()| child.wait());
    }
}
