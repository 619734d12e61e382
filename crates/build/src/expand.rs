//! Variables and quotes in a word, by Docker's rules: `$x`, `${x}`, `${x:-w}` and the other forms of a POSIX shell
//! that the Dockerfile reference lists, `'…'`, `"…"` and the escape character.

use std::iter::Peekable;
use std::str::Chars;

/// Most levels of `${x:-${y:-…}}`: each takes some of a thread's stack.
const MAX_DEPTH: usize = 64;
/// Longest value that a word may come to, in bytes: `ARG A=$B$B` doubles it with every line.
const MAX_VALUE: usize = 1 << 20;
/// Longest value that a pattern is matched against, in characters: that takes its square, and more with several `*`.
const MAX_MATCHED: usize = 4 << 10;

/// Why a word cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A quote that is not closed.
    #[error("the quote {quote} is not closed")]
    Quote {
        /// The quote.
        quote: char,
    },
    /// `${` without `}`, or `${x/p` without its second `/`.
    #[error("`${{` is not closed, expected `{missing}`")]
    Brace {
        /// What is missing.
        missing: char,
    },
    /// Something else than a variable's name after `${`.
    #[error("expected the name of a variable after `${{`")]
    Name,
    /// A form of `${x…}` that Dockerfiles do not have.
    #[error("`${{{name}{modifier}…}}` is not a form of variable expansion")]
    Modifier {
        /// The variable.
        name: String,
        /// What stands after it.
        modifier: String,
    },
    /// Forms within forms without end.
    #[error("`${{…}}` within `${{…}}` goes deeper than {MAX_DEPTH} levels")]
    Deep,
    /// A value that grows without end.
    #[error("the value is longer than {limit} bytes")]
    Long {
        /// The limit.
        limit: usize,
    },
    /// `${x?message}` of a variable that is not set, or empty for `:?`.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message of the Dockerfile, or what is wrong.
        message: String,
    },
}

/// How quotes and escapes are treated.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The file's escape character.
    pub escape: char,
    /// Whether quotes quote. In heredocs they are plain characters.
    pub quotes: bool,
}

/// A variable's value, if it is set.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A word with its variables replaced and its quotes removed.
pub fn expand(word: &str, rules: Rules, lookup: Lookup<'_>) -> Result<String, ExpandError> {
    expand_noting(word, rules, lookup, &mut Vec::new())
}

/// The same, noting the variables whose value is used although they are not set.
pub fn expand_noting(
    word: &str,
    rules: Rules,
    lookup: Lookup<'_>,
    unset: &mut Vec<String>,
) -> Result<String, ExpandError> {
    let mut expander =
        Expander { chars: word.chars().peekable(), rules, lookup, unset: Vec::new(), depth: 0 };
    let text = expander.until(None, false)?.text;
    unset.append(&mut expander.unset);
    Ok(text)
}

/// The same, cut into words at blanks that are not quoted, also at those that came from a variable.
pub fn expand_words(word: &str, rules: Rules, lookup: Lookup<'_>) -> Result<Vec<String>, ExpandError> {
    let mut expander =
        Expander { chars: word.chars().peekable(), rules, lookup, unset: Vec::new(), depth: 0 };
    Ok(expander.until(None, false)?.into_words())
}

/// What has been expanded so far, whole and in words.
#[derive(Default)]
struct Expansion {
    text: String,
    words: Vec<String>,
    word: String,
}

impl Expansion {
    /// Text whose blanks end words.
    fn push_split(&mut self, text: &str) {
        self.text.push_str(text);
        for c in text.chars() {
            match c.is_whitespace() {
                true if !self.word.is_empty() => self.words.push(std::mem::take(&mut self.word)),
                true => {}
                false => self.word.push(c),
            }
        }
    }

    /// Quoted text: its blanks belong to the word.
    fn push_whole(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
    }

    fn into_words(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}

struct Expander<'a> {
    chars: Peekable<Chars<'a>>,
    rules: Rules,
    lookup: Lookup<'a>,
    unset: Vec<String>,
    /// Forms that are open.
    depth: usize,
}

/// That a value is not too long.
fn fits(text: &str) -> Result<(), ExpandError> {
    if text.len() > MAX_VALUE { Err(ExpandError::Long { limit: MAX_VALUE }) } else { Ok(()) }
}

