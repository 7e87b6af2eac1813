//! Settings: TOML → raw → checked, all violations at once. Documented in `docs/configuration.md`.
//!
//! Owns: the two files, their defaults and rules. Does not own: whether what they name exists; the
//! stage that opens it says so. Looked at is one thing, for one default: how many logs the cache has.

mod agent;
mod azure;
mod check;
mod checked;
mod error;
mod prices;
mod qemu;
mod rate;
mod raw;
mod server;
#[cfg(test)]
mod tests;
pub mod tuning;
mod uplink;

use std::path::Path;

pub use agent::AGENT_CONTROL_SOCKET;
pub use azure::{AzureAuth, AzureUrl};
pub use checked::{
    AgentDisk, AgentMode, AgentSettings, ApplicationHook, ApplySettings, BatchSettings,
    CacheSettings, Capture, Congestion, LevelBounds, LimitSettings, RECORDS_MEMORY_PART,
    ScanSettings, SealSettings, ServerSettings, SidecarSettings, SnapshotHook, StoreUrl,
    StreamBounds, TlsFiles, TransportChoice, UploadSettings,
};
pub use error::{SettingsError, Violation};
pub use prices::Prices;
pub use qemu::{MirrorTls, QemuAddress, RemoteMirror};
pub use rate::{Rate, RateSchedule, RateWindow};
pub use tuning::Tuning;

/// Checks a store's address that stands in no file; relative paths in it are resolved against
/// `base`.
///
/// # Errors
/// With every rule that it breaks.
pub fn store_url(text: &str, base: &Path) -> Result<StoreUrl, SettingsError> {
    server::store_url(text, base)
}

/// Reads and checks `holdfast.toml`.
///
/// # Errors
/// When the file cannot be read or understood, or with every rule that it breaks.
pub fn load_server(path: &Path) -> Result<ServerSettings, SettingsError> {
    server::check(raw(path)?, path)
}

/// Reads and checks `holdfast.toml` for a server that runs: with the changes that were kept beside
/// it, and open to further ones.
///
/// # Errors
/// As [`load_server`], and when the kept changes cannot be read or break a rule.
pub fn load_tuning(path: &Path) -> Result<Tuning, SettingsError> {
    Tuning::beside(path, load_server(path)?)
}

/// Reads and checks `agent.toml`.
///
/// # Errors
/// When the file cannot be read or understood, or with every rule that it breaks.
pub fn load_agent(path: &Path) -> Result<AgentSettings, SettingsError> {
    agent::check(raw(path)?, path)
}

fn raw<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|source| SettingsError::Syntax { path: path.to_owned(), source })
}
