//! Thaw follows freeze, whatever became of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::frozen::Frozen;
use super::quiesce::Quiesce;
use crate::clock::{Clock, System};
use crate::model::Timestamp;
use crate::nbd::Peer;
use crate::settings::ApplicationHook;

const TIMEOUT: Duration = Duration::from_millis(300);

/// Pauses end at once, timeouts come when the test says so, and others never.
struct Hurried {
    timeouts: Semaphore,
}

impl Hurried {
    fn new() -> Arc<Self> {
        Arc::new(Self { timeouts: Semaphore::new(0) })
    }
}

#[async_trait]
impl Clock for Hurried {
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
    async fn sleep(&self, time: Duration) {
        if time == TIMEOUT {
            self.timeouts.acquire().await.unwrap().forget();
        } else if time > Duration::from_secs(10) {
            std::future::pending().await
        } else {
            tokio::task::yield_now().await;
        }
    }
}

fn line(directory: &Path, script: &str) -> Vec<String> {
    let script = format!("cd '{}'; {script}", directory.display());
    ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
}

fn quiesce(directory: &Path, clock: Arc<dyn Clock>, freeze: &str, thaw: &str) -> Arc<Quiesce> {
    let hook = ApplicationHook {
        freeze: line(directory, freeze),
        thaw: line(directory, thaw),
        guest_agent: None,
        timeout: TIMEOUT,
    };
    Arc::new(Quiesce::new(hook, None, &directory.join("state"), clock, System::entropy()))
}

/// Where a test's application is frozen when `ice` exists.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("state")).unwrap();
    directory
}

async fn nothing_is_placed(quiesce: &Arc<Quiesce>) -> String {
    let seen: Result<(), _> = quiesce.run(async { panic!("nothing may be placed") }).await;
    seen.unwrap_err()
}

#[tokio::test]
async fn the_bookmark_is_placed_while_the_application_is_frozen() {
    let directory = directory();
    let (ice, note) = (directory.path().join("ice"), directory.path().join("state/frozen"));
    let quiesce = quiesce(directory.path(), Hurried::new(), "cat; touch ice", "rm ice");
    let seen = quiesce.run(async { Ok((ice.exists(), std::fs::read_to_string(&note))) }).await;
    let (frozen, noted) = seen.unwrap();
    assert!(frozen && noted.unwrap().contains("rm ice"), "it says how it is undone");
    assert!(!ice.exists() && !note.exists(), "it was thawed");
}

#[tokio::test]
async fn a_freeze_that_fails_or_hangs_places_nothing_and_is_thawed() {
    let directory = directory();
    let ice = directory.path().join("ice");
    for (freeze, expected) in [
        ("touch ice; echo 'database is busy' >&2; exit 3", "database is busy"),
        ("touch ice; exec sleep 60", "did not end in 300 ms"),
    ] {
        let clock = Hurried::new();
        let quiesce = quiesce(directory.path(), clock.clone(), freeze, "rm ice");
        let late = async {
            while !ice.exists() && freeze.contains("sleep") {
                tokio::task::yield_now().await;
            }
            clock.timeouts.add_permits(usize::from(freeze.contains("sleep")));
        };
        let (why, ()) = tokio::join!(nothing_is_placed(&quiesce), late);
        assert!(why.contains(expected), "{why}");
        quiesce.close().await;
        assert!(!ice.exists(), "it was thawed after {freeze}");
    }
    let hook = ApplicationHook {
        freeze: vec!["/no/such/program".into()],
        thaw: vec!["/bin/true".into()],
        guest_agent: None,
        timeout: Duration::from_secs(5),
    };
    let state = directory.path().join("state");
    let quiesce = Quiesce::new(hook, None, &state, System::clock(), System::entropy());
    let why = nothing_is_placed(&Arc::new(quiesce)).await;
    assert!(why.contains("cannot be started"), "{why}");
}

/// Nothing is frozen while the one before is not thawed, or without a note of it, or once closed.
#[tokio::test]
async fn a_thaw_that_fails_is_run_again_until_it_succeeds() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let thaw = "echo >> thaws; test $(wc -l < thaws) -ge 9 && rm ice";
    let first = quiesce(directory.path(), Hurried::new(), "touch ice", thaw);
    assert_eq!(first.run(async { Ok(path("ice").exists()) }).await, Ok(true));
    assert!(nothing_is_placed(&first).await.contains("still being thawed"));
    first.close().await;
    assert!(!path("ice").exists(), "the ninth has thawed it");
    assert!(!path("state/frozen").exists());
    assert!(nothing_is_placed(&first).await.contains("stopping"));
    std::fs::remove_dir(path("state")).unwrap();
    let second = quiesce(directory.path(), System::clock(), "touch ice", "rm ice");
    assert!(nothing_is_placed(&second).await.contains("state/frozen cannot be written"));
    assert!(!path("ice").exists(), "it was never frozen");
}

