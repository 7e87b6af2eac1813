//! What a running agent is asked by others on its machine: to begin anew with its changed settings.
//!
//! Owns: the socket in the state directory, one line each way. Does not own: beginning anew
//! ([`super::life`]).

use std::fs::{Permissions, remove_file, set_permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::clock::{Clock, System};
use crate::settings::{AGENT_CONTROL_SOCKET, AgentSettings};

use super::error::AgentError;

/// The one request there is.
const RELOAD: &str = "reload\n";
/// Longest wait for the other side.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest line, bytes: an answer lists every broken rule.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Where an agent can be asked.
pub(super) struct Control {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl Control {
    /// For whoever holds the directory's lock: what is there is of an earlier life.
    pub(super) fn listen(directory: &Path) -> Self {
        let path = directory.join(AGENT_CONTROL_SOCKET);
        let _none = remove_file(&path);
        let listener = UnixListener::bind(&path).and_then(|listener| {
            set_permissions(&path, Permissions::from_mode(0o600))?;
            Ok(listener)
        });
        if let Err(error) = &listener {
            let path = path.display();
            tracing::warn!(%path, %error, "this agent takes other settings only by a restart");
        }
        Self { listener: listener.ok(), path }
    }

    /// Returns with the settings as they were changed, when somebody asks for that and they can be
    /// used.
    pub(super) async fn asked(
        &self,
        changed: &impl Fn() -> Result<AgentSettings, String>,
    ) -> AgentSettings {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                System.sleep(PATIENCE).await; // no file handles, for instance
                continue;
            };
            let asked = tokio::select! {
                asked = answer(stream, changed) => asked,
                () = System.sleep(PATIENCE) => Ok(None),
            };
            if let Ok(Some(settings)) = asked {
                return settings;
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.listener.is_some() {
            let _gone = remove_file(&self.path);
        }
    }
}

async fn answer(
    stream: UnixStream,
    changed: &impl Fn() -> Result<AgentSettings, String>,
) -> io::Result<Option<AgentSettings>> {
    let (input, mut output) = stream.into_split();
    let mut line = String::new();
    BufReader::new(input.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let settings = match line.as_str() {
        RELOAD => changed(),
        _ => Err("no such request; there is reload".to_owned()),
    };
    let said = match &settings {
        Ok(_) => json!({ "ok": true }),
        Err(why) => json!({ "error": why }),
    };
    // Who asked may be gone; it was asked for all the same.
    let _told = output.write_all(format!("{said}\n").as_bytes()).await;
    Ok(settings.ok())
}

/// Has the agent that runs with these settings read them again, stop in order and begin anew. Returns
/// when it has read them.
///
/// # Errors
/// When none answers, or the changed settings cannot be used: then it goes on as it was.
pub async fn reload(settings: &AgentSettings) -> Result<(), AgentError> {
    let path = settings.state_directory.join(AGENT_CONTROL_SOCKET);
    let failed =
        |source| AgentError::io(&path, "ask the running agent to begin anew; restart it", source);
    let asked = async {
        let (input, mut output) = UnixStream::connect(&path).await?.into_split();
        output.write_all(RELOAD.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(input.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
        serde_json::from_str::<Value>(&line).map_err(io::Error::other)
    };
    let answer = tokio::select! {
        answer = asked => answer.map_err(failed)?,
        () = System.sleep(PATIENCE) => return Err(failed(io::ErrorKind::TimedOut.into())),
    };
    match answer["error"].as_str() {
        Some(why) => Err(AgentError::Settings(why.to_owned())),
        None => Ok(()),
    }
}
