//! Bearer tokens. The store holds only their hashes; a token is shown once, when it is made.
//!
//! A token is 256 random bits, so a plain SHA-256 is enough of a hash: there is nothing to guess. It
//! is found by the first 64 bits of its hash and compared as a whole in constant time.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{TokenDocument, Vault, VaultError};
use crate::clock::Entropy;
use crate::format::names;
use crate::model::{MachineId, ObjectName, Timestamp};

/// A token as its bearer holds it: 64 hexadecimal digits.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

/// A token that does not open what it was shown for.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nobody made it.
    #[error("the token is not known")]
    Unknown,
    /// It was made for something else.
    #[error("the token is good for something else")]
    OtherUse,
    /// Its time is over.
    #[error("the token expired at {expired}")]
    Expired {
        /// When.
        expired: Timestamp,
    },
    /// It was used before.
    #[error("the token was used at {used}; it is good for one enrolment")]
    Used {
        /// When.
        used: Timestamp,
    },
    /// It was made for another machine.
    #[error("the token is for another machine than {asked}")]
    OtherMachine {
        /// Which machine it was shown for.
        asked: MachineId,
    },
    /// The vault did not answer.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl Token {
    /// A fresh one.
    #[must_use]
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        entropy.fill(bytes.as_mut_slice());
        Self(Zeroizing::new(hex::encode(bytes.as_slice())))
    }

    /// A text that may be a token; `None` when it cannot be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let good = text.len() == 64 && text.bytes().all(digit);
        good.then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The text to be shown once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn sha256(&self) -> String {
        hex::encode(Sha256::digest(self.0.as_bytes()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

fn document_name(sha256: &str) -> ObjectName {
    names::token_document(&sha256[..16])
}

impl Vault {
    /// Makes a token that opens the sidecar's routes.
    ///
    /// # Errors
    /// The store's error.
    pub async fn create_operator_token(
        &self,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<Token, VaultError> {
        let token = Token::random(entropy);
        let sha256 = token.sha256();
        let name = document_name(&sha256);
        let document = TokenDocument::Operator { sha256, created: now };
        self.create(&name, &document).await?;
        Ok(token)
    }

    /// Makes a token that enrols `machine` once, before `expires`.
    ///
    /// # Errors
    /// The store's error.
    pub async fn create_enrolment_token(
        &self,
        machine: &MachineId,
        expires: Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<Token, VaultError> {
        let token = Token::random(entropy);
        let sha256 = token.sha256();
        let name = document_name(&sha256);
        let document =
            TokenDocument::Enrol { sha256, machine: machine.clone(), expires, used: None };
        self.create(&name, &document).await?;
        Ok(token)
    }

    /// Finds that `token` is an operator's.
    ///
    /// # Errors
    /// Why it is not; or the vault's error.
    pub async fn check_operator_token(&self, token: &Token) -> Result<(), TokenError> {
        match self.token(token).await?.1 {
            TokenDocument::Operator { .. } => Ok(()),
            TokenDocument::Enrol { .. } => Err(TokenError::OtherUse),
        }
    }

    /// Finds that `token` enrols `machine` now, without using it up.
    ///
    /// # Errors
    /// Why it does not; or the vault's error.
    pub async fn check_enrolment_token(
        &self,
        token: &Token,
        machine: &MachineId,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        let (_, document) = self.token(token).await?;
        redeemable(&document, machine, now)
    }

    /// Uses `token` up to enrol `machine`: of several callers exactly one succeeds.
    ///
    /// # Errors
    /// Why it does not enrol this machine; or the vault's error.
    pub async fn redeem_enrolment_token(
        &self,
        token: &Token,
        machine: &MachineId,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        let (name, _) = self.token(token).await?;
        let mut refused = None;
        let change = |mut document: TokenDocument| {
            if let Err(error) = redeemable(&document, machine, now) {
                let reason = error.to_string();
                refused = Some(error);
                let name = name.to_string();
                return Err(VaultError::Refused { name, reason });
            }
            if let TokenDocument::Enrol { used, .. } = &mut document {
                *used = Some(now);
            }
            Ok(document)
        };
        let updated = self.update(&name, change).await;
        match (updated, refused) {
            (Ok(_), _) => Ok(()),
            (Err(_), Some(refused)) => Err(refused),
            (Err(VaultError::Missing { .. }), None) => Err(TokenError::Unknown),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// Removes enrolment tokens whose time has been over for a day: until then a late bearer is told
    /// why it is refused.
    ///
    /// # Errors
    /// When a token was altered or the store does not answer.
    pub async fn remove_expired_tokens(&self, now: Timestamp) -> Result<(), VaultError> {
        for id in self.list(names::TOKENS).await? {
            let name = names::token_document(&id);
            if let Some((TokenDocument::Enrol { expires, .. }, _)) = self.read(&name).await?
                && now.seconds_since(expires) > 86_400.0
            {
                self.delete(&name).await?;
            }
        }
        Ok(())
    }

    async fn token(&self, token: &Token) -> Result<(ObjectName, TokenDocument), TokenError> {
        let shown = token.sha256();
        let name = document_name(&shown);
        let Some((document, _)) = self.read::<TokenDocument>(&name).await? else {
            return Err(TokenError::Unknown);
        };
        let (TokenDocument::Operator { sha256, .. } | TokenDocument::Enrol { sha256, .. }) =
            &document;
        if !bool::from(sha256.as_bytes().ct_eq(shown.as_bytes())) {
            return Err(TokenError::Unknown);
        }
        Ok((name, document))
    }
}

fn redeemable(
    document: &TokenDocument,
    asked: &MachineId,
    now: Timestamp,
) -> Result<(), TokenError> {
    let TokenDocument::Enrol { machine, expires, used, .. } = document else {
        return Err(TokenError::OtherUse);
    };
    if machine != asked {
        let asked = asked.clone();
        return Err(TokenError::OtherMachine { asked });
    }
    if let Some(used) = *used {
        return Err(TokenError::Used { used });
    }
    if now >= *expires {
        return Err(TokenError::Expired { expired: *expires });
    }
    Ok(())
}
