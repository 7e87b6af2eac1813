use std::time::Duration;

use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Modifier;

use super::draw::{draw, paper, text};
use super::model::Model;
use super::reading::Reading;
use super::rows::{Order, State, rows};
use super::view::{Footer, View};
use crate::model::Timestamp;

const NOW: Timestamp = Timestamp(1_795_392_000_000_000);

/// A page as a server writes it; the figures grow with `step`.
fn page(step: u64, machines: &[&str]) -> String {
    let mut page = format!(
        "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1795388400\n\
         process_resident_memory_bytes 100000000\n\
         holdfast_build_info{{version=\"9.8.7\"}} 1\n\
         holdfast_machines{{agent=\"connected\"}} 2\nholdfast_machines{{agent=\"away\"}} 1\n\
         holdfast_cache_used_bytes 1073741824\nholdfast_cache_max_bytes 8589934592\n\
         holdfast_cache_pressure{{level=\"free\"}} 0\nholdfast_cache_pressure{{level=\"warn\"}} 1\n\
         holdfast_cache_mark_ratio{{level=\"warn\"}} 0.1\nholdfast_cache_mark_ratio{{level=\"stop\"}} 0.85\n\
         holdfast_credit_share_ratio 0.25\nholdfast_cache_full_seconds 240\n\
         holdfast_backlog_drain_seconds 61\nholdfast_upload_streams 8\nholdfast_upload_streams_busy 3\n\
         holdfast_upload_rate_limit_bytes_per_second 2097152\nholdfast_store_breaker_state 1\n\
         holdfast_store_retries_total{{reason=\"lost\"}} {}\nholdfast_store_retries_total{{reason=\"io\"}} 5\n\
         holdfast_backlog_all_bytes 3145728\nholdfast_rpo_worst_seconds 7\n",
        10 + 2 * step
    );
    for (at, stage) in ["ingest", "cache", "seal", "upload", "apply"].into_iter().enumerate() {
        let bytes = (at as u64 + 1) * (1 << 20) * step;
        page.push_str(&format!(
            "holdfast_stage_in_bytes_total{{stage=\"{stage}\"}} {bytes}\n\
             holdfast_stage_out_bytes_total{{stage=\"{stage}\"}} {bytes}\n\
             holdfast_stage_cpu_seconds_total{{stage=\"{stage}\"}} {}\n\
             holdfast_stage_latency_seconds_bucket{{stage=\"{stage}\",le=\"+Inf\"}} 7\n\
             holdfast_stage_latency_quantile_seconds{{stage=\"{stage}\",quantile=\"0.5\"}} 0.0005\n\
             holdfast_stage_latency_quantile_seconds{{stage=\"{stage}\",quantile=\"0.99\"}} 0.0123\n",
            step as f64 / 4.0
        ));
    }
    for (at, machine) in machines.iter().enumerate() {
        let at = at as u64;
        for (watermark, back) in
            [("received", 0), ("durable", 1), ("published", 2), ("applied", 3), ("recoverable", 4)]
        {
            page.push_str(&format!(
                "holdfast_watermark_sequence{{machine=\"{machine}\",watermark=\"{watermark}\"}} {}\n",
                1000 + at - back
            ));
        }
        page.push_str(&format!(
            "holdfast_rpo_seconds{{machine=\"{machine}\"}} {}\n\
             holdfast_source_bytes_total{{machine=\"{machine}\"}} {}\n\
             holdfast_backlog_bytes{{machine=\"{machine}\"}} {}\n\
             holdfast_agent_connected{{machine=\"{machine}\"}} 1\n\
             holdfast_agent_tracking{{machine=\"{machine}\",mode=\"ordered\"}} 1\n\
             holdfast_agent_dirty_bytes{{machine=\"{machine}\"}} 25\n\
             holdfast_agent_disk_bytes{{machine=\"{machine}\"}} 100\n",
            3 + at % 7,
            step * (at + 1) * 1024,
            at * 4096
        ));
    }
    page + "# EOF\n"
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// After two readings, two seconds apart.
fn model(machines: &[&str]) -> Model {
    let mut model = Model::new("ps:9445".to_owned(), NOW.plus_seconds(-60));
    for step in [1, 3] {
        model.take(Reading::of(&page(step, machines)).unwrap(), at(step), NOW);
    }
    model
}

fn frame(model: &Model, view: &View, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| {
            draw(model, view, NOW, frame.buffer_mut());
        })
        .unwrap();
    terminal.backend().buffer().clone()
}

