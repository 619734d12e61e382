//! Wildcards: Go's `filepath.Match`, which `COPY` uses, and the dialect with `**` of `.dockerignore`.
//!
//! Both are compiled to the same tokens and matched by walking all possible states at once, so that no pattern can
//! take more than pattern × text steps.

/// Why a pattern is not well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// `[` without `]`.
    #[error("the `[` is not closed")]
    Bracket,
    /// `[]`, `[-a]`, `[a-]` and the like.
    #[error("a range of characters in `[…]` is not complete")]
    Range,
    /// A backslash with nothing after it.
    #[error("a backslash stands at the end")]
    Escape,
    /// `!` alone.
    #[error("`!` stands alone, expected a pattern after it")]
    Negation,
}

/// One token of a compiled pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// This character.
    Char(char),
    /// One character that is not `/`.
    One,
    /// Characters that are not `/`, as many as there are.
    Star,
    /// Any characters.
    Anything,
    /// The next token may be left out.
    Maybe,
    /// Anything up to and including a `/`.
    ThroughSlash,
    /// One character of ranges, or, when negated, of none.
    Class { negated: bool, ranges: Vec<(char, char)> },
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern(Kind);

/// The simple shapes are matched as they are; they also differ from what their tokens would say (see [`Kind::Suffix`]).
#[derive(Clone, Debug)]
enum Kind {
    Exact(String),
    /// `dir/**`, without its stars.
    Prefix(String),
    /// `**name`, without its stars: a suffix of the whole path, not only of its last component.
    Suffix(String),
    Tokens(Vec<Token>),
}

impl Pattern {
    /// A pattern of `filepath.Match`: `*`, `?`, `[…]` and the backslash, none of them crossing a `/` but for `[…]`.
    pub fn go(text: &str) -> Result<Self, BadPattern> {
        let mut chars = text.chars().peekable();
        let mut tokens = Vec::new();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Star,
                _ => plain(c, &mut chars)?,
            });
        }
        Ok(Self(Kind::Tokens(tokens)))
    }

    /// A pattern of `.dockerignore`, without its `!`: as above, and `**` stands for any number of directories.
    pub fn ignore(text: &str) -> Result<Self, BadPattern> {
        Self::go(text)?;
        let rest = text.strip_prefix("**").unwrap_or(text);
        if text.starts_with("**") && !has_wildcards(rest) && !rest.contains('\\') {
            return Ok(Self(Kind::Suffix(rest.to_owned())));
        }
        let head = text.strip_suffix("**").unwrap_or(text);
        if !has_wildcards(head) && !head.contains('\\') {
            let head = head.to_owned();
            return Ok(Self(if head.len() < text.len() { Kind::Prefix(head) } else { Kind::Exact(head) }));
        }
        let mut chars = text.chars().peekable();
        let mut tokens = Vec::new();
        while let Some(c) = chars.next() {
            if c == '*' && chars.next_if_eq(&'*').is_some() {
                chars.next_if_eq(&'/');
                match chars.peek() {
                    None => tokens.push(Token::Anything),
                    Some(_) => tokens.extend([Token::Maybe, Token::ThroughSlash]),
                }
            } else if c == '*' {
                tokens.push(Token::Star);
            } else {
                tokens.push(plain(c, &mut chars)?);
            }
        }
        Ok(Self(Kind::Tokens(tokens)))
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        match &self.0 {
            Kind::Exact(path) => text == path,
            Kind::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Kind::Suffix(suffix) => {
                text.ends_with(suffix.as_str())
                    || suffix.strip_prefix('/').is_some_and(|suffix| suffix == text)
            }
            Kind::Tokens(tokens) => walk(tokens, text),
        }
    }
}

/// Whether tokens match a text: all states that could have been reached, one character after the other.
fn walk(tokens: &[Token], text: &str) -> bool {
    let mut states = vec![false; tokens.len() + 1];
    states[0] = true;
    skip_empty(tokens, &mut states);
    for c in text.chars() {
        let mut next = vec![false; states.len()];
        for (at, token) in tokens.iter().enumerate().filter(|(at, _)| states[*at]) {
            match token {
                Token::Char(wanted) => next[at + 1] |= *wanted == c,
                Token::One => next[at + 1] |= c != '/',
                Token::Star => next[at] |= c != '/',
                Token::Anything => next[at] = true,
                Token::Maybe => {}
                Token::ThroughSlash => {
                    next[at] = true;
                    next[at + 1] |= c == '/';
                }
                Token::Class { negated, ranges } => {
                    let within = ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
                    next[at + 1] |= within != *negated;
                }
            }
        }
        skip_empty(tokens, &mut next);
        states = next;
    }
    states[tokens.len()]
}

/// Adds the states that are reached without a character.
fn skip_empty(tokens: &[Token], states: &mut [bool]) {
    for (at, token) in tokens.iter().enumerate() {
        match token {
            _ if !states[at] => {}
            Token::Star | Token::Anything => states[at + 1] = true,
            Token::Maybe => {
                states[at + 1] = true;
                // Always there: what may be left out follows directly.
                if let Some(after) = states.get_mut(at + 2) {
                    *after = true;
                }
            }
            _ => {}
        }
    }
}

/// Any token but stars.
fn plain(c: char, chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, BadPattern> {
    Ok(match c {
        '?' => Token::One,
        '[' => class(chars)?,
        '\\' => Token::Char(chars.next().ok_or(BadPattern::Escape)?),
        _ => Token::Char(c),
    })
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, BadPattern> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Ok(Token::Class { negated, ranges });
        }
        let low = class_char(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { class_char(chars)? } else { low };
        ranges.push((low, high));
    }
}

fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, BadPattern> {
    match chars.next() {
        None => Err(BadPattern::Bracket),
        Some('-' | ']') => Err(BadPattern::Range),
        Some('\\') => chars.next().ok_or(BadPattern::Escape),
        Some(c) => Ok(c),
    }
}

/// Whether a path has wildcards; escaped ones do not count.
pub(crate) fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_patterns_match_as_in_go() {
        let table = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[b-d]", "abc", true),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            (r"a\*b", "a*b", true),
            (r"a\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("a?b", "a/b", false),
            (r"[\]a]", "]", true),
            (r"[x\-]", "-", true),
            ("[a-ζ]*", "α", true),
            ("**", "a/b", false),
        ];
        for (pattern, text, wanted) in table {
            assert_eq!(Pattern::go(pattern).unwrap().matches(text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a["] {
            assert!(Pattern::go(pattern).is_err(), "{pattern}");
            assert!(Pattern::ignore(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn ignore_patterns_match_whole_paths() {
        let table = [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "dir", false),
            ("**/dir", "dir", true),
            ("**/dir", "a/b/dir", true),
            ("**/dir", "mydir", false),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir3/file", true),
            ("**file", "dir/file", true),
            ("**file", "dir/profile", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt**", "a/file.txt", true),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcZdef", false),
            ("**/.foo", "bar.foo", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a/**/z", "a/b/cz", false),
        ];
        for (pattern, text, wanted) in table {
            assert_eq!(Pattern::ignore(pattern).unwrap().matches(text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn matching_takes_no_exponential_time() {
        let pattern = Pattern::ignore(&"**/a*".repeat(40)).unwrap();
        assert!(!pattern.matches(&"a/".repeat(2000)));
    }
}
