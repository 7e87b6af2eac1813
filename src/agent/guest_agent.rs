//! The agent inside a QEMU guest (qemu-ga), as far as freezing its file systems goes.
//!
//! Owns: that an answer belongs to the command. Does not own: that thaw follows freeze
//! ([`super::quiesce`]), the limit of time ([`super::hook`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clock::Entropy;
use crate::nbd::Peer;

use super::hook::NotDone;

/// Longest answer, bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Most answers to commands of others, before ours.
const STALE_MAX: usize = 16;

/// Has the guest agent behind `peer` carry out a command without arguments. `asked` becomes true before the
/// first byte of it leaves.
///
/// # Errors
/// When it is not there, is gone before it has answered, or refuses.
pub(super) async fn call(
    peer: &Peer,
    command: &str,
    entropy: &dyn Entropy,
    asked: &AtomicBool,
) -> Result<(), NotDone> {
    let failed = |error| NotDone::unasked(format!("{command}: {error}"));
    let outcome = match peer {
        Peer::Socket(path) => match UnixStream::connect(path).await {
            Ok(stream) => ask(stream, command, entropy, asked).await,
            Err(error) => Err(failed(error)),
        },
        Peer::Tls { host, port, config } => match dial(host, *port, config).await {
            Ok(stream) => ask(stream, command, entropy, asked).await,
            Err(error) => Err(failed(error)),
        },
    };
    outcome.map_err(|NotDone { why, state }| NotDone {
        why: format!("the guest agent at {peer}: {why}"),
        state,
    })
}

async fn dial(
    host: &str,
    port: u16,
    config: &Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = TcpStream::connect((host, port)).await?;
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite,
    command: &str,
    entropy: &dyn Entropy,
    asked: &AtomicBool,
) -> Result<(), NotDone> {
    let unasked = |error: io::Error| NotDone::unasked(format!("{command}: {error}"));
    let failed = |error: io::Error| NotDone::silent(format!("{command}: {error}"));
    let mut id = [0; 4];
    entropy.fill(&mut id);
    let id = u32::from_be_bytes(id) >> 1;
    let (input, mut output) = tokio::io::split(stream);
    let mut input = BufReader::new(input.take(ANSWER_BYTES_MAX));
    // A command before ours may have been left without anybody to hear its answer.
    let sync = json!({ "execute": "guest-sync", "arguments": { "id": id } });
    output.write_all(format!("{sync}\n").as_bytes()).await.map_err(unasked)?;
    output.flush().await.map_err(unasked)?;
    for _ in 0..STALE_MAX {
        if answer(&mut input).await.map_err(unasked)?["return"] != id {
            continue;
        }
        asked.store(true, Ordering::SeqCst);
        let line = format!("{}\n", json!({ "execute": command }));
        output.write_all(line.as_bytes()).await.map_err(failed)?;
        output.flush().await.map_err(failed)?;
        let answer = answer(&mut input).await.map_err(failed)?;
        return match answer["error"]["desc"].as_str() {
            Some(said) => Err(NotDone::refused(format!("refuses {command}: {said}"))),
            None if answer.get("return").is_some() => Ok(()),
            None => Err(NotDone::silent(format!("{command}: {answer} is no answer"))),
        };
    }
    Err(NotDone::unasked(format!("{command}: no answer to ours, only to others'")))
}

async fn answer(input: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Value> {
    let mut line = Vec::new();
    if input.read_until(b'\n', &mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // What another client left half said is no JSON; the guest agent marks it with 0xff.
    Ok(serde_json::from_slice(line.trim_ascii()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};
    use std::os::unix::net::UnixListener;

    use super::super::hook::Undone;
    use super::*;
    use crate::clock::System;

    /// A guest agent that first finishes what somebody else had asked.
    fn agent(answer: &'static str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("qga")).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
            let sync: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            let id = &sync["arguments"]["id"];
            write!(stream, "{{\"return\": 1}}\nnonsense\n{{\"return\": {id}}}\n").unwrap();
            let command = lines.next().unwrap().unwrap();
            assert!(command.contains("guest-fsfreeze-freeze"), "{command}");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        directory
    }

    #[tokio::test]
    async fn stale_answers_are_passed_over_and_refusals_told() {
        let entropy = System::entropy();
        for (answer, expected) in [
            ("{\"return\": 2}\n", Ok(())),
            ("{\"error\": {\"desc\": \"fsfreeze is disabled\"}}\n", Err("fsfreeze is disabled")),
            ("", Err("end of file")),
        ] {
            let directory = agent(answer);
            let peer = Peer::Socket(directory.path().join("qga"));
            let asked = AtomicBool::new(false);
            let outcome = call(&peer, "guest-fsfreeze-freeze", entropy.as_ref(), &asked).await;
            assert!(asked.load(Ordering::SeqCst));
            match expected {
                Ok(()) => assert_eq!(outcome, Ok(())),
                Err(words) => {
                    let NotDone { why, state } = outcome.unwrap_err();
                    assert!(why.contains(words), "{why}");
                    let expected = match why.contains("refuses") {
                        true => Undone::Ended,
                        false => Undone::Unknown,
                    };
                    assert_eq!(state, expected, "{why}");
                }
            }
        }
    }
}
