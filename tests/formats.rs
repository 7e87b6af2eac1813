//! The pages under `docs/formats/` and the metrics table say what the code does: a number, a magic
//! or a name that is changed in one place only fails here.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

use std::fs;
use std::path::Path;

use holdfast::cloud_log;
use holdfast::format::wire::{self, FrameKind};
use holdfast::format::{change, delta, manifest, names, seed_disk, segment};
use holdfast::model;

/// A page, its code, and what must stand in it.
struct Page {
    name: &'static str,
    /// Files whose public constants must all be claimed below.
    code: &'static [&'static str],
    /// Headings of what is laid out, in this order.
    layouts: &'static [&'static str],
    claims: Vec<Claim>,
}

/// A constant and the words around it in the page, `{}` standing for its value.
struct Claim {
    constant: &'static str,
    value: String,
    words: &'static str,
}

fn claim(constant: &'static str, value: impl ToString, words: &'static str) -> Claim {
    assert_eq!(words.matches("{}").count(), 1, "{constant}: one place for the value");
    Claim { constant, value: value.to_string(), words }
}

/// As people write sizes.
fn size(bytes: impl TryInto<u64>) -> String {
    let bytes = bytes.try_into().unwrap_or_else(|_| panic!("a size is no negative number"));
    [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift))
        .map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

