//! Three dialects of file name patterns: GNU tar's `--exclude`, Go's `filepath.Match` and Python's `fnmatch`.
//!
//! All are parsed into the same pieces and matched by the same loop. Characters are those of UTF-8; a byte that is
//! part of none counts as one.

mod python;

pub(crate) use python::FileGlobs;

/// One piece of a pattern.
#[derive(Clone, Debug)]
enum Piece {
    /// `*`
    Any,
    /// `?`
    One,
    /// A character that stands for itself.
    Char(u32),
    /// `[...]`
    Set { negated: bool, items: Vec<Item> },
}

#[derive(Clone, Debug)]
enum Item {
    Range(u32, u32),
    Class(Class),
}

type Class = fn(u32) -> bool;

/// A pattern that does not parse.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("pattern {0:?} does not parse")]
pub(crate) struct BadPattern(pub(crate) String);

/// The patterns of `--exclude`.
pub(crate) struct Excludes(Vec<Vec<Piece>>);

impl Excludes {
    pub(crate) fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().map(|pattern| parse_gnu(pattern.as_bytes())).collect())
    }

    /// Whether a member is left out. `path` is relative to the top; GNU tar, run on `.`, would call it `./path`, and
    /// compares a pattern with that and with everything after each slash in it. Wildcards match slashes.
    pub(crate) fn has(&self, path: &[u8]) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let full = [b"./", path].concat();
        let starts = full.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at + 1);
        let mut starts = std::iter::once(0).chain(starts);
        starts.any(|start| self.0.iter().any(|pattern| matches(pattern, &full[start..])))
    }
}

/// One component of a glob.
#[derive(Debug)]
pub(crate) struct Component(Vec<Piece>);

impl Component {
    /// Parses a component by Go's rules.
    pub(crate) fn new(pattern: &str) -> Result<Self, BadPattern> {
        parse_go(pattern.as_bytes()).map(Self).ok_or_else(|| BadPattern(pattern.to_owned()))
    }

    /// The one name that it matches, when it has no wildcards.
    pub(crate) fn literal(&self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Char(char) => encode(*char, &mut name),
                Piece::Any | Piece::One | Piece::Set { .. } => return None,
            }
        }
        Some(name)
    }

    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        matches(&self.0, name)
    }
}

/// Bytes that are no UTF-8 get numbers beyond Unicode.
const STRAY: u32 = 0x11_0000;

fn next_char(text: &[u8]) -> Option<(u32, &[u8])> {
    let (first, rest) = text.split_first()?;
    let len = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    let whole = text
        .get(..len)
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .and_then(|text| text.chars().next());
    Some(match whole {
        Some(char) => (char.into(), &text[len..]),
        None => (STRAY + u32::from(*first), rest),
    })
}

fn encode(char: u32, out: &mut Vec<u8>) {
    match char::from_u32(char) {
        Some(char) => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        None => out.push((char - STRAY) as u8),
    }
}

/// Linear but for the last star, which is the only one that needs another try.
fn matches(pattern: &[Piece], text: &[u8]) -> bool {
    let (mut at, mut rest) = (0, text);
    let mut retry: Option<(usize, &[u8])> = None;
    loop {
        let step = match (pattern.get(at), next_char(rest)) {
            (None, None) => return true,
            (Some(Piece::Any), _) => {
                retry = Some((at + 1, rest));
                at += 1;
                continue;
            }
            (Some(piece), Some((char, after))) if piece.takes(char) => Some(after),
            _ => None,
        };
        match (step, retry) {
            (Some(after), _) => (at, rest) = (at + 1, after),
            (None, Some((star, from))) => {
                let Some((_, after)) = next_char(from) else { return false };
                retry = Some((star, after));
                (at, rest) = (star, after);
            }
            (None, None) => return false,
        }
    }
}

impl Piece {
    fn takes(&self, char: u32) -> bool {
        match self {
            Self::Any => false,
            Self::One => true,
            Self::Char(own) => *own == char,
            Self::Set { negated, items } => items.iter().any(|item| item.has(char)) != *negated,
        }
    }
}

impl Item {
    fn has(&self, char: u32) -> bool {
        match self {
            Self::Range(low, high) => (*low..=*high).contains(&char),
            Self::Class(class) => class(char),
        }
    }
}

// ---- GNU: fnmatch(3) without FNM_PATHNAME or FNM_PERIOD; what does not parse stands for itself ----

