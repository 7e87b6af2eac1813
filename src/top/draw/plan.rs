//! What stands where: a function of the room alone.

use ratatui::layout::Rect;

use super::super::view::Footer;
use super::stages;

/// Headings and rows that the table of machines has before anything else gets room.
const TABLE_LINES_MIN: u16 = 4;
/// Rows more that it has before graphs get another line of bars.
const ROWS_FOR_BARS: u16 = 2;
/// From this height on there are blank lines between the parts.
const AIRY_HEIGHT: u16 = 20;
/// Graphs that there are.
pub(super) const GRAPHS: u16 = 4;
/// Lines of bars below a graph's label, the more the better.
const BARS_MAX: u16 = 3;

/// Where the parts are; a part without room is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) header: Rect,
    pub(super) graphs: Graphs,
    pub(super) stages: Rect,
    pub(super) machines: Rect,
    pub(super) footer: Rect,
}

/// The graphs, side by side as far as they are wide enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Graphs {
    pub(super) area: Rect,
    pub(super) columns: u16,
    /// Lines of bars below each label.
    pub(super) bars: u16,
}

impl Plan {
    /// For `area` and a header of as many lines.
    pub(super) fn of(area: Rect, header_lines: usize, footer: Footer) -> Self {
        let mut rest = area;
        let mut plan = Self::default();
        if footer != Footer::None && area.height >= TABLE_LINES_MIN {
            rest.height -= 1;
            plan.footer = Rect { y: rest.bottom(), height: 1, ..area };
        }
        let most = (area.height / 3).max(1);
        let header = u16::try_from(header_lines).unwrap_or(u16::MAX).min(most);
        let gap = u16::from(area.height >= AIRY_HEIGHT);
        plan.header = cut(&mut rest, header, gap);
        let columns = match area.width {
            0..36 => 1,
            36..72 => 2,
            _ => GRAPHS,
        };
        let graphs_lines = |bars: u16| GRAPHS / columns * (bars + 1);
        let room = rest.height;
        let fits = |bars: u16, others: u16| {
            let table = TABLE_LINES_MIN + ROWS_FOR_BARS * bars;
            graphs_lines(bars) + gap + others + table <= room
        };
        // Bars give way to the stages, the stages to the labels, the labels to the machines.
        let full = (1..=BARS_MAX).rev().find(|bars| fits(*bars, stages::LINES + gap));
        let (bars, stages) = match full {
            Some(bars) => (Some(bars), true),
            None => ((0..=BARS_MAX).rev().find(|bars| fits(*bars, 0)), false),
        };
        if let Some(bars) = bars {
            plan.graphs = Graphs { area: cut(&mut rest, graphs_lines(bars), gap), columns, bars };
        }
        if stages {
            plan.stages = cut(&mut rest, stages::LINES, gap);
        }
        plan.machines = rest;
        plan
    }
}

/// Takes lines, and a gap below them, from the top of `rest`.
fn cut(rest: &mut Rect, lines: u16, gap: u16) -> Rect {
    let lines = lines.min(rest.height);
    let taken = Rect { height: lines, ..*rest };
    let gone = lines.saturating_add(gap).min(rest.height);
    rest.y += gone;
    rest.height -= gone;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_most_keeps_its_room() {
        let of = |width, height| Plan::of(Rect::new(0, 0, width, height), 3, Footer::Hint);
        let plan = of(80, 24);
        assert_eq!((plan.header.height, plan.graphs.bars, plan.graphs.columns), (3, 2, 4));
        assert_eq!((plan.stages.height, plan.machines.height), (stages::LINES, 8));
        let plan = of(80, 50);
        assert_eq!((plan.graphs.bars, plan.machines.height), (3, 33));
        let plan = of(40, 10);
        assert_eq!((plan.header.height, plan.graphs.area.height, plan.stages.height), (3, 2, 0));
        assert_eq!((plan.machines.height, plan.footer.y), (4, 9));
        let plan = of(40, 6);
        assert_eq!((plan.header.height, plan.graphs.area.height, plan.machines.height), (2, 0, 3));
        let plan = of(1, 1);
        assert_eq!((plan.header.height, plan.machines.height, plan.footer.height), (1, 0, 0));
    }

    #[test]
    fn parts_never_overlap_nor_leave_the_screen() {
        for height in 0..60 {
            for width in [0, 1, 39, 40, 80, 200] {
                for lines in 0..6 {
                    let area = Rect::new(3, 2, width, height);
                    let plan = Plan::of(area, lines, Footer::Hint);
                    let parts =
                        [plan.header, plan.graphs.area, plan.stages, plan.machines, plan.footer];
                    let mut y = area.y;
                    for part in parts.into_iter().filter(|part| part.height > 0) {
                        assert!(part.y >= y && part.bottom() <= area.bottom(), "{area} {plan:?}");
                        y = part.bottom();
                    }
                }
            }
        }
    }
}
