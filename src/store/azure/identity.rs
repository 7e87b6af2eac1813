//! Who this process is towards Azure: one of eight kinds, all from files or the environment.
//!
//! Owns: reading what an address names and making Azure's credential of it. Tokens themselves are
//! fetched, kept and renewed by Azure's crate.

use std::path::Path;
use std::sync::Arc;

use azure_core::base64;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::TokenCredential;
use azure_core::http::policies::Policy;
use azure_core::http::{ClientOptions, RetryOptions, Transport, Url};
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertionCredential,
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};

use super::certificate::Certificate;
use super::config::{ConfigError, secret};
use super::connection_string::ConnectionString;
use super::patience::Patience;
use super::shared_key::SharedKey;
use crate::clock::Clock;
use crate::settings::{AzureAuth, AzureUrl};

/// Where the container is and how requests to it prove who sends them.
pub(super) struct Identity {
    pub(super) container: Url,
    pub(super) account: String,
    pub(super) token: Option<Arc<dyn TokenCredential>>,
    pub(super) policies: Vec<Arc<dyn Policy>>,
}

/// Makes it. Reads files; asks nobody yet.
pub(super) fn identity(
    url: &AzureUrl,
    transport: &Transport,
    clock: &Arc<dyn Clock>,
) -> Result<Identity, ConfigError> {
    let mut from_string = None;
    if let AzureAuth::ConnectionString { file } = &url.auth {
        from_string = Some(ConnectionString::load(file)?);
    }
    let endpoint = match &from_string {
        Some(found) => format!("{}/{}", found.endpoint, url.container),
        None => url.endpoint.clone().unwrap_or_default(),
    };
    let bad = |_| ConfigError::Endpoint { endpoint: endpoint.clone() };
    let container = Url::parse(&endpoint).map_err(bad)?;
    let account = match &from_string {
        Some(found) => found.account.clone(),
        None => AzureUrl::account_of(&endpoint),
    };
    let mut made = Identity { container, account, token: None, policies: Vec::new() };
    match &url.auth {
        AzureAuth::SharedKey { file } => made.sign(&secret(file)?, file, clock)?,
        AzureAuth::Sas { file } => made.append(&secret(file)?),
        AzureAuth::ConnectionString { file } => match from_string {
            Some(ConnectionString { key: Some(key), .. }) => made.sign(&key, file, clock)?,
            Some(ConnectionString { sas: Some(sas), .. }) => made.append(&sas),
            _ => unreachable!("a connection string has a key or a signature"),
        },
        _ => {
            let credential = token(url, options(url, transport), clock)?;
            made.token = Some(Arc::new(Patience::new(credential, Arc::clone(clock))));
        }
    }
    Ok(made)
}

impl Identity {
    fn sign(&mut self, key: &str, file: &Path, clock: &Arc<dyn Clock>) -> Result<(), ConfigError> {
        let key = base64::decode(key).map_err(|_| ConfigError::Content {
            path: file.to_owned(),
            detail: "holds no account key (Base64)".to_owned(),
        })?;
        self.policies.push(Arc::new(SharedKey::new(&self.account, key, Arc::clone(clock))));
        Ok(())
    }

    fn append(&mut self, sas: &str) {
        self.container.set_query(Some(sas.trim_start_matches('?')));
    }
}

/// Options of a client that asks for tokens. Its retries are off, too: who waits for a token holds a
/// lease that runs out.
fn options(url: &AzureUrl, transport: &Transport) -> ClientOptions {
    let cloud = match authority(url).as_str() {
        AUTHORITY => CloudConfiguration::AzurePublic,
        other => {
            let mut custom = CustomConfiguration::default();
            other.clone_into(&mut custom.authority_host);
            custom.into()
        }
    };
    ClientOptions {
        transport: Some(transport.clone()),
        retry: RetryOptions::none(),
        cloud: Some(Arc::new(cloud)),
        ..ClientOptions::default()
    }
}

const AUTHORITY: &str = "https://login.microsoftonline.com";

/// Sovereign clouds are known by the suffix of their endpoints.
fn authority(url: &AzureUrl) -> String {
    let host = url.endpoint.as_deref().unwrap_or_default().split('/').nth(2).unwrap_or_default();
    let known = match host {
        _ if host.ends_with(".core.usgovcloudapi.net") => "https://login.microsoftonline.us",
        _ if host.ends_with(".core.chinacloudapi.cn") => "https://login.chinacloudapi.cn",
        _ => AUTHORITY,
    };
    url.authority.clone().unwrap_or_else(|| known.to_owned())
}

fn token(
    url: &AzureUrl,
    client_options: ClientOptions,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<dyn TokenCredential>, ConfigError> {
    let failed = |source| ConfigError::Credential { source };
    Ok(match url.auth.clone() {
        AzureAuth::ManagedIdentity { client_id } => {
            let user_assigned_id = client_id.map(UserAssignedId::ClientId);
            let options = ManagedIdentityCredentialOptions { user_assigned_id, client_options };
            ManagedIdentityCredential::new(Some(options)).map_err(failed)?
        }
        AzureAuth::WorkloadIdentity { client_id, tenant_id, token_file } => {
            let options = WorkloadIdentityCredentialOptions {
                credential_options: ClientAssertionCredentialOptions { client_options },
                client_id,
                tenant_id,
                token_file_path: token_file,
            };
            WorkloadIdentityCredential::new(Some(options)).map_err(failed)?
        }
        AzureAuth::ClientSecret { tenant_id, client_id, file } => {
            let options = ClientSecretCredentialOptions { client_options };
            let password = secret(&file)?.into();
            ClientSecretCredential::new(&tenant_id, client_id, password, Some(options))
                .map_err(failed)?
        }
        AzureAuth::ClientCertificate { tenant_id, client_id, file } => {
            let clock = Arc::clone(clock);
            let made = Certificate::load(&file, &authority(url), &tenant_id, &client_id, clock)?;
            let options = ClientAssertionCredentialOptions { client_options };
            ClientAssertionCredential::new(tenant_id, client_id, made, Some(options))
                .map_err(failed)?
        }
        AzureAuth::Cli { tenant_id } => {
            let options = AzureCliCredentialOptions { tenant_id, ..Default::default() };
            AzureCliCredential::new(Some(options)).map_err(failed)?
        }
        AzureAuth::SharedKey { .. }
        | AzureAuth::Sas { .. }
        | AzureAuth::ConnectionString { .. } => unreachable!("these need no token"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{StoreUrl, store_url};

    #[test]
    fn sovereign_clouds_are_known_by_their_suffix() {
        for (host, more, expected) in [
            ("a.blob.core.windows.net", "", AUTHORITY),
            ("a.blob.core.usgovcloudapi.net", "", "https://login.microsoftonline.us"),
            ("a.blob.core.chinacloudapi.cn", "", "https://login.chinacloudapi.cn"),
            (
                "a.blob.core.cloud.example",
                "?authority=https://login.example",
                "https://login.example",
            ),
        ] {
            let text = format!("azure:https://{host}/box{more}");
            let StoreUrl::Azure(url) = store_url(&text, Path::new("/")).unwrap() else {
                panic!("{text}");
            };
            assert_eq!(authority(&url), expected, "{host}");
        }
    }
}
