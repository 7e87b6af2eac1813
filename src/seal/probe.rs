//! Whether a frame is worth compressing: a glance at a sample, after frames that were not.
//!
//! zstd finds out by itself that bytes do not compress, for a part of what compressing costs.
//! A sample costs less than that, but is only a guess; so it is asked only while the last frame
//! was stored, and after [`TRY_AGAIN`] frames passed over one is compressed whatever it says.

/// Bytes looked at, in pieces spread over the frame.
const SAMPLE: usize = 4 << 10;
const PIECE: usize = 256;
/// Frames passed over before one is tried again.
const TRY_AGAIN: u32 = 16;

/// What the frames of one delta have shown so far.
#[derive(Debug, Default)]
pub(super) struct Probe {
    stored: bool,
    in_a_row: u32,
    passed_over: u64,
}

impl Probe {
    /// Whether this frame is stored without trying.
    pub(super) fn passes_over(&mut self, plain: &[u8]) -> bool {
        if !self.stored || self.in_a_row >= TRY_AGAIN || !looks_random(plain) {
            return false;
        }
        self.in_a_row += 1;
        self.passed_over += 1;
        true
    }

    /// A frame was tried.
    pub(super) fn tried(&mut self, compressed: bool) {
        (self.stored, self.in_a_row) = (!compressed, 0);
    }

    /// Frames passed over.
    pub(super) fn passed_over(&self) -> u64 {
        self.passed_over
    }
}

/// Whether the bytes of a sample are spread as evenly as those of a cipher. The sum of squared
/// counts is that of random bytes or more; 1.3 times as much is an entropy of 7.6 bits a byte,
/// which Huffman coding could not bring below what saves enough.
fn looks_random(plain: &[u8]) -> bool {
    if plain.len() < 4 * SAMPLE {
        return false; // as cheap to try
    }
    let mut counts = [0_u32; 256];
    let step = plain.len() / (SAMPLE / PIECE);
    for piece in plain.chunks(step).take(SAMPLE / PIECE) {
        for byte in &piece[..PIECE] {
            counts[usize::from(*byte)] += 1;
        }
    }
    let n = SAMPLE as u64;
    let squares: u64 = counts.iter().map(|count| u64::from(*count).pow(2)).sum();
    squares < n * n / 256 * 13 / 10 + n
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; bytes];
        crate::clock::Entropy::fill(&crate::clock::System, &mut noise);
        noise
    }

    #[test]
    fn ciphers_look_random_and_what_compresses_does_not() {
        let random = noise(256 << 10);
        assert!((0..100).all(|_| looks_random(&noise(256 << 10))));
        assert!(!looks_random(&b"some words, and more ".repeat(10_000)));
        assert!(!looks_random(&random.iter().map(|byte| byte & 0x7f).collect::<Vec<_>>()));
        let half: Vec<u8> =
            random.iter().enumerate().map(|(n, byte)| if n % 4 < 1 { 0 } else { *byte }).collect();
        assert!(!looks_random(&half));
        assert!(!looks_random(&random[..1000]), "too short to guess about");
    }

    #[test]
    fn nothing_is_passed_over_before_a_frame_was_stored_and_some_are_tried_all_the_same() {
        let random = noise(256 << 10);
        let mut probe = Probe::default();
        assert!(!probe.passes_over(&random));
        probe.tried(true);
        assert!(!probe.passes_over(&random));
        probe.tried(false);
        let passed = (0..100).take_while(|_| probe.passes_over(&random)).count();
        assert_eq!((passed, probe.passed_over()), (16, 16));
        probe.tried(false);
        assert!(!probe.passes_over(&vec![7; 256 << 10]), "the sample decides");
        assert!(probe.passes_over(&random));
    }
}
