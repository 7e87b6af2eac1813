//! How fast uploads may be, by the hour of the week. Pure: the time is an argument.
//!
//! Hours are those of UTC: a process server has no other time zone, and a rate that changes twice a
//! year by itself would surprise somebody.

use std::fmt;

use crate::model::Timestamp;

/// Bytes a second that uploads may take; `None`: as many as there are.
pub type Rate = Option<u64>;

/// The rate at every moment of a week.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateSchedule {
    /// Outside all windows.
    pub default: Rate,
    /// The first that contains the moment decides.
    pub windows: Vec<RateWindow>,
}

/// Some hours on some days of every week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateWindow {
    /// Monday first. A window over midnight belongs to the day on which it begins.
    pub days: [bool; 7],
    /// First minute of the day.
    pub from: u16,
    /// First minute after it; not later than `from`: on the next day.
    pub to: u16,
    /// The rate meanwhile.
    pub rate: Rate,
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_MINUTES: u16 = 24 * 60;
const MINUTE_MICROS: i64 = 60_000_000;

impl RateSchedule {
    /// The rate at `now`.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> Rate {
        let minutes = now.0.div_euclid(MINUTE_MICROS);
        let day_minutes = i64::from(DAY_MINUTES);
        let minute = minutes.rem_euclid(day_minutes) as u16;
        // 1970-01-01 was a Thursday.
        let day = (minutes.div_euclid(day_minutes) + 3).rem_euclid(7) as usize;
        let inside = self.windows.iter().find(|window| window.contains(day, minute));
        inside.map_or(self.default, |window| window.rate)
    }
}

impl RateWindow {
    fn contains(&self, day: usize, minute: u16) -> bool {
        let before = (day + 6) % 7;
        match self.from < self.to {
            true => self.days[day] && (self.from..self.to).contains(&minute),
            false => {
                (self.days[day] && minute >= self.from) || (self.days[before] && minute < self.to)
            }
        }
    }
}

impl RateWindow {
    /// Its days as the file has them: runs as ranges.
    #[must_use]
    pub fn days_text(&self) -> String {
        if self.days == [true; 7] {
            return "daily".to_owned();
        }
        let mut parts = Vec::new();
        let mut day = 0;
        while day < DAYS.len() {
            let run = self.days[day..].iter().take_while(|on| **on).count();
            match run {
                0 => {}
                1 => parts.push(DAYS[day].to_owned()),
                _ => parts.push(format!("{}-{}", DAYS[day], DAYS[day + run - 1])),
            }
            day += run.max(1);
        }
        parts.join(",")
    }

    /// Its hours as the file has them.
    #[must_use]
    pub fn hours_text(&self) -> String {
        let (from, to) = (self.from, self.to);
        format!("{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

/// Reads `mon-fri`, `sat,sun`, `daily`.
pub(super) fn days(text: &str) -> Option<[bool; 7]> {
    if text == "daily" {
        return Some([true; 7]);
    }
    let mut days = [false; 7];
    for part in text.split(',') {
        let day = |name: &str| DAYS.iter().position(|day| *day == name.trim());
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        let length = (last + 7 - first) % 7;
        (0..=length).for_each(|n| days[(first + n) % 7] = true);
    }
    Some(days)
}

/// Reads `08:00-18:30`; `24:00` is the end of the day.
pub(super) fn hours(text: &str) -> Option<(u16, u16)> {
    let (from, to) = text.split_once('-')?;
    let minute = |text: &str| {
        let (hour, minute) = text.trim().split_once(':')?;
        let two = |text: &str| (text.len() == 2).then(|| text.parse::<u16>().ok()).flatten();
        let (hour, minute) = (two(hour)?, two(minute)?);
        let sum = hour * 60 + minute;
        (hour <= 24 && minute < 60 && sum <= DAY_MINUTES).then_some(sum)
    };
    let (from, to) = (minute(from)?, minute(to)?);
    (from < DAY_MINUTES && from != to).then_some((from, to))
}

impl fmt::Display for RateWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.days_text(), self.hours_text())?;
        match self.rate {
            Some(rate) => write!(f, " {rate} bytes/s"),
            None => f.write_str(" without limit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days_text: &str, hours_text: &str, rate: u64) -> RateWindow {
        let (from, to) = hours(hours_text).unwrap();
        RateWindow { days: days(days_text).unwrap(), from, to, rate: Some(rate) }
    }

    /// 2026-11-23 was a Monday; its midnight is 1,795,392,000 s after the epoch.
    fn at(day: i64, hour: i64, minute: i64) -> Timestamp {
        Timestamp((1_795_392_000 + day * 86_400 + hour * 3_600 + minute * 60) * 1_000_000)
    }

    #[test]
    fn the_first_window_that_contains_the_moment_decides() {
        let schedule = RateSchedule {
            default: Some(9),
            windows: vec![
                window("mon-fri", "08:00-18:00", 1),
                window("fri-sat", "22:00-06:00", 2),
                window("daily", "00:00-24:00", 3),
            ],
        };
        for (day, hour, minute, rate) in [
            (0, 7, 59, 3),
            (0, 8, 0, 1),
            (4, 17, 59, 1),
            (4, 18, 0, 3),
            (4, 22, 0, 2),
            (5, 5, 59, 2),
            (5, 12, 0, 3),
            (5, 23, 0, 2),
            (6, 5, 59, 2),
            (6, 6, 0, 3),
            (6, 23, 59, 3),
            (7, 3, 0, 3),
        ] {
            assert_eq!(schedule.at(at(day, hour, minute)), Some(rate), "{day} {hour}:{minute}");
        }
        let none = RateSchedule { windows: Vec::new(), ..schedule };
        assert_eq!(none.at(at(0, 0, 0)), Some(9));
        assert_eq!(RateSchedule::default().at(at(0, 0, 0)), None);
    }

    #[test]
    fn days_and_hours_are_read_strictly() {
        assert_eq!(days("sat-mon").unwrap(), [true, false, false, false, false, true, true]);
        assert_eq!(days("tue, thu").unwrap(), [false, true, false, true, false, false, false]);
        for text in ["", "monday", "mon-", "mon--fri", "Mon"] {
            assert_eq!(days(text), None, "{text:?}");
        }
        assert_eq!(hours("00:00-24:00"), Some((0, 1440)));
        assert_eq!(hours("22:30-06:00"), Some((1350, 360)));
        for text in
            ["8:00-9:00", "08:00", "08:00-08:00", "24:00-01:00", "10:60-11:00", "25:00-26:00"]
        {
            assert_eq!(hours(text), None, "{text:?}");
        }
        let shown = window("mon-wed", "22:00-06:00", 1).to_string();
        assert_eq!(shown, "mon-wed 22:00-06:00 1 bytes/s");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for bits in 1_u8..128 {
            let days_on = std::array::from_fn(|day| bits & (1 << day) != 0);
            for (from, to) in [(0, 1440), (0, 1), (1439, 1440), (1350, 360), (480, 1080)] {
                let window = RateWindow { days: days_on, from, to, rate: None };
                assert_eq!(days(&window.days_text()), Some(days_on), "{window}");
                assert_eq!(hours(&window.hours_text()), Some((from, to)), "{window}");
            }
        }
        assert_eq!(window("mon,tue,wed,fri", "00:00-24:00", 1).days_text(), "mon-wed,fri");
        assert_eq!(window("sat-mon", "00:00-24:00", 1).days_text(), "mon,sat-sun");
    }
}
