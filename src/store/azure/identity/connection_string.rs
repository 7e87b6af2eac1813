//! Connection strings as Azure shows them: `Key=Value;…`.

use std::path::Path;

use super::config::ConfigError;

/// What is used of one.
#[derive(Debug, PartialEq)]
pub(super) struct ConnectionString {
    /// Blob endpoint without a slash at its end.
    pub(super) endpoint: String,
    pub(super) account: String,
    pub(super) key: Option<String>,
    pub(super) sas: Option<String>,
}

impl ConnectionString {
    /// Of what stands in the file at `path`.
    pub(super) fn of(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let refuse = |detail: &str| ConfigError::Content {
            path: path.to_owned(),
            detail: detail.to_owned(),
        };
        Self::parse(text).map_err(refuse)
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let value = |wanted: &str| {
            text.split(';').find_map(|pair| {
                let (name, value) = pair.trim().split_once('=')?;
                (name == wanted).then(|| value.to_owned())
            })
        };
        let account = value("AccountName");
        let endpoint = value("BlobEndpoint").or_else(|| {
            let protocol = value("DefaultEndpointsProtocol").unwrap_or_else(|| "https".to_owned());
            let suffix = value("EndpointSuffix").unwrap_or_else(|| "core.windows.net".to_owned());
            Some(format!("{protocol}://{}.blob.{suffix}", account.as_ref()?))
        });
        let endpoint = endpoint.ok_or("has neither BlobEndpoint nor AccountName")?;
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !crate::settings::AzureUrl::is_private(&endpoint) {
            return Err(
                "names an endpoint that is neither https:// nor http:// to loopback; let it say DefaultEndpointsProtocol=https",
            );
        }
        let account = account.unwrap_or_else(|| crate::settings::AzureUrl::account_of(&endpoint));
        let (key, sas) = (value("AccountKey"), value("SharedAccessSignature"));
        if key.is_none() && sas.is_none() {
            return Err("has neither AccountKey nor SharedAccessSignature");
        }
        Ok(Self { endpoint, account, key, sas })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azures_own_and_an_emulators() {
        let azure = ConnectionString::parse(
            "DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=a2V5PT0=;EndpointSuffix=core.usgovcloudapi.net",
        )
        .unwrap();
        assert_eq!(azure.endpoint, "https://acct.blob.core.usgovcloudapi.net");
        assert_eq!((azure.account.as_str(), azure.key.as_deref()), ("acct", Some("a2V5PT0=")));
        let sas = ConnectionString::parse(
            "BlobEndpoint=https://acct.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=x%3D",
        )
        .unwrap();
        assert_eq!(sas.endpoint, "https://acct.blob.core.windows.net");
        assert_eq!((sas.account.as_str(), sas.sas.as_deref()), ("acct", Some("sv=1&sig=x%3D")));
        let emulator = ConnectionString::parse(
            "AccountName=dev;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:10000/dev;",
        )
        .unwrap();
        assert_eq!(emulator.endpoint, "http://127.0.0.1:10000/dev");
        // Key or signature, and every byte, would go over the network in clear text.
        for open in [
            "DefaultEndpointsProtocol=http;AccountName=acct;AccountKey=a2V5",
            "BlobEndpoint=http://acct.blob.core.windows.net;AccountKey=a2V5",
            "BlobEndpoint=http://127.0.0.1:80@a.example/dev;AccountKey=a2V5",
            "BlobEndpoint=acct.blob.core.windows.net;AccountKey=a2V5",
        ] {
            let told = ConnectionString::parse(open).unwrap_err();
            assert!(told.contains("neither https:// nor http:// to loopback"), "{open}: {told}");
        }
        for bad in ["", "AccountName=a", "AccountKey=k"] {
            assert!(ConnectionString::parse(bad).is_err(), "{bad}");
        }
    }
}
