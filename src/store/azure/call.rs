//! What every request has in common.

use std::convert::Infallible;

use azure_core::http::Etag;
use azure_core::http::headers::{HeaderValue, Headers};
use azure_storage_blob::BlobClient;
use azure_storage_blob::models::{
    BlobClientGetPropertiesOptions, BlobClientGetPropertiesResultHeaders, BlobType, LeaseState,
};

use super::{
    Asked, Azure, Condition, ETag, Effect, LeaseId, ObjectName, Properties, Result, StoreError,
};
use crate::model::Timestamp;
use crate::store::rules::{About, SEQUENCE_NUMBER_MAX};

/// An object as a HEAD request shows it.
pub(super) struct Seen {
    pub(super) properties: Properties,
    pub(super) pages: bool,
}

impl Azure {
    pub(super) fn about<'a>(&'a self, name: &'a ObjectName) -> About<'a> {
        About::new(&self.store, name)
    }

    pub(super) fn asked<'a>(&'a self, name: &'a ObjectName, effect: Effect) -> Asked<'a> {
        Asked { about: self.about(name), effect, now: self.clock.wall() }
    }

    pub(super) fn blob(&self, name: &ObjectName) -> BlobClient {
        self.container.blob_client(name.as_str())
    }

    /// Turns an answer into ours.
    pub(super) fn told<T>(
        &self,
        name: &ObjectName,
        effect: Effect,
        answer: azure_core::Result<T>,
    ) -> Result<T> {
        answer.map_err(|error| self.asked(name, effect).judge(error))
    }

    /// Looks at an object. With a lease: `Fenced` unless it is the running one.
    pub(super) async fn see(&self, name: &ObjectName, lease: Option<LeaseId>) -> Result<Seen> {
        let options = BlobClientGetPropertiesOptions {
            lease_id: lease.map(lease_text),
            ..Default::default()
        };
        let answer = self.blob(name).get_properties(Some(options)).await;
        let found = self.told(name, Effect::Reads, answer)?;
        let read = || -> azure_core::Result<Seen> {
            // As text: an emulator rounds the largest number up, beyond what is allowed.
            let number = header(found.headers(), "x-ms-blob-sequence-number");
            let modified = found.last_modified()?.map_or(0, |at| at.unix_timestamp());
            let properties = Properties {
                length: found.content_length()?.unwrap_or_default(),
                etag: etag(found.etag()?),
                modified: Timestamp(modified * 1_000_000),
                sequence_number: number.parse().unwrap_or(0).min(SEQUENCE_NUMBER_MAX),
                leased: found.lease_state()? == Some(LeaseState::Leased),
            };
            Ok(Seen { properties, pages: found.blob_type()? == Some(BlobType::PageBlob) })
        };
        self.told(name, Effect::Reads, read())
    }

    /// The page blob of that name.
    pub(super) async fn see_pages(
        &self,
        name: &ObjectName,
        lease: Option<LeaseId>,
    ) -> Result<Properties> {
        let seen = self.see(name, lease).await?;
        if !seen.pages {
            return Err(self.about(name).is_blocks());
        }
        self.sizes.learn(name, seen.properties.length);
        Ok(seen.properties)
    }

    /// The block blob of that name, if there is one.
    pub(super) async fn see_blocks(&self, name: &ObjectName) -> Result<Option<Properties>> {
        match self.see(name, None).await {
            Ok(seen) if seen.pages => Err(self.about(name).is_pages()),
            Ok(seen) => Ok(Some(seen.properties)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn etag(found: Option<Etag>) -> ETag {
    ETag(found.map(|etag| etag.to_string()).unwrap_or_default())
}

/// A header's value, empty without one. (`get_optional_str` makes an error of each absent header, with a
/// backtrace where those are on: a fifth of a page write's CPU.)
pub(super) fn header<'a>(headers: &'a Headers, name: &'static str) -> &'a str {
    let value = |value: &'a HeaderValue| Ok::<_, Infallible>(value.as_str());
    headers.get_optional_with(&name.into(), value).ok().flatten().unwrap_or_default()
}

/// `If-Match` and `If-None-Match`.
pub(super) fn conditions(condition: &Condition) -> (Option<Etag>, Option<Etag>) {
    match condition {
        Condition::Always => (None, None),
        Condition::Absent => (None, Some("*".into())),
        Condition::Matches(etag) => (Some(etag.0.as_str().into()), None),
    }
}

/// A lease id as Azure writes it: a UUID.
pub(super) fn lease_text(lease: LeaseId) -> String {
    azure_core::Uuid::from_bytes(lease.0).to_string()
}
