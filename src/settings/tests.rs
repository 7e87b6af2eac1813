use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::*;

const SERVER: &str = "site = \"s\"\nserver = \"ps\"\nstore = \"dir:store\"\nadvertise = \"h:1\"\n";
const AGENT: &str =
    "machine = \"web\"\nservers = [\"h:9443\"]\n[[disk]]\nname = \"a\"\npath = \"a.img\"\n";

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("settings.toml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

fn server(text: &str) -> Result<ServerSettings, SettingsError> {
    load_server(&written(text).1)
}

fn agent(text: &str) -> Result<AgentSettings, SettingsError> {
    load_agent(&written(text).1)
}

fn keys(error: SettingsError) -> Vec<String> {
    match error {
        SettingsError::Violations { violations, .. } => {
            violations.into_iter().map(|v| v.key).collect()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn defaults_are_those_of_the_checked_types() {
    let (directory, path) = written(SERVER);
    let s = load_server(&path).unwrap();
    assert_eq!(s.store, StoreUrl::Dir(directory.path().join("store")));
    assert_eq!(s.tls.ca_key, directory.path().join("ca.key"));
    assert_eq!((s.cache.segment_bytes, s.cache.bytes_max), (64 << 20, 8 << 30));
    assert_eq!(s.batch.age_max.as_millis(), 6_000);
    assert_eq!(s.sidecar.token_ttl.as_secs(), 3_600);
    let a = agent(AGENT).unwrap();
    assert_eq!((a.server_name, a.mode), (None, AgentMode::Async));
    assert_eq!(a.server_timeout.as_secs(), 5);
    let Capture::Nbd { socket } = &a.disks[0].capture else { panic!("nbd is the default") };
    assert!(socket.ends_with("a.sock") && socket.is_absolute());
}

/// A host that starts with other cores, and a cache that holds records, is a server that starts.
#[test]
fn there_are_as_many_shards_as_logs_unless_it_is_set() {
    let (directory, path) = written(SERVER);
    let by_cores = load_server(&path).unwrap().shards;
    let cache = directory.path().join("cache");
    let logs = by_cores + 1; // a host of another number of cores
    for shard in 0..logs {
        std::fs::create_dir_all(cache.join(format!("shard-{shard}"))).unwrap();
    }
    std::fs::write(cache.join("lease"), "").unwrap();
    assert_eq!(load_server(&path).unwrap().shards, logs);
    std::fs::write(&path, format!("{SERVER}shards = 2\n")).unwrap();
    assert_eq!(load_server(&path).unwrap().shards, 2);
}

#[test]
fn default_memory_stays_below_512_mib_while_the_cache_log_is_emptied() {
    let four = server(&format!("{SERVER}[seal]\nthreads = 4\n")).unwrap();
    let emptied = |s: &ServerSettings| s.memory_bytes_max() - s.records_bytes_max();
    assert!(emptied(&four) <= 512 << 20, "{}", emptied(&four));
    let one = server(&format!("{SERVER}[seal]\nthreads = 1\n")).unwrap();
    assert_eq!(emptied(&one) >> 20, 441 + 17, "the figures in docs/configuration.md");
    assert_eq!(one.records_bytes_max() >> 20, 128, "the same");
}

#[test]
fn prices_are_for_ten_thousand_requests_of_a_kind() {
    let text = format!("{SERVER}[prices]\nput = 0.065\nread = 0.005\nwrite_pages = 0.0005\n");
    let prices = server(&text).unwrap().prices.unwrap();
    let month = prices.per_month([("put", 100.0), ("read", 200.0), ("snapshot", 1e9)]);
    assert!((month - 730.0 * (100.0 * 0.065 + 200.0 * 0.005) / 10_000.0).abs() < 1e-9, "{month}");
    assert_eq!(prices.currency, "USD");
    assert_eq!(server(SERVER).unwrap().prices, None);
    let wrong = format!("{SERVER}[prices]\nlist = -1.0\nlease = 1e9\n");
    assert_eq!(keys(server(&wrong).unwrap_err()), ["prices.list", "prices.lease"]);
    // Every kind that is counted can have a price.
    let all = crate::observe::StoreRequest::ALL.map(|kind| (kind.as_str(), 10_000.0 / 730.0));
    let key = |kind: &str| format!("{} = 1\n", kind.replace('-', "_"));
    let keys: String = all.iter().map(|(kind, _)| key(kind)).collect();
    let prices = server(&format!("{SERVER}[prices]\n{keys}")).unwrap().prices.unwrap();
    assert!((prices.per_month(all) - all.len() as f64).abs() < 1e-9);
}

#[test]
fn all_violations_are_reported_at_once() {
    let text = "site = \"Not A Name\"\nstore = \"ftp://x\"\nlisten = \"9443\"\nshards = 0\n\
        [cache]\nsegment_bytes = 5242880\nbytes_max = -1\nstop_fill = 2.0\n\
        [batch]\nage_max_ms = 5\n[seal]\nlevel = 99\nlevel_min = 4\nframe_bytes = 20000\n\
        [upload]\nstreams_min = 9\nbytes_per_s = 10\n\
        [[upload.window]]\ndays = \"monday\"\nhours = \"8-9\"\nbytes_per_s = -1\n\
        [limits]\ncredit_bytes = 1073741824\nhandshakes_max = 5000\n";
    let error = server(text).unwrap_err();
    let shown = error.to_string();
    assert!(shown.contains("settings.toml") && shown.contains("must be 1 to 256"), "{shown}");
    assert!(shown.contains("cache.bytes_max = -1: must be 16777216 to"), "{shown}");
    assert_eq!(
        keys(error),
        [
            "listen",
            "site",
            "server",
            "store",
            "cache.bytes_max",
            "seal.frame_bytes",
            "upload.window[0].days",
            "upload.window[0].hours",
            "upload.window[0].bytes_per_s",
            "shards",
            "cache.stop_fill",
            "batch.age_max_ms",
            "seal.level",
            "seal.level_min",
            "upload.streams_min",
            "upload.bytes_per_s",
            "cache.segment_bytes",
            "limits.credit_bytes",
            "limits.handshakes_max",
        ]
    );
}

#[test]
fn rates_and_levels_are_read_with_their_bounds() {
    let text = format!(
        "{SERVER}[seal]\nlevel = 9\nlevel_max = 12\n[upload]\nbytes_per_s = 1000000\n\
        [[upload.window]]\ndays = \"mon-fri\"\nhours = \"08:00-18:00\"\nbytes_per_s = 500000\n\
        [[upload.window]]\ndays = \"daily\"\nhours = \"22:00-06:00\"\n"
    );
    let s = server(&text).unwrap();
    assert_eq!((s.levels.min, s.seal.level, s.levels.max), (-5, 9, 12));
    let rates: Vec<_> = s.upload.rate.windows.iter().map(|window| window.rate).collect();
    assert_eq!((s.upload.rate.default, rates), (Some(1_000_000), vec![Some(500_000), None]));
    assert_eq!(keys(server(&format!("{SERVER}[seal]\nlevel = 0\n")).unwrap_err()), ["seal.level"]);
    let above = format!("{SERVER}[seal]\nlevel = 9\n");
    assert_eq!(keys(server(&above).unwrap_err()), ["seal.level_max"]);
}

#[test]
fn an_agent_names_all_its_violations_too() {
    let text = "machine = \"\"\nservers = [\"nowhere\"]\nmode = \"fast\"\nbitmap_chunk_bytes = 5000\n\
        [[disk]]\nname = \"a\"\npath = \"x\"\ncapture = \"magic\"\n[[disk]]\nname = \"a\"\n";
    assert_eq!(
        keys(agent(text).unwrap_err()),
        [
            "servers",
            "machine",
            "mode",
            "disk[0].capture",
            "disk[1].name",
            "disk[1].path",
            "bitmap_chunk_bytes",
        ]
    );
    let long = format!("{AGENT}socket = \"/{}\"\n", "x".repeat(107));
    assert_eq!(keys(agent(&long).unwrap_err()), ["disk[0].socket"]);
    // No disk takes the socket of another one, or the agent's own, by whatever name it has.
    let other = "[[disk]]\nname = \"b\"\npath = \"b.img\"\n";
    let own = format!("{other}socket = \"{AGENT_CONTROL_SOCKET}\"\n");
    for (text, key) in [
        (format!("{AGENT}socket = \"b.sock\"\n{other}"), "disk[1].socket"),
        (format!("{AGENT}{other}socket = \"./a.sock\"\n"), "disk[1].socket"),
        (format!("{AGENT}{own}"), "disk[1].socket"),
    ] {
        assert_eq!(keys(agent(&text).unwrap_err()), [key], "{text}");
    }
    let name = AGENT_CONTROL_SOCKET.strip_suffix(".sock").unwrap();
    assert!(name.parse::<crate::model::DiskName>().is_err(), "none has it by default");
    agent(&AGENT.replace("\"a\"", "\"control\"")).unwrap();
}

#[test]
fn a_disk_says_how_its_writes_come_to_be_known() {
    let with = |text: &str| agent(&format!("{AGENT}{text}"));
    let fuse = with("capture = \"fuse\"\nmount = \"disks\"\n").unwrap();
    let Capture::Fuse { mount } = &fuse.disks[0].capture else { panic!("{:?}", fuse.disks) };
    assert!(mount.is_absolute() && mount.ends_with("disks"));
    let scan = with("capture = \"scan\"\n").unwrap();
    let Capture::Scan(scan) = &scan.disks[0].capture else { panic!("{:?}", scan.disks) };
    assert_eq!((scan.interval.as_secs(), scan.read_bytes_per_second_max), (300, None));
    assert_eq!(scan.hook, None);
    let hook = "snapshot = [\"a\", \"b\"]\nrelease = [\"c\"]\npath = \"/dev/s\"\n";
    let hooked = with(&format!("capture = \"scan\"\n[disk.scan]\n{hook}")).unwrap();
    let Capture::Scan(hooked) = &hooked.disks[0].capture else { panic!("{:?}", hooked.disks) };
    let hook = hooked.hook.as_ref().unwrap();
    assert_eq!((hook.snapshot.len(), hook.path.to_str().unwrap()), (2, "/dev/s"));
    let half = "capture = \"scan\"\n[disk.scan]\nsnapshot = [\"a\"]\ninterval_s = 0\n";
    let wrong = keys(with(half).unwrap_err());
    for key in ["release", "path", "interval_s"] {
        assert!(wrong.contains(&format!("disk[0].scan.{key}")), "{wrong:?}");
    }
    let second = "capture = \"scan\"\n[[disk]]\nname = \"other\"\npath = \"b.img\"\n";
    assert_eq!(keys(with(second).unwrap_err()), ["disk.capture"]);
    assert_eq!(keys(with("capture = \"magic\"\n").unwrap_err()), ["disk[0].capture"]);
}

#[test]
fn an_address_of_everything_cannot_be_advertised() {
    let text = "site = \"s\"\nserver = \"ps\"\nstore = \"dir:store\"\n";
    assert_eq!(keys(server(text).unwrap_err()), ["advertise"]);
}

#[test]
fn unknown_keys_and_wrong_types_are_refused_with_their_place() {
    for (text, place) in
        [("shard = 1\n", "shard"), ("[cache]\nsize = 1\n", "size"), ("shards = \"1\"\n", "shards")]
    {
        let error = server(&format!("{SERVER}{text}")).unwrap_err();
        let SettingsError::Syntax { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains(place), "{source}");
    }
    assert!(matches!(load_server(Path::new("/nonexistent")), Err(SettingsError::Read { .. })));
}

/// Every key that serde would take, from its own message about one that it would not.
fn known_keys<T: serde::de::DeserializeOwned + std::fmt::Debug>(table: &str) -> BTreeSet<String> {
    let text = format!("{table}\nno_such_key = 1\n");
    let message = toml::from_str::<T>(&text).unwrap_err().message().to_owned();
    let (_, expected) = message.split_once("expected").unwrap();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_is_documented() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (server_part, agent_part) = page.split_once("## `agent.toml`").unwrap();
    let top = known_keys::<raw::RawServer>("");
    assert!(top.len() >= 17, "{top:?}");
    for key in &top {
        let table = format!("[{key}]");
        if !server_part.contains(&format!("### `{table}`")) {
            assert!(server_part.contains(&format!("\n| `{key}` |")), "{key}");
            continue;
        }
        let section = server_part.split_once(&format!("### `{table}`")).unwrap().1;
        let section = section.split("\n##").next().unwrap();
        for key in known_keys::<raw::RawServer>(&table) {
            assert!(section.contains(&format!("\n| `{key}` |")), "{table} {key}");
        }
    }
    let mut agent_keys = known_keys::<raw::RawAgent>("");
    let tables = [
        ("disk", "[[disk]]"),
        ("application", "[application]"),
        ("ebpf", "[ebpf]"),
        ("mirror", "[mirror]"),
        ("scan", "[[disk]]\n[disk.scan]"),
    ];
    for (table, head) in tables {
        assert!(agent_keys.remove(table), "{table}");
        agent_keys.extend(known_keys::<raw::RawAgent>(head));
    }
    for key in agent_keys {
        assert!(agent_part.contains(&format!("\n| `{key}` |")), "{key}");
    }
}

#[test]
fn bounds_that_stores_set_are_theirs() {
    let largest = format!("{SERVER}[upload]\nblock_bytes = {}\n", crate::store::BLOCK_BYTES_MAX);
    server(&largest).unwrap();
    let larger = format!("{SERVER}[upload]\nblock_bytes = {}\n", crate::store::BLOCK_BYTES_MAX + 1);
    assert_eq!(keys(server(&larger).unwrap_err()), ["upload.block_bytes"]);
}

#[test]
fn qemu_on_another_host_is_reached_over_tls_or_not_at_all() {
    let with = |text: &str| {
        let text = text.replace('\'', "\"");
        agent(&format!("{AGENT}capture = \"mirror\"\ndevice = \"vda\"\n{text}"))
    };
    let remote = with("qmp = 'tls:kvm-1.example:4444'\nlisten = '[2001:db8::7]:10811'\n").unwrap();
    let Capture::Mirror { monitor, remote: Some(remote), .. } = &remote.disks[0].capture else {
        panic!("{:?}", remote.disks)
    };
    assert_eq!(monitor.to_string(), "tls:kvm-1.example:4444");
    assert_eq!(remote.address, ("2001:db8::7".to_owned(), 10_811));
    assert_eq!(remote.reads_port, 10_809);
    let here = with("qmp = 'run/qmp:1'\n").unwrap();
    assert!(matches!(&here.disks[0].capture, Capture::Mirror { remote: None, .. }));

    let every = "qmp = 'tls:[::1]:4444'\nlisten = '0.0.0.0:10811'\n";
    let two = "[[disk]]\nname = 'b'\ncapture = 'mirror'\ndevice = 'vdb'\nqmp = 'tls:[::1]:4444'\n\
               listen = '192.0.2.7:10811'\nreads_port = 10810\n";
    for (text, wrong) in [
        ("qmp = 'tcp:kvm-1:4444'\n", &["qmp"][..]),
        ("qmp = 'kvm-1:4444'\n", &["qmp"]),
        ("qmp = 'tls:kvm-1'\nlisten = '192.0.2.7:1'\n", &["qmp", "qmp"]),
        ("qmp = 'tls:kvm-1:0'\nlisten = '192.0.2.7:1'\n", &["qmp"]),
        ("qmp = 'tls:kvm-1:4444'\n", &["listen"]),
        ("qmp = 'tls:kvm-1:4444'\nlisten = '192.0.2.7:0'\n", &["listen"]),
        ("qmp = 'tls:kvm-1:4444'\nlisten = 'agent:1'\naddress = 'agent'\n", &["listen", "address"]),
        ("qmp = 'tls:kvm-1:4444'\nlisten = '192.0.2.7:1'\nreads_port = 0\n", &["reads_port"]),
        ("qmp = 'qmp.sock'\nlisten = '192.0.2.7:1'\n", &["listen"]),
        (every, &["address"]),
    ] {
        let found = keys(with(text).unwrap_err());
        for key in wrong {
            assert!(found.contains(&format!("disk[0].{key}")), "{text}: {found:?}");
        }
    }
    let both = format!("{every}address = 'a:1'\n{two}");
    assert_eq!(keys(with(&both).unwrap_err()), ["disk[1].listen", "disk[1].reads_port"]);
    let ids = "qmp = 'qmp.sock'\n[mirror]\nserver_credentials = 'a,b'\nclient_credentials = ''\n";
    let found = keys(with(ids).unwrap_err());
    assert_eq!(found, ["mirror.server_credentials", "mirror.client_credentials"]);
}
