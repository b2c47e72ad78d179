//! Text for terminals: what hosts say cannot move the cursor, and columns are as wide as they look.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Spells out whatever a terminal would obey or a person could not see, on one line.
pub(crate) fn flat(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.trim_end().chars() {
        match char {
            '\n' | '\t' => line.push(' '),
            '\r' => {}
            other => push(&mut line, other),
        }
    }
    line
}

/// The same for text of several lines, which stay lines.
pub(super) fn lines(text: &str) -> impl Iterator<Item = String> {
    text.lines().map(|line| {
        let mut safe = String::with_capacity(line.len());
        for char in line.chars() {
            if char == '\t' { safe.push(char) } else { push(&mut safe, char) }
        }
        safe
    })
}

fn push(line: &mut String, char: char) {
    if is_hostile(char) {
        line.extend(char.escape_default());
    } else {
        line.push(char);
    }
}

/// Control characters, and those that reorder or hide what stands around them.
fn is_hostile(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// `text` in at most `limit` columns.
pub(super) fn cut(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut used = 0;
    for char in text.chars() {
        used += char.width().unwrap_or(0);
        if used >= limit {
            break;
        }
        cut.push(char);
    }
    cut.push('…');
    cut
}

/// `text` in exactly `columns` columns, or more where it is wider.
pub(super) fn pad(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{text}{:missing$}", "")
}

/// A number of bytes.
pub(super) fn size(bytes: u64) -> String {
    const STEP: u64 = 1024;
    let (unit, name) = match bytes {
        0..STEP => return format!("{bytes} B"),
        _ if bytes < STEP * STEP => (STEP, "KB"),
        _ if bytes < STEP * STEP * STEP => (STEP * STEP, "MB"),
        _ => (STEP * STEP * STEP, "GB"),
    };
    let tenths = (u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// How long ago something was, in its two greatest units.
pub(super) fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Milliseconds since 1970 of a time as RFC 3339 writes it.
pub(super) fn moment(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let rest = text.get(19..)?;
    let (millis, rest) = match rest.strip_prefix('.') {
        Some(rest) => {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (fraction, rest) = rest.split_at(digits);
            (format!("{fraction:0<3}").get(..3)?.parse().ok()?, rest)
        }
        None => (0, rest),
    };
    let offset = match rest.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), ..] if rest.len() == 6 => {
            let (hours, minutes) = (rest.get(1..3)?, rest.get(4..6)?);
            let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    // Days since 1970 of a date: years begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    u64::try_from(seconds).ok()?.checked_mul(1000)?.checked_add(millis)
}

/// A value as a path or a form carries it.
pub(super) fn raw(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One segment of a path. What needs no encoding (RFC 3986) gets none, so that every client asks
/// for a thing, and has it on record, by the same path.
pub(super) fn encoded(segment: &str) -> String {
    const RESERVED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(segment, RESERVED).to_string()
}

/// A value as it stands in a table or behind a label.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => flat(text),
        Value::Number(number) => match number.as_f64() {
            Some(fraction) if number.is_f64() => decimal(fraction),
            _ => number.to_string(),
        },
        Value::Bool(is_so) => is_so.to_string(),
        Value::Array(items) if items.is_empty() => "None".into(),
        Value::Array(items) => items.iter().filter_map(item).collect::<Vec<_>>().join(", "),
        Value::Object(fields) if fields.is_empty() => "None".into(),
        Value::Object(fields) => {
            let mut pairs: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{}:{}", flat(name), plain(value)))
                .collect();
            pairs.sort();
            pairs.join(", ")
        }
    }
}

/// One of a list. Of conditions, only those that hold are worth a word.
fn item(value: &Value) -> Option<String> {
    match (&value["type"], &value["status"]) {
        (Value::String(name), Value::Bool(holds)) => holds.then(|| flat(name)),
        _ => Some(plain(value)),
    }
}

fn decimal(number: f64) -> String {
    let text = format!("{number:.2}");
    text.strip_suffix(".00").map_or_else(|| text.clone(), str::to_owned)
}

/// A field's name as people write it.
pub(super) fn label(name: &str) -> String {
    let words = name.split(['_', '-']).map(|word| match word {
        "id" | "cpu" | "os" | "fqdn" | "url" | "ip" | "mac" | "pid" | "uid" | "gid" => {
            word.to_uppercase()
        }
        "sha256" => "SHA256".into(),
        other => {
            let mut chars = other.chars();
            let first = chars.next().into_iter().flat_map(char::to_uppercase);
            first.chain(chars).collect()
        }
    });
    flat(&words.collect::<Vec<String>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_say_cannot_move_the_cursor() {
        assert_eq!(flat("a\x1b[2Jb\u{9b}c\r\nd\u{202e}"), "a\\u{1b}[2Jb\\u{9b}c d\\u{202e}");
        assert_eq!(lines("a\x07\n\tb").collect::<Vec<_>>(), ["a\\u{7}", "\tb"]);
    }

    #[test]
    fn text_is_cut_where_it_looks_too_wide() {
        assert_eq!(cut("héllo wörld", 6), "héllo…");
        assert_eq!(cut("日本語です", 6), "日本…");
        assert_eq!(cut("same", 4), "same");
        assert_eq!(pad("日本", 6), "日本  ");
    }

    #[test]
    fn sizes_and_ages_are_rounded() {
        assert_eq!(
            [0, 1023, 1024, 1536, 5 << 20].map(size),
            ["0 B", "1023 B", "1.0 KB", "1.5 KB", "5.0 MB"]
        );
        assert_eq!(size(3 << 40), "3072.0 GB");
        assert_eq!([30, 2700, 45_000, 273_600].map(age), ["30s", "45m", "12h 30m", "3d 4h"]);
    }

    #[test]
    fn times_are_read_with_their_offset() {
        assert_eq!(moment("1970-01-02T00:00:00Z"), Some(86_400_000));
        assert_eq!(moment("2026-11-21T13:45:12.5+01:00"), Some(1_795_265_112_500));
        assert_eq!(moment("2024-02-29T00:00:00Z"), Some(1_709_164_800_000));
        assert_eq!(moment("yesterday"), None);
        for text in
            ["2024-02-29T23:59:59.000Z", "1999-12-31T00:00:01.250Z", "2026-03-01T12:00:00.000Z"]
        {
            assert_eq!(crate::clock::rfc3339(moment(text).unwrap()), text);
        }
    }
}
