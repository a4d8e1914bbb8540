//! Texts of others, made safe to print: names of volumes, what hosts and daemons say, what stands in images.

use std::fmt::Write;

use serde::Serialize;

/// Whether a character could steer a terminal, or turn a line around.
fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text on one line, with everything escaped that could steer a terminal.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The same of a text of several lines, which stay.
pub fn escaped_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(escaped).collect();
    lines.join("\n")
}

/// One line of JSON, in which everything that could steer a terminal is escaped as JSON escapes it.
pub fn json_line(value: &impl Serialize) -> String {
    // Maps with keys that are no strings are the only thing that cannot be written, and there are none.
    let text = serde_json::to_string(value).unwrap_or_default();
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            // Outside of strings JSON has none of them.
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_a_terminal_and_everything_is_told() {
        let text = "a\x1b[31mb\n\u{9b}2J\u{202e}c\u{7f} \"ü\"";
        let plain = escaped(text);
        assert_eq!(plain, "a\\u{1b}[31mb\\u{a}\\u{9b}2J\\u{202e}c\\u{7f} \"ü\"",);
        assert_eq!(escaped_lines("a\n\x07b\n"), "a\n\\u{7}b\n");
        let json = json_line(&text);
        assert!(!plain.chars().chain(json.chars()).any(steers));
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