/// As people write counts: 65,536.
fn count(number: usize) -> String {
    match (number / 1000, number % 1000) {
        (0, rest) => rest.to_string(),
        (thousands, rest) => format!("{},{rest:03}", count(thousands)),
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// First bytes of a golden file: what is in the private constants of the code.
fn golden(name: &str) -> Vec<u8> {
    let bytes = fs::read(root().join("tests/golden").join(name)).unwrap();
    match name.ends_with(".hex") {
        false => bytes,
        true => {
            let text: String = String::from_utf8(bytes).unwrap().split_whitespace().collect();
            hex::decode(text).unwrap()
        }
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap().trim_end_matches('\0').to_owned()
}

fn wire_page() -> Page {
    let claims = vec![
        claim("VERSION", wire::VERSION, "\nVersion {}. Code:"),
        claim("PROTOCOL", wire::PROTOCOL, "Upgrade: {}  "),
        claim("MAGIC", hex_of(&wire::MAGIC.to_le_bytes()), "| 0 | magic | u16 | `{}`, \"HF\" |"),
        claim("HEADER_BYTES", wire::HEADER_BYTES, "A frame is a header of {} bytes"),
        claim(
            "PAYLOAD_BYTES_MAX",
            size(wire::PAYLOAD_BYTES_MAX),
            "| payload of a write | {} | header, before anything is allocated |",
        ),
        claim("CONTROL_BYTES_MAX", size(wire::CONTROL_BYTES_MAX), "any other frame | {} | header"),
        claim(
            "SENTENCE_BYTES_MAX",
            wire::SENTENCE_BYTES_MAX,
            "refuse | server | code u8 · text ≤ {} |",
        ),
        claim("ADDRESSES_MAX", wire::ADDRESSES_MAX, "number of addresses u8 (1 to {}) ·"),
        claim("ADDRESS_BYTES_MAX", wire::ADDRESS_BYTES_MAX, "each text ≤ {} · reason"),
        claim(
            "BOOKMARK_NAME_BYTES_MAX",
            change::BOOKMARK_NAME_BYTES_MAX,
            "9999 · name text ≤ {} |",
        ),
        claim("ZERO_BYTES_MAX", size(model::ZERO_BYTES_MAX), "| extent of a zero | {} | header |"),
        claim("DISKS_MAX", model::DISKS_MAX, "| disks | {} | body |"),
        claim("SECTOR_BYTES", model::SECTOR_BYTES, "sizes multiples of {} up to 8 TiB − 1 MiB"),
    ];
    let layouts = &["## A frame", "### Types", "### Limits"];
    Page { name: "wire", code: &["src/format/wire/mod.rs"], layouts, claims }
}

fn segment_page() -> Page {
    let (header, record) = (golden("segment/header.bin"), golden("segment/record-write.bin"));
    let version = u16::from_le_bytes([header[8], header[9]]);
    let claims = vec![
        claim("SEGMENT_MAGIC", text_of(&header[..8]), "| 0 | 8 | magic | `{}` |"),
        claim("Version", version, "| 8 | 2 | version | {} |"),
        claim("RECORD_MAGIC", text_of(&record[..4]), "| 0 | 4 | magic | `{}` |"),
        claim("SEGMENT_HEADER_BYTES", segment::SEGMENT_HEADER_BYTES, "Records begin at {}, not"),
        claim(
            "SEGMENT_HEADER_SECTOR",
            segment::SEGMENT_HEADER_SECTOR,
            "### Header: {} bytes at offset 0",
        ),
        claim(
            "RECORD_HEADER_BYTES",
            segment::RECORD_HEADER_BYTES,
            "### Record: header of {} bytes, payload",
        ),
        claim("RECORD_ALIGN", segment::RECORD_ALIGN, "payload, zeros up to a multiple of {}\n"),
        claim("KIND_END", segment::KIND_END, "or {}: end of the segment |"),
        claim("KIND_VOID", segment::KIND_VOID, "(1 to 6), {}: void, or"),
        claim(
            "WRITE_BYTES_MAX",
            size(model::WRITE_BYTES_MAX),
            "| 4 | 4 | payload_bytes | at most {} |",
        ),
    ];
    let layouts = &["## Segment", "### Header: ", "### Record: "];
    Page { name: "cache-segment", code: &["src/format/segment.rs"], layouts, claims }
}

fn delta_page() -> Page {
    let (header, trailer) = (golden("delta/v1-header.hex"), golden("delta/v1-trailer.hex"));
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let claims = vec![
        claim("HEADER_MAGIC", text_of(&header[..8]), "| 0 | 8 | magic | `{}` |"),
        claim("TRAILER_MAGIC", text_of(&trailer[28..36]), "| 28 | 8 | magic `{}` |"),
        claim("VERSION", version, "# Delta, version {}\n"),
        claim("VERSION", version, "| 8 | 4 | version | {} |"),
        claim("HEADER_BYTES", delta::HEADER_BYTES, "## Header, {} bytes, in the clear"),
        claim("TRAILER_BYTES", delta::TRAILER_BYTES, "## Trailer, {} bytes, in the clear"),
        claim("TAG_BYTES", delta::TAG_BYTES, "then sealed: ciphertext · tag {}. "),
        claim(
            "FRAME_PLAIN_BYTES_MAX",
            size(delta::FRAME_PLAIN_BYTES_MAX),
            "At most {} of plaintext (",
        ),
        claim(
            "INDEX_PLAIN_BYTES_MAX",
            size(delta::INDEX_PLAIN_BYTES_MAX),
            "## Index, sealed like a frame, at most {} of plaintext",
        ),
        claim("FRAMES_MAX", count(delta::FRAMES_MAX), "at most {} frames, "),
        claim("ENTRIES_MAX", count(delta::ENTRIES_MAX), "frames, {} entries, "),
        claim("MARKS_MAX", count(delta::MARKS_MAX), "entries, {} marks; "),
        claim("WRITE_BYTES_MAX", size(model::WRITE_BYTES_MAX), "a write has at most {}, "),
        claim("ZERO_BYTES_MAX", size(model::ZERO_BYTES_MAX), ", a zero at most {};"),
    ];
    let layouts = &["## Header, ", "## Frame", "## Index, ", "## Trailer, ", "## Limits"];
    Page { name: "delta", code: &["src/format/delta.rs"], layouts, claims }
}

fn manifest_page() -> Page {
    let (document, page) = (golden("manifest/v1-first.bin"), golden("manifest/v1-page.bin"));
    let version = |bytes: &[u8]| u16::from_le_bytes([bytes[8], bytes[9]]);
    let claims = vec![
        claim("MANIFEST_MAGIC", text_of(&document[..8]), "| magic | 8 | `{}` and a zero |"),
        claim("PAGE_MAGIC", text_of(&page[..8]), "magic `{}` and a zero · version"),
        claim("Version", version(&document), "# Manifest and manifest page, version {}\n"),
        claim("Version", version(&document), "| version | 2 | {} |"),
        claim("Version", version(&page), "version u16 ({}) · flags u16"),
        claim("MANIFEST_KIND", manifest::MANIFEST_KIND, "kinds `{}` and"),
        claim("PAGE_KIND", manifest::PAGE_KIND, "and `{}`): magic"),
        claim("ENTRIES_MAX", count(cloud_log::ENTRIES_MAX), "more than {} entries in the document"),
        claim("DISKS_MAX", model::DISKS_MAX, "Disks: 1 to {}, ascending"),
        claim("MACHINES", names::MACHINES, "| `{}<machine>/manifest` | this document |"),
        claim("SEED_DISKS", names::SEED_DISKS, "| `{}asrseeddisk-<machine>-<disk>-<epoch>` |"),
        claim("MACHINE_ROLL", names::MACHINE_ROLL, "`{}<machine>`"),
        claim("SERVERS", names::SERVERS, "`{}<server>`"),
        claim("TOKENS", names::TOKENS, "`{}<id>` | vault"),
    ];
    let layouts = &["## Manifest", "## Page", "## Rules", "## Names of all objects"];
    let code = &["src/format/manifest.rs", "src/format/names.rs"];
    Page { name: "manifest", code, layouts, claims }
}

fn seed_disk_page() -> Page {
    let footer = golden("seed_disk/v1-20mib.footer");
    let version = u32::from_be_bytes([footer[12], footer[13], footer[14], footer[15]]);
    let claims = vec![
        claim("COOKIE", text_of(&footer[..8]), "| 0 | 8 | cookie | `{}` |"),
        claim("FORMAT_VERSION", format!("{version:#010x}"), "| 12 | 4 | version | {} |"),
        claim("FOOTER_BYTES", seed_disk::FOOTER_BYTES, " footer, {} bytes\n"),
        claim("SIZE_UNIT_BYTES", size(seed_disk::SIZE_UNIT_BYTES), "disk size rounded up to {} "),
    ];
    let layouts = &["## Footer", "## What the `dir:` store keeps beside it"];
    Page { name: "seed-disk", code: &["src/format/seed_disk.rs"], layouts, claims }
}

fn pages() -> [Page; 5] {
    [wire_page(), segment_page(), delta_page(), manifest_page(), seed_disk_page()]
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

impl Page {
    fn text(&self) -> String {
        read(&format!("docs/formats/{}.md", self.name))
    }
}

#[test]
fn every_number_of_a_format_stands_in_its_page() {
    let mut wrong = Vec::new();
    for page in pages() {
        let text = page.text();
        for Claim { constant, value, words } in &page.claims {
            let words = words.replace("{}", value);
            if !text.contains(&words) {
                wrong.push(format!("docs/formats/{}.md, {constant}: {words:?}", page.name));
            }
        }
    }
    assert!(wrong.is_empty(), "the code says so, the page does not:\n{}", wrong.join("\n"));
}

#[test]
fn every_public_constant_of_a_format_is_claimed() {
    for page in pages() {
        for path in page.code {
            let code = read(path);
            let constants = code.lines().filter_map(|line| line.strip_prefix("pub const "));
            let names = constants.filter_map(|line| line.split_once(": ")).map(|(name, _)| name);
            for name in names.filter(|name| !name.starts_with("fn ")) {
                let claimed = page.claims.iter().any(|claim| claim.constant == name);
                assert!(claimed, "{path}: {name} stands in no claim of this test");
            }
        }
    }
}

#[test]
fn every_page_says_layout_and_order_of_writes() {
    for page in pages() {
        let (name, text) = (page.name, page.text());
        let mut rest = text.as_str();
        for heading in page.layouts {
            let at = rest.find(&format!("\n{heading}"));
            let at = at.unwrap_or_else(|| panic!("{name}: no {heading:?}, or not in this place"));
            rest = &rest[at + 1..];
        }
        let order = text.split("\n## Write ordering\n").nth(1);
        let order =
            order.unwrap_or_else(|| panic!("{name} does not say in which order is written"));
        let order = section(order);
        for word in ["*Must*", "*Should*"] {
            assert!(order.contains(word), "{name}: the order of writes has no {word}");
        }
    }
}

/// From here to the next heading.
fn section(text: &str) -> &str {
    text.find("\n#").map_or(text, |end| &text[..end])
}

#[test]
fn every_frame_stands_in_the_wire_page_under_its_code() {
    use change::ChangeKind;
    let kinds = [
        (FrameKind::Record(ChangeKind::Write), "write | agent"),
        (FrameKind::Record(ChangeKind::Zero), "zero | agent"),
        (FrameKind::Record(ChangeKind::Bookmark), "bookmark | agent"),
        (FrameKind::Record(ChangeKind::EpochBegin), "epoch begin | agent"),
        (FrameKind::Record(ChangeKind::CatchUpBegin), "catch-up begin | agent"),
        (FrameKind::Record(ChangeKind::CatchUpEnd), "catch-up end | agent"),
        (FrameKind::Hello, "hello | agent"),
        (FrameKind::Progress, "progress | agent"),
        (FrameKind::BookmarkReply, "bookmark reply | agent"),
        (FrameKind::Goodbye, "goodbye | agent"),
        (FrameKind::Capture, "capture | agent"),
        (FrameKind::Welcome, "welcome | server"),
        (FrameKind::Ack, "ack | server"),
        (FrameKind::BookmarkRequest, "bookmark request | server"),
        (FrameKind::Refuse, "refuse | server"),
        (FrameKind::Redirect, "redirect | server"),
    ];
    let text = wire_page().text();
    for (kind, name) in kinds {
        let code = match kind {
            FrameKind::Record(_) => kind.code().to_string(),
            _ => format!("{:#04x}", kind.code()),
        };
        assert!(text.contains(&format!("\n| {code} | {name} |")), "{code}, {name}");
    }
}
