//! A command's output: decoded as it comes, and its last lines kept for the report of a failure.

use std::collections::VecDeque;

/// Lines kept.
const LINES: usize = 50;
/// Longest line kept, in bytes. What is cut off is marked.
const LINE_BYTES: usize = 4096;
const CUT: &str = " … (line cut)";

/// Turns chunks of bytes into text; a character split between two chunks comes with the second.
#[derive(Default)]
pub(super) struct Decoder {
    rest: Vec<u8>,
}

impl Decoder {
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() - unfinished(&self.rest);
        let rest = self.rest.split_off(whole);
        let text = String::from_utf8_lossy(&self.rest).into_owned();
        self.rest = rest;
        text
    }

    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned()
    }
}

/// Length of a character's beginning at the end of some bytes.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let wanted = match bytes[bytes.len() - back] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 0,
        };
        return if wanted > back { back } else { 0 };
    }
    0
}

/// The last lines of a text.
#[derive(Default)]
pub(super) struct Tail {
    lines: VecDeque<String>,
    open: bool,
}

impl Tail {
    pub(super) fn push(&mut self, text: &str) {
        for part in text.split_inclusive('\n') {
            if !self.open {
                self.lines.push_back(String::new());
            }
            if self.lines.len() > LINES {
                self.lines.pop_front();
            }
            self.open = !part.ends_with('\n');
            if let Some(line) = self.lines.back_mut() {
                append(line, part.trim_end_matches(['\n', '\r']));
            }
        }
    }

    pub(super) fn lines(self) -> Vec<String> {
        self.lines.into()
    }
}

fn append(line: &mut String, part: &str) {
    if line.ends_with(CUT) {
        return;
    }
    let room = LINE_BYTES.saturating_sub(line.len());
    if part.len() <= room {
        return line.push_str(part);
    }
    let mut end = room;
    while !part.is_char_boundary(end) {
        end -= 1;
    }
    line.push_str(&part[..end]);
    line.push_str(CUT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_characters_come_whole() {
        let mut decoder = Decoder::default();
        let euro = "€".as_bytes();
        assert_eq!(decoder.push(&euro[..1]), "");
        assert_eq!(decoder.push(&euro[1..2]), "");
        assert_eq!(decoder.push(&euro[2..]), "€");
        assert_eq!(decoder.push(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(decoder.push(b"x\xe2"), "x");
        assert_eq!(decoder.finish(), "\u{fffd}");
    }

    #[test]
    fn the_last_fifty_lines_are_kept() {
        let mut tail = Tail::default();
        for number in 0..60 {
            tail.push("line ");
            tail.push(&format!("{number}\r\n"));
        }
        tail.push("end");
        let lines = tail.lines();
        assert_eq!(lines.len(), 50);
        assert_eq!(lines[0], "line 11");
        assert_eq!(lines[49], "end");
    }

    #[test]
    fn a_cut_line_says_so() {
        let mut tail = Tail::default();
        tail.push(&"ä".repeat(5000));
        tail.push("more\n");
        let lines = tail.lines();
        assert!(lines[0].ends_with(CUT) && lines[0].len() < 5000);
    }
}
