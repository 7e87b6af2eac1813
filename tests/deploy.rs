//! What stands in deploy/ against the code and against the tools that will read it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast::settings::load_server;
use support::{have, run};

const UNITS: [&str; 3] = ["holdfast-serve", "holdfast-sidecar", "holdfast-agent"];

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The units, with the program of this build.
fn units() -> (tempfile::TempDir, Vec<PathBuf>) {
    let directory = tempfile::tempdir().unwrap();
    let written = UNITS.map(|unit| {
        let text = file(&format!("deploy/systemd/{unit}.service"));
        let path = directory.path().join(format!("{unit}.service"));
        std::fs::write(&path, text.replace("/usr/bin/holdfast", env!("CARGO_BIN_EXE_holdfast")))
            .unwrap();
        path
    });
    (directory, written.into())
}

#[test]
fn units_are_understood_and_confined() {
    if !have(&["systemd-analyze"]) {
        return;
    }
    let (_directory, units) = units();
    for unit in &units {
        let verified = run("systemd-analyze", &[Path::new("verify"), unit]);
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let own = said.lines().filter(|line| line.contains("holdfast-")).collect::<Vec<_>>();
        assert!(own.is_empty(), "{own:?}");
        let confined = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--threshold=20"])
            .arg(unit)
            .output()
            .unwrap();
        assert!(confined.status.success(), "{}", String::from_utf8_lossy(&confined.stdout));
    }
}

/// The manager waits for what the program tells, and for what it does not tell it waits no longer than a guest's
/// disk controller (30 s) does, be the agent in whatever call.
#[test]
fn an_agent_that_hangs_is_killed_before_a_guest_gives_up() {
    for unit in UNITS {
        assert!(
            file(&format!("deploy/systemd/{unit}.service")).contains("\nType=notify\n"),
            "{unit}"
        );
    }
    let agent = file("deploy/systemd/holdfast-agent.service");
    let value = |key: &str| agent.lines().find_map(|line| line.strip_prefix(key));
    let seconds = |text: &str| text.strip_suffix('s').unwrap().parse::<u64>().unwrap();
    assert!((10..=20).contains(&seconds(value("WatchdogSec=").unwrap())));
    assert_eq!(value("WatchdogSignal="), Some("SIGKILL"), "a core would hold what is on the disks");
    assert_eq!((value("Restart="), value("RestartSec=")), (Some("always"), Some("1s")));
}

/// A package that goes leaves no program in the kernel; one that is replaced leaves the agent alone.
#[test]
fn a_package_that_is_removed_stops_the_agent_and_then_takes_the_program_out_of_the_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let log = path("log");
    for (program, code) in [("systemctl", 0), ("holdfast", 1)] {
        let script = format!("#!/bin/sh\necho {program} \"$@\" >> {log}\nexit {code}\n");
        std::fs::write(path(program), script).unwrap();
        run("chmod", &["755", &path(program)]);
    }
    let mut prerm = file("deploy/debian/prerm");
    for (real, here) in [
        ("systemctl ", path("systemctl ")),
        ("/usr/bin/holdfast", path("holdfast")),
        ("/run/systemd/system", path("systemd")),
        ("/sys/fs/bpf/holdfast", path("pins")),
        ("/var/lib/holdfast-agent/agent.toml", path("agent.toml")),
    ] {
        assert!(prerm.contains(real), "{real}");
        prerm = prerm.replace(real, &here);
    }
    let said = |action: &str| {
        run("sh", &["-c", &prerm, "prerm", action]);
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let _for_the_next = std::fs::remove_file(&log);
        said
    };
    let stops = "systemctl stop holdfast-agent holdfast-sidecar holdfast-serve\n";
    assert_eq!(said("remove"), "");
    std::fs::create_dir(path("systemd")).unwrap();
    std::fs::write(path("agent.toml"), "").unwrap();
    assert_eq!(said("remove"), stops, "nothing is pinned");
    std::fs::create_dir(path("pins")).unwrap();
    let releases = format!("holdfast agent release --config {}\n", path("agent.toml"));
    assert_eq!(said("remove"), format!("{stops}{releases}"), "even if that fails");
    std::fs::remove_dir(path("systemd")).unwrap();
    assert_eq!(said("remove"), releases, "under another manager");
    std::fs::remove_file(path("agent.toml")).unwrap();
    assert_eq!(said("remove"), "");
    for action in ["upgrade", "deconfigure", "failed-upgrade"] {
        std::fs::create_dir_all(path("systemd")).unwrap();
        std::fs::write(path("agent.toml"), "").unwrap();
        assert_eq!(said(action), "", "{action}");
    }
}

