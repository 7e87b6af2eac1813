//! Settings that change while the server runs, the metrics page read by others, and back-pressure
//! from the marks of the cache to the agent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use holdfast::observe::samples;
use serde_json::{Value, json};
use support::workload::{Target, Workload};
use support::{Site, curl, eventually, have};

const DISK_BYTES: u64 = 16 << 20;

fn patch(site: &Site, body: &Value) -> (u16, Value) {
    let url = format!("http://127.0.0.1:{}/v1/tuning", site.metrics_port);
    let body = body.to_string();
    let args = ["-s", "--max-time", "10", "-X", "PATCH", "-w", "\n%{http_code}", "-d", &body, &url];
    let output = support::run("curl", &args);
    let answer = String::from_utf8(output.stdout).unwrap();
    let (body, status) = answer.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn setting(site: &Site, key: &str) -> Value {
    let url = format!("http://127.0.0.1:{}/v1/tuning", site.metrics_port);
    let all: Value = serde_json::from_str(&curl(&url).unwrap()).unwrap();
    all["settings"].as_array().unwrap().iter().find(|row| row["key"] == key).unwrap().clone()
}

fn sample(site: &Site, series: &str) -> Option<f64> {
    let page = site.metrics();
    samples(&page).flatten().find(|sample| sample.series == series).map(|sample| sample.value)
}

#[test]
fn a_kept_change_survives_a_restart_and_a_broken_one_stops_it() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    let server = site.serve();
    let (status, answer) =
        patch(&site, &json!({ "set": { "seal.level": 3, "apply.streams": 2 }, "keep": true }));
    assert_eq!((status, answer["changed"].as_array().unwrap().len()), (200, 2), "{answer}");
    let window = json!([{ "days": "daily", "hours": "00:00-24:00", "bytes_per_s": 70_000 }]);
    let (status, answer) = patch(&site, &json!({ "set": { "upload.window": window } }));
    assert_eq!((status, &answer["changed"][0]["new"]), (200, &window), "{answer}");
    let limit = "holdfast_upload_rate_limit_bytes_per_second";
    eventually("uploads keep the rate of the window", 30, || {
        (sample(&site, limit)? == 70_000.0).then_some(())
    });
    let (status, _) = patch(&site, &json!({ "set": { "batch.age_max_ms": 77 } }));
    assert_eq!(status, 200);
    let (status, answer) = patch(&site, &json!({ "set": { "seal.level": 99, "shards": 2 } }));
    assert_eq!((status, answer["error"]["violations"].as_array().unwrap().len()), (422, 2));
    assert_eq!(setting(&site, "seal.level")["value"], 3);
    assert!(server.log().contains("setting changed"), "{}", server.log());
    server.stop();

    let server = site.serve();
    let level = setting(&site, "seal.level");
    assert_eq!(
        (&level["value"], &level["file"], &level["kept"]),
        (&json!(3), &json!(1), &json!(true))
    );
    assert_eq!(setting(&site, "batch.age_max_ms")["value"], 100, "was not kept");
    assert!(server.log().contains("holdfast.kept.toml"), "{}", server.log());
    server.stop();

    let kept = site.root().join("holdfast.kept.toml");
    std::fs::write(&kept, "[seal]\nlevel = 99\n").unwrap();
    let output = site.try_holdfast(&["serve"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("holdfast.kept.toml") && said.contains("seal.level = 99"), "{said}");
}

#[test]
fn prometheus_reads_the_page() {
    if !have(&["curl", "promtool"]) {
        return;
    }
    let site = Site::new();
    site.enroll("web-1", &[("root", DISK_BYTES)]);
    let _server = site.serve();
    let page = site.metrics();
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let checked = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && said.is_empty(), "{said}");
}

#[test]
fn marks_slow_agents_and_the_workload_never_waits() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    let agent_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
    agent_site.set("buffer_bytes_max", 4 << 20);
    let server = site.serve();
    let agent = agent_site.start(&["root"]);
    let target =
        Target { name: "root", socket: agent_site.socket("root"), sectors: DISK_BYTES / 512 };
    let workload = Workload::start(7, vec![target]);
    let mode = || site.status("web-1").map(|status| status["mode"].as_str().unwrap().to_owned());
    eventually("tracked in order", 60, || (mode()? == "ordered").then_some(()));

    // Uploads crawl, so the cache fills, and one machine has filled it.
    let crawl = json!({ "upload.bytes_per_s": 65_536, "cache.warn_fill": 0.1,
        "cache.slow_fill": 0.2, "cache.stop_fill": 0.5 });
    assert_eq!(patch(&site, &json!({ "set": crawl })).0, 200);
    let stopped = "holdfast_cache_pressure{level=\"stop\"}";
    eventually("the stop mark counts", 120, || (sample(&site, stopped)? == 1.0).then_some(()));
    assert_eq!(sample(&site, "holdfast_credit_share_ratio"), Some(0.0));
    let words = site.holdfast(&["status", "web-1"]);
    assert!(words.contains("agents get no credit"), "{words}");
    eventually("the agent remembers dirty extents", 120, || {
        (agent_says(&agent_site, "bitmap")).then_some(())
    });
    let before = workload.acknowledged.load(Ordering::Acquire);
    eventually("the workload goes on", 30, || {
        (workload.acknowledged.load(Ordering::Acquire) > before + 100).then_some(())
    });

    let no_credit = || server.log().matches("the cache is full: agents get no credit").count();
    assert_eq!(no_credit(), 1, "the level flapped: {}", server.log());

    let back = json!({ "upload.bytes_per_s": null, "cache.warn_fill": null, "cache.slow_fill": null, "cache.stop_fill": null });
    assert_eq!(patch(&site, &json!({ "set": back })).0, 200);
    eventually("in order again", 120, || (mode()? == "ordered").then_some(()));
    let free = "holdfast_cache_pressure{level=\"free\"}";
    eventually("the cache is emptied", 60, || (sample(&site, free)? == 1.0).then_some(()));
    drop(workload);
    agent.stop();
    // What the agent catches up with may fill the cache once more; each transition is logged and counted.
    let changes = sample(&site, "holdfast_cache_pressure_changes_total{level=\"stop\"}");
    assert_eq!(changes, Some(no_credit() as f64), "{}", server.log());
    server.stop();
}

fn agent_says(agent: &support::AgentSite, mode: &str) -> bool {
    agent.status().is_some_and(|status| status["mode"] == mode)
}
