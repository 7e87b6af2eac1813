//! One directory, several processes: this program runs itself again as another owner.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use holdfast::clock::System;
use holdfast::store::{Condition, Dir, LeaseId, PageGuard, SnapshotId, Step, Store, Watch};

use crate::fixture::{Dice, bytes, clear, data, guard, kind, lease, name};
use crate::model::{Action, SIZE};
use crate::objects::count_up;

const ROLE: &str = "HOLDFAST_TEST_ROLE";

/// Not a test: what the other processes do. Without a role it has nothing to do.
#[test]
fn another_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (role, path) = role.split_once(' ').unwrap();
    let path = Path::new(path);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime.block_on(async {
        match role {
            "count" => count_up(&Dir::open(path, System::clock()).unwrap(), 50).await,
            "pause" => pause(path).await,
            "stage" => stage(path).await,
            other => work(path, other.parse().unwrap()).await,
        }
    });
    std::process::exit(0); // without the test harness's own words on the pipe
}

struct Other {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Other {
    fn start(role: &str, path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::another_process", "--nocapture"])
            .env(ROLE, format!("{role} {}", path.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    /// The next line that begins with '>', without it.
    fn line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The harness writes "test … " without an end of line before ours.
            if let Some((_, ours)) = line.trim_end().split_once('>') {
                return Some(ours.to_owned());
            }
        }
    }

    fn go_on(&mut self) {
        writeln!(self.input, "go on").unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) {
    println!(">{line}");
    std::io::stdout().flush().unwrap();
}

#[tokio::test]
async fn swaps_from_many_processes_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut others: Vec<Other> = (0..4).map(|_| Other::start("count", directory.path())).collect();
    for other in &mut others {
        assert!(other.child.wait().unwrap().success());
    }
    let store = Dir::open(directory.path(), System::clock()).unwrap();
    let (content, _) = store.read(&name("vault/counter")).await.unwrap();
    assert_eq!(content, "200");
}

/// Stops at the moment between checking the guard and changing the blob.
struct PauseBeforeWrite;

impl Watch for PauseBeforeWrite {
    fn before(&self, step: Step<'_>) -> std::io::Result<()> {
        if matches!(step, Step::Write { path, .. } if path.ends_with("seed/zombie")) {
            say("paused");
            std::io::stdin().read_line(&mut String::new())?;
        }
        Ok(())
    }
}

async fn pause(path: &Path) {
    let watch = Arc::new(PauseBeforeWrite);
    let store = Dir::open_watched(path, System::clock(), watch).unwrap();
    for fill in [1, 2] {
        let write = data(0, 4096, fill);
        let result = store.write_pages(&name("seed/zombie"), &[write], &guard(1, 0)).await;
        say(kind(result));
    }
}

async fn take_over(store: Arc<Dir>) {
    let a = name("seed/zombie");
    store.break_lease(&a).await.unwrap();
    store.acquire_lease(&a, lease(2), 60).await.unwrap();
    store.raise_sequence_number(&a, 1, lease(2)).await.unwrap();
    store.write_pages(&a, &[data(0, 4096, 9)], &guard(2, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_cannot_write_after_a_takeover() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Dir::open(directory.path(), System::clock()).unwrap());
    let a = name("seed/zombie");
    store.create_pages(&a, 8192).await.unwrap();
    store.acquire_lease(&a, lease(1), 60).await.unwrap();
    let mut zombie = Other::start("pause", directory.path());
    assert_eq!(zombie.line().as_deref(), Some("paused"));
    // The takeover waits for the paused owner. Given the time to go wrong, it must not get through.
    let mut takeover = tokio::spawn(take_over(Arc::clone(&store)));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut takeover).await;
    assert!(early.is_err(), "the owner was between check and write, and was passed");
    zombie.go_on();
    assert_eq!(zombie.line().as_deref(), Some("ok"));
    takeover.await.unwrap();
    match zombie.line().as_deref() {
        Some("fenced") => {}
        // Its second write came before the takeover: then that one waits again.
        Some("paused") => panic!("the second write overtook who waited at the gate"),
        other => panic!("{other:?}"),
    }
    let content = store.read_pages(&a, None, 0, 4096).await.unwrap();
    assert!(content.iter().all(|byte| *byte == 9), "an old owner's bytes came last");
}

/// A killed owner's lock and staging go with it.
async fn stage(path: &Path) {
    use holdfast::store::BlockId;
    let store = Dir::open(path, System::clock()).unwrap();
    store.stage_block(&name("log/1"), BlockId(0), bytes("theirs")).await.unwrap();
    say("staged");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[tokio::test]
async fn staging_of_the_dead_is_swept_and_of_the_living_is_not() {
    use holdfast::store::BlockId;
    let directory = tempfile::tempdir().unwrap();
    let count = || std::fs::read_dir(directory.path().join(".staging")).unwrap().count();
    let mut others = [0, 1].map(|_| Other::start("stage", directory.path()));
    for other in &mut others {
        assert_eq!(other.line().as_deref(), Some("staged"));
    }
    let store = Dir::open(directory.path(), System::clock()).unwrap();
    assert_eq!(count(), 3);
    let a = name("log/1");
    let theirs = store.commit_blocks(&a, &[BlockId(0)], Condition::Absent).await;
    assert_eq!(kind(theirs), "refused", "another's staged block was taken");
    let [mut dead, _living] = others;
    dead.child.kill().unwrap();
    dead.child.wait().unwrap();
    drop(Dir::open(directory.path(), System::clock()).unwrap());
    assert_eq!(count(), 2, "the dead one's is swept, the living one's is not");
}

const WORKER: PageGuard = PageGuard { lease: LeaseId([7; 16]), sequence_number: 0 };

/// Does what the seed says and tells before and after each action.
async fn work(path: &Path, seed: u64) {
    let store = Dir::open(path, System::clock()).unwrap();
    let blob = name("seed/disk");
    store.break_lease(&blob).await.unwrap();
    store.acquire_lease(&blob, WORKER.lease, 60).await.unwrap();
    let mut dice = Dice(seed);
    loop {
        let action = Action::draw(&mut dice);
        say("begin");
        match action {
            Action::Write { at, sectors, fill } => {
                let write = data(at * 512, sectors as usize * 512, fill);
                store.write_pages(&blob, &[write], &WORKER).await.unwrap();
                say("done");
            }
            Action::Clear { at, sectors } => {
                let write = clear(at * 512, sectors * 512);
                store.write_pages(&blob, &[write], &WORKER).await.unwrap();
                say("done");
            }
            Action::Flush => {
                store.flush_pages(&blob, &WORKER).await.unwrap();
                say("done");
            }
            Action::Snapshot => {
                let id = store.snapshot(&blob, "", &WORKER).await.unwrap();
                say(&format!("done {}", id.0));
            }
            Action::Delete(nth) => {
                let all = store.list_snapshots(&blob).await.unwrap();
                if !all.is_empty() {
                    let id = &all[nth as usize % all.len()].id;
                    store.delete_snapshot(&blob, id).await.unwrap();
                }
                say("done");
            }
        }
    }
}

/// Plays what a killed worker told after its first "begin"; gives the action it was in, if any.
fn replay(
    other: &mut Other,
    seed: u64,
    image: &mut [u8],
    snapshots: &mut Vec<(SnapshotId, Vec<u8>)>,
) -> Option<Action> {
    let mut dice = Dice(seed);
    loop {
        let action = Action::draw(&mut dice);
        let Some(done) = other.line() else {
            return Some(action);
        };
        action.apply(image);
        match action {
            Action::Snapshot => {
                let id = done.strip_prefix("done ").unwrap().to_owned();
                snapshots.push((SnapshotId(id), image.to_vec()));
            }
            Action::Delete(nth) if !snapshots.is_empty() => {
                snapshots.remove(nth as usize % snapshots.len());
            }
            Action::Write { .. } | Action::Clear { .. } | Action::Flush | Action::Delete(_) => {}
        }
        other.line()?; // the next "begin"
    }
}

#[tokio::test]
async fn snapshots_survive_kills_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let blob = name("seed/disk");
    let store = Dir::open(directory.path(), System::clock()).unwrap();
    store.create_pages(&blob, SIZE).await.unwrap();
    let mut image = vec![0; SIZE as usize];
    let mut snapshots = Vec::new();
    for seed in 0..15 {
        let mut other = Other::start(&seed.to_string(), directory.path());
        assert_eq!(other.line().as_deref(), Some("begin"));
        tokio::time::sleep(Duration::from_millis(20 + seed * 37 % 200)).await;
        other.child.kill().unwrap();
        other.child.wait().unwrap();
        let within = replay(&mut other, seed, &mut image, &mut snapshots);
        let listed = store.list_snapshots(&blob).await.unwrap();
        match within {
            Some(Action::Snapshot) if listed.len() > snapshots.len() => {
                let id = listed[listed.len() - 1].id.clone();
                snapshots.push((id, image.clone()));
            }
            Some(Action::Delete(nth)) if listed.len() < snapshots.len() => {
                snapshots.remove(nth as usize % snapshots.len());
            }
            _ => {}
        }
        let ids: Vec<_> = snapshots.iter().map(|(id, _)| id).collect();
        assert_eq!(ids, listed.iter().map(|one| &one.id).collect::<Vec<_>>(), "seed {seed}");
        for (id, expected) in &snapshots {
            let found = store.read_pages(&blob, Some(id), 0, SIZE).await.unwrap();
            assert!(found == *expected, "seed {seed}: snapshot {id:?} after {within:?}");
        }
        let now = store.read_pages(&blob, None, 0, SIZE).await.unwrap();
        let mut after = image.clone();
        if let Some(action) = within {
            action.apply(&mut after);
        }
        for (at, sector) in now.chunks(512).enumerate() {
            let range = at * 512..at * 512 + 512;
            let legal = *sector == image[range.clone()] || *sector == after[range];
            assert!(legal, "seed {seed}: sector {at} of the blob");
        }
        image = now.to_vec();
    }
}
