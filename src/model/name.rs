//! Names that people choose. They become object names, so the alphabet is narrow.

use std::fmt;

/// A name outside the alphabet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{kind} name {text:?} is not 1 to 48 of a-z, 0-9 and '{joint}', beginning and ending with a letter or digit"
)]
pub struct NameError {
    kind: &'static str,
    joint: char,
    text: String,
}

/// Longest name, bytes: `asrseeddisk-<machine>-<disk>-<epoch>` stays far below Azure's 1,024.
const NAME_BYTES_MAX: usize = 48;

fn valid(text: &str, joint: char) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= NAME_BYTES_MAX
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || char::from(*b) == joint)
}

macro_rules! name {
    ($($(#[$doc:meta])* $name:ident, $kind:literal, $joint:literal);* $(;)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if valid(text, $joint) {
                    Ok(Self(text.into()))
                } else {
                    Err(NameError { kind: $kind, joint: $joint, text: text.chars().take(80).collect() })
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
name!(
    /// A protected source machine.
    MachineId, "machine", '-';
    /// One replicated disk of a machine. Without `-`, so that `asrseeddisk-<machine>-<disk>-<epoch>`
    /// can be read in one way only.
    DiskName, "disk", '_';
    /// A process server.
    ServerId, "process server", '-';
    /// One installation: the machines, servers and keys under one private CA.
    SiteId, "site", '-';
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_disks_never_share_a_seed_disk_name() {
        assert!("1-root".parse::<DiskName>().is_err());
        assert!("data_1".parse::<DiskName>().is_ok());
    }

    #[test]
    fn names_outside_the_alphabet_are_refused() {
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a.b", "ä", &"a".repeat(49), "a\0", "%2e"] {
            assert!(bad.parse::<MachineId>().is_err(), "{bad:?}");
        }
        for good in ["a", "web-1", "0", &"a".repeat(48)] {
            assert_eq!(good.parse::<MachineId>().unwrap().as_str(), good);
        }
    }
}
