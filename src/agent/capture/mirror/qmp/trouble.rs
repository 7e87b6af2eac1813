//! What QEMU's events tell of jobs that ended and of disks that failed, for each of our disks.
//!
//! Owns: which of them an event is about. Does not own: what follows ([`super::super::guest`]).

use std::collections::BTreeMap;

use serde_json::Value;

/// The disks of one QEMU that are listened for, by the names of their mirror jobs.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<String, Watched>);

#[derive(Debug)]
struct Watched {
    nodes: [String; 2],
    topmost: bool,
    /// The last thing that was told.
    trouble: Option<String>,
}

impl Troubles {
    /// From here on, and of nothing before: `nodes` are the disk and the mirror above it. `topmost`: the
    /// guest's device sits on one of them.
    pub(super) fn watch(&mut self, job: &str, nodes: [String; 2], topmost: bool) {
        self.0.insert(job.to_owned(), Watched { nodes, topmost, trouble: None });
    }

    /// What was told of this disk since the last time it was asked.
    pub(super) fn take(&mut self, job: &str) -> Option<String> {
        self.0.get_mut(job)?.trouble.take()
    }

    /// An event. It names the node that the guest's device sits on (`block_io_error` in QEMU's qapi;
    /// the other names have changed their places between versions). Where that is a node above ours,
    /// nobody says which one it is, so any that fails counts.
    pub(super) fn hear(&mut self, event: &str, about: &Value) {
        let Some(words) = words(event, about) else { return };
        let node = about["node-name"].as_str();
        for (job, watched) in &mut self.0 {
            let concerned = match event {
                "BLOCK_IO_ERROR" => {
                    !watched.topmost
                        || node.is_none_or(|node| watched.nodes.iter().any(|ours| ours == node))
                }
                _ => about["device"] == **job,
            };
            if concerned {
                watched.trouble = Some(words.clone());
            }
        }
    }
}

/// An event that says why a job ended or that the guest's own disk failed, in words.
fn words(event: &str, about: &Value) -> Option<String> {
    let text = |key: &str| about[key].as_str().unwrap_or("?");
    match event {
        "BLOCK_IO_ERROR" if about["operation"] == "write" => {
            Some(format!("a write of the guest's disk {} failed", text("node-name")))
        }
        "BLOCK_JOB_CANCELLED" => Some(format!("job {} was cancelled", text("device"))),
        "BLOCK_JOB_COMPLETED" => match about["error"].as_str() {
            Some(error) => Some(format!("job {} failed: {error}", text("device"))),
            None => Some(format!("job {} was completed", text("device"))),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_told_to_the_disk_that_it_is_about() {
        let mut troubles = Troubles::default();
        let nodes = |disk: &str| [disk.to_owned(), format!("{disk}-filter")];
        troubles.watch("job-a", nodes("a"), true);
        troubles.watch("job-b", nodes("b"), true);
        troubles.watch("job-c", nodes("below-another"), false);
        let mut told = |event, about: Value| {
            troubles.hear(event, &about);
            ["job-a", "job-b", "job-c"].map(|job| troubles.take(job).is_some())
        };
        let write = |node| json!({ "device": "", "node-name": node, "operation": "write" });
        assert_eq!(told("BLOCK_IO_ERROR", write("b-filter")), [false, true, true]);
        assert_eq!(told("BLOCK_IO_ERROR", write("a")), [true, false, true]);
        assert_eq!(told("BLOCK_IO_ERROR", write("somebody's")), [false, false, true]);
        assert_eq!(told("BLOCK_IO_ERROR", json!({ "operation": "write" })), [true; 3]);
        let read = json!({ "node-name": "a", "operation": "read" });
        assert_eq!(told("BLOCK_IO_ERROR", read), [false; 3]);
        for event in ["BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED"] {
            assert_eq!(told(event, json!({ "device": "job-b" })), [false, true, false]);
            assert_eq!(told(event, json!({ "device": "backup0" })), [false; 3]);
        }
        troubles.hear("BLOCK_IO_ERROR", &write("a"));
        troubles.watch("job-a", nodes("a"), true);
        assert_eq!(troubles.take("job-a"), None, "what was told before it began");
    }
}
