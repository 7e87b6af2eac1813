//! A metrics page read back: the samples of Prometheus text or OpenMetrics, borrowed from it.
//!
//! Owns: how a line is taken apart. Does not own: what the samples mean, fetching the page.

use std::borrow::Cow;

/// One sample of a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Name and labels as they are written: `name{label="value"}`.
    pub series: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Labels in the page's order, unescaped.
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
    /// Its value.
    pub value: f64,
}

impl Sample<'_> {
    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| value.as_ref())
    }
}

/// A line that is no sample.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the metrics page is no sample: {text:?}")]
pub struct SampleError {
    /// Counted from 1.
    pub line: usize,
    /// Its beginning.
    pub text: String,
}

/// The samples of `page` in its order. Comments, timestamps and exemplars are passed over.
pub fn samples(page: &str) -> impl Iterator<Item = Result<Sample<'_>, SampleError>> {
    let lines = page.lines().enumerate();
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(|(at, line)| {
        let text = || line.chars().take(80).collect();
        sample(line).ok_or_else(|| SampleError { line: at + 1, text: text() })
    })
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let series = &line[..line.len() - rest.len()];
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then_some(Sample { series, name, labels, value })
}

/// Labels up to their closing bracket, and what follows it.
#[expect(clippy::type_complexity, reason = "a pair that one caller takes apart at once")]
fn labels(mut rest: &str) -> Option<(Vec<(&str, Cow<'_, str>)>, &str)> {
    let mut labels = Vec::new();
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (label, quoted) = rest.split_once("=\"")?;
        let end = closing_quote(quoted)?;
        labels.push((label, unescape(&quoted[..end])?));
        let after = &quoted[end + 1..];
        rest = after.strip_prefix(',').or_else(|| after.starts_with('}').then_some(after))?;
    }
}

/// Where the quote is that no backslash stands before.
fn closing_quote(quoted: &str) -> Option<usize> {
    let mut escaped = false;
    quoted.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('\\') {
        return Some(Cow::Borrowed(text));
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        plain.push(match char {
            '\\' => match chars.next()? {
                'n' => '\n',
                other => other,
            },
            other => other,
        });
    }
    Some(Cow::Owned(plain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::exposition::Page;
    use super::*;

    #[test]
    fn a_page_is_taken_apart() {
        let page = "# TYPE a gauge\n\na 1.5\nb_total{x=\"1\",y=\"a\\\"}, \\\\\\n\"} 2 1700000000 # {} 1\n\
                    c{} +Inf\n# EOF\n";
        let found: Vec<_> = samples(page).map(Result::unwrap).collect();
        assert_eq!((found[0].series, found[0].value), ("a", 1.5));
        assert_eq!((found[1].name, found[1].value), ("b_total", 2.0));
        assert_eq!(found[1].label("y"), Some("a\"}, \\\n"));
        assert_eq!(found[1].label("z"), None);
        assert_eq!(
            found[2],
            Sample { series: "c{}", name: "c", labels: Vec::new(), value: f64::INFINITY }
        );
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn a_line_that_is_no_sample_is_named() {
        for line in
            ["a", "a b", " 1", "a{x=1} 1", "a{x=\"1} 1", "a{x=\"1\"y=\"2\"} 1", "<html>", "a{"]
        {
            let page = format!("ok 1\n{line}\n");
            let error = samples(&page).nth(1).unwrap().unwrap_err();
            assert_eq!((error.line, error.text.as_str()), (2, line));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(label in "\\PC*|[\\\\\"\n{},= ]*", value in any::<f64>()) {
            prop_assume!(!value.is_nan());
            let page = Page::of(|page| page.sample("name", &[("first", "1"), ("label", &label)], value));
            let found: Vec<_> = samples(&page).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].label("label"), Some(label.as_str()));
            prop_assert_eq!(found[0].value, value);
        }

        #[test]
        fn nothing_that_is_answered_breaks_it(page in "([a-z{}\"\\\\=,# 0-9\n]|\\PC)*") {
            samples(&page).for_each(drop);
        }
    }
}
