//! Names of objects: relative paths of a narrow alphabet, safe in every store.

use std::fmt;

/// Slash-separated parts of `a-z 0-9 - . _`, none empty, none beginning with a dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// Checks a name.
    ///
    /// # Errors
    /// The text itself, when it is not a valid name.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        let good = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_')
                })
        };
        if text.len() <= 512 && text.split('/').all(good) { Ok(Self(text)) } else { Err(text) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::ObjectName;

    #[test]
    fn nothing_leaves_the_store() {
        for bad in ["", "/a", "a//b", "a/", "../a", "a/..", "a/.b", "A", "a b", "a\0b", "a%2e"] {
            assert!(ObjectName::new(bad).is_err(), "{bad:?}");
        }
        assert!(ObjectName::new("log/web-1/000_1.delta").is_ok());
    }
}
