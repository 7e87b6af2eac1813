//! A QEMU with one disk, `vda`, and no guest, whose writes come over an export. The test has a monitor of
//! its own beside the agent's.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{eventually, text};

/// Ended when dropped.
pub struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    /// Starts `program`; `arguments` open the agent's monitor, and the test's at `own`.
    pub fn start<S: AsRef<str>>(program: &str, image: &Path, arguments: &[S], own: &Path) -> Self {
        let child = Command::new(program)
            .args(["--blockdev", &format!("file,node-name=file,filename={}", text(image))])
            .args(["--blockdev", "raw,node-name=vda,file=file"])
            .args(arguments.iter().map(AsRef::as_ref))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let stream = eventually("QEMU's monitor", 20, || UnixStream::connect(own).ok());
        let mut qemu = Self { child, monitor: BufReader::new(stream) };
        qemu.line();
        qemu.ask("qmp_capabilities", json!({})).unwrap();
        qemu
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// One command; gives what it returns, or what QEMU says against it.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        self.monitor.get_mut().write_all(text.as_bytes()).unwrap();
        loop {
            let answer = self.line();
            if answer.get("return").is_some() {
                return Ok(answer["return"].clone());
            }
            if answer.get("error").is_some() {
                return Err(answer["error"]["desc"].to_string());
            }
        }
    }

    /// Names of the block jobs that run.
    pub fn jobs(&mut self) -> Vec<String> {
        let jobs = self.ask("query-block-jobs", json!({})).unwrap();
        let jobs = jobs.as_array().unwrap().iter();
        jobs.map(|job| job["device"].as_str().unwrap().to_owned()).collect()
    }

    /// Begins to export the guest's disk as `guest`. A real guest's device is there before the mirror, which
    /// then steps between; this comes later and is put where that would be: above the mirror.
    pub fn export_guest(&mut self) {
        let job = eventually("the mirror runs", 30, || self.jobs().pop());
        let export = json!({ "type": "nbd", "id": "guest", "name": "guest",
            "node-name": format!("{job}-filter"), "writable": true });
        self.ask("block-export-add", export).unwrap();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
