//! What is checked in the text of the sources: `unsafe` outside its room, files that have grown too long.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

/// The one crate that may hold `unsafe`.
const UNSAFE_ROOM: &str = "crates/sys/";
/// Lines beyond which a file is to be split along its own headings.
const MAX_LINES: usize = 800;

/// A source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Path from the checkout's root.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
}

/// Reads all Rust and Python files of the checkout, those that git does not know yet included.
pub(crate) fn read(root: &Path) -> anyhow::Result<Vec<Source>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.rs", "*.py"])
        .current_dir(root)
        .output()
        .context("running git ls-files")?;
    anyhow::ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).context("a path is not UTF-8")?;
    let mut sources = Vec::new();
    for path in list.split_terminator('\0') {
        match std::fs::read_to_string(root.join(path)) {
            Ok(text) => sources.push(Source { path: path.to_owned(), text }),
            // Deleted, but not committed yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.to_owned()),
        }
    }
    Ok(sources)
}

/// Places outside `crates/sys` where the code says `unsafe`.
pub(crate) fn misplaced_unsafe(sources: &[Source]) -> Vec<String> {
    let outside = sources.iter().filter(|s| s.path.ends_with(".rs") && !s.path.starts_with(UNSAFE_ROOM));
    let places = outside.flat_map(|source| {
        let code = code_only(&source.text);
        let lines: Vec<_> = (1..).zip(code.lines()).filter(|(_, l)| has_unsafe(l)).map(|(n, _)| n).collect();
        lines.into_iter().map(|line| format!("{}:{line}: unsafe belongs in {UNSAFE_ROOM} only", source.path))
    });
    places.collect()
}

/// Files that are too long.
pub(crate) fn too_long(sources: &[Source]) -> Vec<String> {
    let count = |source: &Source| source.text.lines().count();
    let long = sources.iter().filter(|s| count(s) > MAX_LINES);
    long.map(|s| format!("{} has {} lines: split it above {MAX_LINES}", s.path, count(s))).collect()
}

/// Whether `line` says `unsafe` as a word, or allows it.
fn has_unsafe(line: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let allows = line.contains("allow(unsafe_code") || line.contains("expect(unsafe_code");
    allows || line.split(|c| !word(c)).any(|w| w == "unsafe")
}

/// Rust code with comments and the insides of literals blanked, lines kept. Good enough to find keywords; it does not
/// tell a lifetime from the start of a character literal by more than the closing quote.
fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let end = match hidden_end(&chars, at) {
            Some(end) => end,
            None => {
                code.push(c);
                at += 1;
                continue;
            }
        };
        code.extend(chars[at..end].iter().filter(|c| **c == '\n'));
        code.push(' ');
        at = end;
    }
    code
}

/// Where a comment or literal that starts at `at` ends, if one starts there.
fn hidden_end(chars: &[char], at: usize) -> Option<usize> {
    let next = chars.get(at + 1).copied();
    match chars[at] {
        '/' if next == Some('/') => Some(find(chars, at, |rest| rest[0] == '\n').unwrap_or(chars.len())),
        '/' if next == Some('*') => Some(block_comment_end(chars, at)),
        '"' => Some(quoted_end(chars, at)),
        'r' if at == 0 || !is_word(chars[at - 1]) || chars[at - 1] == 'b' => raw_string_end(chars, at),
        '\'' => char_end(chars, at),
        _ => None,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn find(chars: &[char], from: usize, holds: impl Fn(&[char]) -> bool) -> Option<usize> {
    (from..chars.len()).find(|&i| holds(&chars[i..]))
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) if depth == 1 => return i + 2,
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    i
}

fn quoted_end(chars: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return None;
    }
    let closes =
        |rest: &[char]| rest[0] == '"' && rest.iter().skip(1).take_while(|c| **c == '#').count() >= hashes;
    Some(find(chars, at + hashes + 2, closes).map_or(chars.len(), |end| end + 1 + hashes))
}

/// `'x'` and `'\u{1F600}'`, but not the lifetime `'x`.
fn char_end(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at + 1) == Some(&'\\') {
        return find(chars, at + 3, |rest| rest[0] == '\'').map(|end| end + 1);
    }
    (chars.get(at + 2) == Some(&'\'')).then_some(at + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn unsafe_is_found_in_code_and_not_in_words_about_it() {
        let text = "// unsafe\n/* unsafe /* nested */ unsafe */\nlet a = \"unsafe \\\" unsafe\";\n\
            let b = r#\"unsafe \" unsafe\"#; let c = '\"'; let d: &'a str; let e = '\\'';\n\
            #![deny(unsafe_code)]\nfn not_unsafe() {}\nunsafe { x() }\n#[allow(unsafe_code)]\nlet f = \"ok\"; unsafe fn g() {}\n";
        let sources = [source("crates/net/src/a.rs", text), source("crates/sys/src/a.rs", text)];
        assert_eq!(
            misplaced_unsafe(&sources),
            [
                "crates/net/src/a.rs:7: unsafe belongs in crates/sys/ only",
                "crates/net/src/a.rs:8: unsafe belongs in crates/sys/ only",
                "crates/net/src/a.rs:9: unsafe belongs in crates/sys/ only",
            ]
        );
    }

    #[test]
    fn python_is_measured_but_not_searched() {
        let sources = [source("python/a.py", &"unsafe\n".repeat(801)), source("a.rs", &"\n".repeat(800))];
        assert_eq!(misplaced_unsafe(&sources), [""; 0]);
        assert_eq!(too_long(&sources), ["python/a.py has 801 lines: split it above 800"]);
    }
}
