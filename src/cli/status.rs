//! `holdfast status`: how machines are, and which process servers there are.

use std::collections::BTreeMap;

use super::output::{print, print_json, print_table, table};
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on};
use crate::clock::{Clock, System};
use crate::control::{Inquiry, MachineStatus, ServerView, status, words};
use crate::model::MachineId;
use crate::observe::{MachineFacts, error_chain};
use crate::settings::Prices;

/// Show health, watermarks, RPO, backlog and progress
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine; all when left out
    machine: Option<MachineId>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Shows the status of one machine or of all.
///
/// # Errors
/// When the machine is unknown or the store cannot be read.
pub fn run(args: &Args) -> Result<(), Failure> {
    let site = Site::open(&args.config.config)?;
    let (statuses, servers) = block_on(async {
        let statuses = all(&site, args.machine.clone()).await?;
        Ok((statuses, site.sources.servers().await?))
    })?;
    let prices = site.settings.prices.as_ref();
    if args.json {
        let cost = |status: &MachineStatus| Some(prices?.per_month(hourly(status.live.as_ref()?)));
        let costs: BTreeMap<_, _> = statuses
            .iter()
            .filter_map(|status| Some((status.machine.to_string(), cost(status)?)))
            .collect();
        return print_json(&serde_json::json!({
            "machines": statuses,
            "servers": servers,
            "requests_per_month": prices.map(|prices| {
                serde_json::json!({ "currency": prices.currency, "machines": costs })
            }),
        }));
    }
    if args.machine.is_none() {
        print_servers(&servers)?;
    }
    if statuses.is_empty() {
        return print("no machine is enrolled yet; `holdfast enroll MACHINE` does it");
    }
    print_statuses(&statuses, prices)
}

async fn all(site: &Site, machine: Option<MachineId>) -> Result<Vec<MachineStatus>, Failure> {
    let machines = match machine {
        Some(machine) => vec![machine],
        None => site.sources.vault.machines().await?,
    };
    // Without the operator's certificate the vault still says what can be recovered to.
    let mut inquiry = match site.client() {
        Ok(client) => Inquiry::over(client),
        Err(error) => Inquiry::unable(error_chain(&error)),
    };
    let mut statuses = Vec::with_capacity(machines.len());
    for machine in &machines {
        let sheet = site.sources.factsheet(machine, &mut inquiry).await?;
        statuses.push(status(&sheet, System.wall()));
    }
    Ok(statuses)
}

/// Requests to the store by the hour, by kind.
fn hourly(live: &MachineFacts) -> impl Iterator<Item = (&str, f64)> {
    live.store_requests.iter().map(|(kind, asked)| (kind.as_str(), asked.per_hour))
}

fn print_servers(servers: &[ServerView]) -> Result<(), Failure> {
    let headings = ["process server", "state", "address", "machines", "churn", "cache", "version"];
    let mut table = table(&headings);
    for server in servers {
        let state = match (server.alive, server.leaving) {
            (true, false) => "alive",
            (true, true) => "draining",
            (false, _) => "gone",
        };
        table.add_row([
            server.server.to_string(),
            state.to_owned(),
            server.address.clone(),
            server.machines.to_string(),
            format!("{}/s", words::bytes(server.churn_bytes_per_s)),
            format!("{:.0} %", 100.0 * server.cache_fill),
            server.version.clone(),
        ]);
    }
    match servers {
        [] => Ok(()),
        _ => print_table(&table),
    }
}

/// Requests to the store by the hour, and what they cost in a month.
fn requests(live: &MachineFacts, prices: Option<&Prices>) -> String {
    let requests: f64 = hourly(live).map(|(_, requests)| requests).sum();
    let cost = prices.map(|prices| (prices.per_month(hourly(live)), &prices.currency));
    match cost {
        Some((month, currency)) => format!("{requests:.0}, {month:.2} {currency} a month"),
        None => format!("{requests:.0}"),
    }
}

fn print_statuses(statuses: &[MachineStatus], prices: Option<&Prices>) -> Result<(), Failure> {
    let headings = [
        "machine",
        "server",
        "status",
        "rpo",
        "backlog",
        "requests/h",
        "received",
        "durable",
        "published",
        "applied",
        "recoverable",
    ];
    let mut table = table(&headings);
    for status in statuses {
        let unknown = || "-".to_owned();
        let live = status.live.as_ref();
        let lines: Vec<_> = status.lines.iter().map(|line| line.text.as_str()).collect();
        table.add_row([
            status.machine.to_string(),
            status.owner.clone().unwrap_or_else(unknown),
            lines.join("\n"),
            status.rpo_seconds.map_or_else(unknown, words::span),
            status.backlog_bytes.map_or_else(unknown, words::bytes),
            live.map_or_else(unknown, |live| requests(live, prices)),
            live.map_or_else(unknown, |live| live.received.to_string()),
            live.map_or_else(unknown, |live| live.durable.to_string()),
            status.published.to_string(),
            status.applied.to_string(),
            status.recoverable.to_string(),
        ]);
    }
    print_table(&table)
}
