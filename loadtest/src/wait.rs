//! Waiting for what other processes bring about: always bounded.

use std::time::Duration;

use holdfast::clock::{Clock, System};

use crate::error::LoadError;

/// How often it is looked again.
const LOOK: Duration = Duration::from_millis(20);

/// Lets time pass.
#[allow(
    clippy::disallowed_methods,
    reason = "a plain thread that polls other processes, or keeps a rate"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Looks until something is there; an error of `look` is only the last thing known.
pub(crate) fn eventually<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>, LoadError>,
) -> Result<T, LoadError> {
    let until = System.monotonic() + patience;
    let mut last = "it has not happened".to_owned();
    loop {
        match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => last = holdfast::observe::error_chain(&error),
        }
        if System.monotonic() >= until {
            let (what, seconds) = (what.to_owned(), patience.as_secs());
            return Err(LoadError::Late { what, seconds, last });
        }
        pause(LOOK);
    }
}