#[test]
fn a_frame_on_paper_says_what_was_exposed() {
    let said = paper(&model(&["db", "web-1"]), NOW);
    for words in [
        "holdfast ps:9445  up 1 h  2 of 3 agents connected  memory 95 MiB  version 9.8.7",
        "12 % of 8.0 GiB: warn  marks warn 10 % stop 85 %  full in 4 min  agents get 25 % of their credit",
        "uploads 3 of 8 streams  retries 21 (2.0/s)  store is left alone  limit 2.0 MiB/s  drained in 1 min 1 s",
        "ingest 1.0 MiB/s",
        "published 4.0 MiB/s",
        "RPO, worst 7 s",
        "backlog 3.0 MiB",
        "cache ack       0.8       0.25    2.0 MiB/s    6.0 MiB    6.0 MiB   500 µs    12 ms",
        "web-1     in order     4 s   4.0 KiB   2.0 KiB/s      1001     1000        999      998          997",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    assert!(said.lines().all(|line| line.trim_end() == line));
    assert!(said.ends_with("997"), "no footer on paper\n{said}");
}

#[test]
fn the_usual_terminal_shows_everything_that_matters() {
    let said = text(&frame(&model(&["db", "web-1"]), &View::default(), 80, 24));
    for words in [
        "ingest 1.0 MiB/s",
        "published",
        "RPO, worst",
        "backlog",
        "cache ack",
        "p99",
        "db ",
        "web-1",
        "machines 1-2 of 2",
        "durable",
        "published",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    assert!(said.contains('█') && said.contains('▼'), "{said}");
    let small = text(&frame(&model(&["db", "web-1"]), &View::default(), 40, 10));
    for words in ["holdfast ps:9445", "cache", "ingest", "backlog", "machine▼", "rpo", "web-1"] {
        assert!(small.contains(words), "{words}\n{small}");
    }
}

#[test]
fn a_server_that_goes_away_is_said_and_its_figures_are_dimmed_until_it_is_back() {
    let mut model = model(&["db"]);
    let dimmed = |model: &Model| {
        let frame = frame(model, &View::default(), 80, 24);
        let is = |at: (u16, u16)| frame[at].modifier.contains(Modifier::DIM);
        (text(&frame), is((0, 23 - 6)), is((0, 0)))
    };
    let (said, table, title) = dimmed(&model);
    assert!(!said.contains("no answer") && !table && !title, "{said}");
    for _ in 0..3 {
        model.lose("connection refused".to_owned());
    }
    let (said, table, title) = dimmed(&model);
    let words = "no answer since 2026-11-23T00:00:00Z (0 s): connection refused";
    assert!(said.contains(words) && said.contains("db ") && table && !title, "{said}");
    assert_eq!(model.histories.ingest.last(4)[1..], [None; 3], "gaps in the graphs");
    // The same process again: the rate is that of the whole time.
    model.take(Reading::of(&page(13, &["db"])).unwrap(), at(13), NOW);
    assert_eq!(model.rates.ingest, Some(f64::from(1 << 20)));
    assert!(!dimmed(&model).0.contains("no answer"));
    // Another process: its counters began again, and might even be larger.
    let restarted = page(20, &["db"]).replace("1795388400", "1795391000");
    model.take(Reading::of(&restarted).unwrap(), at(14), NOW);
    assert_eq!(model.rates, super::model::Rates::default());
}

#[test]
fn one_that_never_answered_says_since_when() {
    let mut model = Model::new("ps:9445".to_owned(), NOW);
    assert!(text(&frame(&model, &View::default(), 80, 24)).contains("no answer yet"));
    model.lose("connection refused".to_owned());
    let said = text(&frame(&model, &View::default(), 80, 24));
    assert!(said.contains("no answer since 2026-11-23T00:00:00Z") && said.contains("--metrics"));
}

#[test]
fn rows_are_sorted_and_scrolled() {
    let names: Vec<_> = (0..1000).map(|n| format!("m-{n:04}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let model = model(&names);
    let first = |order| rows(&model, order)[0].machine.clone();
    assert_eq!(first(Order::Machine), "m-0000");
    assert_eq!(first(Order::Rpo), "m-0006", "the oldest point, then by name");
    assert_eq!((first(Order::Backlog), first(Order::Rate)), ("m-0999".into(), "m-0999".into()));
    let shown = |first| text(&frame(&model, &View { first, ..View::default() }, 80, 24));
    assert!(shown(0).contains("m-0000") && shown(0).contains("machines 1-7 of 1000"));
    let end = shown(usize::MAX);
    assert!(end.contains("m-0999") && end.contains("machines 994-1000 of 1000"), "{end}");
    assert_eq!(paper(&model, NOW).lines().filter(|line| line.starts_with("m-")).count(), 1000);
}

#[test]
fn a_machines_state_is_told_in_words() {
    let state = |edit: &dyn Fn(String) -> String| {
        let mut model = Model::new(String::new(), NOW);
        model.take(Reading::of(&edit(page(1, &["db"]))).unwrap(), at(1), NOW);
        rows(&model, Order::State)[0].state.words()
    };
    let without = |page: String, name: &str| {
        page.lines()
            .filter(|line| !line.starts_with(name))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    let mode = |page: String, mode: &str| page.replace("ordered", mode);
    assert_eq!(state(&|page| page), "in order");
    assert_eq!(state(&|page| without(page, "holdfast_rpo_seconds")), "in order, no point");
    assert_eq!(state(&|page| mode(page, "catching-up")), "catching up 75 %");
    let first = |page| without(mode(page, "catching-up"), "holdfast_rpo_seconds");
    assert_eq!(state(&first), "first copy 75 %");
    assert_eq!(state(&|page| mode(page, "bitmap")), "dirty extents only");
    assert_eq!(state(&|page| without(page, "holdfast_agent_tracking")), "connected");
    assert_eq!(state(&|page| without(page, "holdfast_agent_connected")), "applied here");
    let away =
        |page: String| page.replace("connected{machine=\"db\"} 1", "connected{machine=\"db\"} 0");
    assert_eq!(state(&away), "agent away");
    assert!(State::Away > State::Bitmap && State::Bitmap > State::CatchingUp(0));
}

#[test]
fn a_long_name_gives_way_to_figures_and_gets_the_room_that_is_left() {
    let long = "m".repeat(64);
    let model = model(&[&long]);
    let row = |width| {
        let said = text(&frame(&model, &View::default(), width, 24));
        said.lines().find(|line| line.starts_with("mm")).unwrap().to_owned()
    };
    for (width, names, cells) in [(40, 22, 3), (80, 20, 7), (200, 64, 10)] {
        let row = row(width);
        let name = row.split(' ').next().unwrap();
        assert_eq!(name.chars().count(), names, "{row}");
        let rest = row[name.len()..].split("  ").filter(|cell| !cell.trim().is_empty());
        assert_eq!(1 + rest.count(), cells, "{row}");
    }
}

#[test]
fn what_was_not_exposed_is_not_shown_as_nought() {
    let mut model = Model::new("ps".to_owned(), NOW);
    let bare = "holdfast_build_info{version=\"1\"} 1\nholdfast_agent_connected{machine=\"a\"} 1\n";
    model.take(Reading::of(bare).unwrap(), at(1), NOW);
    let said = paper(&model, NOW);
    assert!(said.contains("cache -") && said.contains("ingest -"), "{said}");
    let row = said.lines().find(|line| line.starts_with("a ")).unwrap();
    assert!(!row.contains('0'), "{row}");
}

/// Names that no site gives and another program may.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9-]{1,64}",
        "\\PC{0,64}",
        "[\u{4e00}-\u{4eff}👩‍👩‍👧é]{64}",
        "(\\x1b\\[31m|\r|\t){1,9}"
    ]
    .prop_map(|name| name.replace(['\\', '"', '\n'], "-"))
}

proptest! {
    #[test]
    fn no_size_and_no_figure_panics_and_nothing_escapes_to_the_terminal(
        names in prop::collection::btree_set(name(), 0..40),
        (width, height) in prop_oneof![(0_u16..60, 0_u16..30), (0_u16..400, 0_u16..120)],
        first in prop_oneof![0_usize..50, Just(usize::MAX)],
        footer in prop_oneof![Just(Footer::None), Just(Footer::Hint), Just(Footer::Keys)],
        order in prop_oneof![Just(Order::Machine), Just(Order::State), Just(Order::Rate)],
        odd in prop_oneof![Just("NaN"), Just("+Inf"), Just("-1"), Just("1e300"), Just("5")],
        lost in any::<bool>(),
    ) {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut model = model(&names);
        let page = page(4, &names).replace(" 1024\n", &format!(" {odd}\n"));
        let page = page.replace(" 3145728\n", &format!(" {odd}\n"));
        let page = page.replace(" 1073741824\n", &format!(" {odd}\n"));
        let page = page.replace(" 0.1\n", &format!(" {odd}\n")).replace(" 0.0005\n", &format!(" {odd}\n"));
        model.take(Reading::of(&page).unwrap(), at(5), NOW);
        if lost {
            model.lose("\x1b[2J gone".to_owned());
        }
        let view = View { first, footer, order, ..View::default() };
        let buffer = frame(&model, &view, width, height);
        prop_assert_eq!(buffer.area, Rect::new(0, 0, width, height));
        let control = buffer.content().iter().any(|cell| cell.symbol().chars().any(char::is_control));
        prop_assert!(!control);
    }
}
