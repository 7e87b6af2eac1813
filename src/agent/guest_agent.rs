//! The agent inside a QEMU guest (qemu-ga), as far as freezing its file systems goes.
//!
//! Owns: that an answer belongs to the command. Does not own: that thaw follows freeze
//! ([`super::quiesce`]), the limit of time.

use std::io;
use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::clock::Entropy;

/// Longest answer, bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Most answers to commands of others, before ours.
const STALE_MAX: usize = 16;

/// Has the guest agent at `socket` carry out a command without arguments.
///
/// # Errors
/// In words, when it is not there or refuses.
pub(super) async fn call(
    socket: &Path,
    command: &str,
    entropy: &dyn Entropy,
) -> Result<(), String> {
    let told = |what: String| format!("the guest agent at {}: {what}", socket.display());
    let failed = |error: io::Error| told(format!("{command}: {error}"));
    let mut id = [0; 4];
    entropy.fill(&mut id);
    let id = u32::from_be_bytes(id) >> 1;
    let stream = UnixStream::connect(socket).await.map_err(failed)?;
    let (input, mut output) = stream.into_split();
    let mut input = BufReader::new(input.take(ANSWER_BYTES_MAX));
    // A command before ours may have been left without anybody to hear its answer.
    let sync = json!({ "execute": "guest-sync", "arguments": { "id": id } });
    output.write_all(format!("{sync}\n").as_bytes()).await.map_err(failed)?;
    for _ in 0..STALE_MAX {
        if answer(&mut input).await.map_err(failed)?["return"] != id {
            continue;
        }
        let line = format!("{}\n", json!({ "execute": command }));
        output.write_all(line.as_bytes()).await.map_err(failed)?;
        let answer = answer(&mut input).await.map_err(failed)?;
        return match answer["error"]["desc"].as_str() {
            Some(said) => Err(told(format!("refuses {command}: {said}"))),
            None if answer.get("return").is_some() => Ok(()),
            None => Err(told(format!("{command}: {answer} is no answer"))),
        };
    }
    Err(told(format!("{command}: no answer to ours, only to others'")))
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
            let socket = directory.path().join("qga");
            let outcome = call(&socket, "guest-fsfreeze-freeze", entropy.as_ref()).await;
            match expected {
                Ok(()) => assert_eq!(outcome, Ok(())),
                Err(words) => assert!(outcome.clone().unwrap_err().contains(words), "{outcome:?}"),
            }
        }
    }
}
