//! Tells where this server is: in the vault for the others and the sidecar, in a file for scripts.

use crate::clock::{Clock, Entropy, random16};
use crate::settings::ServerSettings;
use crate::store::LeaseId;
use crate::vault::{ServerDocument, ServerLoad, Vault};

use super::error::ServerError;
use super::peers::name;
use super::process::Addresses;

/// Takes the server's name. `kept` says whether its cache log holds records.
///
/// # Errors
/// When another process has the name, or had it since those records were admitted.
pub(super) async fn announce(
    settings: &ServerSettings,
    vault: &Vault,
    addresses: &Addresses,
    time: (&dyn Clock, &dyn Entropy),
    kept: bool,
) -> Result<(ServerDocument, LeaseId), ServerError> {
    let (clock, entropy) = time;
    let lease = name::lease_of(&settings.cache.directory, entropy)?;
    let advertised = settings.advertise.clone();
    let document = ServerDocument {
        server: settings.server.clone(),
        address: match advertised.strip_suffix(":0") {
            Some(host) => format!("{host}:{}", addresses.data.port()),
            None => advertised,
        },
        started: clock.wall(),
        incarnation: hex::encode(random16(entropy)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cache: hex::encode(lease.0),
        leaving: false,
        load: ServerLoad::default(),
    };
    name::take(vault, &document, lease, kept).await?;
    let path = settings.run_directory.join("addresses.json");
    let body = serde_json::to_vec_pretty(addresses).expect("plain values are JSON");
    let written =
        std::fs::create_dir_all(&settings.run_directory).and_then(|()| std::fs::write(&path, body));
    written.map_err(|source| ServerError::Io { path, action: "writing it", source })?;
    Ok((document, lease))
}
