//! The sidecar driven by real curl with the very commands of docs/operations.md.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast::nbd::Client;
use serde_json::{Value, json};
use support::{AgentSite, Process, Site, eventually, free_port, have, text};

/// A site with a running sidecar, and a directory to work in.
struct Api {
    site: Site,
    port: u16,
    work: PathBuf,
    sidecar: Option<Process>,
}

impl Api {
    fn start() -> Self {
        let site = Site::new();
        let port = free_port();
        site.set("sidecar.listen", format!("127.0.0.1:{port}"));
        let work = site.path("work");
        fs::create_dir(&work).unwrap();
        let mut api = Self { site, port, work, sidecar: None };
        api.restart();
        api
    }

    fn restart(&mut self) {
        if let Some(old) = self.sidecar.take() {
            old.stop();
        }
        let config = self.site.config();
        let log = self.site.path("sidecar.log");
        let sidecar = Process::spawn(&log, &["sidecar", "--config", text(&config)]);
        sidecar
            .ready("the sidecar answers", 30, || (self.block("healthz").1 == "ok\n").then_some(()));
        self.sidecar = Some(sidecar);
    }

    /// Runs a block of docs/operations.md by its name; gives its success and standard output.
    fn block(&self, name: &str) -> (bool, String) {
        self.shell(&blocks()[name], &[])
    }

    fn shell(&self, script: &str, variables: &[(&str, &str)]) -> (bool, String) {
        let output = Command::new("sh")
            .args(["-eu", "-c", script])
            .current_dir(&self.work)
            .env("SITE", self.site.root())
            .env("API", format!("https://localhost:{}", self.port))
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), out)
    }

    fn block_json(&self, name: &str) -> Value {
        let (done, out) = self.block(name);
        assert!(done, "{name}: {out}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{name}: {error}: {out}"))
    }

    /// curl with these arguments after the CA; status and JSON body.
    fn curl(&self, arguments: &str) -> (u16, Value) {
        let script = format!(
            "curl -sS -w '\\n%{{http_code}}' --cacert \"$SITE/ca.crt\" {arguments} </dev/null"
        );
        let (_, out) = self.shell(&script, &[]);
        let (body, status) = out.rsplit_once('\n').unwrap_or(("", "0"));
        let status = status.parse().unwrap_or(0);
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// A refusal's status and code; insists on message and cure.
    fn refused(&self, arguments: &str) -> (u16, String) {
        let (status, body) = self.curl(arguments);
        let error = &body["error"];
        for part in ["code", "message", "cure"] {
            let said = error[part].as_str().is_some_and(|text| !text.is_empty());
            assert!(said, "{arguments}: {status}: {body} says no {part}");
        }
        (status, error["code"].as_str().unwrap().to_owned())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.site.path("sidecar.log")).unwrap()
    }
}

/// The shell blocks of docs/operations.md by name.
fn blocks() -> BTreeMap<String, String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = fs::read_to_string(page).unwrap();
    let blocks = page.split("\n```sh ").skip(1).map(|rest| {
        let (name, rest) = rest.split_once('\n').unwrap();
        let (block, _) = rest.split_once("\n```").unwrap();
        (name.to_owned(), block.to_owned())
    });
    blocks.collect()
}

fn case(expected: (u16, &str), found: (u16, String), what: &str) {
    assert_eq!((found.0, found.1.as_str()), expected, "{what}");
}