fn parse_gnu(mut pattern: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while let Some((char, rest)) = next_char(pattern) {
        pattern = rest;
        pieces.push(match char {
            CHAR_STAR => Piece::Any,
            CHAR_QUESTION => Piece::One,
            CHAR_BACKSLASH => match next_char(rest) {
                Some((escaped, rest)) => {
                    pattern = rest;
                    Piece::Char(escaped)
                }
                None => Piece::Char(char),
            },
            CHAR_OPEN => match gnu_set(rest) {
                Some((set, rest)) => {
                    pattern = rest;
                    set
                }
                None => Piece::Char(char),
            },
            other => Piece::Char(other),
        });
    }
    pieces
}

const CHAR_STAR: u32 = b'*' as u32;
const CHAR_QUESTION: u32 = b'?' as u32;
const CHAR_BACKSLASH: u32 = b'\\' as u32;
const CHAR_OPEN: u32 = b'[' as u32;
const CHAR_CLOSE: u32 = b']' as u32;
const CHAR_DASH: u32 = b'-' as u32;
const CHAR_CARET: u32 = b'^' as u32;

fn gnu_set(mut rest: &[u8]) -> Option<(Piece, &[u8])> {
    let negated = matches!(rest.first(), Some(b'!' | b'^'));
    if negated {
        rest = &rest[1..];
    }
    let mut items = Vec::new();
    loop {
        if let Some(named) = rest.strip_prefix(b"[:") {
            let end = named.windows(2).position(|pair| pair == b":]")?;
            items.push(Item::Class(class(&named[..end])?));
            rest = &named[end + 2..];
            continue;
        }
        let (low, after) = gnu_set_char(rest)?;
        // A bracket that comes first stands for itself.
        if low == CHAR_CLOSE && rest[0] == b']' && !items.is_empty() {
            return Some((Piece::Set { negated, items }, after));
        }
        rest = after;
        let high = match rest.strip_prefix(b"-") {
            Some(after) if !after.starts_with(b"]") => {
                let (high, after) = gnu_set_char(after)?;
                rest = after;
                high
            }
            _ => low,
        };
        items.push(Item::Range(low, high));
    }
}

fn gnu_set_char(text: &[u8]) -> Option<(u32, &[u8])> {
    next_char(text.strip_prefix(b"\\").unwrap_or(text))
}

fn class(name: &[u8]) -> Option<Class> {
    fn ascii(char: u32) -> char {
        char::from_u32(char).unwrap_or('\u{fffd}')
    }
    Some(match name {
        b"alpha" => |char| ascii(char).is_alphabetic(),
        b"digit" => |char| ascii(char).is_ascii_digit(),
        b"alnum" => |char| ascii(char).is_alphanumeric(),
        b"upper" => |char| ascii(char).is_uppercase(),
        b"lower" => |char| ascii(char).is_lowercase(),
        b"space" => |char| ascii(char).is_whitespace(),
        b"blank" => |char| matches!(ascii(char), ' ' | '\t'),
        b"punct" => |char| ascii(char).is_ascii_punctuation(),
        b"print" => |char| !ascii(char).is_control(),
        b"graph" => |char| ascii(char).is_ascii_graphic(),
        b"cntrl" => |char| ascii(char).is_control(),
        b"xdigit" => |char| ascii(char).is_ascii_hexdigit(),
        _ => return None,
    })
}

// ---- Go: path/filepath.Match; what does not parse is an error ----

fn parse_go(mut pattern: &[u8]) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    while let Some((char, rest)) = next_char(pattern) {
        pattern = rest;
        pieces.push(match char {
            CHAR_STAR => Piece::Any,
            CHAR_QUESTION => Piece::One,
            CHAR_BACKSLASH => {
                let (escaped, rest) = next_char(rest)?;
                pattern = rest;
                Piece::Char(escaped)
            }
            CHAR_OPEN => {
                let (set, rest) = go_set(rest)?;
                pattern = rest;
                set
            }
            other => Piece::Char(other),
        });
    }
    Some(pieces)
}

fn go_set(mut rest: &[u8]) -> Option<(Piece, &[u8])> {
    let negated = rest.first().map(|byte| u32::from(*byte)) == Some(CHAR_CARET);
    if negated {
        rest = &rest[1..];
    }
    let mut items = Vec::new();
    loop {
        if let (Some(after), false) = (rest.strip_prefix(b"]"), items.is_empty()) {
            return Some((Piece::Set { negated, items }, after));
        }
        let (low, after) = go_set_char(rest)?;
        rest = after;
        let high = match rest.strip_prefix(b"-") {
            Some(after) => {
                let (high, after) = go_set_char(after)?;
                rest = after;
                high
            }
            None => low,
        };
        items.push(Item::Range(low, high));
    }
}

