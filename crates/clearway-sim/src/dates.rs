//! The two ways in which providers write an instant.

use std::time::{Duration, UNIX_EPOCH};

/// As in HTTP headers.
pub(crate) fn http_date(epoch_s: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(epoch_s.min(LAST_DATE)))
}

/// As in RFC 3339, in UTC.
pub(crate) fn rfc3339(epoch_s: u64) -> String {
    let seconds = epoch_s.min(LAST_DATE);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the leap day is the last of its year; 719 468 days before 1970 began year 0.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The last second of the year 9998: beyond 9999 there is no HTTP date.
const LAST_DATE: u64 = 253_370_764_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_a_last_one() {
        assert_eq!(http_date(1_767_225_600), "Thu, 01 Jan 2026 00:00:00 GMT");
        assert!(http_date(u64::MAX).contains("9998"));
        assert_eq!(rfc3339(u64::MAX), "9998-12-31T23:59:59Z");
    }

    #[test]
    fn days_follow_the_calendar() {
        for (epoch_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(epoch_s), text);
        }
    }
}
