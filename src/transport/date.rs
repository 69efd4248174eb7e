//! Dates as HTTP and etcd write them, as time since the Unix epoch.
//!
//! By hand: of HTTP's three forms servers send one (RFC 9110 §5.6.7), and forty lines that are
//! tested do not pay for a dependency.

use std::time::Duration;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// An HTTP `Date`, like `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(super) fn http_date(text: &str) -> Option<Duration> {
    let (_, text) = text.split_once(", ")?;
    let mut parts = text.split(' ');
    let day = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = (1..).zip(MONTHS).find(|(_, name)| *name == month)?.0;
    let year = parts.next()?.parse().ok()?;
    let mut time = parts.next()?.split(':').map(|it| it.parse().ok());
    let time = (time.next()??, time.next()??, time.next()??);
    (parts.next()? == "GMT").then_some(())?;
    Some(Duration::from_secs(unix_seconds((year, month, day), time)?))
}

/// Year, month and day, and hour, minute and second, in UTC. `None` before 1970 and for what is no
/// date. A leap second is the one after it.
pub(crate) fn unix_seconds(date: (u32, u32, u32), time: (u32, u32, u32)) -> Option<u64> {
    let ((year, month, day), (hour, minute, second)) = (date, time);
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    in_range.then_some(())?;
    // Years begin in March, so that the leap day is the last one; months then alternate 31, 30.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leaps = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leaps + (153 * month + 2) / 5 + day - 1;
    // From the 1st of March of the year 0 to the epoch.
    let days = u64::from(days).checked_sub(719_468)?;
    let seconds = u64::from(hour) * 3_600 + u64::from(minute) * 60 + u64::from(second);
    Some(days * 86_400 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_date_is_read_to_the_second() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Tue, 29 Feb 2000 23:59:59 GMT", 951_868_799),
            ("Sun, 22 Nov 2026 08:16:58 GMT", 1_795_335_418),
        ] {
            assert_eq!(
                http_date(text),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "now",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Now 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:49:37 GMT",
            "Sun, 06 Nov 1900 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
        ] {
            assert_eq!(http_date(text), None, "{text}");
        }
    }
}