impl Expander<'_> {
    /// Expands up to `stop`, which is consumed, or to the end. `keep_escapes` leaves escape characters in, for
    /// patterns that give them a meaning of their own.
    fn until(&mut self, stop: Option<char>, keep_escapes: bool) -> Result<Expansion, ExpandError> {
        if self.depth > MAX_DEPTH {
            return Err(ExpandError::Deep);
        }
        self.depth += 1;
        let expanded = self.parts(stop, keep_escapes);
        self.depth -= 1;
        expanded
    }

    fn parts(&mut self, stop: Option<char>, keep_escapes: bool) -> Result<Expansion, ExpandError> {
        let mut out = Expansion::default();
        while let Some(&c) = self.chars.peek() {
            fits(&out.text)?;
            if Some(c) == stop {
                self.chars.next();
                return Ok(out);
            }
            match c {
                '$' => out.push_split(&self.dollar()?),
                '\'' if self.rules.quotes => out.push_whole(&self.single_quoted()?),
                '"' if self.rules.quotes => out.push_whole(&self.double_quoted(keep_escapes)?),
                _ if c == self.rules.escape => {
                    self.chars.next();
                    let Some(escaped) = self.chars.next() else { break };
                    if keep_escapes {
                        out.push_whole(c.encode_utf8(&mut [0; 4]));
                    }
                    out.push_whole(escaped.encode_utf8(&mut [0; 4]));
                }
                _ => {
                    self.chars.next();
                    out.push_split(c.encode_utf8(&mut [0; 4]));
                }
            }
        }
        fits(&out.text)?;
        match stop {
            Some(missing) => Err(ExpandError::Brace { missing }),
            None => Ok(out),
        }
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        self.chars.next();
        let mut out = String::new();
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(out);
            }
            out.push(c);
        }
        Err(ExpandError::Quote { quote: '\'' })
    }

    fn double_quoted(&mut self, keep_escapes: bool) -> Result<String, ExpandError> {
        self.chars.next();
        let mut out = String::new();
        while let Some(&c) = self.chars.peek() {
            fits(&out)?;
            match c {
                '"' => {
                    self.chars.next();
                    return Ok(out);
                }
                '$' => out.push_str(&self.dollar()?),
                _ if c == self.rules.escape => {
                    self.chars.next();
                    let next = self.chars.peek().copied();
                    let escapes = next.is_some_and(|next| matches!(next, '"' | '$') || next == c);
                    if keep_escapes || !escapes {
                        out.push(c);
                    }
                    if escapes {
                        out.extend(self.chars.next());
                    }
                }
                _ => out.extend(self.chars.next()),
            }
        }
        Err(ExpandError::Quote { quote: '"' })
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        self.chars.next();
        if self.chars.peek() != Some(&'{') {
            let name = self.name();
            return Ok(if name.is_empty() { "$".to_owned() } else { self.value(&name) });
        }
        self.chars.next();
        let name = self.name();
        if name.is_empty() {
            return Err(ExpandError::Name);
        }
        match self.chars.next() {
            None => Err(ExpandError::Brace { missing: '}' }),
            Some('}') => Ok(self.value(&name)),
            Some(':') => {
                let modifier = self.chars.next();
                match modifier {
                    Some('-' | '+' | '?') => self.default_form(&name, modifier, true),
                    None => Err(ExpandError::Brace { missing: '}' }),
                    Some(other) => Err(ExpandError::Modifier { name, modifier: format!(":{other}") }),
                }
            }
            modifier @ Some('-' | '+' | '?') => self.default_form(&name, modifier, false),
            Some(side @ ('#' | '%')) => self.trim(&name, side),
            Some('/') => self.replace(&name),
            Some(other) => Err(ExpandError::Modifier { name, modifier: other.to_string() }),
        }
    }

    /// A variable's value, empty when it is not set.
    fn value(&mut self, name: &str) -> String {
        (self.lookup)(name).unwrap_or_else(|| {
            // The shell's special parameters are never set, and nobody means them as variables.
            if name.starts_with(|c: char| c.is_alphabetic() || c == '_') {
                self.unset.push(name.to_owned());
            }
            String::new()
        })
    }

    /// `${x-w}`, `${x+w}`, `${x?w}`, and the same with a colon, for which an empty value counts as none.
    fn default_form(
        &mut self,
        name: &str,
        modifier: Option<char>,
        colon: bool,
    ) -> Result<String, ExpandError> {
        let word = self.until(Some('}'), false)?.text;
        let value = (self.lookup)(name).filter(|value| !colon || !value.is_empty());
        match (modifier, value) {
            (Some('+'), Some(_)) => Ok(word),
            (Some('+'), None) => Ok(String::new()),
            (_, Some(value)) => Ok(value),
            (Some('-'), None) => Ok(word),
            (_, None) => {
                let reason =
                    if colon { "is not allowed to be empty or unset" } else { "is not allowed to be unset" };
                let message = if word.is_empty() { reason.to_owned() } else { word };
                Err(ExpandError::Required { name: name.to_owned(), message })
            }
        }
    }

    /// A value to match a pattern against.
    fn matched(&mut self, name: &str) -> Result<Vec<char>, ExpandError> {
        let value: Vec<char> = self.value(name).chars().collect();
        if value.len() > MAX_MATCHED {
            return Err(ExpandError::Long { limit: MAX_MATCHED });
        }
        Ok(value)
    }

    /// `${x#p}`, `${x##p}`, `${x%p}`, `${x%%p}`: without the shortest or longest prefix or suffix that matches.
    fn trim(&mut self, name: &str, side: char) -> Result<String, ExpandError> {
        let longest = self.chars.next_if_eq(&side).is_some();
        let pattern = shell_pattern(&self.until(Some('}'), true)?.text);
        let value = self.matched(name)?;
        let mut cuts: Vec<usize> = (0..=value.len()).collect();
        if (side == '#') == longest {
            cuts.reverse();
        }
        let kept = cuts.into_iter().find_map(|cut| match side {
            '#' => matches(&pattern, &value[..cut]).then(|| &value[cut..]),
            _ => matches(&pattern, &value[cut..]).then(|| &value[..cut]),
        });
        Ok(kept.unwrap_or(&value).iter().collect())
    }

    /// `${x/p/r}` and `${x//p/r}`: the first or every longest match replaced.
    fn replace(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let pattern = shell_pattern(&self.until(Some('/'), true)?.text);
        let replacement = self.until(Some('}'), true)?.text;
        let value = self.matched(name)?;
        let (mut out, mut at, mut replaced) = (String::new(), 0, false);
        while at < value.len() {
            fits(&out)?;
            let end = (at + 1..=value.len()).rev().find(|end| matches(&pattern, &value[at..*end]));
            match end {
                Some(end) if all || !replaced => {
                    out.push_str(&replacement);
                    (at, replaced) = (end, true);
                }
                _ => {
                    out.push(value[at]);
                    at += 1;
                }
            }
        }
        Ok(out)
    }

    /// A variable's name, a run of digits, or one of the shell's special parameters (which are never set here).
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.chars.peek() {
            Some(c) if c.is_ascii_digit() => {
                while let Some(digit) = self.chars.next_if(char::is_ascii_digit) {
                    name.push(digit);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.chars.next()),
            _ => {
                while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }
}

/// A part of a shell pattern: no bracket expressions in Dockerfiles.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Star,
    One,
    Char(char),
}

