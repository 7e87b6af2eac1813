//! Who this process is towards Azure: one of eight kinds, all from files or the environment.
//!
//! Owns: reading what an address names and making Azure's credential of it. Tokens themselves are
//! fetched, kept and renewed by Azure's crate; when a file is read again, `renewed` knows.

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
use super::renewed::Renewed;
use super::sas::Sas;
use super::shared_key::SharedKey;
use crate::clock::Clock;
use crate::settings::{AzureAuth, AzureUrl};

/// Where the container is and how requests to it prove who sends them.
pub(in crate::store::azure) struct Identity {
    pub(in crate::store::azure) container: Url,
    pub(in crate::store::azure) account: String,
    pub(in crate::store::azure) token: Option<Arc<dyn TokenCredential>>,
    pub(in crate::store::azure) policies: Vec<Arc<dyn Policy>>,
}

/// Makes it. Reads files; asks nobody yet.
pub(in crate::store::azure) fn identity(
    url: &AzureUrl,
    transport: &Transport,
    clock: &Arc<dyn Clock>,
) -> Result<Identity, ConfigError> {
    match &url.auth {
        AzureAuth::SharedKey { file } => {
            let named = file.clone();
            let key = Renewed::load(file, clock, move |text| account_key(text, &named))?;
            let mut made = Identity::at(url.endpoint.clone().unwrap_or_default())?;
            made.sign(key, clock);
            Ok(made)
        }
        AzureAuth::Sas { file } => {
            let named = file.clone();
            let sas = Renewed::load(file, clock, move |text| signature(text, &named))?;
            let mut made = Identity::at(url.endpoint.clone().unwrap_or_default())?;
            made.policies.push(Arc::new(Sas(sas)));
            Ok(made)
        }
        AzureAuth::ConnectionString { file } => connected(file, &url.container, clock),
        _ => {
            let mut made = Identity::at(url.endpoint.clone().unwrap_or_default())?;
            let credential = token(url, options(url, transport), clock)?;
            made.token = Some(Arc::new(Patience::new(credential, Arc::clone(clock))));
            Ok(made)
        }
    }
}

/// By a connection string: what it points to is read once, its key or signature again and again.
fn connected(
    file: &Path,
    container: &str,
    clock: &Arc<dyn Clock>,
) -> Result<Identity, ConfigError> {
    let first = ConnectionString::of(&secret(file)?, file)?;
    let mut made = Identity::at(format!("{}/{container}", first.endpoint))?;
    made.account = first.account.clone();
    let (path, keyed) = (file.to_owned(), first.key.is_some());
    let proof = move |text: &str| {
        let found = ConnectionString::of(text, &path)?;
        let refuse = |detail: &str| content(&path, detail);
        if (&found.endpoint, &found.account) != (&first.endpoint, &first.account) {
            return Err(refuse("names another account or endpoint now; restart to go there"));
        }
        let (proof, gone) = match keyed {
            true => (found.key, "has no AccountKey any more; restart to use a signature"),
            false => (found.sas, "has no SharedAccessSignature any more; restart to use a key"),
        };
        let proof = proof.ok_or_else(|| refuse(gone))?;
        Ok((proof, path.clone()))
    };
    if keyed {
        let key = move |text: &str| proof(text).and_then(|(key, path)| account_key(&key, &path));
        made.sign(Renewed::load(file, clock, key)?, clock);
    } else {
        let sas = move |text: &str| proof(text).and_then(|(sas, path)| signature(&sas, &path));
        made.policies.push(Arc::new(Sas(Renewed::load(file, clock, sas)?)));
    }
    Ok(made)
}

fn content(path: &Path, detail: &str) -> ConfigError {
    ConfigError::Content { path: path.to_owned(), detail: detail.to_owned() }
}

fn account_key(text: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    base64::decode(text).map_err(|_| content(path, "holds no account key (Base64)"))
}

/// The query string that Azure shows, with or without its question mark.
fn signature(text: &str, path: &Path) -> Result<String, ConfigError> {
    let query = text.trim_start_matches('?');
    match query.split('&').any(|pair| pair.starts_with("sig=")) {
        true => Ok(query.to_owned()),
        false => Err(content(path, "holds no shared access signature (…&sig=…)")),
    }
}

impl Identity {
    /// Nobody yet, at the container's address.
    fn at(endpoint: String) -> Result<Self, ConfigError> {
        let account = AzureUrl::account_of(&endpoint);
        let container = Url::parse(&endpoint).map_err(|_| ConfigError::Endpoint { endpoint })?;
        Ok(Self { container, account, token: None, policies: Vec::new() })
    }

    fn sign(&mut self, key: Renewed<Vec<u8>>, clock: &Arc<dyn Clock>) {
        self.policies.push(Arc::new(SharedKey::new(&self.account, key, Arc::clone(clock))));
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
            let make = move |password: &str| {
                let client_options = client_options.clone();
                let options = Some(ClientSecretCredentialOptions { client_options });
                let password = password.to_owned().into();
                let made =
                    ClientSecretCredential::new(&tenant_id, client_id.clone(), password, options);
                Ok(made.map_err(failed)? as Arc<dyn TokenCredential>)
            };
            Arc::new(Renewed::load(&file, clock, make)?)
        }
        AzureAuth::ClientCertificate { tenant_id, client_id, file } => {
            let (path, authority, wall) = (file.clone(), authority(url), Arc::clone(clock));
            let make = move |pem: &str| {
                let clock = Arc::clone(&wall);
                let made = Certificate::of(pem, &path, &authority, &tenant_id, &client_id, clock)?;
                let client_options = client_options.clone();
                let options = Some(ClientAssertionCredentialOptions { client_options });
                let (tenant_id, client_id) = (tenant_id.clone(), client_id.clone());
                let made = ClientAssertionCredential::new(tenant_id, client_id, made, options);
                Ok(made.map_err(failed)? as Arc<dyn TokenCredential>)
            };
            Arc::new(Renewed::load(&file, clock, make)?)
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
