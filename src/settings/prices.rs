//! What requests to the store cost: `[prices]` of `holdfast.toml`.
//!
//! Owns: prices and the sum. Does not own: how many requests there are (`observe`).

use super::check::Check;
use super::raw::RawPrices;

/// Hours of a month, as clouds reckon: 365 days ÷ 12.
const MONTH_HOURS: f64 = 730.0;
/// Prices are published for so many requests.
const REQUESTS: f64 = 10_000.0;
/// No request costs more, whatever the currency: a slip of the decimal point is found.
const PRICE_MAX: f64 = 1_000_000.0;

/// Prices of 10,000 requests of each kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    /// As it is printed: `USD`.
    pub currency: String,
    /// By kind, as metrics name it.
    kinds: [(&'static str, f64); 11],
}

impl Prices {
    /// Of 10,000 requests of a kind.
    pub(super) fn of(&self, kind: &str) -> f64 {
        self.kinds.iter().find(|(name, _)| *name == kind).map_or(0.0, |(_, price)| *price)
    }

    /// Of so many requests of each kind by the hour, for a month.
    #[must_use]
    pub fn per_month<'a>(&self, hourly: impl IntoIterator<Item = (&'a str, f64)>) -> f64 {
        let costs = hourly.into_iter().map(|(kind, requests)| requests * self.of(kind));
        costs.sum::<f64>() / REQUESTS * MONTH_HOURS
    }
}

pub(super) fn check(c: &mut Check, raw: RawPrices) -> Prices {
    let currency = raw.currency.unwrap_or_else(|| "USD".to_owned());
    let short = (1..=8).contains(&currency.len());
    let rule = "must be 1 to 8 bytes long";
    c.relation(short, "prices.currency", format!("{currency:?}"), rule, "write it like \"USD\"");
    let kinds = [
        ("put", raw.put),
        ("stage-block", raw.stage_block),
        ("commit-blocks", raw.commit_blocks),
        ("read", raw.read),
        ("properties", raw.properties),
        ("list", raw.list),
        ("delete", raw.delete),
        ("page-blob", raw.page_blob),
        ("write-pages", raw.write_pages),
        ("snapshot", raw.snapshot),
        ("lease", raw.lease),
    ];
    let kinds = kinds.map(|(kind, price)| {
        let price = price.unwrap_or(0.0);
        let key = format!("prices.{}", kind.replace('-', "_"));
        let rule = format!("must be 0 to {PRICE_MAX}, for 10,000 requests");
        let good = (0.0..=PRICE_MAX).contains(&price);
        c.relation(good, &key, price, &rule, "leave it out when such requests are free");
        (kind, price)
    });
    Prices { currency, kinds }
}
