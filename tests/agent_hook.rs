//! Application-consistent bookmarks through the real programs: with a hook, with one that fails,
//! without any, and with an agent that ends in the midst.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::io::Write;
use std::path::PathBuf;

use support::{AgentSite, Process, Site, eventually, have, text};

#[test]
fn an_application_is_frozen_for_its_bookmark_or_the_bookmark_is_refused() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    let agent_site = site.enroll("db-1", &[("root", 4 << 20)]);
    let _server = site.serve();
    let config = agent_site.config();
    let agent = agent_site.start(&["root"]);
    let bookmark = |name: &str, app: bool| {
        let mut args = vec!["bookmark", "db-1", "--name", name, "--wait", "recoverable"];
        args.extend(app.then_some("--app"));
        site.try_holdfast(&args)
    };
    eventually("a first point", 60, || bookmark("first", false).status.success().then_some(()));
    let output = bookmark("no-hook", true);
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && why.contains("[application]"), "{why}");
    agent.stop();

    let (frozen, ready) = (site.path("frozen"), site.path("ready"));
    let hook = format!(
        "\n[application]\nfreeze = [\"/bin/sh\", \"-c\", \"test -e {1} && touch {0}\"]\n\
         thaw = [\"/bin/rm\", \"-f\", \"{0}\"]\n",
        text(&frozen),
        text(&ready)
    );
    let mut file = std::fs::OpenOptions::new().append(true).open(&config).unwrap();
    file.write_all(hook.as_bytes()).unwrap();
    let _agent = agent_site.start(&["root"]);
    eventually("ordered again", 60, || bookmark("second", false).status.success().then_some(()));
    let output = bookmark("cannot-freeze", true);
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && why.contains("freeze"), "{why}");
    std::fs::write(&ready, b"").unwrap();
    assert!(bookmark("frozen", true).status.success());
    assert!(!frozen.exists(), "it was thawed");
    let points = site.points("db-1");
    let kinds: Vec<_> = points.iter().filter(|point| point["name"] == "frozen").collect();
    assert_eq!(kinds.len(), 1, "{points:?}");
    assert_eq!(kinds[0]["kind"], "application-consistent", "{:?}", kinds[0]);
    let named = |name: &str| points.iter().any(|point| point["name"] == name);
    assert!(!named("no-hook") && !named("cannot-freeze"), "{points:?}");
}

/// A machine whose freeze begins with `begun` and then does as the test says.
struct Freezing {
    site: Site,
    agent_site: AgentSite,
    _server: Process,
}

impl Freezing {
    fn new(freeze: &str, timeout_ms: i64) -> Self {
        let site = Site::new();
        let agent_site = site.enroll("db-1", &[("root", 4 << 20)]);
        let script = |script: &str| {
            let script = format!("cd {}; {script}", text(site.directory.path()));
            ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
        };
        agent_site.set("application.freeze", script(&format!("touch begun; {freeze}")));
        agent_site.set("application.thaw", script("echo >> thaws; rm -f ice"));
        agent_site.set("application.timeout_ms", timeout_ms);
        let server = site.serve();
        Self { site, agent_site, _server: server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.path(name)
    }

    /// An agent in the midst of freezing, and who asked for it.
    fn freezes(&self) -> (Process, Process) {
        let agent = self.agent_site.start(&["root"]);
        let args = ["bookmark", "db-1", "--name", "first", "--wait", "recoverable"];
        eventually("a point", 60, || self.site.try_holdfast(&args).status.success().then_some(()));
        let asks = self.site.spawn(&["bookmark", "db-1", "--name", "frozen", "--app"]);
        agent.ready("it freezes", 60, || self.path("begun").exists().then_some(()));
        (agent, asks)
    }
}

#[test]
fn an_agent_that_is_stopped_while_it_freezes_thaws_before_it_ends() {
    if !have(&["curl"]) {
        return;
    }
    let freezing = Freezing::new("touch ice; exec sleep 60", 1500);
    for impatient in [false, true] {
        let (agent, _asks) = freezing.freezes();
        if impatient {
            agent.signal("TERM");
            agent.ready("it stops", 20, || agent.log().contains("a second signal").then_some(()));
        }
        agent.stop();
        assert!(!freezing.path("ice").exists(), "impatient: {impatient}");
        assert!(!freezing.agent_site.directory.join("frozen").exists());
        std::fs::remove_file(freezing.path("begun")).unwrap();
        std::fs::remove_file(freezing.agent_site.directory.with_extension("log")).unwrap();
    }
}

/// Its freeze goes on without it, and is through only when the next agent has thawed once.
#[test]
fn what_a_killed_agent_was_about_to_freeze_is_thawed_by_the_next() {
    if !have(&["curl"]) {
        return;
    }
    let freezing =
        Freezing::new("while ! test -e go; do sleep 0.02; done; touch ice; touch over", 20_000);
    let note = freezing.agent_site.directory.join("frozen");
    let (agent, _asks) = freezing.freezes();
    agent.kill();
    assert!(note.exists());
    let agent = freezing.agent_site.start(&["root"]);
    eventually("it thaws", 60, || freezing.path("thaws").exists().then_some(()));
    std::fs::write(freezing.path("go"), b"").unwrap();
    agent.ready("it was thawed", 60, || (!note.exists()).then_some(()));
    assert!(freezing.path("over").exists() && !freezing.path("ice").exists());
    assert!(agent.log().contains("an agent before this one ended while"), "{}", agent.log());
    agent.stop();
}