/// A disk that comes late, a port that is taken for a moment: five starts within ten seconds, and by its defaults
/// the manager would never try again. Nobody looks at a protected machine until it is needed.
#[test]
fn a_unit_that_fails_is_started_again_for_as_long_as_it_takes() {
    for unit in UNITS {
        let text = file(&format!("deploy/systemd/{unit}.service"));
        let (head, service) = text.split_once("\n[Service]\n").unwrap();
        assert!(head.lines().any(|line| line == "StartLimitIntervalSec=0"), "{unit}");
        assert!(service.lines().any(|line| line == "Restart=always"), "{unit}");
        // Disks, store and cache may lie on what the network brings.
        let after = head.lines().filter_map(|line| line.strip_prefix("After="));
        assert!(
            after.flat_map(str::split_whitespace).any(|one| one == "remote-fs.target"),
            "{unit}"
        );
    }
}

/// What gives a unit a mount namespace of its own (systemd.exec(5)), and what says that it does not.
const NAMESPACED: &[(&str, &str)] = &[
    ("ProtectSystem", "no"),
    ("ProtectHome", "no"),
    ("PrivateTmp", "no"),
    ("PrivateDevices", "no"),
    ("ProtectControlGroups", "no"),
    ("ProtectHostname", "no"),
    ("ProtectKernelLogs", "no"),
    ("ProtectKernelModules", "no"),
    ("ProtectKernelTunables", "no"),
    ("ProtectProc", "default"),
    ("ProcSubset", "all"),
    ("ReadWritePaths", ""),
    ("ReadOnlyPaths", ""),
    ("InaccessiblePaths", ""),
    ("BindPaths", ""),
];

/// The agent's unit with a drop-in behind it.
fn with_drop_in(name: &str) -> String {
    let unit = file("deploy/systemd/holdfast-agent.service");
    let drop_in = file(&format!("deploy/systemd/{name}"));
    let (service, install) = unit.split_once("[Install]").unwrap();
    let settings = drop_in.split_once("[Service]").unwrap().1;
    format!("{service}\n{settings}\n[Install]{install}")
}

#[test]
fn with_its_drop_in_the_agents_files_are_seen_outside_of_it() {
    let whole = with_drop_in("holdfast-agent-fuse.conf");
    for (key, value) in NAMESPACED {
        let mut lines = whole.lines().filter_map(|line| line.split_once('='));
        let last = lines.rfind(|(found, _)| found == key);
        assert!(last.is_none_or(|(_, found)| found == *value), "{key} = {last:?}");
    }
}

#[test]
fn drop_ins_are_understood() {
    if !have(&["systemd-analyze"]) {
        return;
    }
    for name in ["holdfast-agent-fuse.conf", "holdfast-agent-ebpf.conf"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("holdfast-agent.service");
        let whole = with_drop_in(name);
        std::fs::write(&path, whole.replace("/usr/bin/holdfast", env!("CARGO_BIN_EXE_holdfast")))
            .unwrap();
        let verified = run("systemd-analyze", &[Path::new("verify"), &path]);
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(!said.lines().any(|line| line.contains("holdfast-")), "{name}: {said}");
    }
}

