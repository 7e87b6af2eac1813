//! The assertion of an application that says who it is with a certificate.
//!
//! Azure's crate does this with OpenSSL, which this product does not link. The token request around
//! it is Azure's own; only the signed statement (RFC 7523) is made here. Its fields: "Application
//! authentication certificate credentials" of the Microsoft identity platform.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core::error::{Error, ErrorKind};
use azure_core::http::ClientMethodOptions;
use azure_core::{Uuid, base64};
use azure_identity::ClientAssertion;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PSS_SHA256, RsaKeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::config::ConfigError;
use crate::clock::Clock;

const LIFE_SECONDS: i64 = 300;

/// Certificate and key of an application.
pub(super) struct Certificate {
    audience: String,
    client_id: String,
    thumbprint: String,
    key: RsaKeyPair,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificate({})", self.client_id)
    }
}

impl Certificate {
    /// Certificate and RSA key (PKCS #8) of one PEM file, which stands at `path`.
    pub(super) fn of(
        pem: &str,
        path: &Path,
        authority: &str,
        tenant_id: &str,
        client_id: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        let refuse = |detail: &str| ConfigError::Content {
            path: path.to_owned(),
            detail: detail.to_owned(),
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| refuse("holds no certificate (PEM)"))?;
        let key = match PrivateKeyDer::from_pem_slice(pem.as_bytes()) {
            Ok(PrivateKeyDer::Pkcs8(key)) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).ok(),
            Ok(PrivateKeyDer::Pkcs1(key)) => RsaKeyPair::from_der(key.secret_pkcs1_der()).ok(),
            _ => None,
        };
        Ok(Self {
            audience: format!("{authority}/{tenant_id}/oauth2/v2.0/token"),
            client_id: client_id.to_owned(),
            thumbprint: base64::encode_url_safe(Sha256::digest(&certificate)),
            key: key.ok_or_else(|| refuse("holds no RSA key of 2048 bits or more (PEM)"))?,
            clock,
        })
    }

    fn assertion(&self) -> Result<String, ring::error::Unspecified> {
        let header = format!(
            r#"{{"alg":"PS256","typ":"JWT","x5t#S256":"{}"}}"#,
            self.thumbprint.trim_end_matches('=')
        );
        let now = self.clock.wall().0 / 1_000_000;
        let claims = serde_json::json!({
            "aud": self.audience, "iss": self.client_id, "sub": self.client_id,
            "jti": Uuid::new_v4().to_string(), "nbf": now, "exp": now + LIFE_SECONDS,
        });
        let part = |bytes: &[u8]| base64::encode_url_safe(bytes).trim_end_matches('=').to_owned();
        let text = format!("{}.{}", part(header.as_bytes()), part(claims.to_string().as_bytes()));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key.sign(&RSA_PSS_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)?;
        Ok(format!("{text}.{}", part(&signature)))
    }
}

#[async_trait]
impl ClientAssertion for Certificate {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        let failed = |_| Error::with_message(ErrorKind::Credential, "signing the assertion");
        self.assertion().map_err(failed)
    }
}
