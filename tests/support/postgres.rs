//! PostgreSQL as a workload. Its tools refuse root, and take that of their own user.

use std::path::PathBuf;
use std::process::Command;

use super::text;

/// Runs a PostgreSQL tool as its own user (it refuses root).
pub fn postgres(args: &[&str]) -> std::process::Output {
    let mut all = vec!["-u", "postgres", "--", "env", "-C", "/", "LC_ALL=C"];
    all.extend(args);
    Command::new("runuser").args(&all).output().unwrap()
}

pub fn insist(args: &[&str]) -> String {
    let output = postgres(args);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {out}{err}");
    out
}

/// A cluster on a mounted file system.
pub struct Cluster {
    pub folder: PathBuf,
    pub port: String,
}

impl Cluster {
    pub fn start(&self) {
        let options = format!("-p {} -c listen_addresses= -k {}", self.port, text(&self.folder));
        let data = self.folder.join("data");
        let log = self.folder.join("log");
        let args = ["pg_ctl", "-w", "-D", text(&data), "-l", text(&log), "-o", &options, "start"];
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(postgres(&args).status.success(), "it does not start: {}", said());
    }

    pub fn stop(&self) {
        let data = self.folder.join("data");
        insist(&["pg_ctl", "-w", "-m", "fast", "-D", text(&data), "stop"]);
    }

    pub fn args<'a>(&'a self, program: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec![program, "-h", text(&self.folder), "-p", &self.port];
        args.extend(rest);
        args
    }

    pub fn sql(&self, statement: &str) -> Option<String> {
        let output = postgres(&self.args("psql", &["-d", "postgres", "-Atqc", statement]));
        let out = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(out)
    }
}
