//! Changes that are kept over a restart: a file beside the settings file, of the same form.
//!
//! The settings file itself is the administrator's, comments and all: it is never written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::super::SettingsError;
use super::super::rate::RateWindow;
use super::value::Value;

const HEAD: &str = "# Written by PATCH /v1/tuning with \"keep\": true. What stands here wins over the settings file\n\
    # beside it. Remove a line, or the file, to go back; it is read when the server starts.\n";

/// `holdfast.toml` → `holdfast.kept.toml`.
pub(super) fn place(settings: &Path) -> PathBuf {
    settings.with_extension("kept.toml")
}

/// What is kept: key to value; empty when there is no file.
pub(super) fn read(place: &Path) -> Result<BTreeMap<String, Json>, SettingsError> {
    let text = match std::fs::read_to_string(place) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(SettingsError::Read { path: place.to_owned(), source }),
    };
    let tables: BTreeMap<String, Json> = toml::from_str(&text)
        .map_err(|source| SettingsError::Syntax { path: place.to_owned(), source })?;
    let mut flat = BTreeMap::new();
    for (table, value) in tables {
        match value {
            Json::Object(settings) => {
                flat.extend(
                    settings.into_iter().map(|(key, value)| (format!("{table}.{key}"), value)),
                );
            }
            value => {
                flat.insert(table, value);
            }
        }
    }
    Ok(flat)
}

/// As TOML on one line.
fn written(value: &Value) -> String {
    match value {
        Value::Fraction(number) => format!("{number:?}"), // 1.0 stays a fraction
        Value::Windows(windows) => {
            let one = |window: &RateWindow| {
                let (days, hours) = (window.days_text(), window.hours_text());
                let rate = window.rate.unwrap_or(0);
                format!("{{ days = \"{days}\", hours = \"{hours}\", bytes_per_s = {rate} }}")
            };
            format!("[{}]", windows.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        Value::Switch(_) | Value::Whole(_) => value.to_string(),
    }
}

/// Replaces the file, whole or not at all, and durably.
pub(super) fn write(place: &Path, kept: &BTreeMap<&'static str, Value>) -> io::Result<()> {
    let mut text = HEAD.to_owned();
    let mut open = "";
    for (key, value) in kept {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        if table != open {
            text.push_str(&format!("\n[{table}]\n"));
            open = table;
        }
        text.push_str(&format!("{name} = {}\n", written(value)));
    }
    let fresh = place.with_extension("toml.new");
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, place)?;
    File::open(place.parent().unwrap_or(Path::new("/")))?.sync_all()
}
