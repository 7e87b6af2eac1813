//! How a command fails: an exit code and the chain of causes.

use std::any::Any;
use std::error::Error;
use std::process::ExitCode;

use crate::observe::LogError;
use crate::settings::SettingsError;

/// A command that did not do what it was asked for.
#[derive(Debug)]
pub enum Failure {
    /// It failed: exit code 1.
    Failed(Box<dyn Error + Send + Sync>),
    /// Usage or settings are wrong: exit code 2.
    Usage(Box<dyn Error + Send + Sync>),
    /// Verification found a difference: exit code 3.
    Difference(Box<dyn Error + Send + Sync>),
}

impl Failure {
    /// Wrong usage.
    pub fn usage(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Usage(Box::new(error))
    }

    /// Says on standard error what failed and why, and gives the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        let (code, error) = match self {
            Self::Failed(error) => (1, error),
            Self::Usage(error) => (2, error),
            Self::Difference(error) => (3, error),
        };
        eprint!("{}", told(error.as_ref()));
        ExitCode::from(code)
    }
}

/// The error and its causes, one a line.
fn told(error: &dyn Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("  caused by: {error}\n"));
        cause = error.source();
    }
    text
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let any: &dyn Any = &error;
        if any.is::<SettingsError>() || any.is::<LogError>() {
            Self::Usage(Box::new(error))
        } else {
            Self::Failed(Box::new(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_chain_is_told_and_settings_are_usage() {
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(told(&error), "error: outer\n  caused by: inner\n");
        assert!(matches!(Failure::from(error), Failure::Failed(_)));
        let path = std::path::Path::new("/nonexistent");
        let error = crate::settings::load_server(path).unwrap_err();
        assert!(matches!(Failure::from(error), Failure::Usage(_)));
    }
}
