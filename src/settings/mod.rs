//! Settings: TOML → raw → checked, all violations at once. Documented in `docs/configuration.md`.

mod checked;

pub use checked::{
    AgentDisk, AgentMode, AgentSettings, ApplySettings, BatchSettings, CacheSettings, Capture,
    LimitSettings, SealSettings, ServerSettings, SidecarSettings, StoreUrl, TlsFiles,
    UploadSettings,
};