/// A bracket or a dash has to be escaped.
fn go_set_char(text: &[u8]) -> Option<(u32, &[u8])> {
    match next_char(text)? {
        (CHAR_BACKSLASH, rest) => next_char(rest),
        (CHAR_DASH | CHAR_CLOSE, _) => None,
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn go(pattern: &str, name: &str) -> Option<bool> {
        Component::new(pattern).ok().map(|component| component.matches(name.as_bytes()))
    }

    #[test]
    fn go_patterns() {
        for (pattern, name, wanted) in [
            ("*.txt", "a.txt", Some(true)),
            ("*.txt", ".txt", Some(true)),
            ("*.txt", "a.txt.gz", Some(false)),
            ("a*b*c", "a-b-b-c", Some(true)),
            ("a?c", "aéc", Some(true)),
            ("[a-c]x", "bx", Some(true)),
            ("[^a-c]x", "bx", Some(false)),
            ("[^a-c]x", "dx", Some(true)),
            ("[!a]x", "!x", Some(true)),
            (r"a\*", "a*", Some(true)),
            (r"a\*", "ab", Some(false)),
            (r"[\]]", "]", Some(true)),
            ("[]a]", "]", None),
            ("[a", "a", None),
            ("[-]", "-", None),
            (r"a\", "a", None),
            ("", "", Some(true)),
        ] {
            assert_eq!(go(pattern, name), wanted, "{pattern} on {name}");
        }
        assert_eq!(Component::new(r"a\*b").unwrap().literal().unwrap(), b"a*b");
        assert_eq!(Component::new("a*").unwrap().literal(), None);
    }

    fn excluded(pattern: &str, path: &str) -> bool {
        Excludes::new(&[pattern.to_owned()]).has(path.as_bytes())
    }

    #[test]
    fn gnu_patterns() {
        for (pattern, path, wanted) in [
            ("node_modules", "node_modules", true),
            ("node_modules", "a/node_modules", true),
            ("node_modules", "a/my_node_modules", false),
            ("*.pyc", "a/b.pyc", true),
            ("a/b", "x/a/b", true),
            ("a*c", "a/b/c", true),
            ("./a", "a", true),
            ("./a", "b/a", false),
            ("[[:digit:]]*", "1a", true),
            ("[]x]", "]", true),
            ("[!a]", "b", true),
            ("[a", "[a", true),
            (r"\*", "*", true),
            ("a/", "a", false),
            ("?", "é", true),
        ] {
            assert_eq!(excluded(pattern, path), wanted, "{pattern} on {path}");
        }
    }

    /// The reference is the tool itself, where the machine has it.
    #[test]
    fn excludes_agree_with_gnu_tar() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "a.b", "d", "d/a", "d/.a", "d/e", "d/e/a-c", "x[1]", "ab", "a*b", "d/e/f"];
        for path in paths {
            if ["d", "d/e"].contains(&path) {
                std::fs::create_dir(dir.path().join(path)).unwrap();
            } else {
                std::fs::write(dir.path().join(path), "").unwrap();
            }
        }
        for pattern in [
            "a",
            "*",
            "?",
            "a*",
            "*a",
            "d/*",
            "d/e",
            "./d",
            "./a",
            "/a",
            "[a-b]",
            "[!a]",
            "x[1]",
            r"x\[1\]",
            "*e*",
            "e/*c",
            "d/",
            "*/",
            ".",
            "[[:alpha:]]",
            "d*c",
            "a.b",
            ".*",
            r"a\*b",
            "[",
            "[a",
        ] {
            let mut tar = std::process::Command::new("tar");
            tar.env("LC_ALL", "C.UTF-8").current_dir(&dir).args(["-cf", "-", "--exclude", pattern, "."]);
            let Ok(archive) = tar.output() else {
                println!("SKIP: no tar to compare with");
                return;
            };
            let mut archive = tar::Archive::new(&archive.stdout[..]);
            let packed: Vec<String> = archive
                .entries()
                .unwrap()
                .map(|entry| {
                    entry.unwrap().path().unwrap().to_string_lossy().trim_end_matches('/').to_owned()
                })
                .map(|path| path.trim_start_matches("./").to_owned())
                .collect();
            if packed.is_empty() {
                // The top itself was excluded, which the guest never does: what is asked for is packed.
                continue;
            }
            for path in paths {
                let parts: Vec<_> =
                    path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]).collect();
                let ours = !parts.iter().any(|part| excluded(pattern, part));
                assert_eq!(ours, packed.iter().any(|name| name == path), "{pattern} on {path}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_pattern_panics(pattern in ".{0,20}", text in ".{0,20}") {
            let _ = excluded(&pattern, &text);
            let _ = go(&pattern, &text);
        }

        #[test]
        fn a_literal_matches_itself_alone(name in "[a-z.é]{1,12}", other in "[a-z.é]{1,12}") {
            prop_assert_eq!(go(&name, &other), Some(name == other));
        }
    }
}
