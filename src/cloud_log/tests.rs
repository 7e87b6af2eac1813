use super::replace::{Answer, Found, Verdict, judge};

/// Every row of the decision table, in words of the document.
#[test]
fn every_answer_and_every_finding_has_its_letter() {
    let rows = [
        ('A', Answer::Lost, Found::Ours, Verdict::Written),
        ('B', Answer::Lost, Found::Other, Verdict::Changed),
        ('C', Answer::Lost, Found::Before, Verdict::Unsettled),
        ('D', Answer::Refused, Found::Ours, Verdict::Written),
        ('E', Answer::Refused, Found::Other, Verdict::Changed),
        ('F', Answer::Refused, Found::Before, Verdict::Unsettled),
    ];
    let document = include_str!("../../docs/formats/manifest.md");
    for (letter, answer, found, verdict) in rows {
        assert_eq!(judge(answer, &found), verdict, "{letter}");
        let row = format!("| {letter} | {answer:?} | {found:?} | {verdict:?} |");
        assert!(document.contains(&row), "docs/formats/manifest.md lacks {row}");
    }
}
