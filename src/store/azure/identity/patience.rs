//! A credential that never lets its callers wait for long.
//!
//! Owns: how long a token may take, and for how long a failure is believed. Does not own: tokens, which
//! the credential behind it and Azure's client keep. That client asks for one under a lock that every
//! request takes, also while the old token is still good: an authority that is silent, or an `az` that
//! hangs, would stop the whole store for its own time-out again and again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::error::{Error, ErrorKind};

use super::answer::chain;
use crate::clock::Clock;

/// A token is there in well under a second; also `az` starts in less.
const LONGEST: Duration = Duration::from_secs(10);
/// Who was waiting in line, and who asks again at once, gets the same words.
const BELIEVED: Duration = Duration::from_secs(5);

/// Bounds what is behind it.
pub(super) struct Patience {
    behind: Arc<dyn TokenCredential>,
    clock: Arc<dyn Clock>,
    /// The last failure: when, and its words.
    failed: Mutex<Option<(Duration, String)>>,
}

impl Patience {
    pub(super) fn new(behind: Arc<dyn TokenCredential>, clock: Arc<dyn Clock>) -> Self {
        Self { behind, clock, failed: Mutex::default() }
    }

    fn failed_lately(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, words) = failed.as_ref()?;
        let age = self.clock.monotonic().saturating_sub(*at);
        (age < BELIEVED).then(|| words.clone())
    }
}

impl std::fmt::Debug for Patience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.behind.fmt(f)
    }
}

#[async_trait]
impl TokenCredential for Patience {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        if let Some(words) = self.failed_lately() {
            return Err(Error::with_message(ErrorKind::Credential, words));
        }
        let got = tokio::select! {
            biased;
            got = self.behind.get_token(scopes, options) => got.map_err(|error| chain(&error)),
            () = self.clock.sleep(LONGEST) => Err(format!("no answer within {} s", LONGEST.as_secs())),
        };
        got.map_err(|words| {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            *failed = Some((self.clock.monotonic(), words.clone()));
            Error::with_message(ErrorKind::Credential, words)
        })
    }
}

#[cfg(test)]
#[path = "patience_tests.rs"]
mod tests;
