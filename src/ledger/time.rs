//! Unix milliseconds as RFC 3339 text.

const MS_A_DAY: i64 = 86_400_000;
/// The years that the format can write: 0000-01-01 to 9999-12-31.
const FIRST_MS: i64 = -719_528 * MS_A_DAY;
const LAST_MS: i64 = 2_932_897 * MS_A_DAY - 1;

/// `2026-07-30T12:34:56.789Z` for milliseconds since 1970 in UTC. Years beyond 0000 to 9999 become the nearest moment
/// that the format can write.
pub fn rfc3339(unix_ms: i64) -> String {
    let unix_ms = unix_ms.clamp(FIRST_MS, LAST_MS);
    let (year, month, day) = date_of_day(unix_ms.div_euclid(MS_A_DAY));
    let ms = unix_ms.rem_euclid(MS_A_DAY);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

/// Year, month and day of a day since 1970-01-01, in the proleptic Gregorian calendar.
///
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`: years that begin in March, so that
/// the leap day is the last one, in eras of 400 years.
pub(crate) fn date_of_day(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn known_moments_are_written_as_they_are_known() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_000_000_000_123, "2001-09-09T01:46:40.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
            (i64::MIN, "0000-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }

    #[test]
    fn every_day_of_ten_thousand_years_is_the_one_that_sqlite_says() {
        let connection = Connection::open_in_memory().unwrap();
        let mut statement = connection.prepare("SELECT strftime('%Y-%m-%dT%H:%M:%S', ?, 'unixepoch')").unwrap();
        for day in (FIRST_MS / MS_A_DAY..=LAST_MS / MS_A_DAY).step_by(61) {
            let second = day * 86_400 + day.rem_euclid(86_400);
            let expected: String = statement.query_row([second], |row| row.get(0)).unwrap();
            assert_eq!(rfc3339(second * 1000 + 7), format!("{expected}.007Z"));
        }
    }
}
