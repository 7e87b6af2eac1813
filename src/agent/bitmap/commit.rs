//! Group commit of bitmap pages: one writer syncs for all who wait.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::super::bits::PAGE_CHUNKS;
use super::intents::{Bitmap, State};
use super::layout::{self, PAGE_BYTES};

/// Which pages are to be written and which commits are done.
#[derive(Debug, Default)]
pub(super) struct Commits {
    unwritten: BTreeSet<u32>,
    started: u64,
    done: u64,
    running: bool,
    broken: Option<Arc<io::Error>>,
}

impl Commits {
    /// The pages of these chunks are to be written.
    pub(super) fn want(&mut self, chunks: &Range<u64>) {
        let pages = chunks.start / PAGE_CHUNKS..chunks.end.div_ceil(PAGE_CHUNKS);
        self.unwritten.extend(pages.map(|page| page as u32));
    }

    /// One page is to be written.
    pub(super) fn want_page(&mut self, page: u32) {
        self.unwritten.insert(page);
    }

    /// Every page is to be written.
    pub(super) fn want_all(&mut self, pages: u32) {
        self.unwritten.extend(0..pages);
    }

    /// The commit that will hold what is wanted now: a running one has taken its copy already.
    pub(super) fn ticket(&self) -> u64 {
        self.started + 1
    }
}

impl Bitmap {
    /// Returns when commit `ticket` is on disk: waits for whoever writes, or writes itself.
    pub(super) fn commit<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        ticket: u64,
    ) -> io::Result<()> {
        while state.commits.done < ticket {
            if let Some(cause) = &state.commits.broken {
                return Err(io::Error::other(Arc::clone(cause)));
            }
            if state.commits.running {
                let woken = self.committed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.commits.running = true;
            state.commits.started += 1;
            let images: Vec<_> = std::mem::take(&mut state.commits.unwritten)
                .into_iter()
                .map(|page| (page, layout::encode_page(page, state.set.page(page))))
                .collect();
            drop(state);
            let outcome = self.write_pages(&images);
            state = self.lock();
            state.commits.running = false;
            match outcome {
                Ok(()) => {
                    state.commits.done = state.commits.started;
                    for (page, image) in &images {
                        state.believe(*page, image);
                    }
                }
                // Nothing of this file may be believed to reach the disk any more.
                Err(error) => state.commits.broken = Some(Arc::new(error)),
            }
            self.committed.notify_all();
        }
        Ok(())
    }

    fn write_pages(&self, images: &[(u32, [u8; PAGE_BYTES])]) -> io::Result<()> {
        if images.is_empty() {
            return Ok(());
        }
        for run in images.chunk_by(|(one, _), (next, _)| one + 1 == *next) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, image)| *image).collect();
            let at = layout::PAGES_AT + u64::from(run[0].0) * PAGE_BYTES as u64;
            self.medium.write_at(at, &bytes)?;
        }
        self.sync()
    }
}

impl State {
    /// A page is on disk; a bit that was cleared meanwhile is not safe although it is there.
    fn believe(&mut self, page: u32, image: &[u8; PAGE_BYTES]) {
        let written = layout::decode_page(page, image).expect("encoded by this very commit");
        let safe: Vec<u64> =
            (written.iter()).zip(self.set.page(page)).map(|(written, set)| written & set).collect();
        self.safe.replace_page(page, &safe);
    }
}
