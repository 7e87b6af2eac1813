use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::fixed::FIXED;
use super::table::TABLE;
use super::*;
use crate::model::Timestamp;
use crate::settings::uplink::{RATE_MIN, WINDOWS_MAX};
use crate::settings::{RateWindow, SettingsError, load_server, load_tuning};

const FILE: &str = "site = \"s\"\nserver = \"ps\"\nstore = \"dir:store\"\nadvertise = \"h:1\"\n\
    [batch]\nage_max_ms = 700\n";

struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        std::fs::write(site.path(), FILE).unwrap();
        site
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("holdfast.toml")
    }

    fn kept(&self) -> PathBuf {
        self.0.path().join("holdfast.kept.toml")
    }

    fn tuning(&self) -> Tuning {
        load_tuning(&self.path()).unwrap()
    }
}

fn changes(changes: &[(&str, Json)]) -> BTreeMap<String, Json> {
    changes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

fn refused(tuning: &Tuning, wanted: &[(&str, Json)]) -> Vec<String> {
    let before = tuning.now();
    let error = tuning.change(&changes(wanted), false, "test").unwrap_err();
    assert!(std::sync::Arc::ptr_eq(&before, &tuning.now()), "nothing changed");
    let TuningError::Violations(violations) = error else { panic!("{error}") };
    violations.iter().map(ToString::to_string).collect()
}

#[test]
fn a_change_is_in_force_at_once_and_said_to_subscribers() {
    let tuning = Site::new().tuning();
    let mut heard = tuning.subscribe();
    let wanted = [
        ("batch.age_max_ms", json!(50)),
        ("seal.level", json!(-3)),
        ("cache.stop_fill", json!(0.9)),
        ("apply.enabled", json!(false)),
        ("upload.orphan_grace_s", json!(60)),
        ("upload.streams_max", json!(8)),
    ];
    let changed = tuning.change(&changes(&wanted), false, "test").unwrap();
    let keys: Vec<_> = changed.iter().map(|change| change.key).collect();
    assert_eq!(
        keys,
        [
            "cache.stop_fill",
            "batch.age_max_ms",
            "seal.level",
            "upload.orphan_grace_s",
            "apply.enabled"
        ],
        "streams were 8 already"
    );
    assert_eq!((&changed[1].old, &changed[1].new), (&Value::Whole(700), &Value::Whole(50)));
    assert!(heard.has_changed().unwrap());
    let now = heard.borrow_and_update().clone();
    assert_eq!((now.batch.age_max.as_millis(), now.seal.level), (50, -3));
    assert_eq!((now.cache.stop_fill, now.apply.enabled), (0.9, false));
    assert_eq!(now.upload.orphan_grace.as_secs(), 60);
}

#[test]
fn every_violation_is_named_and_nothing_changes() {
    let tuning = Site::new().tuning();
    let wanted = [
        ("batch.age_max_ms", json!(5)),
        ("seal.level", json!("fast")),
        ("upload.streams_max", json!(2.5)),
        ("apply.streams", json!(2)),
        ("no.such", json!(1)),
        ("shards", json!(2)),
        ("cache.slow_fill", json!(0.9)),
    ];
    let said = refused(&tuning, &wanted);
    for (line, start) in said.iter().zip([
        "batch.age_max_ms = 5: must be a whole number, 10 to 60000; the default is 6000",
        "no.such = 1: is no setting",
        "seal.level = \"fast\": must be a whole number, -7 to 19",
        "shards = 2: cannot change while the server runs: the cache log was opened with it",
        "upload.streams_max = 2.5: must be a whole number",
        "cache.slow_fill = 0.9: must be below cache.stop_fill = 0.85",
    ]) {
        assert!(line.starts_with(start), "{line}\n{start}");
    }
    assert_eq!(said.len(), 6, "{said:?}");
}

#[test]
fn rules_between_settings_hold_over_the_whole_change() {
    let tuning = Site::new().tuning();
    let too_large = refused(&tuning, &[("batch.bytes_max", json!(64 << 20))]);
    assert!(too_large[0].starts_with("cache.segment_bytes = 67108864"), "{too_large:?}");
    // Neither alone would do.
    refused(&tuning, &[("cache.slow_fill", json!(0.88))]);
    let both = [("cache.slow_fill", json!(0.88)), ("cache.stop_fill", json!(0.92))];
    tuning.change(&changes(&both), false, "test").unwrap();
    assert_eq!(tuning.now().cache.slow_fill, 0.88);
}

#[test]
fn null_goes_back_to_the_file() {
    let tuning = Site::new().tuning();
    tuning.change(&changes(&[("batch.age_max_ms", json!(50))]), false, "test").unwrap();
    tuning.change(&changes(&[("batch.age_max_ms", Json::Null)]), false, "test").unwrap();
    assert_eq!(tuning.now().batch.age_max.as_millis(), 700);
}

#[test]
fn what_is_kept_holds_after_a_restart_and_nothing_else_does() {
    let site = Site::new();
    let tuning = site.tuning();
    tuning.change(&changes(&[("seal.level", json!(3))]), false, "test").unwrap();
    let kept = [
        ("batch.age_max_ms", json!(50)),
        ("cache.warn_fill", json!(0.4)),
        ("apply.enabled", json!(false)),
    ];
    tuning.change(&changes(&kept), true, "test").unwrap();
    let again = site.tuning().now();
    assert_eq!((again.batch.age_max.as_millis(), again.cache.warn_fill), (50, 0.4));
    assert_eq!((again.seal.level, again.apply.enabled), (1, false));
    assert_eq!(load_server(&site.path()).unwrap().batch.age_max.as_millis(), 700);

    let tuning = site.tuning();
    tuning.change(&changes(&[("batch.age_max_ms", Json::Null)]), true, "test").unwrap();
    let again = site.tuning().now();
    assert_eq!((again.batch.age_max.as_millis(), again.cache.warn_fill), (700, 0.4));
    assert_eq!(std::fs::read_to_string(site.path()).unwrap(), FILE, "never written");
}

#[test]
fn a_broken_overlay_is_named_with_its_file() {
    let site = Site::new();
    for (text, said) in [
        ("[batch\n", "not understood"),
        ("[batch]\nage_max_ms = 1\n", "batch.age_max_ms = 1: must be"),
        ("[seal]\nthreads = 1\n", "seal.threads = 1: cannot change while the server runs"),
        ("shards = 1\n", "shards = 1: cannot change"),
        ("[cache]\nwarn_fill = 0.8\n", "cache.warn_fill = 0.8: must not be above"),
    ] {
        std::fs::write(site.kept(), text).unwrap();
        let error = load_tuning(&site.path()).unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains("holdfast.kept.toml") && shown.contains(said), "{shown}");
        assert!(!matches!(error, SettingsError::Read { .. }));
    }
}

