//! `holdfast top`: the metrics of a process server, live.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::output::print;
use super::site::ConfigArgs;
use super::{Failure, block_on, stopped};
use crate::clock::System;
use crate::settings::load_server;
use crate::top::{self, Source, TopError};

/// Show a process server's metrics live: throughput, RPO, backlog, stages, machines
///
/// Keys: q, Esc or Ctrl-C leave; s sorts by the next column; arrows, PgUp, PgDn, Home and End scroll;
/// ? shows the keys. A server that goes away is asked on: its last figures stay, dimmed, with the time
/// of its last answer.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the metrics listener; metrics_listen of the settings when left out
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// Time between two readings, 0.1 to 60
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// Print one frame with all machines as plain text, from two readings an interval apart
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Shows the metrics until somebody leaves, or once.
///
/// # Errors
/// When there is no terminal; with `--once` when the server does not answer.
pub fn run(args: &Args) -> Result<(), Failure> {
    let address = match &args.metrics {
        Some(address) => address.clone(),
        None => reached(load_server(&args.config.config)?.metrics_listen).to_string(),
    };
    let source = Source { address, clock: System::clock() };
    if args.once {
        let frame = block_on(async { Ok(top::once(source, args.interval).await?) })?;
        return print(&frame);
    }
    block_on(async {
        tokio::select! {
            asked = stopped() => asked,
            left = top::live(source, args.interval) => left.map_err(|error| match error {
                TopError::NoTerminal => Failure::usage(error),
                other => other.into(),
            }),
        }
    })
}

/// Where a listener is reached from its own machine.
fn reached(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=60.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be 0.1 to 60 seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_asked_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:9445", "127.0.0.1:9445"),
            ("[::]:9445", "[::1]:9445"),
            ("10.1.2.3:1", "10.1.2.3:1"),
        ] {
            assert_eq!(reached(listen.parse().unwrap()).to_string(), asked);
        }
    }

    #[test]
    fn intervals_are_bounded() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "0.05", "61", "-1", "nan", "inf", "1s", ""] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
