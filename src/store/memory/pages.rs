//! A sparse run of bytes whose copies share what they have in common.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::store::rules::push_range;
use crate::store::{PageBody, PageRange, PageWrite};

const PAGE: u64 = 4096;

/// Content of a page blob or of a snapshot; cloning shares the pages.
#[derive(Clone, Default)]
pub(super) struct Pages(BTreeMap<u64, Arc<[u8; PAGE as usize]>>);

/// The parts of `start..end` by page: number, range within the page.
fn by_page(start: u64, end: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    (start / PAGE..end.div_ceil(PAGE)).map(move |number| {
        let base = number * PAGE;
        let from = start.saturating_sub(base);
        (number, from as usize..(end - base).min(PAGE) as usize)
    })
}

impl Pages {
    pub(super) fn write(&mut self, write: &PageWrite) {
        let (start, length) = (write.offset, write.body.length());
        match &write.body {
            PageBody::Data(bytes) => {
                let mut rest = &bytes[..];
                for (number, range) in by_page(start, start + length) {
                    let (now, later) = rest.split_at(range.len());
                    let page = self.0.entry(number).or_insert_with(|| Arc::new([0; PAGE as usize]));
                    Arc::make_mut(page)[range].copy_from_slice(now);
                    rest = later;
                }
            }
            PageBody::Clear(_) => self.clear(start, start + length),
        }
    }

    fn clear(&mut self, start: u64, end: u64) {
        let touched: Vec<u64> =
            self.0.range(start / PAGE..end.div_ceil(PAGE)).map(|(number, _)| *number).collect();
        for number in touched {
            let base = number * PAGE;
            let from = start.saturating_sub(base) as usize;
            let until = (end - base).min(PAGE) as usize;
            if from == 0 && until == PAGE as usize {
                self.0.remove(&number);
            } else if let Some(page) = self.0.get_mut(&number) {
                Arc::make_mut(page)[from..until].fill(0);
            }
        }
    }

    pub(super) fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut content = vec![0; length as usize];
        let mut rest = &mut content[..];
        for (number, range) in by_page(offset, offset + length) {
            let (now, later) = rest.split_at_mut(range.len());
            if let Some(page) = self.0.get(&number) {
                now.copy_from_slice(&page[range]);
            }
            rest = later;
        }
        content
    }

    pub(super) fn ranges(&self, offset: u64, length: u64) -> Vec<PageRange> {
        let end = offset + length;
        let mut ranges = Vec::new();
        for (number, page) in self.0.range(offset / PAGE..end.div_ceil(PAGE)) {
            let base = number * PAGE;
            for (sector, content) in page.chunks(512).enumerate() {
                let start = base + sector as u64 * 512;
                if content.iter().any(|byte| *byte != 0) {
                    let (from, until) = (start.max(offset), (start + 512).min(end));
                    if from < until {
                        push_range(&mut ranges, from, until);
                    }
                }
            }
        }
        ranges
    }
}
