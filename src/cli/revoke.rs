//! `holdfast revoke`: a machine's certificates, and which of them are refused from now on.

use serde::Serialize;

use super::output::{print, print_json, print_table, table};
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on};
use crate::clock::{Clock, System};
use crate::control::{CertificateStanding, CertificateView, Revoke, certificates, revoke};
use crate::model::MachineId;

/// Revoke certificates of a machine; without a fingerprint: list them
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine
    machine: MachineId,
    /// Which certificate: its fingerprint, or the first 8 digits of it
    fingerprint: Option<String>,
    /// All but the one that was issued last
    #[arg(long, conflicts_with = "fingerprint")]
    but_newest: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Serialize)]
struct Certificates<'a> {
    machine: &'a MachineId,
    certificates: &'a [CertificateView],
}

/// Revokes, or lists in the order of issue. Needs only the store and the key.
///
/// # Errors
/// When the machine or the certificate is unknown, or the store does not answer.
pub fn run(args: &Args) -> Result<(), Failure> {
    let site = Site::open(&args.config.config)?;
    let (machine, now) = (&args.machine, System.wall());
    let which = match (&args.fingerprint, args.but_newest) {
        (Some(fingerprint), _) => Some(Revoke::One(fingerprint.clone())),
        (None, true) => Some(Revoke::ButNewest),
        (None, false) => None,
    };
    let views = block_on(async {
        Ok(match &which {
            Some(which) => revoke(&site.sources, machine, which, now).await?,
            None => certificates(&site.sources, machine, now).await?,
        })
    })?;
    if args.json {
        return print_json(&Certificates { machine, certificates: &views });
    }
    let mut rows = table(&["FINGERPRINT", "GOOD UNTIL", "STATE"]);
    for view in &views {
        let state = match (view.state, view.revoked_now) {
            (_, true) => "revoked now",
            (CertificateStanding::Good, _) => "good",
            (CertificateStanding::Expired, _) => "expired",
            (CertificateStanding::Revoked, _) => "revoked",
        };
        rows.add_row([view.fingerprint.clone(), view.not_after.to_string(), state.to_owned()]);
    }
    print_table(&rows)?;
    if views.iter().any(|view| view.revoked_now) {
        print(
            "refused at the next connection; a session that lasts ends within an hour, or as soon as the \
             machine's agent comes with another certificate",
        )?;
    }
    let good = |view: &CertificateView| view.state == CertificateStanding::Good;
    match views.iter().any(good) {
        true => Ok(()),
        false => print(&format!(
            "no certificate of {machine} is good: it is not protected until `holdfast enroll {machine}`"
        )),
    }
}
