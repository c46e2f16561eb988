//! Points in time as people and Kubernetes write them, without a library for a few lines.

use std::fmt;

/// A time in seconds since 1970, shown in UTC to the second as RFC 3339 has it, without the zone: `2026-11-30T09:05:11`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, seconds) = (self.0 / 86_400, self.0 % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )
    }
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Seconds since 1970 of a time such as `2026-11-30T09:05:11Z` (RFC 3339, in UTC; of a second, no parts).
pub fn read(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let number = |text: &str| -> Option<i64> {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok())?
    };
    let mut date = date.split('-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split('.').next()?.split(':').map(number);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0..=60).contains(&second) {
        return None;
    }
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leaps = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leaps + (month * 153 + 2) / 5 + day - 1;
    // Days from the first of March of the year 0 to the first of January 1970.
    Some((days - 719_468) * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted on day by day by the rules of the calendar.
    #[test]
    fn date_when_every_day_of_four_centuries_comes_then_each_has_its_own() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..146_097 + 366 {
            assert_eq!(date(days), (year, month, day), "day {days}");
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if is_leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn read_when_a_time_then_those_of_date_and_else_none() {
        // As `date -u -d TIME +%s` says.
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1999-12-31T23:59:59Z", 946_684_799),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2000-03-01T00:00:00Z", 951_868_800),
            ("2024-02-29T23:59:59Z", 1_709_251_199),
            ("2100-03-01T00:00:01Z", 4_107_542_401),
            ("2026-11-30T09:05:11.123456Z", 1_796_029_511),
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
            assert_eq!(
                Some(&*Seconds(u64::try_from(expected).unwrap()).to_string()),
                text.get(..19)
            );
        }
        for days in 0..200_000 {
            let time = days * 86_400 + days % 86_400;
            assert_eq!(
                read(&format!("{}Z", Seconds(u64::try_from(time).unwrap()))),
                Some(time)
            );
        }
        for text in [
            "",
            "2026-11-30",
            "2026-11-30T09:05:11",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "-1-01-01T00:00:00Z",
            "2026-11-30T09:05Z",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
