//! Figures and texts in as little room as there is; `-` for what is not known.

use ratatui::text::Span;

use crate::control::words;

/// Bytes.
pub(super) fn bytes(value: Option<f64>) -> String {
    value.map_or_else(unknown, |value| words::bytes(value as u64))
}

/// Bytes by the second.
pub(super) fn rate(value: Option<f64>) -> String {
    value.map_or_else(unknown, |value| format!("{}/s", words::bytes(value as u64)))
}

/// Seconds.
pub(super) fn span(value: Option<f64>) -> String {
    value.map_or_else(unknown, words::span)
}

/// A whole number.
pub(super) fn count(value: Option<f64>) -> String {
    value.map_or_else(unknown, |value| format!("{value:.0}"))
}

/// Seconds that are few.
pub(super) fn latency(value: Option<f64>) -> String {
    value.map_or_else(unknown, |seconds| match seconds {
        ..0.001 => format!("{:.0} µs", seconds * 1e6),
        ..0.01 => format!("{:.1} ms", seconds * 1e3),
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{seconds:.1} s"),
    })
}

fn unknown() -> String {
    "-".to_owned()
}

/// `text` in `width` columns: what is cut off is marked.
pub(super) fn fit(text: &str, width: usize) -> String {
    if Span::raw(text).width() <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut left = width.saturating_sub(1);
    for character in text.chars() {
        let taken = Span::raw(character.encode_utf8(&mut [0; 4]) as &str).width();
        if taken > left {
            break;
        }
        left -= taken;
        short.push(character);
    }
    if width > 0 {
        short.push('…');
    }
    short
}

/// As many of `parts` as `width` columns hold, the first of them cut if even that one is too long.
pub(super) fn joined(parts: &[String], width: usize) -> String {
    let mut text = fit(parts.first().map_or("", String::as_str), width);
    for part in parts.iter().skip(1) {
        if Span::raw(&text).width() + 2 + Span::raw(part).width() > width {
            break;
        }
        text.push_str("  ");
        text.push_str(part);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_are_short_and_unknown_ones_are_no_noughts() {
        assert_eq!(bytes(Some(1536.0)), "1.5 KiB");
        assert_eq!(rate(Some(0.0)), "0 B/s");
        assert_eq!(count(Some(1e15)), "1000000000000000");
        for (seconds, said) in
            [(0.000_412, "412 µs"), (0.003_21, "3.2 ms"), (0.0321, "32 ms"), (4.0, "4.0 s")]
        {
            assert_eq!(latency(Some(seconds)), said);
        }
        for said in [bytes(None), rate(None), span(None), count(None), latency(None)] {
            assert_eq!(said, "-");
        }
    }

    #[test]
    fn what_is_cut_is_marked() {
        assert_eq!(fit("web-1", 5), "web-1");
        assert_eq!(fit("web-12", 5), "web-…");
        assert_eq!(fit("機械の名前", 5), "機械…");
        assert_eq!(fit("web", 0), "");
        let parts = ["one", "two", "three"].map(str::to_owned);
        assert_eq!(joined(&parts, 9), "one  two");
        assert_eq!(joined(&parts, 2), "o…");
        assert_eq!(joined(&[], 9), "");
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_its_room(text in "\\PC*", width in 0_usize..80) {
            prop_assert!(Span::raw(fit(&text, width)).width() <= width);
        }
    }
}
