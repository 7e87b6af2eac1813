//! The house rules as tests: who may import whom, sizes, one home per heavy dependency, where
//! proofs are minted. See docs/ARCHITECTURE.md.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms that each room may name. What is not listed may not be imported.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("clock", &["model"]),
    ("budget", &[]),
    ("bounded_http", &["clock"]),
    ("places", &[]),
    ("heap", &[]),
    ("notify", &[]),
    ("turns", &["model"]),
    ("format", &["model"]),
    ("store", &["model", "clock", "settings", "observe"]),
    ("settings", &["model"]),
    ("observe", &["model", "clock", "bounded_http", "settings"]),
    ("vault", &["model", "clock", "format", "store", "seal"]),
    ("nbd", &["model", "clock", "format"]),
    // Two that know each other: the cache takes `ingest::Admitted`, an ack is built from
    // `cache::Durable`. Of the store both know its errors alone.
    ("cache", &["model", "clock", "budget", "format", "settings", "observe", "store", "ingest"]),
    ("ingest", &["model", "clock", "budget", "format", "settings", "observe", "store", "cache"]),
    (
        "seal",
        &["model", "clock", "turns", "format", "settings", "observe", "store", "vault", "cache"],
    ),
    ("cloud_log", &["model", "clock", "format", "store", "seal"]),
    (
        "upload",
        &[
            "model",
            "clock",
            "turns",
            "format",
            "settings",
            "observe",
            "store",
            "cache",
            "seal",
            "cloud_log",
            "places",
        ],
    ),
    (
        "apply",
        &["model", "clock", "places", "format", "observe", "store", "vault", "seal", "cloud_log"],
    ),
    ("recover", &["model", "clock", "format", "store", "vault", "seal", "cloud_log", "nbd"]),
    // Nothing but the page and words: it runs beside any server.
    ("top", &["model", "clock", "observe", "control"]),
    ("agent", &["model", "clock", "notify", "format", "settings", "observe", "store", "nbd"]),
    (
        "control",
        &[
            "model",
            "clock",
            "bounded_http",
            "format",
            "settings",
            "store",
            "vault",
            "seal",
            "cloud_log",
            "recover",
            "observe",
        ],
    ),
];

/// Heavy dependencies and the only files or folders that may name them.
const HOMES: &[(&str, &[&str])] = &[
    ("memmap2", &["src/cache/map.rs"]),
    ("zstd", &["src/seal/compress.rs"]),
    ("aes_gcm", &["src/seal/encrypt.rs"]),
    ("tokio_uring", &["src/server/shard.rs", "src/cache/"]),
    (
        "quinn",
        &[
            "src/ingest/quic.rs",
            "src/ingest/quic/",
            "src/agent/dial_quic.rs",
            "src/agent/outgoing.rs",
        ],
    ),
    ("fuser", &["src/agent/capture/fuse.rs", "src/agent/capture/fuse/"]),
    ("aya", &["src/agent/capture/ebpf/kernel.rs"]),
    ("rcgen", &["src/control/ca.rs", "src/control/ca/"]),
    ("hdrhistogram", &["src/observe/"]),
    ("clap", &["src/cli/", "src/main.rs"]),
    ("libc", &["src/heap.rs", "src/agent/capture/ebpf/walk.rs"]),
    ("indicatif", &["src/cli/"]),
    ("comfy_table", &["src/cli/"]),
    ("ratatui", &["src/top/"]),
    ("azure_core", &["src/store/azure/"]),
    ("azure_storage_blob", &["src/store/azure/"]),
    ("azure_identity", &["src/store/azure/"]),
    ("reqwest", &["src/store/azure/"]),
];

/// Expressions that make a proof, and the one file each may stand in.
const MINTS: &[(&str, &str)] = &[
    ("Durable::proven(", "src/cache/flush.rs"),
    ("Published {", "src/upload/publish.rs"),
    ("Applied {", "src/apply/checkpoint.rs"),
    ("RecoveryPoint {", "src/apply/checkpoint.rs"),
];

/// What makes a proof without proving anything: for tests and benches, and declared in one file.
const NEVER_SHIPPED: &[(&str, &str)] = &[("never_written", "src/cache/durable.rs")];

const FILE_LINES_MAX: usize = 600;
const FACE_LINES_MAX: usize = 120;
const FUNCTION_LINES_MAX: usize = 70;

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(found.len() > 50, "the walk found only {} files", found.len());
    found.sort();
    found
}

fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let folder = path.components().any(|part| part.as_os_str() == "tests");
    folder || name == "tests" || name.ends_with("_tests") || name.starts_with("tests_")
}

/// The file's code without comments and without an inline test module at its end.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines();
    lines
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |all, line| all + line + "\n")
}

fn room(path: &Path) -> String {
    let part = path.components().nth(1).unwrap().as_os_str().to_str().unwrap();
    part.trim_end_matches(".rs").to_owned()
}

