//! What can be wrong with an Azure store before its first request.

use std::path::{Path, PathBuf};

/// Files or values that the address names and that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("reading {path}", path = .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} {detail}", path = .path.display())]
    Content { path: PathBuf, detail: String },
    #[error("making an HTTP client")]
    Client {
        #[source]
        source: reqwest::Error,
    },
    #[error("making a credential")]
    Credential {
        #[source]
        source: azure_core::Error,
    },
    #[error("the endpoint {endpoint:?} is no address")]
    Endpoint { endpoint: String },
}

/// A small text file, without the white space around its content.
pub(super) fn secret(path: &Path) -> Result<String, ConfigError> {
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Ok(text.trim().to_owned())
}
