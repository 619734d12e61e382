//! Python's `fnmatch`, as CPython translates patterns: case counts, a star matches slashes, nothing is escaped by a
//! backslash, and a set that does not close stands for itself.

use super::{CHAR_DASH, CHAR_OPEN, CHAR_QUESTION, CHAR_STAR, Item, Piece, matches, next_char};

/// Some patterns, of which one has to match the whole path.
pub(crate) struct FileGlobs(Vec<Vec<Piece>>);

impl FileGlobs {
    pub(crate) fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().map(|pattern| parse(pattern)).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them matches `path`.
    pub(crate) fn has(&self, path: &[u8]) -> bool {
        self.0.iter().any(|pattern| matches(pattern, path))
    }
}

const CHAR_CLOSE: u32 = b']' as u32;
const CHAR_BANG: u32 = b'!' as u32;

fn parse(pattern: &str) -> Vec<Piece> {
    let mut rest = pattern.as_bytes();
    let mut chars = Vec::with_capacity(rest.len());
    while let Some((char, after)) = next_char(rest) {
        chars.push(char);
        rest = after;
    }
    let (mut pieces, mut at) = (Vec::new(), 0);
    while let Some(char) = chars.get(at).copied() {
        at += 1;
        pieces.push(match char {
            CHAR_STAR => Piece::Any,
            CHAR_QUESTION => Piece::One,
            CHAR_OPEN => match end_of_set(&chars, at) {
                Some(end) => {
                    let set = set(&chars[at..end]);
                    at = end + 1;
                    set
                }
                None => Piece::Char(char),
            },
            other => Piece::Char(other),
        });
    }
    pieces
}

/// Where the bracket is that closes the set which begins at `start`; one that comes first is a member.
fn end_of_set(chars: &[u32], start: usize) -> Option<usize> {
    let mut at = start;
    at += usize::from(chars.get(at) == Some(&CHAR_BANG));
    at += usize::from(chars.get(at) == Some(&CHAR_CLOSE));
    chars.get(at..)?.iter().position(|char| *char == CHAR_CLOSE).map(|found| at + found)
}

/// What is between the brackets.
fn set(inner: &[u32]) -> Piece {
    let stuff = chunks(inner);
    let negated = stuff.first().and_then(|chunk| chunk.first()) == Some(&CHAR_BANG);
    let mut items = Vec::new();
    for (number, chunk) in stuff.iter().enumerate() {
        let skip = usize::from(number == 0 && negated);
        items.extend(chunk.iter().skip(skip).map(|char| Item::Range(*char, *char)));
    }
    // Between two chunks stands the dash of a range.
    for pair in stuff.windows(2) {
        if let (Some(low), Some(high)) = (pair[0].last(), pair[1].first()) {
            items.push(Item::Range(*low, *high));
        }
    }
    Piece::Set { negated, items }
}

/// Cuts a set at the dashes of its ranges, and takes ranges that go backwards out of it, as CPython does: with both of
/// their ends.
fn chunks(inner: &[u32]) -> Vec<Vec<u32>> {
    let mut chunks: Vec<Vec<u32>> = Vec::new();
    let mut start = 0;
    let mut look = if inner.first() == Some(&CHAR_BANG) { 2 } else { 1 };
    while let Some(dash) = inner.get(look..).and_then(|rest| rest.iter().position(|char| *char == CHAR_DASH))
    {
        let dash = look + dash;
        chunks.push(inner[start..dash].to_vec());
        (start, look) = (dash + 1, dash + 3);
    }
    match (inner.get(start..), chunks.last_mut()) {
        (Some(rest), _) if !rest.is_empty() => chunks.push(rest.to_vec()),
        // A dash at the end stands for itself.
        (_, Some(last)) => last.push(CHAR_DASH),
        _ => {}
    }
    for at in (1..chunks.len()).rev() {
        if chunks[at - 1].last() > chunks[at].first() {
            let next = chunks.remove(at);
            chunks[at - 1].pop();
            chunks[at - 1].extend(next.into_iter().skip(1));
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn matched(pattern: &str, path: &str) -> bool {
        FileGlobs::new(&[pattern.to_owned()]).has(path.as_bytes())
    }

    #[test]
    fn python_patterns() {
        for (pattern, path, wanted) in [
            ("*.log", "a/b.log", true),
            ("*.LOG", "a.log", false),
            ("a", "b/a", false),
            ("a/*", "a/b/c", true),
            ("[!a]", "/", true),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[^a]", "^", true),
            ("[a", "[a", true),
            (r"\*", r"\x", true),
            ("[b-a]", "a", false),
            ("[!b-a]", "a", true),
            ("[a-]", "-", true),
            ("?", "é", true),
            ("", "", true),
            ("a\nb*", "a\nbc", true),
        ] {
            assert_eq!(matched(pattern, path), wanted, "{pattern:?} on {path:?}");
        }
    }

    /// The same numbers in every run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % end
        }

        fn text(&mut self, alphabet: &[&str], most: usize) -> String {
            (0..self.below(most + 1)).map(|_| alphabet[self.below(alphabet.len())]).collect()
        }
    }

    /// The reference is Python itself, where the machine has it.
    #[test]
    fn it_agrees_with_python_on_thousands_of_patterns() {
        const PROGRAM: &str = "import sys, fnmatch, warnings\nwarnings.simplefilter('ignore')\n\
            pairs = sys.stdin.buffer.read().decode().split('\\0')\n\
            print(''.join('1' if fnmatch.fnmatchcase(n, p) else '0' for p, n in zip(pairs[::2], pairs[1::2])))";
        const PIECES: [&str; 22] = [
            "*", "?", "[", "]", "!", "-", "^", "\\", "a", "b", "c", "z", "/", ".", "é", "&", "~", "|", "\n",
            "[a-c]", "[!", "--",
        ];
        const TEXTS: [&str; 15] =
            ["a", "b", "c", "z", "/", ".", "é", "-", "]", "[", "^", "\\", "\n", "!", "&"];
        let mut dice = Dice(20_261_120);
        let pairs: Vec<(String, String)> =
            (0..30_000).map(|_| (dice.text(&PIECES, 9), dice.text(&TEXTS, 5))).collect();
        let input = tempfile::NamedTempFile::new().unwrap();
        let flat: Vec<&str> = pairs.iter().flat_map(|(pattern, path)| [&pattern[..], &path[..]]).collect();
        std::fs::write(input.path(), flat.join("\0")).unwrap();
        let mut python = Command::new("python3");
        let Ok(output) = python.args(["-c", PROGRAM]).stdin(input.reopen().unwrap()).output() else {
            println!("SKIP: no python3 to compare with");
            return;
        };
        assert!(output.status.success(), "{output:?}");
        let wanted = output.stdout.trim_ascii();
        assert_eq!(wanted.len(), pairs.len());
        assert!(wanted.iter().filter(|byte| **byte == b'1').count() > 500, "the corpus says something");
        for ((pattern, path), wanted) in pairs.iter().zip(wanted) {
            assert_eq!(matched(pattern, path), *wanted == b'1', "{pattern:?} on {path:?}");
        }
    }
}