#[test]
fn rooms_import_only_what_they_may() {
    let table: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| !is_test(path)) {
        let from = room(path);
        let Some(allowed) = table.get(from.as_str()) else {
            continue;
        };
        for part in code(text).split("crate::").skip(1) {
            let to: String =
                part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if !to.is_empty() && to != from && !allowed.contains(&to.as_str()) {
                wrong.push(format!("{}: {from} names {to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the table:\n{}", wrong.join("\n"));
}

#[test]
fn every_room_but_the_outermost_stands_in_the_table() {
    for (path, _) in sources() {
        let from = room(&path);
        let outermost = ["cli", "demo", "server", "lib", "main"].contains(&from.as_str());
        let listed = MAY_IMPORT.iter().any(|(name, _)| *name == from);
        assert!(outermost || listed, "{} is in no room of the table", path.display());
    }
}

#[test]
fn heavy_dependencies_have_one_home() {
    for (path, text) in sources().iter().filter(|(path, _)| !is_test(path)) {
        let text = code(text);
        for (name, homes) in HOMES {
            let named = text.contains(&format!("{name}::"));
            let home = homes.iter().any(|home| path.to_str().unwrap().starts_with(home));
            assert!(!named || home, "{} names {name}, whose home is {homes:?}", path.display());
        }
    }
}

#[test]
fn proofs_are_minted_in_one_file_each() {
    for (path, text) in sources().iter().filter(|(path, _)| !is_test(path)) {
        for line in code(text).lines() {
            for (mint, home) in MINTS {
                let declared = line.contains("struct ") || line.contains("impl ");
                let Some(at) = line.find(mint) else { continue };
                let word = line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric());
                if declared || word || line.contains("->") {
                    continue;
                }
                assert_eq!(path.to_str().unwrap(), *home, "{mint} outside its file: {line}");
            }
        }
    }
}

#[test]
fn nothing_shipped_makes_a_proof_without_proving() {
    let sources = sources();
    let for_tests = for_tests(&sources);
    let mut declared = 0;
    for (path, text) in sources.iter().filter(|(path, _)| !is_test(path)) {
        for line in code(text).lines() {
            for (name, home) in NEVER_SHIPPED.iter().filter(|(name, _)| line.contains(name)) {
                let declares = line.contains(&format!("fn {name}(")) && path == Path::new(home);
                declared += usize::from(declares);
                let fine = declares || for_tests.iter().any(|module| path.starts_with(module));
                assert!(fine, "{} ships {name}: {line}", path.display());
            }
        }
    }
    assert_eq!(declared, NEVER_SHIPPED.len(), "each is declared where the table says");
}

/// Files and folders of modules that are declared under `#[cfg(test)]`.
fn for_tests(sources: &[(PathBuf, String)]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (path, text) in sources {
        let owner = match path.file_name().unwrap().to_str().unwrap() {
            "mod.rs" | "lib.rs" | "main.rs" => path.parent().unwrap().to_owned(),
            _ => path.with_extension(""),
        };
        for rest in text.split("#[cfg(test)]\n").skip(1) {
            let line = rest.lines().next().unwrap_or_default();
            let Some((_, name)) = line.split_once("mod ") else { continue };
            if let Some(name) = name.strip_suffix(';') {
                found.extend([owner.join(name), owner.join(name).with_extension("rs")]);
            }
        }
    }
    found
}

#[test]
fn files_and_functions_stay_small() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        // A suite's `tests/mod.rs` is no room's face.
        let face = path.file_name().is_some_and(|name| name == "mod.rs") && !is_test(&path);
        let max = if face { FACE_LINES_MAX } else { FILE_LINES_MAX };
        // The store's trait is a face whose documentation is its contract.
        if lines > max && path != Path::new("src/store/mod.rs") {
            wrong.push(format!("{}: {lines} lines, at most {max}", path.display()));
        }
        if !is_test(&path) {
            wrong.extend(
                long_functions(&code(&text)).into_iter().map(|(name, length)| {
                    format!("{}: fn {name} has {length} lines", path.display())
                }),
            );
        }
    }
    assert!(wrong.is_empty(), "too long:\n{}", wrong.join("\n"));
}

/// Functions longer than the limit: from the line with `fn` to the closing brace of its indent.
fn long_functions(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut long = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some((before, after)) = line.split_once("fn ") else {
            continue;
        };
        let head = before.trim();
        let word =
            |w: &str| matches!(w, "pub" | "async" | "const" | "unsafe") || w.starts_with("pub(");
        if !head.split_whitespace().all(word) {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(indent));
        let end = lines[at..].iter().position(|l| *l == close);
        if let Some(length) = end.map(|end| end + 1)
            && length > FUNCTION_LINES_MAX
        {
            long.push((after.split('(').next().unwrap_or(after).to_owned(), length));
        }
    }
    long
}

#[test]
fn unsafe_code_stands_in_three_files() {
    let allowed =
        ["src/cache/map.rs", "src/heap.rs", "src/agent/capture/ebpf/walk.rs"].map(Path::new);
    for (path, text) in sources() {
        let allows = code(&text).contains("allow(unsafe_code)");
        assert!(!allows || allowed.contains(&path.as_path()), "{}", path.display());
    }
}
