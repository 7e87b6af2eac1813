//! From a file (or none) to a bitmap, and what may be believed of it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::bits::{Bits, PAGE_WORDS};
use super::super::medium::Medium;
use super::super::source::FileMedium;
use super::super::turnover::{Awaited, Turnover};
use super::layout::{self, Header};
use super::{Bitmap, Identity};

/// What stood in a bitmap file.
#[derive(Debug)]
pub(in crate::agent) enum Found {
    /// It continues. Pages that could not be read have all their bits set.
    Kept {
        /// Pages with a wrong checksum.
        damaged_pages: u32,
        /// One of the two headers was not valid.
        damaged_header: bool,
    },
    /// It says nothing about this disk, and why: everything must be sent again.
    Nothing(String),
}

/// Opens the bitmap at `path`, or makes one with all bits set.
pub(in crate::agent) fn open(
    path: &Path,
    identity: &Identity,
    turnover: &Arc<Turnover>,
) -> io::Result<(Bitmap, Found)> {
    let awaited = |medium| Box::new(Awaited::new(Box::new(medium), turnover));
    let why = match FileMedium::open(path) {
        Ok(medium) => match load(awaited(medium), identity)? {
            (Some(bitmap), kept) => return Ok((bitmap, kept)),
            (None, found) => found,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Found::Nothing("there is no bitmap yet".to_owned())
        }
        Err(error) => return Err(error),
    };
    create(path, identity)?;
    match load(awaited(FileMedium::open(path)?), identity)? {
        (Some(bitmap), _) => Ok((bitmap, why)),
        (None, _) => Err(io::Error::other("the bitmap just written does not read back")),
    }
}

/// Reads a bitmap; `None` when it says nothing about this disk.
pub(in crate::agent) fn load(
    medium: Box<dyn Medium>,
    identity: &Identity,
) -> io::Result<(Option<Bitmap>, Found)> {
    let (headers, problem) = read_headers(medium.as_ref())?;
    let damaged_header = headers.len() < 2;
    let Some(mut header) = headers.into_iter().max_by_key(|header| header.turn) else {
        return Ok((None, Found::Nothing(problem)));
    };
    if let Some(why) = identity.mismatch(&header) {
        return Ok((None, Found::Nothing(why)));
    }
    header.clean &= !damaged_header;
    let mut set = Bits::new(identity.chunks());
    let mut damaged_pages = 0;
    for page in 0..set.pages() {
        let mut bytes = [0; layout::PAGE_BYTES];
        let at = layout::PAGES_AT + u64::from(page) * layout::PAGE_BYTES as u64;
        let read = medium.read_at(at, &mut bytes).ok();
        match read.and_then(|()| layout::decode_page(page, &bytes)) {
            Some(words) => set.replace_page(page, &words),
            None => {
                damaged_pages += 1;
                set.replace_page(page, &[u64::MAX; PAGE_WORDS]);
            }
        }
    }
    // After a stop that was not orderly the page cache may show bits that the disk does not hold (a
    // sync that failed, a process killed before it): they are written and synced again before a
    // write may rest on them.
    let repair = damaged_pages > 0 || !header.clean;
    let bitmap = Bitmap::with(medium, identity, header, set, repair);
    let found = Found::Kept { damaged_pages, damaged_header };
    Ok((Some(bitmap), found))
}

/// The valid headers, and what is wrong with the others.
fn read_headers(medium: &dyn Medium) -> io::Result<(Vec<Header>, String)> {
    let mut headers = Vec::new();
    let mut problem = String::new();
    for slot in 0..2 {
        let mut bytes = [0; layout::HEADER_BYTES];
        match medium.read_at(slot * layout::SLOT_BYTES, &mut bytes) {
            Ok(()) => match Header::decode(&bytes) {
                Ok(header) => headers.push(header),
                Err(error) => problem = format!("its header is damaged: {error}"),
            },
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                "it is too short".clone_into(&mut problem);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((headers, problem))
}

fn fresh(identity: &Identity) -> Header {
    identity.header(crate::model::Epoch(0), crate::model::Sequence::ZERO, false, 0)
}

/// The bytes of a file with all bits set, for a disk that was never tracked.
pub(in crate::agent) fn blank(identity: &Identity) -> Vec<u8> {
    let mut all = Bits::new(identity.chunks());
    all.fill();
    let mut bytes = vec![0; layout::PAGES_AT as usize];
    for slot in 0..2 {
        let header = fresh(identity).encode();
        let at = slot * layout::SLOT_BYTES as usize;
        bytes[at..at + header.len()].copy_from_slice(&header);
    }
    for page in 0..all.pages() {
        bytes.extend_from_slice(&layout::encode_page(page, all.page(page)));
    }
    bytes
}

/// Writes, syncs and only then names the file.
fn create(path: &Path, identity: &Identity) -> io::Result<()> {
    use std::io::Write;
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    file.write_all(&blank(identity))?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}
