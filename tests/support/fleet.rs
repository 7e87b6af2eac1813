//! Several process servers on one `dir:` store: the site's own settings with other names, ports and
//! directories.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use holdfast::clock::{Clock, System};

use super::{Process, Site, curl, eventually, free_port, set, text};

/// One process server of a fleet, running or not.
pub struct Server {
    pub name: String,
    pub config: PathBuf,
    pub port: u16,
    pub metrics_port: u16,
    pub log: PathBuf,
    pub process: Option<Process>,
}

impl Server {
    /// Settings beside those of the site.
    pub fn new(site: &Site, number: usize) -> Self {
        let name = format!("ps-{number}");
        let config = site.root().join(format!("{name}.toml"));
        fs::copy(site.config(), &config).unwrap();
        let (port, metrics_port) = (free_port(), free_port());
        let log = site.path(&format!("{name}.log"));
        let server = Self { name: name.clone(), config, port, metrics_port, log, process: None };
        server.set("server", name.clone());
        server.set("listen", format!("127.0.0.1:{port}"));
        server.set("advertise", format!("127.0.0.1:{port}"));
        server.set("metrics_listen", format!("127.0.0.1:{metrics_port}"));
        server.set("cache.directory", format!("cache-{name}"));
        server.set("run_directory", format!("run-{name}"));
        server
    }

    pub fn set(&self, key: &str, value: impl Into<toml::Value>) {
        set(&self.config, key, value.into());
    }

    /// Starts it and waits until it answers.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same with variables in its environment.
    pub fn start_with(&mut self, variables: &[(&str, &str)]) {
        let args = ["serve", "--config", text(&self.config)];
        let process = Process::spawn_with(&self.log, &args, variables);
        let url = self.url("healthz");
        process.ready("a process server answers", 60, || curl(&url).map(drop));
        self.process = Some(process);
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.metrics_port)
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Its machines that have an agent, with how far each is durable.
    pub fn connected(&self) -> Vec<(String, u64)> {
        let Some(text) = self.process.as_ref().and_then(|_| curl(&self.url("v1/status"))) else {
            return Vec::new();
        };
        let all: serde_json::Value = serde_json::from_str(&text).unwrap();
        let machines = all["machines"].as_array().unwrap();
        let connected = machines.iter().filter(|machine| machine["connected"] == true);
        connected
            .map(|machine| {
                let name = machine["machine"].as_str().unwrap().to_owned();
                (name, machine["durable"].as_u64().unwrap())
            })
            .collect()
    }

    /// One number of its metrics page.
    pub fn metric(&self, name: &str) -> u64 {
        let page = eventually("metrics", 20, || curl(&self.url("metrics?machines=false")));
        let line = page.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// All of them.
pub struct Fleet {
    pub servers: Vec<Server>,
}

impl Fleet {
    pub fn start(site: &Site, count: usize) -> Self {
        let mut servers: Vec<_> = (1..=count).map(|number| Server::new(site, number)).collect();
        servers.iter_mut().for_each(Server::start);
        Self { servers }
    }

    /// Who has the machine's agent, and how far its stream is durable there.
    pub fn serving(&self, machine: &str) -> Option<(usize, u64)> {
        self.servers.iter().enumerate().find_map(|(at, server)| {
            let connected = server.connected();
            let found = connected.into_iter().find(|(name, _)| name == machine);
            found.map(|(_, durable)| (at, durable))
        })
    }

    /// How long after `since` each of these machines has a record durable, on some server, that was
    /// not durable before.
    pub fn resumed(&self, machines: &[(String, u64)], since: Duration) -> Vec<Duration> {
        let mut waiting: Vec<_> = machines.to_vec();
        let mut took = Vec::new();
        eventually("all machines go on", 120, || {
            for server in self.servers.iter().filter(|server| server.is_running()) {
                for (name, durable) in server.connected() {
                    let before = waiting.len();
                    waiting.retain(|(machine, was)| *machine != name || durable <= *was);
                    let now = System.monotonic().saturating_sub(since);
                    took.extend(std::iter::repeat_n(now, before - waiting.len()));
                }
            }
            waiting.is_empty().then_some(())
        });
        took
    }
}
