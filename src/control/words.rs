//! Figures in words, for status and tables.

/// Bytes with a binary unit: `512 B`, `1.5 GiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let exponent = (bytes.ilog2() / 10) as usize;
    let value = bytes as f64 / 1024f64.powi(exponent as i32);
    let digits = usize::from(value < 10.0);
    format!("{value:.digits$} {}", UNITS[exponent - 1])
}

/// Seconds in the two units that say most: `4 s`, `3 min`, `2 h 5 min`, `3 d 4 h`.
#[must_use]
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let two = |large: u64, large_unit, small: u64, small_unit| match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    };
    match whole {
        0..60 => format!("{whole} s"),
        60..120 => two(1, "min", whole % 60, "s"),
        120..3_600 => format!("{} min", whole / 60),
        3_600..86_400 => two(whole / 3_600, "h", whole % 3_600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        for (value, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (10 << 20, "10 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in [
            (-1.0, "0 s"),
            (3.6, "4 s"),
            (61.0, "1 min 1 s"),
            (180.0, "3 min"),
            (7_500.0, "2 h 5 min"),
            (273_600.0, "3 d 4 h"),
        ] {
            assert_eq!(span(value), text);
        }
    }
}
