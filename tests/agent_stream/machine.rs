//! A machine with an agent that a test can kill and start again, and a clock that runs fast.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast::agent::{Agent, AgentError, AgentStatus, Dial};
use holdfast::clock::{Clock, System};
use holdfast::model::{DiskName, Timestamp};
use holdfast::nbd::Export;
use holdfast::settings::{
    AgentDisk, AgentMode, AgentSettings, Capture, Congestion, MirrorTls, TransportChoice,
};

/// So many seconds of the agent in one.
pub(crate) struct Fast(pub(crate) u32);

pub(crate) const SPEED: u32 = 20;

#[async_trait]
impl Clock for Fast {
    fn wall(&self) -> Timestamp {
        System.wall()
    }
    fn monotonic(&self) -> Duration {
        System.monotonic() * self.0
    }
    async fn sleep(&self, duration: Duration) {
        System.sleep(duration / self.0).await;
    }
}

/// A server that says nothing for so long is left: ten seconds of the machine that runs these tests, so
/// that no pause of its scheduler is taken for one.
const SILENCE_MAX: Duration = Duration::from_secs(10 * SPEED as u64);
/// Longest wait for anything in these tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files of a machine; they outlive its agents.
pub(crate) struct Machine {
    directory: tempfile::TempDir,
    pub(crate) settings: AgentSettings,
}

impl Machine {
    /// With disks of these sizes, filled with bytes that are not zero.
    pub(crate) fn new(disks: &[u64], buffer_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: String| directory.path().join(name);
        let disk = |(n, &bytes): (usize, &u64)| {
            let disk = path(format!("disk{n}.img"));
            std::fs::write(&disk, noise(bytes as usize, n as u64 + 1)).unwrap();
            AgentDisk {
                name: format!("disk{n}").parse().unwrap(),
                path: disk,
                capture: Capture::Nbd { socket: path(format!("disk{n}.sock")) },
            }
        };
        let settings = AgentSettings {
            machine: "web-1".parse().unwrap(),
            servers: vec!["ps-1:9443".into()],
            server_name: Some("localhost".into()),
            server_timeout: SILENCE_MAX,
            ca_certificate: path("ca.pem".into()),
            certificate: path("agent.pem".into()),
            key: path("agent.key".into()),
            state_directory: path("state".into()),
            mode: AgentMode::Async,
            buffer_bytes_max: buffer_bytes,
            transport: TransportChoice::Tcp,
            quic_congestion: Congestion::Bbr,
            bitmap_chunk_bytes: 65536,
            bandwidth_bytes_per_second_max: None,
            mirror: MirrorTls {
                ca_certificate: path("ca.pem".into()),
                certificate: path("agent.pem".into()),
                key: path("agent.key".into()),
                server_credentials: "server".into(),
                client_credentials: "client".into(),
            },
            ebpf_ring_bytes: 256 << 10,
            application: None,
            disks: disks.iter().enumerate().map(disk).collect(),
        };
        Self { directory, settings }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the source disk holds.
    pub(crate) fn source(&self, disk: usize) -> Vec<u8> {
        std::fs::read(&self.settings.disks[disk].path).unwrap()
    }

    /// Starts an agent; one that was just killed may hold its files for a moment.
    pub(crate) async fn start(&self, dial: Arc<dyn Dial>) -> Agent {
        self.start_at(SPEED, dial).await
    }

    /// Where what the agent bears with must be more than a pause of this machine's scheduler.
    pub(crate) async fn start_at(&self, speed: u32, dial: Arc<dyn Dial>) -> Agent {
        for _ in 0..1000 {
            let (clock, entropy) = (Arc::new(Fast(speed)), System::entropy());
            match Agent::start_with(self.settings.clone(), clock, entropy, Arc::clone(&dial)) {
                Ok(agent) => return agent,
                Err(AgentError::DiskInUse { .. } | AgentError::StateInUse { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        panic!("the killed agent never let go of its files");
    }
}

pub(crate) fn export(agent: &Agent, disk: usize) -> Arc<dyn Export> {
    let name: DiskName = format!("disk{disk}").parse().unwrap();
    agent.export(&name).unwrap()
}

/// Bytes of a seed without a zero among them.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 | 1
    };
    (0..bytes).map(|_| step()).collect()
}

/// Waits until the status is as wanted; says what it was when it never is.
pub(crate) async fn until(
    agent: &Agent,
    what: &str,
    wanted: impl Fn(&AgentStatus) -> bool,
) -> AgentStatus {
    let end = System.monotonic() + PATIENCE;
    loop {
        let status = agent.status();
        if wanted(&status) {
            return status;
        }
        assert!(System.monotonic() < end, "never {what}: {status:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until everything is published and every bit is cleared.
pub(crate) async fn settled(agent: &Agent) -> AgentStatus {
    until(agent, "settled", |status| status.mode == "ordered" && status.unsettled_bytes == 0).await
}

/// Runs blocking calls of an export beside the agent's tasks.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
