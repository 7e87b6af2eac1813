//! Application-consistent bookmarks through the real programs: with a hook, with one that fails,
//! and without any.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::io::Write;

use support::{Site, eventually, have, text};

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
