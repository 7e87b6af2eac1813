//! QEMU's monitor protocol, as far as it is needed: one command at a time, one JSON document a line.
//!
//! Owns: greeting, limits of time and size, telling answers from events. Does not own: which
//! commands.

mod trouble;

use std::io::{self, Read, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::nbd::{Channel, Peer};
use trouble::Troubles;

/// Longest wait for any answer. A guest's disk that hangs makes its monitor hang, too.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line that is taken, bytes: the nodes of a guest with hundreds of disks.
const LINE_BYTES_MAX: usize = 8 << 20;
/// Most events between a command and its answer.
const EVENTS_MAX: usize = 100_000;

/// What went wrong at a monitor.
#[derive(Debug, thiserror::Error)]
pub(in crate::agent) enum QmpError {
    /// Nobody there, or gone, or silent.
    #[error(
        "QEMU's monitor at {socket}: {action}; a monitor serves one client at a time, so give the \
         agent one of its own {}", how(.socket)
    )]
    Io {
        /// Which one.
        socket: String,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// One of the two does not believe the other.
    #[error(
        "QEMU's monitor at {socket}: {action}; its tls-creds-x509 object and the files in the agent's \
         [mirror] must be of one CA, and QEMU's certificate must carry that host"
    )]
    Tls {
        /// Which one.
        socket: String,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What came is not QMP.
    #[error("{socket} does not speak QMP: {detail}")]
    Alien {
        /// Which one.
        socket: String,
        /// What came.
        detail: String,
    },
    /// QEMU said no.
    #[error("QEMU at {socket} refuses {command}: {said}")]
    Refused {
        /// Which one.
        socket: String,
        /// Which command.
        command: &'static str,
        /// Its words.
        said: String,
    },
}

impl QmpError {
    /// Whether nobody is there, or is there no more. A monitor that is only silent is there.
    pub(super) fn gone(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        !matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
    }
}

/// A connection to one monitor.
#[derive(Debug)]
pub(in crate::agent) struct Qmp {
    stream: Channel,
    socket: String,
    /// Received and not yet taken.
    pending: Vec<u8>,
    /// What went wrong with jobs and the guest's disks, as events told it.
    trouble: Troubles,
}

impl Qmp {
    /// Connects and agrees on capabilities.
    ///
    /// # Errors
    /// When nobody answers there, or another client is connected, or it is no monitor.
    pub(in crate::agent) fn connect(monitor: &Peer) -> Result<Self, QmpError> {
        let socket = monitor.to_string();
        let stream =
            Channel::open(monitor).map_err(|source| failed(&socket, "connecting", source))?;
        let timed = stream.within(Some(PATIENCE));
        timed.map_err(|source| failed(&socket, "setting a time limit", source))?;
        let mut qmp = Self { stream, socket, pending: Vec::new(), trouble: Troubles::default() };
        let greeting = qmp.document("waiting for its greeting")?;
        if greeting.get("QMP").is_none() {
            return Err(qmp.alien(&greeting.to_string()));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Carries out one command; gives what it returns.
    ///
    /// # Errors
    /// When QEMU refuses it, or the connection is of no use any more.
    pub(in crate::agent) fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        tracing::trace!(line, "asked of QEMU");
        let sent = self.stream.write_all(line.as_bytes()).and_then(|()| self.stream.flush());
        sent.map_err(|source| self.io("sending a command", source))?;
        for _ in 0..EVENTS_MAX {
            let mut answer = self.document("waiting for an answer")?;
            if let Some(event) = answer.get("event").and_then(Value::as_str) {
                self.trouble.hear(event, &answer["data"]);
            } else if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            } else if let Some(said) = answer["error"]["desc"].as_str() {
                let (socket, said) = (self.socket.clone(), said.to_owned());
                return Err(QmpError::Refused { socket, command, said });
            } else {
                return Err(self.alien(&answer.to_string()));
            }
        }
        Err(self.alien("events without end"))
    }

    /// Events about a disk are kept from here on, and none from before: see [`Troubles::watch`].
    pub(super) fn watch(&mut self, job: &str, nodes: [String; 2], topmost: bool) {
        self.trouble.watch(job, nodes, topmost);
    }

