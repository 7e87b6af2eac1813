use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::model::{Sequence, Watermarks};
use crate::observe::{CacheOutlook, Queue};

const PLAIN: Shape = Shape { openmetrics: false, machines: true };
const OPEN: Shape = Shape { openmetrics: true, machines: true };

fn cache_settings() -> CacheSettings {
    CacheSettings {
        directory: "cache".into(),
        segment_bytes: 1,
        bytes_max: 4,
        warn_fill: 0.5,
        slow_fill: 0.65,
        stop_fill: 0.85,
    }
}

/// Metrics in which every family has a sample.
fn everything() -> Metrics {
    let metrics = Metrics::default();
    let web = metrics.machine(&"web".parse().unwrap());
    web.served.store(true, Ordering::Relaxed);
    web.applies.store(true, Ordering::Relaxed);
    web.set_quarantine(Some("delta 7 differs".to_owned()));
    web.snapshot_time.store(4_000_000, Ordering::Relaxed);
    web.certificate_end.store(10_000_000, Ordering::Relaxed);
    metrics.set_certificates(vec![("server", Timestamp(6_500_000))]);
    web.raise(Watermarks { received: Sequence(9), durable: Sequence(8), ..Watermarks::default() });
    web.recoverable_time.store(5_000_000, Ordering::Release);
    web.agent_mode.store(2, Ordering::Relaxed);
    web.backlog_bytes.store(77, Ordering::Relaxed);
    web.store.count(StoreRequest::WritePages, 5);
    metrics.latency(Stage::Cache, Duration::from_micros(1_000));
    metrics.moved(Stage::Seal, 12, 3);
    metrics.store.count(StoreRequest::Put, 3, false);
    metrics.store.count(StoreRequest::Put, 1, true);
    metrics.show_queue(Queue::bytes("receive", || (5, 128)));
    metrics.show_queue(Queue::items("appends", || (6, 1024)));
    metrics.pressure_changed(Pressure::Slow);
    metrics.outlook.set(CacheOutlook {
        pressure: Pressure::Slow,
        credit_share: 0.25,
        full_in_seconds: Some(60.0),
        drained_in_seconds: Some(30.5),
    });
    metrics
}

#[test]
fn the_page_says_what_was_measured() {
    let page = render(&everything(), &cache_settings(), Timestamp(7_500_000), PLAIN);
    for line in [
        "holdfast_watermark_sequence{machine=\"web\",watermark=\"received\"} 9",
        "holdfast_watermark_sequence{machine=\"web\",watermark=\"durable\"} 8",
        "holdfast_rpo_seconds{machine=\"web\"} 2.5",
        "holdfast_rpo_worst_seconds 2.5",
        "holdfast_agent_tracking{machine=\"web\",mode=\"catching-up\"} 1",
        "holdfast_stage_in_bytes_total{stage=\"seal\"} 12",
        "holdfast_stage_out_bytes_total{stage=\"seal\"} 3",
        "holdfast_compression_ratio 4",
        "holdfast_stage_latency_seconds_bucket{stage=\"cache\",le=\"0.000512\"} 0",
        "holdfast_stage_latency_seconds_bucket{stage=\"cache\",le=\"0.001024\"} 1",
        "holdfast_stage_latency_seconds_bucket{stage=\"cache\",le=\"+Inf\"} 1",
        "holdfast_stage_latency_seconds_sum{stage=\"cache\"} 0.001",
        "holdfast_stage_latency_seconds_count{stage=\"cache\"} 1",
        "# TYPE holdfast_stage_latency_seconds histogram",
        "holdfast_store_requests_total{kind=\"put\"} 4",
        "holdfast_store_failures_total{kind=\"put\"} 1",
        "holdfast_machine_store_requests_total{machine=\"web\",kind=\"write-pages\"} 5",
        "holdfast_queue_bytes{queue=\"receive\"} 5",
        "holdfast_queue_max_items{queue=\"appends\"} 1024",
        "holdfast_cache_pressure{level=\"slow\"} 1",
        "holdfast_cache_pressure{level=\"stop\"} 0",
        "holdfast_cache_mark_ratio{level=\"slow\"} 0.65",
        "holdfast_cache_pressure_changes_total{level=\"slow\"} 1",
        "holdfast_credit_share_ratio 0.25",
        "holdfast_cache_full_seconds 60",
        "holdfast_backlog_drain_seconds 30.5",
        "holdfast_backlog_all_bytes 77",
        "holdfast_machines{agent=\"away\"} 1",
        "holdfast_machine_trouble{machine=\"web\",what=\"quarantine\"} 1",
        "holdfast_snapshot_age_seconds{machine=\"web\"} 3.5",
        "holdfast_agent_certificate_expiry_seconds{machine=\"web\"} 2.5",
        "holdfast_certificate_expiry_seconds{of=\"server\"} -1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    let quantile =
        "holdfast_stage_latency_quantile_seconds{stage=\"cache\",quantile=\"0.99\"} 0.00100";
    assert!(page.contains(quantile), "{page}");
}

/// Families with their kind, and how many samples each has; the page's rules are held on the way.
fn families(page: &str, openmetrics: bool) -> BTreeMap<String, (String, usize)> {
    let mut families = BTreeMap::<String, (String, usize)>::new();
    let mut family = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            family = name.to_owned();
            let again = families.insert(family.clone(), (kind.to_owned(), 0));
            assert!(again.is_none(), "{family} twice");
        } else if !line.starts_with('#') {
            let (kind, samples) = families.get_mut(&family).unwrap();
            *samples += 1;
            let name = line.split(['{', ' ']).next().unwrap();
            let ends: &[&str] = match (kind.as_str(), openmetrics) {
                ("counter", true) => &["_total"],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(ends.iter().any(|end| name == format!("{family}{end}")), "{line} in {family}");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
        }
    }
    families
}