#[test]
fn a_machine_is_enrolled_and_cared_for_as_the_page_shows() {
    if !have(&["curl", "openssl", "awk", "sed"]) {
        return;
    }
    let mut api = Api::start();
    assert_eq!(api.block_json("login"), json!({ "machines": [] }));
    assert!(api.block("token").0);
    let (done, out) = api.block("enrol");
    assert!(done && out == "machine.crt: OK\n", "{out}");
    let enrolment = fs::read_to_string(api.work.join("enrolment.json")).unwrap();
    let enrolment: Value = serde_json::from_str(&enrolment).unwrap();
    assert_eq!(enrolment["servers"], json!([format!("127.0.0.1:{}", api.site.port)]));
    let ca = fs::read_to_string(api.site.root().join("ca.crt")).unwrap();
    assert_eq!(enrolment["ca_certificate"], ca);
    let subject = api.shell("openssl x509 -in machine.crt -noout -ext subjectAltName", &[]);
    assert!(subject.1.contains("/machine/web-1"), "{subject:?}");

    let policy = api.block_json("policy-get");
    assert_eq!(policy["bookmark_interval_s"], 5);
    let policy = api.block_json("policy-put");
    assert_eq!(policy["bookmark_interval_s"], 10);
    assert_eq!(policy["journal_window_s"], 86_400, "absent fields take their default");
    api.restart(); // all state is in the vault
    assert_eq!(api.block_json("policy-get"), policy);
    assert_eq!(api.block_json("login"), json!({ "machines": ["web-1"] }));

    let status = api.block_json("status");
    assert_eq!(status["machine"], "web-1");
    let first = status["lines"][0]["text"].as_str().unwrap();
    assert!(first.starts_with("nothing received yet"), "{status}");
    assert_eq!(api.block_json("points"), json!({ "machine": "web-1", "points": [] }));
    let bookmark = api.block_json("bookmark");
    assert_eq!(bookmark["error"]["code"], "process_server_unavailable", "{bookmark}");
    let unknown = "0123456789abcdef0123456789abcdef";
    let (_, pin) = api.shell(&blocks()["pin"], &[("BOOKMARK", unknown)]);
    assert_eq!(pin.matches("point_unknown").count(), 2, "{pin}");
    let (status, machine) = api.curl("-K operator.curl $API/v1/machines/web-1");
    assert_eq!((status, &machine["policy"]), (200, &policy));
    assert!(machine.get("data_keys").is_none(), "keys are never shown");

    // Enrolling again with another token keeps the machine's policy and adds a certificate.
    assert!(api.block("token").0);
    assert_eq!(api.block("enrol").1, "machine.crt: OK\n");
    let (_, machine) = api.curl("-K operator.curl $API/v1/machines/web-1");
    assert_eq!(machine["certificates"].as_array().unwrap().len(), 2);
    assert_eq!(machine["policy"], policy);
}

/// A machine that was never on the command line of the site: by token, with the settings that the
/// page writes from the enrolment's answer.
#[test]
fn a_machine_enrolled_by_token_replicates() {
    if !have(&["curl", "openssl", "awk", "sed"]) {
        return;
    }
    let api = Api::start();
    let server = api.site.serve();
    api.block("login");
    assert!(api.block("token").0);
    assert_eq!(api.block("enrol").1, "machine.crt: OK\n");
    let disk = api.site.path("disk.img");
    let mut held = support::oracle::noise(0, 4096);
    fs::write(&disk, &held).unwrap();
    let (done, said) = api.shell(&blocks()["agent"], &[("DISK", text(&disk))]);
    assert!(done, "{said}");
    let machine = AgentSite { directory: api.work.clone() };
    let agent = machine.start(&["root"]);
    let mut client = Client::connect(&machine.socket("root"), "root").unwrap();
    client.write(8192, &[7; 4096], true).unwrap();
    held[8192..12288].fill(7);
    let bookmark = eventually("a bookmark behind the initial replication", 120, || {
        let answer = api.block_json("bookmark");
        answer["sequence"].as_u64()
    });
    eventually("the bookmark is a point", 60, || {
        let points = api.block_json("points");
        let points = points["points"].as_array()?;
        points.iter().any(|point| point["sequence"] == bookmark).then_some(())
    });
    let image = api.site.export("web-1", "root", &format!("seq:{bookmark}"));
    assert!(fs::read(image).unwrap() == held, "what the machine held comes out");
    drop(client);
    agent.stop();
    server.stop();
}

