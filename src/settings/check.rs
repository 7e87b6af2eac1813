//! Collects every broken rule while raw values become checked ones.
//!
//! Owns: how one value is checked and named. Does not own: which rules there are (`server`, `agent`).
//! A value that breaks its rule is replaced by its default, so that checking goes on; the caller
//! gets no settings at all when anything was collected.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{SettingsError, Violation};

pub(super) struct Check {
    file: PathBuf,
    base: PathBuf,
    violations: Vec<Violation>,
}

impl Check {
    /// For the file at `path`; relative paths in it are resolved against its directory.
    pub(super) fn new(path: &Path) -> Result<Self, SettingsError> {
        let unreadable = |source| SettingsError::Read { path: path.to_owned(), source };
        let file = std::path::absolute(path).map_err(unreadable)?;
        let base = file.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { file, base, violations: Vec::new() })
    }

    /// For values that stand in no file.
    pub(super) fn bare() -> Self {
        Self { file: PathBuf::new(), base: PathBuf::new(), violations: Vec::new() }
    }

    /// What relative paths are resolved against.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// How many were collected so far.
    pub(super) fn count(&self) -> usize {
        self.violations.len()
    }

    /// What was collected.
    pub(super) fn violations(self) -> Vec<Violation> {
        self.violations
    }

    pub(super) fn finish<T>(self, settings: T) -> Result<T, SettingsError> {
        if self.violations.is_empty() {
            return Ok(settings);
        }
        Err(SettingsError::Violations { path: self.file, violations: self.violations })
    }

    pub(super) fn violation(&mut self, key: &str, value: impl Display, rule: &str, cure: &str) {
        self.violations.push(Violation {
            key: key.to_owned(),
            value: value.to_string(),
            rule: rule.to_owned(),
            cure: cure.to_owned(),
        });
    }

    /// Holds a relation between several settings.
    pub(super) fn relation(
        &mut self,
        holds: bool,
        key: &str,
        value: impl Display,
        rule: &str,
        cure: &str,
    ) {
        if !holds {
            self.violation(key, value, rule, cure);
        }
    }

    pub(super) fn number(
        &mut self,
        key: &str,
        value: Option<i64>,
        default: u64,
        bounds: RangeInclusive<u64>,
    ) -> u64 {
        let Some(value) = value else { return default };
        match u64::try_from(value) {
            Ok(number) if bounds.contains(&number) => number,
            _ => {
                let (low, high) = bounds.into_inner();
                let rule = format!("must be {low} to {high}");
                let cure = format!("leave it out for the default, {default}");
                self.violation(key, value, &rule, &cure);
                default
            }
        }
    }

    /// As [`Self::number`], for bounds that fit the narrower type.
    pub(super) fn narrow<T: TryFrom<u64>>(
        &mut self,
        key: &str,
        value: Option<i64>,
        default: u64,
        bounds: RangeInclusive<u64>,
    ) -> T {
        let number = self.number(key, value, default, bounds);
        T::try_from(number).ok().expect("bounds and default fit the type")
    }

    pub(super) fn multiple(&mut self, key: &str, value: u64, unit: u64) {
        if !value.is_multiple_of(unit) {
            let rule = format!("must be a multiple of {unit}");
            let cure = format!("{} is one", value.next_multiple_of(unit));
            self.violation(key, value, &rule, &cure);
        }
    }

    /// A name that must be set.
    pub(super) fn name<T>(&mut self, key: &str, value: Option<&str>) -> T
    where
        T: FromStr,
        T::Err: Display,
    {
        let text = value.unwrap_or_default();
        text.parse().unwrap_or_else(|error: T::Err| {
            let shown = value.map_or_else(|| "(not set)".to_owned(), |text| format!("{text:?}"));
            self.violation(key, shown, &error.to_string(), "choose such a name");
            let placeholder = "unnamed".parse().ok();
            placeholder.expect("the placeholder is a valid name of every kind")
        })
    }

    pub(super) fn socket(&mut self, key: &str, value: Option<&str>, default: &str) -> SocketAddr {
        let text = value.unwrap_or(default);
        text.parse().unwrap_or_else(|_| {
            let rule = "must be IP:PORT, IPv6 in brackets";
            self.violation(key, format!("{text:?}"), rule, &format!("write it like {default:?}"));
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    /// `host:port` of something that others connect to.
    pub(super) fn host_port(&mut self, key: &str, text: &str) {
        let good = text.rsplit_once(':').is_some_and(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            rustls::pki_types::ServerName::try_from(host).is_ok() && port.parse::<u16>().is_ok()
        });
        let rule = "must be HOST:PORT with a DNS name or an IP address";
        self.relation(
            good,
            key,
            format!("{text:?}"),
            rule,
            "write it like \"recovery.example.org:9443\"",
        );
    }

    /// A path, made absolute.
    pub(super) fn path(&mut self, key: &str, value: Option<&str>, default: &str) -> PathBuf {
        let text = value.unwrap_or(default);
        if text.is_empty() || text.contains('\0') {
            self.violation(
                key,
                format!("{text:?}"),
                "must be a path",
                &format!("leave it out for {default:?}"),
            );
        }
        self.base.join(text)
    }

    pub(super) fn required(&mut self, key: &str, value: Option<&str>, cure: &str) {
        if value.is_none() {
            self.violation(key, "(not set)", "must be set", cure);
        }
    }
}
