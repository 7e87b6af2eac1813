//! What an alarm can be built on beside lateness: trouble, and what runs out.
//!
//! Owns: these families. Does not own: the words of a trouble, which status tells.

use super::MachineFacts;
use super::exposition::Page;
use super::facts::ServerFacts;
use crate::model::Timestamp;

/// The certificates that this process shows and believes.
pub(super) fn certificates(page: &mut Page, ends: &[(&'static str, Timestamp)], now: Timestamp) {
    let name = "holdfast_certificate_expiry_seconds";
    page.family(name, "gauge", "Time until a certificate ends; negative afterwards.");
    for (of, end) in ends {
        page.sample(name, &[("of", of)], end.seconds_since(now));
    }
}

/// A time of a machine, as far as it has one.
type Seconds = fn(&MachineFacts, Timestamp) -> Option<f64>;

/// Those of each machine.
pub(super) fn machines(page: &mut Page, facts: &ServerFacts, now: Timestamp) {
    let name = "holdfast_machine_trouble";
    page.family(name, "gauge", "1 for each thing that keeps a machine from being protected.");
    for machine in &facts.machines {
        for what in machine.troubles.keys() {
            page.sample(name, &[("machine", machine.machine.as_str()), ("what", what)], 1);
        }
    }
    let times: [(&str, &str, Seconds); 2] = [
        (
            "holdfast_snapshot_age_seconds",
            "Age of the newest snapshot of a machine that is applied here; absent before the first.",
            |machine, now| {
                let time = machine.snapshot_time.filter(|_| machine.applies)?;
                Some(now.seconds_since(time).max(0.0))
            },
        ),
        (
            "holdfast_agent_certificate_expiry_seconds",
            "Time until the certificate ends with which a machine's agent came last; negative afterwards.",
            |machine, now| {
                let end = machine.certificate_end.filter(|_| machine.ours)?;
                Some(end.seconds_since(now))
            },
        ),
    ];
    for (name, help, value) in times {
        page.family(name, "gauge", help);
        for machine in &facts.machines {
            if let Some(value) = value(machine, now) {
                page.sample(name, &[("machine", machine.machine.as_str())], value);
            }
        }
    }
}