    /// What events told of this disk since the last time this was asked.
    pub(super) fn take_trouble(&mut self, job: &str) -> Option<String> {
        self.trouble.take(job)
    }

    fn document(&mut self, action: &'static str) -> Result<Value, QmpError> {
        let mut seen = 0;
        loop {
            if let Some(end) = self.pending[seen..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=seen + end).collect();
                let document = serde_json::from_slice(&line);
                return document.map_err(|error| self.alien(&error.to_string()));
            }
            seen = self.pending.len();
            if seen > LINE_BYTES_MAX {
                return Err(self.alien(&format!("a line of more than {LINE_BYTES_MAX} bytes")));
            }
            let mut part = [0; 16 << 10];
            match self.stream.read(&mut part) {
                Ok(0) => return Err(self.io(action, io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => self.pending.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(action, error)),
            }
        }
    }

    fn io(&self, action: &'static str, source: io::Error) -> QmpError {
        failed(&self.socket, action, source)
    }

    /// Which one this is, for messages.
    pub(super) fn monitor(&self) -> &str {
        &self.socket
    }

    fn alien(&self, detail: &str) -> QmpError {
        let detail = detail.chars().take(200).collect();
        QmpError::Alien { socket: self.socket.clone(), detail }
    }
}

fn failed(socket: &str, action: &'static str, source: io::Error) -> QmpError {
    let socket = socket.to_owned();
    // Nothing but TLS finds fault with bytes.
    if source.kind() == io::ErrorKind::InvalidData {
        return QmpError::Tls { socket, action, source };
    }
    QmpError::Io { socket, action, source }
}

/// What to start QEMU with.
fn how(socket: &str) -> &'static str {
    if socket.starts_with("tls:") {
        "(-chardev socket,id=…,host=…,port=…,server=on,wait=off,tls-creds=…); it also hangs up without a \
         word when the agent's certificate is not of its CA"
    } else {
        "(-qmp unix:PATH,server=on,wait=off)"
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A monitor that says `greeting`, and to each command the next of `answers`.
    fn monitor(greeting: &'static str, answers: &'static [&'static str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("qmp")).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            stream.write_all(greeting.as_bytes()).unwrap();
            for answer in answers {
                lines.next();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        directory
    }

    const GREETING: &str = "{\"QMP\": {}}\r\n";

    #[test]
    fn answers_are_told_from_events_and_refusals_name_the_command() {
        let directory = monitor(
            GREETING,
            &[
                "{\"return\": {}}\r\n",
                "{\"event\": \"BLOCK_JOB_COMPLETED\", \"data\": {\"device\": \"j\", \"error\": \
                 \"Input/output error\"}}\r\n{\"event\": \"RESUME\"}\r\n{\"return\": [7]}\r\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Cannot find device\"}}\n",
            ],
        );
        let mut qmp = Qmp::connect(&Peer::Socket(directory.path().join("qmp"))).unwrap();
        qmp.watch("j", Default::default(), true);
        assert_eq!(qmp.execute("query-jobs", json!({})).unwrap(), json!([7]));
        assert_eq!(qmp.take_trouble("j").unwrap(), "job j failed: Input/output error");
        assert_eq!(qmp.take_trouble("j"), None);
        let refused = qmp.execute("blockdev-mirror", json!({})).unwrap_err().to_string();
        assert!(refused.ends_with("refuses blockdev-mirror: Cannot find device"), "{refused}");
        let gone = qmp.execute("query-jobs", json!({})).unwrap_err();
        assert!(matches!(gone, QmpError::Io { .. }), "{gone}");
    }

    #[test]
    fn what_is_no_monitor_is_told_so() {
        for greeting in ["SSH-2.0-OpenSSH\r\n", "{\"return\": {}}\n", "[]\n"] {
            let directory = monitor(greeting, &[]);
            let told = Qmp::connect(&Peer::Socket(directory.path().join("qmp"))).unwrap_err();
            assert!(matches!(told, QmpError::Alien { .. }), "{told}");
        }
        let told = Qmp::connect(&Peer::Socket("/no/such/socket".into())).unwrap_err().to_string();
        assert!(told.contains("/no/such/socket: connecting"), "{told}");
    }
}
