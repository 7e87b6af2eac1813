//! `capture = "mirror"` of a QEMU on another host: its monitor, its disks and the mirror go over TCP, so over
//! TLS. A real QEMU on this host, behind relays that can be cut.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use holdfast::nbd::{Client, Peer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use support::guest::have_mirror;
use support::qemu::Qemu;
use support::{AgentSite, Process, Site, eventually, free_port, have, text};

const DISK_BYTES: u64 = 16 << 20;
const QEMU: &str = "qemu-system-x86_64";
const HERE: &str = "127.0.0.1";

/// Passes connections on, until it is cut.
struct Relay {
    port: u16,
    state: Arc<Mutex<RelayState>>,
}

#[derive(Default)]
struct RelayState {
    cut: bool,
    ends: Vec<TcpStream>,
}

impl Relay {
    fn to(target: u16) -> Self {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(RelayState::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut state = shared.lock().unwrap();
                let (Ok(client), false) = (client, state.cut) else { continue };
                let Ok(server) = TcpStream::connect((HERE, target)) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    state.ends.push(from.try_clone().unwrap());
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                    });
                }
            }
        });
        Self { port, state }
    }

    fn cut(&self, cut: bool) {
        let mut state = self.state.lock().unwrap();
        state.cut = cut;
        for end in state.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// The host of the agent and that of QEMU.
struct Hosts {
    site: Site,
    agent_site: AgentSite,
    image: PathBuf,
    model: Vec<u8>,
    writes: u64,
    /// QEMU's monitor and its disks, and the agent, each behind a relay where it can have one.
    monitor: u16,
    reads: u16,
    listen: u16,
    to_monitor: Relay,
    to_agent: Relay,
}

impl Hosts {
    fn new() -> Option<Self> {
        if !have(&[QEMU, "qemu-img", "qemu-io", "nbdinfo", "openssl", "curl"]) || !have_mirror(QEMU)
        {
            return None;
        }
        let site = Site::new();
        let agent_site = site.enroll("vm-1", &[("root", DISK_BYTES)]);
        let image = site.disk("vm-1", "root");
        let model: Vec<u8> = (0..DISK_BYTES).map(|at| ((at * 2_654_435_761) >> 13) as u8).collect();
        std::fs::write(&image, &model).unwrap();
        let config = agent_site.config();
        let mut table: toml::Table = std::fs::read_to_string(&config).unwrap().parse().unwrap();
        table.remove("disk");
        std::fs::write(&config, toml::to_string(&table).unwrap()).unwrap();
        let (monitor, reads, listen) = (free_port(), free_port(), free_port());
        let (to_monitor, to_agent) = (Relay::to(monitor), Relay::to(listen));
        let hosts = Self {
            site,
            agent_site,
            image,
            model,
            writes: 0,
            monitor,
            reads,
            listen,
            to_monitor,
            to_agent,
        };
        hosts.certify("ca", &hosts.agent_site.directory.join("qemu"), HERE);
        hosts.certify("ca", &hosts.site.path("kvm"), HERE);
        Some(hosts)
    }

    fn certify(&self, ca: &str, to: &Path, host: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/qemu-certificate.sh");
        support::run(text(&script), &[text(&self.site.path(ca)), text(to), host]);
    }

    fn boot(&self, certificates: &str) -> Qemu {
        let own = self.site.path("own");
        let _ = std::fs::remove_file(&own);
        let directory = self.site.path(certificates);
        let credentials = |end: &str| {
            let dir = text(&directory);
            format!("tls-creds-x509,id=holdfast-{end},dir={dir},endpoint={end},verify-peer=on")
        };
        let tls = format!(
            "socket,id=tls,host={HERE},port={},server=on,wait=off,tls-creds=holdfast-server",
            self.monitor
        );
        let bare = ["-machine", "none", "-nodefaults", "-display", "none", "-S"].map(str::to_owned);
        let objects = ["server", "client"]
            .into_iter()
            .flat_map(|end| ["-object".to_owned(), credentials(end)]);
        let monitors =
            ["-chardev", &tls, "-mon", "chardev=tls,mode=control", "-qmp"].map(str::to_owned);
        let all = bare.into_iter().chain(objects).chain(monitors);
        let all: Vec<_> = all.chain([format!("unix:{},server=on,wait=off", text(&own))]).collect();
        Qemu::start(QEMU, &self.image, &all, &own)
    }

    fn attach(&self, qmp: &str) -> Vec<String> {
        let (listen, address) =
            (format!("{HERE}:{}", self.listen), format!("{HERE}:{}", self.to_agent.port));
        let (reads, config) = (self.reads.to_string(), self.agent_site.config());
        ["agent", "attach-qemu", "--qmp", qmp, "--device", "vda", "--listen", &listen]
            .into_iter()
            .chain(["--address", &address, "--reads-port", &reads, "--config", text(&config)])
            .map(str::to_owned)
            .collect()
    }

    fn qmp(&self) -> String {
        format!("tls:{HERE}:{}", self.to_monitor.port)
    }

    fn protect(&self) -> Process {
        let args = self.attach(&self.qmp());
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        Process::spawn(&self.site.path("agent.log"), &args)
    }

    /// What attaching says when it cannot be.
    fn refused(&self, qmp: &str) -> String {
        let output =
            Command::new(env!("CARGO_BIN_EXE_holdfast")).args(self.attach(qmp)).output().unwrap();
        assert!(!output.status.success());
        let config = std::fs::read_to_string(self.agent_site.config()).unwrap();
        assert!(!config.contains("mirror"), "nothing was changed");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn ordered(&self, agent: &Process) {
        agent.ready("every write is mirrored in order", 60, || {
            let status = self.agent_site.status()?;
            (status["last"].as_u64()? > 0
                && status["mode"] == "ordered"
                && status["dirty_bytes"] == 0)
                .then_some(())
        });
    }

    fn peer(&self, certificates: &str, port: u16) -> Peer {
        let directory = self.site.path(certificates);
        let at = |name: &str| directory.join(name);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(at("ca-cert.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(at("client-cert.pem")).unwrap()],
                PrivateKeyDer::from_pem_file(at("client-key.pem")).unwrap(),
            );
        Peer::Tls { host: HERE.to_owned(), port, config: Arc::new(config.unwrap()) }
    }

    /// The guest's way to its disk, which is above the mirror.
    fn guest(&self, qemu: &mut Qemu) -> Client {
        qemu.export_guest();
        let mut client = Client::connect_to(&self.peer("kvm", self.reads), "guest").unwrap();
        client.within(Duration::from_secs(60)).unwrap();
        client
    }

    /// Writes of the guest, each acknowledged.
    fn write(&mut self, guest: &mut Client, count: u64) {
        for _ in 0..count {
            self.writes += 1;
            let at = (self.writes * 37 % 200) * (64 << 10) + self.writes * 512 % 16_384;
            let payload = vec![self.writes as u8 | 1; 512 * (1 + self.writes as usize % 17)];
            guest.write(at, &payload, false).unwrap();
            self.model[at as usize..][..payload.len()].copy_from_slice(&payload);
        }
    }

    fn point_is_the_disk(&self, name: &str) {
        let args = ["bookmark", "vm-1", "--name", name, "--wait", "recoverable"];
        eventually("a bookmark", 60, || {
            self.site.try_holdfast(&args).status.success().then_some(())
        });
        let out = self.site.export("vm-1", "root", &format!("name:{name}"));
        assert!(std::fs::read(out).unwrap() == self.model, "point {name}");
        assert!(std::fs::read(&self.image).unwrap() == self.model, "the guest's own disk");
    }

    /// `qemu-img info` of the agent's port.
    fn image_of(&self, certificates: &Path, more: &str) -> (bool, String) {
        let dir = text(certificates);
        let object = format!("tls-creds-x509,id=c,dir={dir},endpoint=client,verify-peer=on");
        let image =
            format!("driver=nbd,host={HERE},port={},export=root,tls-creds=c{more}", self.listen);
        said(Command::new("qemu-img").args(["info", "--object", &object, "--image-opts", &image]))
    }
}

fn said(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let told = String::from_utf8_lossy(&stderr) + String::from_utf8_lossy(&stdout);
    (status.success(), told.into_owned())
}

/// A guest agent behind QEMU's certificate, which answers whatever it is asked; gives what that was.
struct GuestAgent {
    child: Child,
    asked: Arc<Mutex<String>>,
}

impl GuestAgent {
    fn at(port: u16, certificates: &Path) -> Self {
        let at = |name: &str| certificates.join(name).display().to_string();
        let mut child = Command::new("openssl")
            .args(["s_server", "-quiet", "-tls1_3", "-accept", &format!("{HERE}:{port}")])
            .args(["-cert", &at("server-cert.pem"), "-key", &at("server-key.pem")])
            .args(["-CAfile", &at("ca-cert.pem"), "-Verify", "1", "-verify_return_error"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let asked = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&asked);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(command) = serde_json::from_str::<Value>(&line) else { continue };
                *heard.lock().unwrap() += &format!("{} ", command["execute"].as_str().unwrap());
                let id = command["arguments"]["id"].as_u64().unwrap_or(0);
                if input.write_all(format!("{}\n", json!({ "return": id })).as_bytes()).is_err() {
                    return;
                }
            }
        });
        Self { child, asked }
    }
}

impl Drop for GuestAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_guest_of_another_host_is_protected_and_attached_again_after_its_path_was_cut() {
    let Some(mut hosts) = Hosts::new() else { return };
    let _server = hosts.site.serve();
    let mut qemu = hosts.boot("kvm");
    let port = free_port();
    let guest_agent = GuestAgent::at(port, &hosts.site.path("kvm"));
    let mut application = toml::Table::new();
    application.insert("qga".to_owned(), format!("tls:{HERE}:{port}").into());
    hosts.agent_site.set("application", application);
    let agent = hosts.protect();
    let mut guest = hosts.guest(&mut qemu);
    hosts.write(&mut guest, 100);
    hosts.ordered(&agent);
    hosts.write(&mut guest, 100);
    hosts.point_is_the_disk("first");

    // Everything between the two is gone. QEMU lets the guest wait a while, and then go on.
    hosts.to_agent.cut(true);
    hosts.to_monitor.cut(true);
    hosts.write(&mut guest, 50);
    hosts.to_agent.cut(false);
    hosts.to_monitor.cut(false);
    eventually("mirrored again", 60, || (!qemu.jobs().is_empty()).then_some(()));
    hosts.write(&mut guest, 50);
    hosts.point_is_the_disk("second");

    // And for a moment only.
    hosts.to_agent.cut(false);
    hosts.write(&mut guest, 50);
    hosts.ordered(&agent);
    hosts.point_is_the_disk("third");
    hosts.site.holdfast(&["bookmark", "vm-1", "--name", "frozen", "--app"]);
    let asked = guest_agent.asked.lock().unwrap().clone();
    assert_eq!(asked, "guest-sync guest-fsfreeze-freeze guest-sync guest-fsfreeze-thaw ");
    agent.stop();
    assert!(qemu.jobs().is_empty());

    let mut args = hosts.attach(&hosts.qmp());
    args.push("--detach".to_owned());
    qemu.ask("block-export-del", json!({ "id": "guest", "mode": "hard" })).unwrap();
    support::run(env!("CARGO_BIN_EXE_holdfast"), &args);
    assert_eq!(qemu.ask("query-block-exports", json!({})).unwrap(), json!([]));
}

#[test]
fn the_agents_port_is_for_the_one_qemu_that_its_settings_name() {
    let Some(hosts) = Hosts::new() else { return };
    hosts.certify("ca", &hosts.site.path("other"), "kvm-2.example");
    hosts.certify("foreign", &hosts.site.path("foreign-kvm"), HERE);
    let [other, foreign] = ["other", "foreign-kvm"].map(|name| hosts.site.path(name));
    // It believes the agent as well, and has what the agent does not believe.
    let ca = std::fs::read(hosts.site.path("kvm/ca-cert.pem")).unwrap();
    let both = [ca.clone(), std::fs::read(foreign.join("ca-cert.pem")).unwrap()].concat();
    std::fs::write(foreign.join("ca-cert.pem"), both).unwrap();
    let bare = hosts.site.path("bare");
    std::fs::create_dir(&bare).unwrap();
    std::fs::write(bare.join("ca-cert.pem"), &ca).unwrap();

    let _server = hosts.site.serve();
    let mut qemu = hosts.boot("kvm");
    let agent = hosts.protect();
    eventually("mirrored", 30, || qemu.jobs().pop());
    hosts.ordered(&agent);
    let logged = |cure: &str, times: usize| {
        let log = || std::fs::read_to_string(hosts.site.path("agent.log")).unwrap();
        eventually(cure, 20, || (log().matches(cure).count() == times).then_some(()));
    };
    let (none, another) = ("it shows no certificate (", "its certificate is that of another host");
    for (who, cure, times) in [(&bare, none, 1), (&foreign, none, 2), (&other, another, 1)] {
        let (done, told) = hosts.image_of(who, "");
        assert!(!done, "{}: {told}", who.display());
        logged(cure, times);
    }
    assert!(Client::connect_to(&hosts.peer("foreign-kvm", hosts.listen), "root").is_err());
    logged("its certificate is of another CA", 1);
    let kvm = hosts.site.path("kvm");
    let (done, told) = hosts.image_of(&kvm, ",tls-hostname=agent-2.example");
    assert!(!done && told.contains("does not match the hostname agent-2.example"), "{told}");

    // Plain NBD.
    let plain = format!("nbd://{HERE}:{}/root", hosts.listen);
    let (done, told) =
        said(Command::new("qemu-io").args(["-f", "raw", &plain, "-c", "read 0 512"]));
    assert!(!done && told.contains("TLS"), "{told}");
    let (done, told) = said(Command::new("nbdinfo").arg(&plain));
    assert!(!done, "{told}");
    let mut stream = TcpStream::connect((HERE, hosts.listen)).unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04root").unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 18, "a greeting, and no size");

    // None of them took QEMU's place. Who may does.
    let status = hosts.agent_site.status().unwrap();
    assert_eq!(status["disks"][0]["capture"], "ordered", "{status}");
    let (done, told) = hosts.image_of(&kvm, "");
    assert!(done && told.contains("16 MiB"), "{told}");
    let dir = text(&kvm);
    let address = format!("nbds://{HERE}:{}/root?tls-certificates={dir}", hosts.listen);
    let (done, told) = said(Command::new("nbdinfo").args(["--size", &address]));
    assert!(done && told.trim() == DISK_BYTES.to_string(), "{told}");
    eventually("QEMU is back", 60, || (!qemu.jobs().is_empty()).then_some(()));
    hosts.point_is_the_disk("after");
    agent.stop();
}

#[test]
fn an_agent_believes_only_the_qemu_that_was_meant_and_says_what_is_wrong() {
    let Some(hosts) = Hosts::new() else { return };
    hosts.certify("ca", &hosts.site.path("other"), "kvm-2.example");
    let told = hosts.refused("tcp:127.0.0.1:4444");
    assert!(told.contains("disk[0].qmp") && told.contains("tls:HOST:PORT"), "{told}");
    let told = hosts.refused(&format!("{HERE}:4444"));
    assert!(told.contains("nothing goes there without TLS"), "{told}");

    let qemu = hosts.boot("other");
    let told = hosts.refused(&hosts.qmp());
    assert!(told.contains("not valid for name") && told.contains("must carry that host"), "{told}");
    drop(qemu);

    let _qemu = hosts.boot("kvm");
    let own = hosts.agent_site.directory.join("qemu");
    hosts.certify("foreign", &own, HERE);
    let ca = std::fs::read(hosts.site.path("kvm/ca-cert.pem")).unwrap();
    std::fs::write(own.join("ca-cert.pem"), ca).unwrap();
    let told = hosts.refused(&hosts.qmp());
    assert!(told.contains("when the agent's certificate is not of its CA"), "{told}");

    hosts.certify("ca", &own, "agent-2.example");
    let told = hosts.refused(&hosts.qmp());
    assert!(told.contains("server-cert.pem") && told.contains("`address`"), "{told}");
    std::fs::remove_file(own.join("server-key.pem")).unwrap();
    let told = hosts.refused(&hosts.qmp());
    assert!(told.contains("server-key.pem"), "{told}");
}
