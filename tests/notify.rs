//! What the service manager hears of the real programs: ready when they answer, alive while they turn
//! over, stopping when they do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::io;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use support::{Process, Site, curl, eventually, free_port, have, text};

/// Between two words of a service, twice.
const INTERVAL: Duration = Duration::from_millis(400);

/// systemd's end.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    fn new(site: &Site) -> Self {
        let path = site.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, name: text(&path).to_owned() }
    }

    fn starts(&self, site: &Site, args: &[&str]) -> Process {
        let interval = INTERVAL.as_micros().to_string();
        let variables = [("NOTIFY_SOCKET", &*self.name), ("WATCHDOG_USEC", &interval)];
        Process::spawn_with(&site.path("notified.log"), args, &variables)
    }

    /// The next word, if one comes within `wait`.
    fn hears(&self, wait: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut bytes = [0; 4096];
        match self.socket.recv(&mut bytes) {
            Ok(length) => Some(String::from_utf8_lossy(&bytes[..length]).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for a word that has this in it.
    fn waits_for(&self, what: &str) -> String {
        eventually(what, 60, || self.hears(INTERVAL).filter(|word| word.contains(what)))
    }
}

/// The process does nothing any more, whatever it was about to do.
fn stands_still(process: &Process) {
    process.signal("STOP");
    eventually("it is stopped", 20, || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
        stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T').then_some(())
    });
}

#[test]
fn an_agent_is_ready_when_it_answers_and_alive_only_while_it_turns_over() {
    let site = Site::new();
    let agent = site.enroll("web-1", &[("root", 4 << 20)]);
    let manager = Manager::new(&site);
    let config = agent.config();
    let args = ["agent", "--config", text(&config)];

    let (disk, away) = (site.disk("web-1", "root"), site.path("away.img"));
    std::fs::rename(&disk, &away).unwrap();
    let mut useless = manager.starts(&site, &args);
    eventually("it ends without its disk", 60, || useless.ended());
    assert_eq!(manager.hears(Duration::from_millis(1)), None, "and never was ready");
    std::fs::rename(&away, &disk).unwrap();

    let process = manager.starts(&site, &args);
    assert_eq!(manager.waits_for("READY=1"), "READY=1");
    UnixStream::connect(agent.socket("root")).unwrap();
    let word = manager.waits_for("WATCHDOG=1");
    assert!(word.contains("\nSTATUS="), "{word}");
    manager.waits_for("STATUS=bitmap: no process server has answered yet");
    stands_still(&process);
    while manager.hears(Duration::from_millis(1)).is_some() {}
    assert_eq!(manager.hears(4 * INTERVAL), None, "nobody is there to speak");
    process.signal("CONT");
    for _ in 0..3 {
        manager.waits_for("WATCHDOG=1");
    }
    process.signal("TERM");
    manager.waits_for("STOPPING=1");
}

#[test]
fn a_server_and_a_sidecar_are_ready_when_they_answer() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    let port = free_port();
    site.set("sidecar.listen", format!("127.0.0.1:{port}"));
    let config = site.config();
    let manager = Manager::new(&site);
    for (command, answers) in [
        ("serve", format!("http://127.0.0.1:{}/healthz", site.metrics_port)),
        ("sidecar", String::new()),
    ] {
        let process = manager.starts(&site, &[command, "--config", text(&config)]);
        manager.waits_for("READY=1");
        match answers.is_empty() {
            true => drop(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()),
            false => drop(curl(&answers).expect("it answers")),
        }
        process.signal("TERM");
        manager.waits_for("STOPPING=1");
        process.stop();
    }
}
