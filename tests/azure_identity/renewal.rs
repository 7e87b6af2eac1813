//! A credential's file is written anew under a store that is open.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast::clock::{Clock, System};
use holdfast::model::{ObjectName, Timestamp};
use holdfast::settings::{StoreUrl, store_url};
use holdfast::store::{Azure, Condition, Store, StoreError};

use super::authority::{self, Authority, Kind};
use super::azurite::installed;
use super::{Case, TENANT, azurite, signature};

/// The real time, and more of it when a test says so.
#[derive(Default)]
struct Ahead(AtomicU64);

#[async_trait]
impl Clock for Ahead {
    fn wall(&self) -> Timestamp {
        System.wall()
    }
    fn monotonic(&self) -> Duration {
        System.monotonic() + Duration::from_secs(self.0.load(SeqCst))
    }
    async fn sleep(&self, duration: Duration) {
        System.sleep(duration).await;
    }
}

struct Open {
    runtime: tokio::runtime::Runtime,
    clock: Arc<Ahead>,
    store: Azure,
    file: std::path::PathBuf,
}

impl Open {
    /// A store at `text`, whose credential stands in `file`; its container is made.
    fn new(text: &str, file: &Path) -> Self {
        let open = Self::there(text, file);
        open.runtime.block_on(open.store.create_container()).unwrap();
        open
    }

    fn there(text: &str, file: &Path) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let StoreUrl::Azure(url) = store_url(text, Path::new("/")).unwrap() else {
            panic!("{text}")
        };
        let clock = Arc::new(Ahead::default());
        let store = Azure::open(&url, clock.clone(), System::entropy()).unwrap();
        Self { runtime, clock, store, file: file.to_owned() }
    }

    /// Writes an object with what the file says now, when it has been looked at again.
    fn after(&self, content: &str) -> Result<(), StoreError> {
        std::fs::write(&self.file, content).unwrap();
        self.clock.0.fetch_add(6, SeqCst);
        let name = ObjectName::new("renewed").unwrap();
        let body = Bytes::from_static(b"x");
        self.runtime.block_on(self.store.put(&name, body, Condition::Always)).map(drop)
    }
}

fn denied(told: Result<(), StoreError>) -> bool {
    matches!(told, Err(StoreError::Denied { .. }))
}

#[test]
fn an_account_key() {
    let Some(azurite) = azurite() else { return };
    let case = Case::new("renewed-key");
    let file = case.file("key", azurite::KEY);
    let store = case.store(azurite, &format!("auth=shared-key&file={}", file.display()));
    let open = Open::new(&store, &file);
    open.after(azurite::KEY).unwrap();
    assert!(denied(open.after("d3Jvbmc=")), "another key signs");
    open.after(azurite::KEY).unwrap();
    open.after("half of a k").unwrap();
}

#[test]
fn a_connection_string_may_not_lead_elsewhere() {
    let Some(azurite) = azurite() else { return };
    let case = Case::new("renewed-string");
    let string = |endpoint: &str, key: &str| {
        format!("AccountName={};AccountKey={key};BlobEndpoint={endpoint}", azurite::ACCOUNT)
    };
    let here = azurite.endpoint();
    let file = case.file("string", &string(&here, azurite::KEY));
    let (ca, path) = (azurite.ca_file(), file.display());
    let text =
        format!("azure:renewed-string?auth=connection-string&file={path}&ca-file={}", ca.display());
    let open = Open::new(&text, &file);
    assert!(denied(open.after(&string(&here, "d3Jvbmc="))));
    open.after(&string(&here, azurite::KEY)).unwrap();
    open.after(&string("https://127.0.0.1:1/devstoreaccount1", "d3Jvbmc=")).unwrap();
}

#[test]
fn a_signature() {
    let (Some(azurite), Some(python)) = (azurite(), installed("python/bin/python")) else { return };
    let case = Case::new("renewed-sas");
    let key = case.file("key", azurite::KEY);
    // The container is made with the key.
    Open::new(&case.store(azurite, &format!("auth=shared-key&file={}", key.display())), &key);
    let sas = signature(&python, case.container);
    let file = case.file("sas", &sas);
    let store = case.store(azurite, &format!("auth=sas&file={}", file.display()));
    let open = Open::new(&store, &file);
    open.after(&format!("?{sas}")).unwrap();
    assert!(denied(open.after(&sas.replace("sig=", "sig=A"))), "it is the new one that is sent");
    open.after(&sas).unwrap();
    open.after("").unwrap();
}

/// What was refused at first is written rightly: nothing but time is needed.
#[test]
fn a_password() {
    let Some(azurite) = azurite() else { return };
    let authority = Authority::start(azurite.ca_file().parent().unwrap(), Kind::Secret);
    let case = Case::new("renewed-password");
    let file = case.file("password", "wrong");
    let query = format!(
        "auth=client-secret&tenant-id={TENANT}&client-id=app&file={}&authority={}",
        file.display(),
        authority.address()
    );
    let key = case.file("key", azurite::KEY);
    Open::new(&case.store(azurite, &format!("auth=shared-key&file={}", key.display())), &key);
    let open = Open::there(&case.store(azurite, &query), &file);
    assert!(denied(open.after("wrong")));
    open.after(authority::PASSWORD).unwrap();
}