/// Options that are handed to the program exist.
#[test]
fn commands_in_units_image_and_pods_are_commands_of_the_program() {
    let commands = UNITS
        .map(|unit| {
            let text = file(&format!("deploy/systemd/{unit}.service"));
            let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
            line.split(' ').nth(1).unwrap().to_owned()
        })
        .into_iter()
        .chain(["serve".to_owned()]);
    for command in commands {
        let help = run(env!("CARGO_BIN_EXE_holdfast"), &[&command, "--help"]);
        assert!(String::from_utf8_lossy(&help.stdout).contains("--config"), "{command}");
    }
    assert!(file("deploy/Containerfile").contains(r#"CMD ["serve", "--config""#));
    assert!(file("deploy/kubernetes/holdfast.yaml").contains(r#"args: ["serve", "--config""#));
}

#[test]
fn a_package_has_files_that_exist() {
    let manifest: toml::Table = file("Cargo.toml").parse().unwrap();
    let package = &manifest["package"]["metadata"]["deb"];
    let assets = package["assets"].as_array().unwrap();
    assert!(assets.len() > 5);
    let mut places = BTreeSet::new();
    for asset in assets {
        let (source, folder) = (asset[0].as_str().unwrap(), asset[1].as_str().unwrap());
        assert!(places.insert((source, folder)), "{source} twice in {folder}");
        if !source.starts_with("target/") {
            file(source);
        }
    }
    let users = file("deploy/systemd/holdfast.sysusers.conf");
    for unit in UNITS {
        let unit = file(&format!("deploy/systemd/{unit}.service"));
        let user = unit.lines().find_map(|line| line.strip_prefix("User=")).unwrap();
        assert!(users.lines().any(|line| line.split(' ').nth(1) == Some(user)), "{user}");
    }
    for script in ["postinst", "prerm"] {
        run("sh", &["-n", &format!("deploy/debian/{script}")]);
    }
}

/// Python's parser knows all of YAML; what it read comes back as JSON.
fn yaml(path: &str) -> Option<Vec<serde_json::Value>> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    if !have(&["python3"]) {
        return None;
    }
    let parser = Command::new("python3").args(["-c", "import yaml"]).output().unwrap();
    if !parser.status.success() {
        support::skipped("python3-yaml is not installed");
        return None;
    }
    let input = std::fs::File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let output = Command::new("python3").args(["-c", script]).stdin(input).output().unwrap();
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn pods_fit_together_and_their_settings_are_good() {
    let Some(objects) = yaml("deploy/kubernetes/holdfast.yaml") else { return };
    let kinds: BTreeMap<&str, &serde_json::Value> =
        objects.iter().map(|object| (object["kind"].as_str().unwrap(), object)).collect();
    let (set, service) = (&kinds["StatefulSet"]["spec"], &kinds["Service"]["spec"]);
    assert_eq!(service["clusterIP"], "None");
    assert_eq!(set["serviceName"], kinds["Service"]["metadata"]["name"]);
    let labels = &set["selector"]["matchLabels"];
    assert_eq!(*labels, service["selector"]);
    assert_eq!(*labels, kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]);
    assert_eq!(set["template"]["metadata"]["labels"]["app"], labels["app"]);
    let pod = &set["template"]["spec"];
    let claims = set["volumeClaimTemplates"].as_array().unwrap();
    let volumes = pod["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]);
    let claims = claims.iter().map(|claim| &claim["metadata"]["name"]);
    let volumes: BTreeSet<_> = volumes.chain(claims).map(|name| name.as_str().unwrap()).collect();
    for container in [&pod["initContainers"][0], &pod["containers"][0]] {
        for mount in container["volumeMounts"].as_array().unwrap() {
            assert!(volumes.contains(mount["name"].as_str().unwrap()), "{mount}");
        }
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    }
    let settings = kinds["ConfigMap"]["data"]["holdfast.toml"].as_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("holdfast.toml");
    let store = settings.lines().find(|line| line.starts_with("store = ")).unwrap();
    let settings = settings
        .replace(store, "store = \"dir:store\"")
        .replace("@POD@", "holdfast-0")
        .replace("@NAMESPACE@", "backup")
        .replace("SITE", "site-1");
    std::fs::write(&path, settings).unwrap();
    let settings = load_server(&path).unwrap();
    assert_eq!(settings.advertise, "holdfast-0.holdfast.backup.svc.cluster.local:9443");
    let memory = pod["containers"][0]["resources"]["limits"]["memory"].as_str().unwrap();
    let limit = memory.strip_suffix("Gi").unwrap().parse::<u64>().unwrap() << 30;
    assert!(settings.memory_bytes_max() < limit, "{}", settings.memory_bytes_max());
}

#[test]
fn the_seccomp_profile_leaves_io_uring() {
    let profile: serde_json::Value =
        serde_json::from_str(&file("deploy/kubernetes/seccomp.json")).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ALLOW");
    let refused = profile["syscalls"][0]["names"].as_array().unwrap();
    assert!(refused.iter().any(|name| name == "mount") && refused.len() > 40);
    assert!(!refused.iter().any(|name| name.as_str().unwrap().starts_with("io_uring")));
}

/// The role has the rights that the operations of the store need, and no other.
#[test]
fn rights_are_those_of_the_operations_that_the_code_uses() {
    let operations: BTreeSet<String> = file("src/store/mod.rs")
        .split("async fn ")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect();
    assert!(operations.len() > 20, "{operations:?}");
    let (mut listed, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for row in file("deploy/README.md").lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [names, _request, right] = cells[..] else { continue };
        if !["read", "write", "delete"].contains(&right) {
            continue;
        }
        needed.insert(right.to_owned());
        for name in names.split('`').skip(1).step_by(2) {
            assert!(listed.insert(name.to_owned()), "{name} stands there twice");
        }
    }
    assert_eq!(listed, operations, "the table of deploy/README.md, and the trait");
    let bicep = file("deploy/azure/main.bicep");
    let actions = bicep.split("dataActions: [").nth(1).unwrap().split(']').next().unwrap();
    let given: BTreeSet<String> = actions
        .split_ascii_whitespace()
        .map(|action| {
            let action = action.trim_matches('\'');
            let part = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/";
            action.strip_prefix(part).unwrap_or_else(|| panic!("{action}")).to_owned()
        })
        .collect();
    assert_eq!(given, needed);
    assert!(bicep.contains("\n        actions: []\n"), "no right to manage anything");
}

/// No compiler of Bicep is at hand: brackets and quotes close, every name is declared once, and what is
/// referred to exists.
#[test]
fn the_template_is_whole() {
    let text = file("deploy/azure/main.bicep");
    let mut open = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split("//").next().filter(|_| !line.contains("://")).unwrap_or(line);
        assert_eq!(line.replace("\\'", "").matches('\'').count() % 2, 0, "line {}", number + 1);
        for c in line.chars() {
            match c {
                '{' | '[' | '(' => open.push(c),
                '}' => assert_eq!(open.pop(), Some('{'), "line {}", number + 1),
                ']' => assert_eq!(open.pop(), Some('['), "line {}", number + 1),
                ')' => assert_eq!(open.pop(), Some('('), "line {}", number + 1),
                _ => {}
            }
        }
    }
    assert!(open.is_empty(), "{open:?}");
    let mut declared = BTreeSet::new();
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        if let ["param" | "resource", name, ..] = words[..] {
            assert!(declared.insert(name), "{name} is declared twice");
        }
    }
    for kind in ["parent: ", "scope: ", "virtualNetworkRules: [for subnet in "] {
        for rest in text.split(kind).skip(1) {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            assert!(declared.contains(name.as_str()), "{kind}{name}");
        }
    }
    for name in declared {
        let used = text.matches(name).count();
        let leaves = ["assignment", "assignments", "lifecycle"].contains(&name);
        assert!(used > 1 || leaves, "{name} is never used");
    }
    for rule in ["allowSharedKeyAccess: false", "defaultAction: 'Deny'", "publicAccess: 'None'"] {
        assert!(text.contains(rule), "{rule}");
    }
    let deleted = text.split("    deleteRetentionPolicy: {").nth(1).unwrap();
    assert!(deleted.trim_start().starts_with("enabled: false"), "each state would be kept");
    assert!(text.contains("isVersioningEnabled: false"), "the same");
    assert!(!text.contains("delete: {"), "no lifecycle rule deletes what retention keeps");
}

#[test]
fn a_further_servers_certificate_is_good_for_its_names() {
    if !have(&["openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let site = path("site");
    let store = format!("dir:{}", path("store"));
    run(
        env!("CARGO_BIN_EXE_holdfast"),
        &["init", &site, "--store", &store, "--listen", "127.0.0.1:0"],
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/server-certificate.sh");
    let out = path("ps-2");
    run(
        "sh",
        &[script.to_str().unwrap(), &site, &out, "ps-2.example.org", "*.pods.local", "192.0.2.7"],
    );
    let ca = path("site/ca.crt");
    for (kind, name, good) in [
        ("-verify_hostname", "ps-2.example.org", true),
        ("-verify_hostname", "holdfast-3.pods.local", true),
        ("-verify_ip", "192.0.2.7", true),
        ("-verify_hostname", "ps-3.example.org", false),
    ] {
        let verified = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", &ca])
            .args([kind, name, &path("ps-2/server.crt")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        assert_eq!(verified.status.success(), good, "{name}: {said}");
    }
    // The server takes key and certificate.
    let config = path("site/holdfast.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let tls = format!("[tls]\ncertificate = \"{out}/server.crt\"\nkey = \"{out}/server.key\"\n");
    let text = text.replacen("[tls]\n", &tls, 1).replacen(
        "listen = ",
        "metrics_listen = \"127.0.0.1:0\"\nlisten = ",
        1,
    );
    std::fs::write(&config, text).unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["serve", "--config", &config])
        .spawn()
        .unwrap();
    let address = support::eventually("serving", 60, || {
        let text = std::fs::read(path("site/run/addresses.json")).ok()?;
        let addresses: serde_json::Value = serde_json::from_slice(&text).ok()?;
        addresses["data"].as_str().map(ToOwned::to_owned)
    });
    let greeted = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-verify_return_error", "-CAfile", &ca])
        .args(["-verify_hostname", "ps-2.example.org"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&greeted.stdout).into_owned();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
}

/// The example in docs/operations.md is what its prices make of its requests.
#[test]
fn the_example_of_costs_adds_up() {
    let page = file("docs/operations.md");
    let prices = page.split("```toml prices").nth(1).unwrap().split("```").next().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("holdfast.toml");
    let site = "site = \"s\"\nserver = \"ps-1\"\nstore = \"dir:store\"\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(&path, format!("{site}{prices}")).unwrap();
    let prices = load_server(&path).unwrap().prices.unwrap();
    let table = page.split("| kind | an hour | a month (730 h) | USD |").nth(1).unwrap();
    let mut sum = 0.0;
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let number = |cell: usize| cells[cell].replace(',', "").parse::<f64>();
        let said = number(3).unwrap();
        let cost = match (cells[0], number(1)) {
            (kind, Ok(hourly)) => {
                assert_eq!(number(2).unwrap(), hourly * 730.0, "{row}");
                prices.per_month([(kind, hourly)])
            }
            _ => sum,
        };
        assert!((cost - said).abs() < 0.01, "{row}: {cost}");
        sum += cost;
    }
    assert!(sum > 1.0);
}