/// The whole way: curl, sidecar, process server, agent, and back.
#[test]
fn a_running_machine_is_bookmarked_and_its_point_is_kept() {
    if !have(&["curl"]) {
        return;
    }
    let api = Api::start();
    api.block("login");
    let server = api.site.serve();
    let machine = api.site.enroll("web-1", &[("root", 4 << 20)]);
    let agent = machine.start(&["root"]);
    let status = eventually("the machine is protected", 60, || {
        let status = api.block_json("status");
        let first = status["lines"][0]["text"].as_str()?.to_owned();
        first.starts_with("protected, RPO ").then_some(status)
    });
    assert_eq!(status["live"]["connected"], true, "{status}");
    let bookmark = api.block_json("bookmark");
    assert_eq!(bookmark["name"], "before-upgrade", "{bookmark}");
    let id = bookmark["bookmark"].as_str().unwrap();
    let point = |id: &str| {
        let points = api.block_json("points");
        let points = points["points"].as_array().unwrap();
        points.iter().find(|point| point["bookmark"] == id).cloned()
    };
    let found = eventually("the bookmark is a point", 60, || point(id));
    assert_eq!(found["sequence"], bookmark["sequence"]);
    assert_eq!(found["pinned"], false);
    let (done, pinned) = api.shell(&blocks()["pin"], &[("BOOKMARK", id)]);
    assert!(done && pinned.contains("\"pinned\":true") && pinned.contains("\"pinned\":false"));
    let keep = format!("-K operator.curl -X POST $API/v1/machines/web-1/points/{id}/pin");
    assert_eq!(api.curl(&keep).0, 200);
    assert_eq!(point(id).unwrap()["pinned"], true);
    agent.stop();
    let silent = eventually("the silence is said", 60, || {
        let status = api.block_json("status");
        status.to_string().contains("agent").then_some(status)
    });
    assert_eq!(silent["health"], "critical", "{silent}");
    server.stop();
    let status = api.block_json("status");
    assert!(status.to_string().contains("process server ps-1 does not answer"), "{status}");
    let (code, body) =
        api.curl("-K operator.curl $API/v1/machines/web-1/bookmarks -d '{\"name\":\"x\"}'");
    assert_eq!((code, &body["error"]["code"]), (503, &json!("process_server_unavailable")));
}

#[test]
fn what_is_wrong_is_refused_clearly() {
    if !have(&["curl", "openssl", "awk", "sed"]) {
        return;
    }
    let api = Api::start();
    api.block("login");
    api.block("token");
    let machines = "$API/v1/machines";
    let missing = api.refused(machines);
    case((401, "token_missing"), missing, "no token");
    let wrong = format!("-H 'Authorization: Bearer {}' {machines}", "0".repeat(64));
    case((401, "token_unknown"), api.refused(&wrong), "a wrong token");
    let other = api.refused(&format!("-K enrolment.curl {machines}"));
    case((403, "token_other_use"), other, "an enrolment token on an operator's route");
    let other =
        api.refused("-K operator.curl $API/v1/enrol -d '{\"machine\":\"web-1\",\"csr\":\"x\"}'");
    case((403, "token_other_use"), other, "an operator's token to enrol");

    let enrol = "-K enrolment.curl $API/v1/enrol";
    let other = api.refused(&format!("{enrol} -d '{{\"machine\":\"db\",\"csr\":\"x\"}}'"));
    case((403, "token_other_machine"), other, "a token of another machine");
    let csr = api.refused(&format!("{enrol} -d '{{\"machine\":\"web-1\",\"csr\":\"x\"}}'"));
    case((422, "csr_refused"), csr, "a request that is none");
    assert_eq!(api.block("enrol").1, "machine.crt: OK\n", "refusals do not cost the token");
    let replayed = api.refused(&format!("{enrol} -d @enrol.json"));
    case((401, "token_used"), replayed, "a replayed token");

    let put = "-K operator.curl -X PUT $API/v1/machines/web-1/policy";
    let bad = api.refused(&format!("{put} -d '{{\"rpo_warn_s\": '"));
    case((400, "bad_json"), bad, "half a document");
    let unknown = api.refused(&format!("{put} -d '{{\"rpo\": 1}}'"));
    case((422, "body_refused"), unknown, "an unknown field");
    let broken = format!("{put} -d '{{\"rpo_warn_s\": 0, \"bookmark_interval_s\": 0}}'");
    case((422, "policy_refused"), api.refused(&broken), "a policy that breaks rules");
    let message = api.curl(&broken).1["error"]["message"].to_string();
    assert!(message.contains("rpo_warn_s = 0") && message.contains("bookmark_interval_s = 0"));
    fs::write(api.work.join("large"), vec![b' '; 65 << 10]).unwrap();
    let large = api.refused(&format!("{put} -d @large"));
    case((413, "body_too_large"), large, "65 KiB");
    let chunked = api.refused(&format!("{put} -H 'Transfer-Encoding: chunked' -d @large"));
    case((413, "body_too_large"), chunked, "65 KiB without a length");

    for path in ["web-2", "web-2/policy", "web-2/status", "web-2/points", "%2e%2e", "A/policy"] {
        let found = api.refused(&format!("-K operator.curl --path-as-is {machines}/{path}"));
        case((404, "machine_unknown"), found, path);
    }
    let name = "{\"name\": \"x\"}";
    let found = api.refused(&format!("-K operator.curl {machines}/web-2/bookmarks -d '{name}'"));
    case((404, "machine_unknown"), found, "a bookmark of an unknown machine");
    let found = api.refused("-K operator.curl $API/v1/nothing");
    case((404, "no_route"), found, "no such route");
    let found = api.refused(&format!("-K operator.curl -X DELETE {machines}"));
    case((405, "no_method"), found, "no such method");
    let ttl = "-K operator.curl $API/v1/enrolment-tokens -d '{\"machine\":\"web-1\",\"ttl_s\":0}'";
    case((422, "ttl_refused"), api.refused(ttl), "a token without life");
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(129));
    let found = api.refused(&format!("-K operator.curl {machines}/web-1/bookmarks -d '{long}'"));
    case((422, "name_refused"), found, "a name of 129 bytes");

    // TLS 1.2 and plain HTTP get no answer.
    let (status, _) = api.curl(&format!("-K operator.curl --tls-max 1.2 {machines}"));
    assert_eq!(status, 0, "TLS 1.2");
    let (status, _) = api.curl(&format!("http://localhost:{}/healthz", api.port));
    assert_eq!(status, 0, "plain HTTP");
    let token = fs::read_to_string(api.site.root().join("operator.token")).unwrap();
    assert!(!api.log().contains(token.trim()), "no secret is logged");
}

