//! What is written on standard output. A reader that is gone is no error.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

pub(crate) fn print(value: &Value) {
    say(&value.to_string());
}

pub(crate) fn say(line: &str) {
    let _ = try_say(line);
}

/// A line, at once: whoever reads it may wait for it.
pub(crate) fn try_say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

/// With what would end or alter a line written as in a program: `\n`.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line
}

/// As `value` if it is text, else as `value_hex`.
pub(crate) fn insert_value(line: &mut Map<String, Value>, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(text) => line.insert("value".into(), text.into()),
        Err(_) => {
            let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            line.insert("value_hex".into(), hex.into())
        }
    };
}

/// A time since 1970, for people.
pub(crate) fn date(since: Duration) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(since);
    time.map_or_else(String::new, |time| {
        humantime::format_rfc3339_seconds(time).to_string()
    })
}

/// A time since 1970 in milliseconds, for programs.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Rows in columns as wide as their widest cell.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let cells = cells.into_iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        say(cells.join("  ").trim_end());
    };
    line(head);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
}
