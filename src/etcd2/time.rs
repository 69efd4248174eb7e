//! RFC 3339 times as etcd writes them: `2026-11-22T08:16:58.222496544Z`.

use std::time::Duration;

/// The time since 1970 that this text names; `None` for anything else, and for times before.
pub(super) fn unix_time(text: &str) -> Option<Duration> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let mut date = date.splitn(3, '-');
    let year = digits(date.next()?, 4)?;
    let (month, day) = (digits(date.next()?, 2)?, digits(date.next()?, 2)?);
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at_checked(zone_at)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (digits(clock.next()?, 2)?, digits(clock.next()?, 2)?);
    let second = digits(clock.next()?, 2)?;
    let valid = (1..=12).contains(&month)
        && (1..=days_of(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !valid {
        return None;
    }
    let local = days_before(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    let since = u64::try_from(local - offset(zone)?).ok()?;
    Some(Duration::new(since, nanos(fraction)?))
}

/// A number of exactly so many digits.
fn digits(text: &str, count: usize) -> Option<i64> {
    let all = text.len() == count && text.bytes().all(|it| it.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

/// The nanoseconds of a fraction; what is finer is cut.
fn nanos(fraction: &str) -> Option<u32> {
    if fraction.is_empty() || !fraction.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    format!("{fraction:0<9}").get(..9)?.parse().ok()
}

/// The seconds by which a zone is ahead of UTC.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = match zone.strip_prefix('+') {
        Some(rest) => (1, rest),
        None => (-1, zone.strip_prefix('-')?),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The days from 1970-01-01 to this one.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    let years = (year - 1970) * 365 + leaps(year - 1) - leaps(1969);
    let months: i64 = (1..month).map(|it| days_of(year, it)).sum();
    years + months + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_to_the_nanosecond() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2026-11-22T08:16:58.222496544Z", 1_795_335_418, 222_496_544),
            ("2000-02-29T23:59:59.5Z", 951_868_799, 500_000_000),
            ("2000-03-01T01:00:00+01:00", 951_868_800, 0),
            ("1999-12-31T19:00:00-05:00", 946_684_800, 0),
            ("2100-03-01T00:00:00Z", 4_107_542_400, 0),
        ] {
            let expected = Duration::new(seconds, nanos);
            assert_eq!(unix_time(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2026-11-22",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T08:16:58",
            "2026-11-22T08:16:58.Z",
            "2026-11-22T08:16:58.1x2Z",
            "1969-12-31T23:59:59Z",
            "0001-01-01T00:00:00Z",
            "20é6-11-22T08:16:58Z",
        ] {
            assert_eq!(unix_time(text), None, "{text}");
        }
    }
}
