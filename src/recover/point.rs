//! How people say which point they mean.

use std::fmt;
use std::str::FromStr;

use super::RecoverError;
use crate::model::{Sequence, Timestamp};

/// `latest | latest-processed | latest-app | name:NAME | seq:N | time:RFC3339`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PointSpec {
    /// The newest published bookmark: least data lost.
    Latest,
    /// The newest snapshot point: least to read.
    LatestProcessed,
    /// The newest application-consistent point.
    LatestApp,
    /// The newest point of that name.
    Name(String),
    /// The point at that sequence; any sequence where every write was kept.
    Sequence(Sequence),
    /// The newest point at or before that moment.
    Time(Timestamp),
}

impl FromStr for PointSpec {
    type Err = RecoverError;

    fn from_str(text: &str) -> Result<Self, RecoverError> {
        let syntax = || RecoverError::Syntax { text: text.chars().take(200).collect() };
        match text {
            "latest" => return Ok(Self::Latest),
            "latest-processed" => return Ok(Self::LatestProcessed),
            "latest-app" => return Ok(Self::LatestApp),
            _ => {}
        }
        match text.split_once(':') {
            Some(("name", name)) if !name.is_empty() => Ok(Self::Name(name.to_owned())),
            Some(("seq", number)) => {
                let number = number.parse().map_err(|_| syntax())?;
                Ok(Self::Sequence(Sequence(number)))
            }
            Some(("time", time)) => Ok(Self::Time(time.parse().map_err(|_| syntax())?)),
            _ => Err(syntax()),
        }
    }
}

impl fmt::Display for PointSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::LatestProcessed => f.write_str("latest-processed"),
            Self::LatestApp => f.write_str("latest-app"),
            Self::Name(name) => write!(f, "name:{name}"),
            Self::Sequence(sequence) => write!(f, "seq:{sequence}"),
            Self::Time(time) => write!(f, "time:{time}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PointSpec;

    #[test]
    fn text_and_back() {
        for text in [
            "latest",
            "latest-processed",
            "latest-app",
            "name:before: the upgrade",
            "seq:17",
            "time:2026-01-31T12:00:00Z",
        ] {
            assert_eq!(text.parse::<PointSpec>().unwrap().to_string(), text);
        }
        for bad in ["", "Latest", "name:", "seq:-1", "seq:", "time:noon", "17"] {
            let error = bad.parse::<PointSpec>().unwrap_err();
            assert!(error.to_string().contains("latest-processed"), "{error}");
        }
    }
}