#[test]
fn too_many_wrong_tokens_wait() {
    if !have(&["curl"]) {
        return;
    }
    let api = Api::start();
    api.block("login");
    let many = "for n in $(seq 25); do curl -sS -o /dev/null -w '%{http_code} ' \
        --cacert \"$SITE/ca.crt\" -H 'Authorization: Bearer x' \"$API/v1/machines\"; done";
    let (_, codes) = api.shell(many, &[]);
    let expected = format!("{}{}", "401 ".repeat(20), "429 ".repeat(5));
    assert_eq!(codes, expected);
    let found = api.refused("-K operator.curl $API/v1/machines");
    case((429, "too_many_failures"), found, "the address waits");
    assert_eq!(api.block("healthz").1, "ok\n");
}

#[test]
fn init_never_overwrites_and_a_store_has_one_site() {
    let site = Site::new();
    let before = fs::read(site.root().join("kek.hex")).unwrap();
    let again = site.try_holdfast(&["init", text(&site.root())]);
    assert_eq!(again.status.code(), Some(1));
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("exists already and is never overwritten"), "{said}");
    assert_eq!(fs::read(site.root().join("kek.hex")).unwrap(), before);

    let other = site.path("other");
    let store = format!("dir:{}", site.path("store").display());
    let taken = site.try_holdfast(&["init", text(&other), "--store", &store]);
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert_eq!(taken.status.code(), Some(1));
    assert!(said.contains("in use by another site"), "{said}");
    assert!(!other.join("holdfast.toml").exists() && !other.join("kek.hex").exists());

    let wrong = site.try_holdfast(&["init", text(&site.path("third")), "--store", "ftp:x"]);
    assert_eq!(wrong.status.code(), Some(2), "wrong settings");
    site.set("shards", 0);
    site.set("seal.level", 99);
    let status = site.try_holdfast(&["status"]);
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    assert_eq!(status.status.code(), Some(2));
    assert!(said.contains("shards = 0") && said.contains("seal.level = 99"), "{said}");
}

#[test]
fn secrets_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new();
    let agent = site.enroll("web-1", &[("root", 1 << 20)]);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for secret in ["ca.key", "server.key", "operator.key", "kek.hex", "operator.token"] {
        assert_eq!(mode(site.root().join(secret)), 0o600, "{secret}");
    }
    assert_eq!(mode(agent.directory.join("machine.key")), 0o600);
    let first = fs::read(agent.directory.join("machine.crt")).unwrap();
    let settings = fs::read(agent.config()).unwrap();
    site.holdfast(&["enroll", "web-1", "--out", text(&agent.directory)]);
    assert_ne!(fs::read(agent.directory.join("machine.crt")).unwrap(), first);
    assert_eq!(fs::read(agent.config()).unwrap(), settings, "enrolling again keeps agent.toml");
}