/// As `fsfreeze -u` of what was never frozen.
#[tokio::test]
async fn a_thaw_that_refuses_is_believed_when_nothing_may_have_been_frozen() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let quiesce = quiesce(directory.path(), Hurried::new(), "exit 1", "echo >> thaws; exit 1");
    nothing_is_placed(&quiesce).await;
    quiesce.close().await;
    assert_eq!(std::fs::read(path("thaws")).unwrap().len(), 5);
    assert!(path("state/frozen").exists(), "the next start tries it again");
}

/// The command of a killed agent's freeze goes on without it.
#[tokio::test]
async fn a_freeze_that_outlives_its_agent_is_thawed_when_it_has_ended() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let note = Frozen::of(&path("state")).note("rm ice").unwrap();
    // It freezes when the first thaw is over, and is gone before the second.
    let script = line(directory.path(), "while ! test -e thaws; do sleep 0.01; done; touch ice");
    let mut freeze = {
        let mut command = std::process::Command::new(&script[0]);
        command.args(&script[1..]).stdin(note.input().unwrap()).spawn().unwrap()
    };
    drop(note); // and nobody but the command has it any more
    let thaw =
        "test -e thaws && exec rm -f ice; touch thaws; while ! test -e ice; do sleep 0.01; done";
    let quiesce = quiesce(directory.path(), Hurried::new(), "true", thaw);
    quiesce.thaw_left().await;
    assert!(path("ice").exists() && path("state/frozen").exists());
    freeze.wait().unwrap();
    quiesce.thaw_on_left();
    quiesce.close().await;
    assert!(!path("ice").exists() && !path("state/frozen").exists());
}

/// A guest whose file systems take longer to freeze than its agent is waited for: what is asked
/// meanwhile is not even heard.
#[tokio::test]
async fn a_guest_that_freezes_too_late_is_thawed_all_the_same() {
    let directory = directory();
    let peer = directory.path().join("qga");
    let listener = UnixListener::bind(&peer).unwrap();
    let (told, tells) = channel();
    let clock = Hurried::new();
    let late = Arc::clone(&clock);
    std::thread::spawn(move || {
        let (mut frozen, mut connections) = (false, 0);
        while let Ok((mut stream, _)) = listener.accept() {
            connections += 1;
            for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
                let asked: Value = serde_json::from_str(&line).unwrap();
                match asked["execute"].as_str().unwrap() {
                    // It is busy until this one was given up as well.
                    _ if connections == 2 => late.timeouts.add_permits(1),
                    "guest-sync" => {
                        let id = &asked["arguments"]["id"];
                        writeln!(stream, "{{\"return\": {id}}}").unwrap();
                    }
                    "guest-fsfreeze-freeze" => {
                        frozen = true;
                        late.timeouts.add_permits(1);
                    }
                    _ => {
                        stream.write_all(b"{\"return\": 1}\n").unwrap();
                        told.send(frozen).unwrap();
                    }
                }
            }
        }
    });
    let hook = ApplicationHook {
        freeze: Vec::new(),
        thaw: Vec::new(),
        guest_agent: None,
        timeout: TIMEOUT,
    };
    let (state, peer) = (directory.path().join("state"), Some(Peer::Socket(peer)));
    let quiesce = Arc::new(Quiesce::new(hook, peer, &state, clock, System::entropy()));
    assert!(nothing_is_placed(&quiesce).await.contains("no answer to guest-fsfreeze-freeze"));
    assert!(state.join("frozen").exists(), "it is not forgotten");
    quiesce.close().await;
    let told = tells.recv_timeout(Duration::from_secs(60));
    assert_eq!(told, Ok(true), "it was thawed once it was frozen");
    assert!(!state.join("frozen").exists());
}

/// The guest is off, or has no agent: no freeze was asked for, so there is nothing to thaw.
#[tokio::test]
async fn a_guest_agent_that_is_not_there_freezes_nothing() {
    let directory = directory();
    let (nobody, deaf) = (directory.path().join("nobody"), directory.path().join("deaf"));
    let _deaf = UnixListener::bind(&deaf).unwrap();
    let state = directory.path().join("state");
    for (peer, words) in [(nobody, "No such file"), (deaf, "is not there: no word of it in 300 ms")]
    {
        let (freeze, thaw) = (Vec::new(), Vec::new());
        let hook = ApplicationHook { freeze, thaw, guest_agent: None, timeout: TIMEOUT };
        let clock = Hurried::new();
        clock.timeouts.add_permits(1);
        let peer = Some(Peer::Socket(peer));
        let quiesce = Arc::new(Quiesce::new(hook, peer, &state, clock, System::entropy()));
        let why = nothing_is_placed(&quiesce).await;
        assert!(why.contains(words), "{why}");
        assert!(!state.join("frozen").exists());
        quiesce.close().await;
        assert!(nothing_is_placed(&quiesce).await.contains("stopping"), "nothing was left to thaw");
    }
}
