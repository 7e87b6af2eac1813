//! Work whose panic ends the process before anything that it holds is let go.
//!
//! Owns: the end of the process. Does not own: what is vital (`machines`). Unwinding would drop
//! acknowledged records, and their segments of the cache log would be written anew; a process that
//! ends at once finds them there at its next start. A panic hook is the one thing that runs before
//! unwinding.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};

thread_local! {
    /// A vital future is being polled by this thread.
    static POLLED: Cell<bool> = const { Cell::new(false) };
}

/// A future whose panic aborts the process.
pub(super) struct Vital<F>(Pin<Box<F>>);

impl<F: Future> Vital<F> {
    pub(super) fn new(inner: F) -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                before(panic);
                if POLLED.get() {
                    tracing::error!(%panic, "publishing panicked: the process ends before records \
                        are let go; the cache log keeps them, start it again");
                    std::process::abort();
                }
            }));
        });
        Self(Box::pin(inner))
    }
}

impl<F: Future> Future for Vital<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let before = POLLED.replace(true);
        let polled = self.0.as_mut().poll(context);
        POLLED.set(before);
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const UNWOUND: &str = "HOLDFAST_TEST_UNWOUND";

    /// Writes a file when it is dropped, as a record would free its segment.
    struct Record(std::ffi::OsString);

    impl Drop for Record {
        fn drop(&mut self) {
            std::fs::write(&self.0, "let go").unwrap();
        }
    }

    #[tokio::test]
    async fn a_panic_ends_the_process_before_anything_is_let_go() {
        if let Some(path) = std::env::var_os(UNWOUND) {
            let panics = async {
                let _record = Record(path);
                tokio::task::yield_now().await;
                panic!("as a mistake would");
            };
            return Vital::new(panics).await;
        }
        let folder = tempfile::tempdir().unwrap();
        let (path, this) = (folder.path().join("unwound"), std::env::current_exe().unwrap());
        let name = "server::vital::tests::a_panic_ends_the_process_before_anything_is_let_go";
        let ended = Command::new(this).args([name, "--exact"]).env(UNWOUND, &path).output();
        let status = ended.unwrap().status;
        assert_eq!(status.signal(), Some(6), "it aborts: {status}");
        assert!(!path.exists(), "and lets nothing go before");
    }

    #[test]
    fn what_is_not_vital_may_panic() {
        drop(Vital::new(std::future::ready(())));
        assert!(std::panic::catch_unwind(|| panic!("as a mistake would")).is_err());
    }
}
