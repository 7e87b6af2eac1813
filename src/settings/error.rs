//! What can be wrong with a settings file.

use std::fmt;
use std::path::PathBuf;

/// A settings file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("settings file {path}: cannot be read; give its place with --config", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// No TOML, a key that does not exist, or a value of another type.
    #[error("settings file {path}: not understood; every key is in docs/configuration.md", path = path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: toml::de::Error,
    },
    /// Values that break rules: all of them.
    #[error("settings file {path}: {}", Listing(violations), path = path.display())]
    Violations {
        /// Which file.
        path: PathBuf,
        /// Every broken rule, in the order of the file's documentation.
        violations: Vec<Violation>,
    },
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// Key path, such as `cache.segment_bytes`.
    pub key: String,
    /// What stands there; `(not set)` when nothing does.
    pub value: String,
    /// What must hold.
    pub rule: String,
    /// What to do.
    pub cure: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, rule, cure } = self;
        write!(f, "{key} = {value}: {rule}; {cure}")
    }
}

pub(super) struct Listing<'a>(pub(super) &'a [Violation]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("one rule is broken")?,
            count => write!(f, "{count} rules are broken")?,
        }
        for violation in self.0 {
            write!(f, "\n    {violation}")?;
        }
        Ok(())
    }
}