fn shell_pattern(pattern: &str) -> Vec<Part> {
    let mut chars = pattern.chars();
    let mut parts = Vec::new();
    while let Some(c) = chars.next() {
        parts.push(match c {
            '*' => Part::Star,
            '?' => Part::One,
            '\\' => Part::Char(chars.next().unwrap_or('\\')),
            _ => Part::Char(c),
        });
    }
    parts
}

/// Greedy matching with one point of return, which is enough for patterns of this kind.
fn matches(pattern: &[Part], text: &[char]) -> bool {
    let (mut p, mut t, mut retry) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(Part::Star) => {
                retry = Some((p, t));
                p += 1;
            }
            Some(Part::One) => (p, t) = (p + 1, t + 1),
            Some(Part::Char(c)) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((star, from)) => {
                    retry = Some((star, from + 1));
                    (p, t) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|part| *part == Part::Star)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(name: &str) -> Option<String> {
        let value = match name {
            "x" => "ex",
            "empty" => "",
            "path" => "/usr/local/lib.tar.gz",
            "two" => "a b",
            "ünï" => "uni",
            _ => return None,
        };
        Some(value.to_owned())
    }

    fn run(word: &str) -> Result<String, ExpandError> {
        expand(word, Rules { escape: '\\', quotes: true }, &vars)
    }

    #[test]
    fn words_expand() {
        let table = [
            ("plain", "plain"),
            ("$x", "ex"),
            ("${x}y", "exy"),
            ("$xy", ""),
            ("$ünï", "uni"),
            (r"\$x", "$x"),
            (r"\${x}", "${x}"),
            (r"a\b", "ab"),
            ("'$x'", "$x"),
            ("\"$x y\"", "ex y"),
            (r#""a\"b""#, "a\"b"),
            (r#""a\nb""#, r"a\nb"),
            (r#""\$x""#, "$x"),
            ("${x:-w}", "ex"),
            ("${none:-w}", "w"),
            ("${empty:-w}", "w"),
            ("${empty-w}", ""),
            ("${none-w}", "w"),
            ("${x:+w}", "w"),
            ("${none:+w}", ""),
            ("${empty:+w}", ""),
            ("${empty+w}", "w"),
            ("${none:-${x}}", "ex"),
            ("${none:-$none}", ""),
            ("${x?needed}", "ex"),
            ("${path#*/}", "usr/local/lib.tar.gz"),
            ("${path##*/}", "lib.tar.gz"),
            ("${path%.*}", "/usr/local/lib.tar"),
            ("${path%%.*}", "/usr/local/lib"),
            ("${path/l/L}", "/usr/Local/lib.tar.gz"),
            ("${path//l/L}", "/usr/LocaL/Lib.tar.gz"),
            (r"${path//\//_}", "_usr_local_lib.tar.gz"),
            ("${none#x}", ""),
            ("a$", "a$"),
            ("$1", ""),
            ("$$", ""),
            ("end\\", "end"),
        ];
        for (word, wanted) in table {
            assert_eq!(run(word).as_deref(), Ok(wanted), "{word}");
        }
    }

    #[test]
    fn bad_words_say_what_is_wrong() {
        assert_eq!(run("'a"), Err(ExpandError::Quote { quote: '\'' }));
        assert_eq!(run("\"a"), Err(ExpandError::Quote { quote: '"' }));
        assert_eq!(run("${x"), Err(ExpandError::Brace { missing: '}' }));
        assert_eq!(run("${x:-w"), Err(ExpandError::Brace { missing: '}' }));
        assert_eq!(run("${x/a}"), Err(ExpandError::Brace { missing: '/' }));
        assert_eq!(run("${}"), Err(ExpandError::Name));
        assert_eq!(run("${{x}}"), Err(ExpandError::Name));
        assert_eq!(run("${x:1}"), Err(ExpandError::Modifier { name: "x".into(), modifier: ":1".into() }));
        assert_eq!(run("${x^}"), Err(ExpandError::Modifier { name: "x".into(), modifier: "^".into() }));
        let wanted = ExpandError::Required { name: "none".into(), message: "say it".into() };
        assert_eq!(run("${none:?say it}"), Err(wanted));
    }

    #[test]
    fn words_split_at_blanks_that_are_not_quoted() {
        let rules = Rules { escape: '\\', quotes: true };
        assert_eq!(expand_words("$two \"$two\" c", rules, &vars).unwrap(), ["a", "b", "a b", "c"]);
        assert_eq!(expand_words("$none", rules, &vars).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn another_escape_character_frees_the_backslash() {
        let rules = Rules { escape: '`', quotes: true };
        assert_eq!(expand(r"c:\x`$x", rules, &vars).unwrap(), r"c:\x$x");
    }

    #[test]
    fn quotes_are_plain_in_heredocs() {
        let rules = Rules { escape: '\\', quotes: false };
        assert_eq!(expand("it's \"$x\"\n", rules, &vars).unwrap(), "it's \"ex\"\n");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(word in "[\\x00-\\x7fä$\\{\\}:#%/'\"\\\\*?xw-]{0,40}") {
            let _ = run(&word);
            let _ = expand_words(&word, Rules { escape: '`', quotes: false }, &vars);
        }
    }
}
