//! Times as etcd writes them: RFC 3339 with up to nine digits after the second.

use std::time::Duration;

use crate::transport::unix_seconds;

/// The time since the Unix epoch of a text like `2026-11-22T08:16:58.222496544Z`. `None` for what
/// is none, or lies before 1970.
pub(super) fn unix_time(text: &str) -> Option<Duration> {
    let (date, time) = text.split_once(['T', 't'])?;
    let at = time.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = time.split_at_checked(at)?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let seconds = unix_seconds(three(date, '-')?, three(time, ':')?)?;
    let whole = Duration::from_secs(seconds) + nanos(fraction)?;
    let (sign, offset) = zone.split_at_checked(1)?;
    if sign.eq_ignore_ascii_case("z") {
        return offset.is_empty().then_some(whole);
    }
    let (hours, minutes) = offset.split_once(':')?;
    let seconds = number(hours)? * 3_600 + number(minutes)? * 60;
    let offset = Duration::from_secs(seconds.into());
    match sign {
        "+" => whole.checked_sub(offset),
        _ => whole.checked_add(offset),
    }
}

/// Three numbers with this between them.
fn three(text: &str, between: char) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split(between).map(number);
    let three = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(three)
}

/// The digits after the point; what is finer than a nanosecond is cut off.
fn nanos(digits: &str) -> Option<Duration> {
    digits.bytes().all(|it| it.is_ascii_digit()).then_some(())?;
    let nine: String = digits.chars().chain("000000000".chars()).take(9).collect();
    (!digits.is_empty()).then_some(())?;
    Some(Duration::from_nanos(nine.parse().ok()?))
}

/// Digits only: `parse` alone takes a sign.
fn number(digits: &str) -> Option<u32> {
    let plain = !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_to_the_nanosecond() {
        for (text, nanos) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T00:00:01.5Z", 1_500_000_000),
            ("2026-11-22T08:16:58.222496544Z", 1_795_335_418_222_496_544),
            (
                "2026-11-22T10:16:58.222496544123+02:00",
                1_795_335_418_222_496_544,
            ),
            ("2026-11-22t07:46:58-00:30", 1_795_335_418_000_000_000),
            ("2000-02-29T23:59:59.000000001Z", 951_868_799_000_000_001),
        ] {
            assert_eq!(unix_time(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2026-11-22",
            "2026-11-22T08:16:58",
            "2026-11-22T08:16Z",
            "2026-13-22T08:16:58Z",
            "2026-11-22T08:16:58.Z",
            "2026-11-22T08:16:58Zulu",
            "2026-11-22T08:16:58+2",
            "1969-12-31T23:59:59Z",
            "2026-11-22T08:16:+8Z",
            "ü026-11-22T08:16:58ü",
        ] {
            assert_eq!(unix_time(text), None, "{text}");
        }
    }
}
