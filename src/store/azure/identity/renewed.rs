//! What a file of a credential says now: keys, signatures and passwords end, and are renewed while a
//! server runs.
//!
//! Owns: when a file is looked at again, and that one which cannot be used changes nothing. Does not
//! own: what is made of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};

use super::config::{ConfigError, secret};
use crate::clock::Clock;
use crate::observe::error_chain;

/// A file in use is read again after this long: a third of a lease, so one that was renewed in time ends none.
const LOOK_AFTER: Duration = Duration::from_secs(5);

type Make<T> = dyn Fn(&str) -> Result<T, ConfigError> + Send + Sync;

/// Something that is made of a file's text.
pub(super) struct Renewed<T> {
    path: PathBuf,
    make: Box<Make<T>>,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen<T>>,
}

struct Seen<T> {
    made: Arc<T>,
    /// What the file said when it was last looked at, of use or not; `None`: it could not be read.
    text: Option<String>,
    looked_at: Duration,
}

impl<T> Renewed<T> {
    /// Reads the file for the first time.
    pub(super) fn load(
        path: &Path,
        clock: &Arc<dyn Clock>,
        make: impl Fn(&str) -> Result<T, ConfigError> + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        let text = secret(path)?;
        let made = Arc::new(make(&text)?);
        let seen = Seen { made, text: Some(text), looked_at: clock.monotonic() };
        Ok(Self {
            path: path.to_owned(),
            make: Box::new(make),
            clock: Arc::clone(clock),
            seen: Mutex::new(seen),
        })
    }

    /// What is to be used now. Reads a small file now and then.
    pub(super) fn now(&self) -> Arc<T> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.monotonic();
        if now.saturating_sub(seen.looked_at) >= LOOK_AFTER {
            seen.looked_at = now;
            self.look(&mut seen);
        }
        Arc::clone(&seen.made)
    }

    fn look(&self, seen: &mut Seen<T>) {
        let read = secret(&self.path);
        let text = read.as_ref().ok().cloned();
        if text == seen.text {
            return;
        }
        seen.text = text;
        match read.and_then(|text| (self.make)(&text)) {
            Ok(made) => {
                seen.made = Arc::new(made);
                tracing::info!(path = %self.path.display(), "a credential's file was read again");
            }
            Err(error) => tracing::warn!(
                error = error_chain(&error),
                "a credential's file changed and cannot be used; what it said before is used on"
            ),
        }
    }
}

impl<T> fmt::Debug for Renewed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Renewed({})", self.path.display())
    }
}

/// An application's credential: Azure's client keeps a token, and asks for the next with what the
/// file says then.
#[async_trait]
impl TokenCredential for Renewed<Arc<dyn TokenCredential>> {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let credential = self.now();
        credential.get_token(scopes, options).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;
    use crate::model::Timestamp;

    #[derive(Default)]
    struct Turned(AtomicU64);

    #[async_trait]
    impl Clock for Turned {
        fn wall(&self) -> Timestamp {
            Timestamp(0)
        }
        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.0.load(SeqCst))
        }
        async fn sleep(&self, _: Duration) {}
    }

    #[test]
    fn a_file_is_read_again_and_one_of_no_use_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let turned = Arc::new(Turned::default());
        let clock: Arc<dyn Clock> = turned.clone();
        let refuse = |path: &Path| ConfigError::Content {
            path: path.to_owned(),
            detail: "holds no number".to_owned(),
        };
        write(" 1\n");
        let named = path.clone();
        let make = move |text: &str| text.parse::<u32>().map_err(|_| refuse(&named));
        let renewed = Renewed::load(&path, &clock, make).unwrap();
        let after = |seconds| {
            turned.0.fetch_add(seconds, SeqCst);
            *renewed.now()
        };
        write("2");
        assert_eq!(after(4), 1, "not looked at yet");
        assert_eq!(after(1), 2);
        write("two");
        assert_eq!(after(5), 2);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(after(5), 2);
        write("3");
        assert_eq!(after(5), 3);
    }
}
