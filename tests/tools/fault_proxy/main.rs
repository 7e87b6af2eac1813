//! A program that stands in front of an Azure blob endpoint on loopback and fails on purpose.
//!
//!     fault-proxy PORT
//!
//! It answers with the port that it listens on, takes one command a line on its standard input (see
//! `words.rs`), answers each with a line, and ends when the input does. Each container has a plan of
//! its own, so many tests can share one proxy.

#![allow(missing_docs, reason = "a program of the tests")]

mod proxy;
mod words;

use std::io::{Error, Write};
use std::sync::Arc;

use proxy::Proxy;
use words::{Answer, Command};

fn main() -> Result<(), Error> {
    let port = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let port = port.ok_or_else(|| Error::other("usage: fault-proxy PORT (of the endpoint)"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let proxy = runtime.block_on(Proxy::start(port))?;
    tell(&Answer::Listens { port: proxy.port })?;
    for line in std::io::stdin().lines() {
        tell(&runtime.block_on(obey(&proxy, serde_json::from_str(&line?)?)))?;
    }
    Ok(())
}

async fn obey(proxy: &Arc<Proxy>, command: Command) -> Answer {
    match command {
        Command::Plan { container, faults } => proxy.plan(&container, faults),
        Command::Away { container, away } => proxy.away(&container, away),
        Command::Counts { container } => {
            let (requests, fired) = proxy.counts(&container);
            return Answer::Counts { requests, fired };
        }
        Command::Deliver { container } => {
            let requests = proxy.deliver_all(&container).await;
            return Answer::Delivered { requests };
        }
    }
    Answer::Done
}

fn tell(answer: &Answer) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    out.flush()
}
