//! What can go wrong with the vault's documents.

use std::fmt;

use crate::store::{Class, StoreError};

/// A document that could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The store said no.
    #[error("vault document {name}")]
    Store {
        /// Which document.
        name: String,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// There is no such document.
    #[error("vault document {name} does not exist")]
    Missing {
        /// Which document.
        name: String,
    },
    /// It was to be made and exists.
    #[error("vault document {name} exists already")]
    Exists {
        /// Which document.
        name: String,
    },
    /// Its authentication code is wrong: changed by somebody without the key, or the key is another.
    #[error(
        "vault document {name} was altered, or key_file holds another key: its authentication code does not fit"
    )]
    Altered {
        /// Which document.
        name: String,
    },
    /// It is no document at all, or not of the shape that this version knows.
    #[error("vault document {name} cannot be understood")]
    Shape {
        /// Which document.
        name: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Somebody else changed it again and again between reading and writing.
    #[error("vault document {name} was changed by others {tries} times in a row; try again")]
    Contended {
        /// Which document.
        name: String,
        /// How often.
        tries: u32,
    },
    /// The store belongs to another installation.
    #[error(
        "the store belongs to site {found}, these settings are of site {expected}; give each site its own store"
    )]
    OtherSite {
        /// What the store says.
        found: crate::model::SiteId,
        /// What the settings say.
        expected: crate::model::SiteId,
    },
    /// A policy breaks rules: all of them.
    #[error("policy refused: {}", Listing(violations))]
    Policy {
        /// Every broken rule.
        violations: Vec<PolicyViolation>,
    },
    /// The caller's change does not fit what the document says now.
    #[error("vault document {name}: {reason}")]
    Refused {
        /// Which document.
        name: String,
        /// Why.
        reason: String,
    },
}

/// One rule that a policy breaks.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PolicyViolation {
    /// Which field.
    pub field: String,
    /// What it says.
    pub value: String,
    /// What must hold.
    pub rule: String,
}

struct Listing<'a>(&'a [PolicyViolation]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, violation) in self.0.iter().enumerate() {
            let PolicyViolation { field, value, rule } = violation;
            let gap = if number == 0 { "" } else { "; " };
            write!(f, "{gap}{field} = {value} {rule}")?;
        }
        Ok(())
    }
}

impl VaultError {
    /// The document that cannot be believed, where it is one.
    #[must_use]
    pub fn document(&self) -> Option<&str> {
        match self {
            Self::Store { name, .. }
            | Self::Missing { name }
            | Self::Exists { name }
            | Self::Altered { name }
            | Self::Shape { name, .. }
            | Self::Contended { name, .. } => Some(name),
            Self::OtherSite { .. } | Self::Policy { .. } | Self::Refused { .. } => None,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Store { source, .. } => source.class(),
            Self::Contended { .. } => Class::Retry,
            Self::Altered { .. } | Self::Shape { .. } => Class::Poison,
            Self::Missing { .. }
            | Self::Exists { .. }
            | Self::OtherSite { .. }
            | Self::Policy { .. }
            | Self::Refused { .. } => Class::Reject,
        }
    }
}
