//! `holdfast init`: a new site.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{self, PUBLIC, SECRET};
use super::output::print;
use super::site::Site;
use super::{Failure, block_on};
use crate::clock::{Clock, Entropy, System};
use crate::control::ca::CertificateAuthority;
use crate::control::words;
use crate::format::names;
use crate::model::SiteId;
use crate::seal::KeyEncryptionKey;
use crate::settings::{ServerSettings, load_server};
use crate::store::{Store, StoreError};

/// Make a new site: settings, private CA, certificates, key
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory for settings, certificates and keys
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Where the cloud log, the seed disks and the vault shall live
    #[arg(long, value_name = "dir:PATH|azure:URL", default_value = "dir:store")]
    store: String,
    /// Data port
    #[arg(long, value_name = "ADDR:9443", default_value = "0.0.0.0:9443")]
    listen: SocketAddr,
}

/// A store that belongs to another site.
#[derive(Debug, thiserror::Error)]
#[error("{store} is in use by another site; give this one its own with --store")]
struct StoreInUse {
    store: String,
}

/// Writes everything that a site needs. Never overwrites.
///
/// # Errors
/// When a file exists or cannot be written, or the store is in use.
pub fn run(args: &Args) -> Result<(), Failure> {
    let root = std::path::absolute(&args.directory)?;
    let config = root.join("holdfast.toml");
    let token_file = root.join("operator.token");
    let site: SiteId = random_site(&System)?;
    files::expect_absent(&config)?;
    files::make_directory(&root)?;
    files::create(&config, PUBLIC, &settings_text(&site, args))?;
    let (settings, store) = settled(&config, &token_file).inspect_err(|_| {
        std::fs::remove_file(&config).ok(); // nothing else was written: the next try starts afresh
    })?;
    write_certificates(&settings)?;
    let kek = KeyEncryptionKey::create(&settings.key_file, &System)?;
    let opened = Site::of(settings, store, kek);
    let token = block_on(async {
        let vault = &opened.sources.vault;
        vault.claim_site(&opened.settings.site, System.wall()).await?;
        Ok(vault.create_operator_token(System.wall(), &System).await?)
    })?;
    files::create(&token_file, SECRET, &format!("{}\n", token.reveal()))?;
    print(&next_steps(&root, &opened.settings))
}

/// What was just written, once it is known that nothing stands in the way.
fn settled(config: &Path, token_file: &Path) -> Result<(ServerSettings, Arc<dyn Store>), Failure> {
    let settings = load_server(config)?;
    for path in new_files(&settings).into_iter().chain([token_file]) {
        files::expect_absent(path)?;
    }
    let store = crate::store::open(&settings.store)?;
    block_on(async {
        crate::store::create(&settings.store).await?;
        expect_unused(store.as_ref()).await
    })?;
    Ok((settings, store))
}

async fn expect_unused(store: &dyn Store) -> Result<(), Failure> {
    match store.properties(&names::site_document()).await {
        Err(StoreError::NotFound { .. }) => Ok(()),
        Ok(_) => Err(StoreInUse { store: store.describe() }.into()),
        Err(error) => Err(error.into()),
    }
}

fn random_site(entropy: &dyn Entropy) -> Result<SiteId, Failure> {
    let mut bytes = [0; 4];
    entropy.fill(&mut bytes);
    Ok(format!("site-{}", hex::encode(bytes)).parse()?)
}

fn new_files(settings: &ServerSettings) -> [&Path; 7] {
    let tls = &settings.tls;
    [
        &tls.ca_certificate,
        &tls.ca_key,
        &tls.certificate,
        &tls.key,
        &tls.operator_certificate,
        &tls.operator_key,
        &settings.key_file,
    ]
}

fn write_certificates(settings: &ServerSettings) -> Result<(), Failure> {
    let (tls, now) = (&settings.tls, System.wall());
    let (ca, ca_key) = CertificateAuthority::create(&settings.site, now, &System)?;
    files::create(&tls.ca_key, SECRET, &ca_key)?;
    files::create(&tls.ca_certificate, PUBLIC, ca.certificate())?;
    let advertised = settings.advertise.rsplit_once(':');
    let advertised = advertised.map_or("localhost", |(host, _)| host);
    let hosts = [
        advertised.trim_matches(['[', ']']).to_owned(),
        settings.listen.ip().to_string(),
        settings.sidecar.listen.ip().to_string(),
    ];
    let server = ca.issue_server(&hosts, now, &System)?;
    files::create(&tls.key, SECRET, &server.key)?;
    files::create(&tls.certificate, PUBLIC, &server.certificate)?;
    let operator = ca.issue_operator(now, &System)?;
    files::create(&tls.operator_key, SECRET, &operator.key)?;
    files::create(&tls.operator_certificate, PUBLIC, &operator.certificate)?;
    Ok(())
}

/// The address that agents are told: what is listened on, or this machine's name.
fn advertise(listen: SocketAddr) -> String {
    if !listen.ip().is_unspecified() {
        return listen.to_string();
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    let good = rustls::pki_types::DnsName::try_from(name).is_ok();
    format!("{}:{}", if good { name } else { "localhost" }, listen.port())
}

fn settings_text(site: &SiteId, args: &Args) -> String {
    let mut text = format!(
        "# Holdfast: process server, applier, sidecar. Every setting: docs/configuration.md.\n\
         # Relative paths are resolved against this file's directory.\n\n\
         site = {:?}\n\
         server = \"ps-1\"\n\n\
         # The cloud log, the seed disks and the vault.\n\
         store = {:?}\n\n\
         # Data port, and the address that agents are told. A new host name needs a new server certificate.\n\
         listen = {:?}\n\
         advertise = {:?}\n\n",
        site.as_str(),
        args.store,
        args.listen.to_string(),
        advertise(args.listen),
    );
    for line in DEFAULTS.lines() {
        match line.is_empty() || line.starts_with(['#', '[']) {
            true => writeln!(text, "{line}"),
            false => writeln!(text, "# {line}"),
        }
        .expect("a string takes every write");
    }
    text
}

/// Every other setting with its default; written as a comment.
const DEFAULTS: &str = include_str!("defaults.toml");

fn next_steps(root: &Path, settings: &ServerSettings) -> String {
    let root = root.display();
    let memory = words::bytes(settings.memory_bytes_max());
    format!(
        "site {site} is ready in {root}\n\n\
         Keep {key} safe: without it nothing in the store can be read.\n\
         A process server with these settings takes up to {memory} of memory.\n\n\
         Next:\n\
         \x20 holdfast serve --config {root}/holdfast.toml\n\
         \x20 holdfast enroll MACHINE --config {root}/holdfast.toml --out AGENTDIR --disk NAME=PATH\n\
         \x20 holdfast agent --config AGENTDIR/agent.toml\n\
         \x20 holdfast status --config {root}/holdfast.toml\n\n\
         The control API's first token is in {root}/operator.token.",
        site = settings.site,
        key = settings.key_file.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_defaults_are_the_defaults() {
        let args = Args {
            directory: "x".into(),
            store: "dir:store".to_owned(),
            listen: "127.0.0.1:9443".parse().unwrap(),
        };
        let site = "s".parse().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("holdfast.toml");
        let commented = settings_text(&site, &args);
        std::fs::write(&path, &commented).unwrap();
        let from_nothing = load_server(&path).unwrap();
        let head = commented.split_once("# Prometheus").unwrap().0;
        std::fs::write(&path, format!("{head}{DEFAULTS}")).unwrap();
        let from_text = load_server(&path).unwrap();
        assert_eq!(format!("{from_nothing:?}"), format!("{from_text:?}"));
    }
}