#[test]
fn a_change_that_cannot_be_kept_is_not_made() {
    let site = Site::new();
    let tuning = site.tuning();
    std::fs::create_dir(site.0.path().join("holdfast.kept.toml.new")).unwrap();
    let error = tuning.change(&changes(&[("seal.level", json!(3))]), true, "test").unwrap_err();
    assert!(matches!(error, TuningError::Keep { .. }), "{error}");
    assert_eq!(tuning.now().seal.level, 1);
    let homeless = Tuning::from(load_server(&site.path()).unwrap());
    let error = homeless.change(&changes(&[("seal.level", json!(3))]), true, "test").unwrap_err();
    assert!(matches!(error, TuningError::NoPlace), "{error}");
}

fn listed(tuning: &Tuning, key: &str) -> Json {
    let all = serde_json::to_value(tuning.list()).unwrap();
    all.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap().clone()
}

#[test]
fn windows_are_listed_changed_kept_and_taken_back() {
    let window = |days: &str, hours: &str, rate: u64| json!({ "days": days, "hours": hours, "bytes_per_s": rate });
    let site = Site::new();
    let file = format!(
        "{FILE}[[upload.window]]\ndays = \"mon,tue,wed\"\nhours = \"08:00-18:00\"\nbytes_per_s = 70000\n"
    );
    std::fs::write(site.path(), &file).unwrap();
    let tuning = site.tuning();
    let of_file = json!([window("mon-wed", "08:00-18:00", 70_000)]);
    let row = listed(&tuning, "upload.window");
    assert_eq!((&row["value"], &row["file"], &row["live"]), (&of_file, &of_file, &json!(true)));
    assert_eq!((&row["bounds"]["most"], &row["unit"]), (&json!(168), &json!("bytes-per-second")));

    let fresh =
        json!([window("daily", "22:00-06:00", 0), window("sat-sun", "00:00-24:00", 90_000)]);
    let set = [("upload.window", fresh.clone()), ("upload.bytes_per_s", json!(80_000))];
    let changed = tuning.change(&changes(&set), true, "test").unwrap();
    let said = serde_json::to_value(&changed).unwrap();
    assert_eq!((&said[1]["old"], &said[1]["new"]), (&of_file, &fresh), "{said}");
    // 1970-01-01 was a Thursday, 1970-01-03 a Saturday.
    let hour =
        |tuning: &Tuning, hour: i64| tuning.now().upload.rate.at(Timestamp(hour * 3_600_000_000));
    let rates = |tuning: &Tuning| [hour(tuning, 12), hour(tuning, 23), hour(tuning, 60)];
    assert_eq!(rates(&tuning), [Some(80_000), None, Some(90_000)]);

    let again = site.tuning();
    assert_eq!(
        (rates(&again), &listed(&again, "upload.window")["value"]),
        (rates(&tuning), &fresh)
    );
    assert_eq!(listed(&again, "upload.window")["kept"], true);
    again.change(&changes(&[("upload.window", json!([]))]), true, "test").unwrap();
    assert_eq!(
        listed(&site.tuning(), "upload.window")["value"],
        json!([]),
        "none instead of the file's"
    );
    again.change(&changes(&[("upload.window", Json::Null)]), true, "test").unwrap();
    assert_eq!(listed(&site.tuning(), "upload.window")["value"], of_file);
}

