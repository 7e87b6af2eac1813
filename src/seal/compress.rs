//! zstd over single frames: the only home of `zstd`.
//!
//! Owns: its parameters, one context a thread, when storing is better, refusing bombs.
//! Does not own: what a frame is, where its lengths are proven.

use std::cell::RefCell;
use std::io::Cursor;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{self, CParameter};

use crate::format::delta::{FRAME_PLAIN_BYTES_MAX, INDEX_PLAIN_BYTES_MAX};

/// Windows of 16 MiB at most: more than any content, so zstd always makes a single segment. (It
/// lowers the window to the content, so a small frame costs no more.)
const WINDOW_LOG: u32 = 24;
const _: () = assert!(1 << WINDOW_LOG >= INDEX_PLAIN_BYTES_MAX && WINDOW_LOG <= 24);
const _: () = assert!(1 << WINDOW_LOG >= FRAME_PLAIN_BYTES_MAX);

/// Compression must save at least a sixteenth, or the reader's time is worth more.
const SAVES_AT_LEAST: usize = 16;

thread_local! {
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Appends `plain`, compressed, to `to` and says `true`; or appends it as it is and says `false`.
///
/// # Errors
/// Only when zstd finds no memory for its context or refuses the level.
pub(super) fn append_compressed(
    plain: &[u8],
    level: i32,
    to: &mut Vec<u8>,
) -> std::io::Result<bool> {
    let from = to.len();
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some((present, compressor)) if *present == level => compressor,
            slot => &mut slot.insert((level, compressor(level)?)).1,
        };
        to.reserve(zstd_safe::compress_bound(plain.len()));
        let mut end = Cursor::new(&mut *to);
        end.set_position(from as u64);
        compressor.compress_to_buffer(plain, &mut end)
    })?;
    if to.len() - from <= plain.len() - plain.len().div_ceil(SAVES_AT_LEAST) {
        return Ok(true);
    }
    to.truncate(from);
    to.extend_from_slice(plain);
    Ok(false)
}

// Level 1 as zstd has it. hashLog 14, minMatch 7, targetLength 2 took 13 % less CPU and gave 13 %
// less ratio on an ext4 image of programs and libraries (2.05 against 2.35 s/GiB, 2.43 against
// 2.80); without targetLength they changed nothing.
fn compressor(level: i32) -> std::io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level)?;
    compressor.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
    Ok(compressor)
}

/// Decompresses into exactly `plain_bytes`, which the caller has authenticated and bounded.
///
/// # Errors
/// In words, when `compressed` is not exactly one zstd frame that says it holds so many bytes in a
/// single segment, and does.
pub(super) fn decompress(compressed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, String> {
    let told = zstd_safe::get_frame_content_size(compressed);
    if !matches!(told, Ok(Some(told)) if told == plain_bytes as u64) {
        return Err(format!("it does not say that it holds {plain_bytes} bytes"));
    }
    // RFC 8878, 3.1.1.1.1: bit 5 of the descriptor. Then the window is the content, nothing larger.
    if compressed.get(4).is_none_or(|descriptor| descriptor & 0x20 == 0) {
        return Err("its window is not bounded by its content".to_owned());
    }
    match zstd_safe::find_frame_compressed_size(compressed) {
        Ok(length) if length == compressed.len() => {}
        _ => return Err("it is cut short, or something follows it".to_owned()),
    }
    let mut plain = Vec::with_capacity(plain_bytes);
    let result = DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            slot => slot.insert(Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(compressed, &mut plain)
    });
    match result {
        Ok(length) if length == plain_bytes => Ok(plain),
        Ok(length) => Err(format!("it holds {length} bytes, expected {plain_bytes}")),
        Err(error) => Err(format!("zstd: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(plain: &[u8]) -> (Vec<u8>, bool) {
        let mut to = b"before".to_vec();
        let used = append_compressed(plain, 1, &mut to).unwrap();
        assert_eq!(&to[..6], b"before");
        (to.split_off(6), used)
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; bytes];
        crate::clock::Entropy::fill(&crate::clock::System, &mut noise);
        noise
    }

    #[test]
    fn comes_back_and_is_stored_when_it_does_not_pay() {
        for plain in [vec![1], vec![7; 512], b"some words ".repeat(50_000)] {
            let (bytes, used) = compressed(&plain);
            assert_eq!(used, plain.len() > 100, "{} bytes", plain.len());
            if used {
                assert_eq!(decompress(&bytes, plain.len()).unwrap(), plain);
            } else {
                assert_eq!(bytes, plain);
            }
        }
        let plain = noise(256 << 10);
        assert_eq!(compressed(&plain), (plain, false));
    }

    #[test]
    fn the_largest_index_comes_back_at_any_level() {
        let plain = b"0123456789abcdef".repeat(INDEX_PLAIN_BYTES_MAX as usize / 16);
        for level in [-5, 1, 3, 9] {
            let mut bytes = Vec::new();
            assert!(append_compressed(&plain, level, &mut bytes).unwrap());
            assert!(decompress(&bytes, plain.len()).unwrap() == plain, "level {level}");
        }
    }

    #[test]
    fn a_frame_holds_what_it_says_or_is_refused() {
        let plain = b"some words ".repeat(1000);
        let (bytes, _) = compressed(&plain);
        assert!(decompress(&bytes, plain.len() - 1).is_err());
        assert!(decompress(&bytes, plain.len() + 1).is_err());
        assert!(decompress(&[&bytes[..], b"x"].concat(), plain.len()).is_err());
        assert!(decompress(&[&bytes[..], &bytes[..]].concat(), plain.len()).is_err());
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]; // zstd itself would pass over it
        assert!(decompress(&[&bytes[..], &skippable].concat(), plain.len()).is_err());
        for cut in 0..bytes.len() {
            assert!(decompress(&bytes[..cut], plain.len()).is_err());
        }
    }

    #[test]
    fn bombs_are_refused_before_they_cost_memory() {
        // 1 GiB of zeros in a few kilobytes, told to be a frame of 1 MiB.
        let mut bomb = zstd::stream::Encoder::new(Vec::new(), 19).unwrap();
        for _ in 0..64 {
            std::io::Write::write_all(&mut bomb, &[0; 1 << 20]).unwrap();
        }
        let untold = bomb.finish().unwrap(); // a stream does not know its size
        assert!(decompress(&untold, 1 << 20).unwrap_err().contains("does not say"));
        let mut lying = compressed(&vec![0; 1 << 20]).0;
        let size_at = 5; // single segment: the content size follows the descriptor
        lying[size_at..size_at + 4].copy_from_slice(&512u32.to_le_bytes());
        assert!(decompress(&lying, 512).is_err());
        let mut windowed = Compressor::new(1).unwrap();
        windowed.set_parameter(CParameter::WindowLog(10)).unwrap();
        let windowed = windowed.compress(&vec![1; 4096]).unwrap();
        assert!(decompress(&windowed, 4096).unwrap_err().contains("window"));
    }
}
