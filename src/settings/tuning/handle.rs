//! The settings in force, and how they change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::Value as Json;
use tokio::sync::watch;

use super::super::check::Check;
use super::super::error::{Listing, Violation};
use super::super::server::relations;
use super::super::{ServerSettings, SettingsError};
use super::fixed::FIXED;
use super::overlay;
use super::value::{Bounds, Unit, Value};
use super::{TABLE, row};

/// The settings of a running server. Clones share them.
#[derive(Clone, Debug)]
pub struct Tuning {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What the settings file alone says.
    file: ServerSettings,
    /// Where kept changes are written; `None` when there is no settings file.
    place: Option<PathBuf>,
    /// What is kept; the lock also orders changes.
    kept: Mutex<BTreeMap<&'static str, Value>>,
    now: watch::Sender<Arc<ServerSettings>>,
}

/// A change that was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    /// It breaks rules: all of them.
    #[error("{}", Listing(.0))]
    Violations(Vec<Violation>),
    /// It cannot be kept.
    #[error("{path}: cannot be written, so nothing was changed; without \"keep\" the change holds until the next start", path = path.display())]
    Keep {
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// There is no place to keep it.
    #[error("this server was started without a settings file: a change cannot be kept")]
    NoPlace,
}

/// One setting that got another value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changed {
    /// Which.
    pub key: &'static str,
    /// Before.
    pub old: Value,
    /// Now.
    pub new: Value,
}

/// One setting as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Listed {
    /// It can change now.
    Live {
        /// Its key, as in `holdfast.toml`.
        key: &'static str,
        /// In force.
        value: Value,
        /// What the settings file says, or its default.
        file: Value,
        /// Whether a kept change stands in for the file's value.
        kept: bool,
        /// What a value must hold.
        bounds: Bounds,
        /// What a value counts.
        unit: Unit,
        /// What it does and costs.
        cost: &'static str,
        /// True.
        live: bool,
    },
    /// It cannot.
    Fixed {
        /// Its key, as in `holdfast.toml`.
        key: &'static str,
        /// In force.
        value: Json,
        /// False.
        live: bool,
        /// Why a restart is needed.
        why: &'static str,
    },
}

impl From<ServerSettings> for Tuning {
    /// Settings without a file: changes hold until the process ends.
    fn from(settings: ServerSettings) -> Self {
        let now = watch::Sender::new(Arc::new(settings.clone()));
        let shared = Shared { file: settings, place: None, kept: Mutex::default(), now };
        Self { shared: Arc::new(shared) }
    }
}

impl Tuning {
    /// The settings of the file at `path`, with the changes that were kept beside it.
    ///
    /// # Errors
    /// When the kept changes cannot be read, or break a rule together with the file.
    pub(in super::super) fn beside(
        path: &Path,
        file: ServerSettings,
    ) -> Result<Self, SettingsError> {
        let place = overlay::place(path);
        let written = overlay::read(&place)?;
        let mut check = Check::new(&place)?;
        let mut settings = file.clone();
        let kept = alter(&mut settings, &file, &written, &mut check);
        check.finish(())?;
        if !kept.is_empty() {
            let words: Vec<_> =
                kept.iter().map(|(key, value)| format!("{key} = {value}")).collect();
            tracing::info!(file = %place.display(), kept = words.join(", "),
                "kept changes stand in for values of the settings file");
        }
        let now = watch::Sender::new(Arc::new(settings));
        let shared = Shared { file, place: Some(place), kept: Mutex::new(kept), now };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The settings in force.
    #[must_use]
    pub fn now(&self) -> Arc<ServerSettings> {
        Arc::clone(&self.shared.now.borrow())
    }

    /// The settings in force, and a word whenever they change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerSettings>> {
        self.shared.now.subscribe()
    }

    /// Puts `changes` in force together, or none of them: key to value, `null` for what the
    /// settings file says. With `keep` they hold after a restart, too. `by` is who asked, for the
    /// log.
    ///
    /// # Errors
    /// With every rule that the settings would break, or when they cannot be kept.
    pub fn change(
        &self,
        changes: &BTreeMap<String, Json>,
        keep: bool,
        by: &str,
    ) -> Result<Vec<Changed>, TuningError> {
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.now();
        let mut settings = ServerSettings::clone(&before);
        let mut check = Check::bare();
        let set = alter(&mut settings, &self.shared.file, changes, &mut check);
        let violations = check.violations();
        if !violations.is_empty() {
            return Err(TuningError::Violations(violations));
        }
        if keep {
            let mut to_keep = kept.clone();
            to_keep.retain(|key, _| !changes.contains_key(*key));
            to_keep.extend(set);
            let place = self.shared.place.as_ref().ok_or(TuningError::NoPlace)?;
            overlay::write(place, &to_keep)
                .map_err(|source| TuningError::Keep { path: place.clone(), source })?;
            *kept = to_keep;
        }
        let changed: Vec<_> = TABLE
            .iter()
            .map(|row| Changed {
                key: row.key,
                old: (row.shown)(&before),
                new: (row.shown)(&settings),
            })
            .filter(|change| change.old != change.new)
            .collect();
        self.shared.now.send_replace(Arc::new(settings));
        for Changed { key, old, new } in &changed {
            tracing::info!(key, %old, %new, by, keep, "setting changed");
        }
        Ok(changed)
    }

    /// Every setting: what can change first, then what cannot.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        let live = TABLE.iter().map(|row| Listed::Live {
            key: row.key,
            value: (row.shown)(&now),
            file: (row.shown)(&self.shared.file),
            kept: kept.contains_key(row.key),
            bounds: row.bounds,
            unit: row.unit,
            cost: row.cost,
            live: true,
        });
        let fixed = FIXED.iter().map(|fixed| Listed::Fixed {
            key: fixed.key,
            value: (fixed.value)(&now),
            live: false,
            why: fixed.why,
        });
        live.chain(fixed).collect()
    }
}

/// Puts every value that holds its own bounds into `settings`, then holds the rules between them.
/// Gives what was set to a value of its own.
fn alter(
    settings: &mut ServerSettings,
    file: &ServerSettings,
    changes: &BTreeMap<String, Json>,
    check: &mut Check,
) -> BTreeMap<&'static str, Value> {
    let mut set = BTreeMap::new();
    for (key, json) in changes {
        let Some(row) = row(key) else {
            unknown(key, json, check);
            continue;
        };
        if json.is_null() {
            (row.put)(settings, (row.shown)(file));
            continue;
        }
        if let Some(value) = row.bounds.read(row.key, json, check) {
            (row.put)(settings, value.clone());
            set.insert(row.key, value);
        }
    }
    relations(check, settings);
    set
}

fn unknown(key: &str, json: &Json, check: &mut Check) {
    match FIXED.iter().find(|fixed| fixed.key == key) {
        Some(fixed) => {
            let rule = format!("cannot change while the server runs: {}", fixed.why);
            check.violation(key, json, &rule, "change holdfast.toml and restart");
        }
        None => check.violation(
            key,
            json,
            "is no setting",
            "GET /v1/tuning lists all; keys are written like batch.age_max_ms",
        ),
    }
}