#[test]
fn both_formats_hold_their_rules_and_say_the_same() {
    let metrics = everything();
    let plain = render(&metrics, &cache_settings(), Timestamp(1), PLAIN);
    let open = render(&metrics, &cache_settings(), Timestamp(1), OPEN);
    assert!(open.ends_with("\n# EOF\n") && !plain.contains("# EOF"));
    let plain = families(&plain, false);
    let open = families(&open, true);
    assert_eq!(plain.len(), open.len());
    for (name, (kind, samples)) in plain {
        assert!(samples > 0, "{name} has no sample even here");
        let total = name.strip_suffix("_total").filter(|_| kind == "counter");
        assert_eq!(open[total.unwrap_or(&name)].0, kind);
    }
}

#[test]
fn the_series_of_machines_can_be_left_out_and_are_few() {
    let metrics = everything();
    let count = |shape| {
        render(&metrics, &cache_settings(), Timestamp(1), shape)
            .lines()
            .filter(|l| !l.starts_with('#'))
            .count()
    };
    let without = count(Shape { machines: false, ..PLAIN });
    let one = count(PLAIN);
    assert!((1..=17).contains(&(one - without)), "series of a machine: {}", one - without);
    metrics.machine(&"db".parse().unwrap()).served.store(true, Ordering::Relaxed);
    assert_eq!(count(Shape { machines: false, ..PLAIN }), without);
}

/// Two servers: what each of them says of the other's machine would make every alarm go off.
#[test]
fn a_machine_of_another_server_has_what_applying_knows_and_no_more() {
    let metrics = Metrics::default();
    let applied = metrics.machine(&"applied".parse().unwrap());
    let looked_at = metrics.machine(&"looked-at".parse().unwrap());
    for machine in [&applied, &looked_at] {
        machine.raise(Watermarks { applied: Sequence(7), ..Watermarks::default() });
        machine.recoverable_time.store(5_000_000, Ordering::Release);
    }
    applied.applies.store(true, Ordering::Relaxed);
    for machine in [&applied, &looked_at] {
        machine.set_apply_trouble(Some("a lease ended".to_owned()));
        machine.snapshot_time.store(5_500_000, Ordering::Relaxed);
        machine.certificate_end.store(9_000_000, Ordering::Relaxed);
    }
    let page = render(&metrics, &cache_settings(), Timestamp(7_500_000), PLAIN);
    let of_machines: Vec<_> = page.lines().filter(|line| line.contains("machine=")).collect();
    let expected = [
        "holdfast_watermark_sequence{machine=\"applied\",watermark=\"applied\"} 7",
        "holdfast_watermark_sequence{machine=\"applied\",watermark=\"recoverable\"} 0",
        "holdfast_machine_trouble{machine=\"applied\",what=\"apply\"} 1",
        "holdfast_snapshot_age_seconds{machine=\"applied\"} 2",
    ];
    assert_eq!(of_machines, expected);
    assert!(page.contains("holdfast_machines{agent=\"away\"} 0\n"), "{page}");
    assert!(!page.contains("\nholdfast_rpo_worst_seconds "), "{page}");
    // Its owner shows it, though its agent has not come since the start.
    applied.owned.store(true, Ordering::Relaxed);
    let page = render(&metrics, &cache_settings(), Timestamp(7_500_000), PLAIN);
    assert!(page.contains("holdfast_machines{agent=\"away\"} 1\n"), "{page}");
    assert!(page.contains("holdfast_rpo_seconds{machine=\"applied\"} 2.5\n"), "{page}");
}

#[test]
fn labels_cannot_break_out() {
    let mut text = String::new();
    escape(&mut text, "a\"b\\c\nd");
    assert_eq!(text, "a\\\"b\\\\c\\nd");
}

#[test]
fn every_metric_stands_in_its_page_with_its_kind_and_no_other_does() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let told: BTreeSet<_> = rows
        .filter_map(|row| {
            let (name, rest) = row.split_once("` | ")?;
            Some((name.to_owned(), rest.split(' ').next()?.to_owned()))
        })
        .collect();
    let rendered = families(&render(&everything(), &cache_settings(), Timestamp(1), PLAIN), false);
    let exposed: BTreeSet<_> = rendered.into_iter().map(|(name, (kind, _))| (name, kind)).collect();
    assert_eq!(told, exposed);
}