#[test]
fn every_rule_that_a_window_breaks_is_named_and_no_window_changes() {
    let tuning = Site::new().tuning();
    let good = json!({ "days": "daily", "hours": "00:00-24:00", "bytes_per_s": 70_000 });
    let set = |window: Json| [("upload.window", window), ("seal.level", json!(99))];
    let bad = json!([good, { "days": "monday", "hours": "8-9", "bytes_per_s": 1 }]);
    let said = refused(&tuning, &set(bad));
    for (line, start) in said.iter().zip([
        "seal.level = 99: must be",
        "upload.window[1].days = \"monday\": must name days",
        "upload.window[1].hours = \"8-9\": must be HH:MM-HH:MM",
        "upload.window[1].bytes_per_s = 1: must be 0 (no limit) or 65536 to",
    ]) {
        assert!(line.starts_with(start), "{line}\n{start}");
    }
    assert_eq!(said.len(), 4, "{said:?}");
    let many = Json::Array(vec![good.clone(); WINDOWS_MAX + 1]);
    assert!(refused(&tuning, &set(many))[1].contains("upload.window = 169: must be at most 168"));
    for odd in [json!(5), json!("daily"), good, json!([{ "day": "mon" }]), json!([[1]])] {
        let said = refused(&tuning, &[("upload.window", odd)]);
        assert!(
            said[0].contains("must be a list of at most 168 windows like {\"days\""),
            "{said:?}"
        );
    }
}

/// Every key of the settings file, from its documentation; its completeness is a test of its own.
fn documented() -> BTreeSet<(String, bool)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (server, _) = page.split_once("## `agent.toml`").unwrap();
    let mut table = String::new();
    let mut keys = BTreeSet::new();
    for line in server.lines() {
        if let Some(rest) = line.strip_prefix("### `[") {
            table = format!("{}.", rest.split(']').next().unwrap());
        } else if let Some(rest) = line.strip_prefix("| `") {
            let (key, rest) = rest.split_once('`').unwrap();
            keys.insert((format!("{table}{key}"), rest.starts_with(" | ⟳ ")));
        }
    }
    keys
}

#[test]
fn every_setting_is_live_or_says_why_not_and_is_documented_as_such() {
    let live = TABLE.iter().map(|row| (row.key.to_owned(), true));
    let fixed = FIXED.iter().map(|fixed| (fixed.key.to_owned(), false));
    let listed: BTreeSet<_> = live.chain(fixed).collect();
    assert_eq!(listed.len(), TABLE.len() + FIXED.len());
    assert_eq!(listed, documented());
}

#[test]
fn every_row_holds_its_bounds() {
    let site = Site::new();
    for row in TABLE {
        let ends = match row.bounds {
            Bounds::Whole { least, most, .. } => [Value::Whole(least), Value::Whole(most)],
            Bounds::Fraction { least, most, .. } => [Value::Fraction(least), Value::Fraction(most)],
            Bounds::Switch { .. } => [Value::Switch(false), Value::Switch(true)],
            Bounds::Windows { most, .. } => {
                let window = RateWindow { days: [true; 7], from: 0, to: 60, rate: Some(RATE_MIN) };
                [Value::Windows(Vec::new()), Value::Windows(vec![window; most])]
            }
        };
        let mut settings = load_server(&site.path()).unwrap();
        for value in ends {
            assert_eq!(row.bounds.take(&value).as_ref(), Some(&value), "{}", row.key);
            (row.put)(&mut settings, value.clone());
            assert_eq!((row.shown)(&settings), value, "{}", row.key);
        }
        assert_eq!(row.bounds.take(&row.bounds.default()), Some(row.bounds.default()));
        assert!(!row.cost.is_empty());
    }
}
