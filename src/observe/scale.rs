//! Several process servers on one store: what moved between them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::exposition::Page;
use super::facts::HeldFacts;

/// Counters of ownership and of the server's own lease.
#[derive(Debug, Default)]
pub struct ScaleMetrics {
    /// Machines that are served now.
    pub machines_served: AtomicU64,
    /// Machines taken over from a server that was not there any more.
    pub takeovers: AtomicU64,
    /// Agents that were sent to another server.
    pub redirects: AtomicU64,
    /// Machines given up to another server in good order.
    pub moves: AtomicU64,
    /// Machines that another server took while this one served them.
    pub fenced: AtomicU64,
    /// Renewals of the server's own lease.
    pub lease_renewals: AtomicU64,
    /// Those that failed.
    pub lease_failures: AtomicU64,
    /// Durable records of machines that another server has, held until they are published.
    pub held_records: AtomicU64,
    /// The same by machine, of those that are enrolled.
    pub held: Mutex<Vec<HeldFacts>>,
    /// Machines with held records that are not enrolled.
    pub held_unenrolled: AtomicU64,
    /// Other servers whose lease runs.
    pub peers_alive: AtomicU64,
}

pub(super) fn render(page: &mut Page, scale: &ScaleMetrics) {
    let rows: [(&str, &str, &AtomicU64, &str); 10] = [
        ("holdfast_machines_served", "gauge", &scale.machines_served, "Machines served here."),
        (
            "holdfast_takeovers_total",
            "counter",
            &scale.takeovers,
            "Machines taken over from a process server that was not there any more.",
        ),
        (
            "holdfast_redirects_total",
            "counter",
            &scale.redirects,
            "Agents that were sent to another process server.",
        ),
        (
            "holdfast_moves_total",
            "counter",
            &scale.moves,
            "Machines given up to another process server in good order.",
        ),
        (
            "holdfast_fenced_total",
            "counter",
            &scale.fenced,
            "Machines that another process server took while they were served here.",
        ),
        (
            "holdfast_lease_renewals_total",
            "counter",
            &scale.lease_renewals,
            "Renewals of this process server's own lease.",
        ),
        (
            "holdfast_lease_failures_total",
            "counter",
            &scale.lease_failures,
            "Renewals of this process server's own lease that failed.",
        ),
        (
            "holdfast_held_records",
            "gauge",
            &scale.held_records,
            "Durable records of machines that another server has, held until they are published.",
        ),
        (
            "holdfast_held_unenrolled_machines",
            "gauge",
            &scale.held_unenrolled,
            "Machines whose durable records are held although they are not enrolled.",
        ),
        (
            "holdfast_peers_alive",
            "gauge",
            &scale.peers_alive,
            "Other process servers whose lease runs.",
        ),
    ];
    for (name, kind, value, help) in rows {
        page.single(name, kind, help, value.load(Ordering::Relaxed));
    }
}
