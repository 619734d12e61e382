//! `.dockerignore`: which files of a directory are not part of the build context.

use crate::pattern::{BadPattern, Pattern};

/// The patterns of one ignore file, in order; the last one that matches decides.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    file: String,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    text: String,
    line: usize,
    keeps: bool,
    pattern: Pattern,
}

/// A pattern of an ignore file that is not well-formed.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}: pattern `{pattern}` is malformed")]
pub struct IgnoreError {
    /// The ignore file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// The pattern as written.
    pub pattern: String,
    /// Why.
    #[source]
    pub source: BadPattern,
}

impl Ignore {
    /// Reads an ignore file.
    pub fn parse(file: &str, text: &str) -> Result<Self, IgnoreError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            // Only a `#` in the very first column makes a comment.
            let written = line.trim();
            if line.starts_with('#') || written.is_empty() {
                continue;
            }
            let malformed = |source| IgnoreError {
                file: file.to_owned(),
                line: index + 1,
                pattern: written.to_owned(),
                source,
            };
            rules.extend(Rule::read(written, index + 1).map_err(malformed)?);
        }
        Ok(Self { file: file.to_owned(), rules })
    }

    /// The patterns of `--exclude`, which have no comments. The error is the number of the malformed one, from 0, and what
    /// is wrong with it.
    pub fn of(patterns: &[String]) -> Result<Self, (usize, BadPattern)> {
        let mut rules = Vec::new();
        for (at, written) in patterns.iter().enumerate() {
            let rule = Rule::read(written.trim(), at + 1).map_err(|source| (at, source))?;
            rules.extend(rule);
        }
        Ok(Self { file: "--exclude".to_owned(), rules })
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any rule can bring files back from an excluded directory.
    pub fn keeps_any(&self) -> bool {
        self.rules.iter().any(|rule| rule.keeps)
    }

    /// Whether a path, relative and with `/` between its parts, is excluded.
    pub fn excludes(&self, path: &str) -> bool {
        self.deciding(path).is_some()
    }

    /// `file:line: pattern` of the rule that excludes a path.
    pub fn excluded_by(&self, path: &str) -> Option<String> {
        self.deciding(path).map(|rule| format!("`{}` ({}, line {})", rule.text, self.file, rule.line))
    }

    fn deciding(&self, path: &str) -> Option<&Rule> {
        let mut excluding = None;
        for rule in &self.rules {
            // A rule that would change nothing is not asked.
            if rule.keeps == excluding.is_some()
                && self_or_parent(path).any(|part| rule.pattern.matches(part))
            {
                excluding = (!rule.keeps).then_some(rule);
            }
        }
        excluding
    }
}

impl Rule {
    /// Reads one pattern; `None` for one that would be everything, and in Docker is nothing.
    fn read(written: &str, line: usize) -> Result<Option<Self>, BadPattern> {
        let (keeps, body) = written.strip_prefix('!').map_or((false, written), |body| (true, body.trim()));
        if body.is_empty() && keeps {
            return Err(BadPattern::Negation);
        }
        let body = clean(body);
        if body == "." {
            return Ok(None);
        }
        let pattern = Pattern::ignore(&body)?;
        Ok(Some(Self { text: written.to_owned(), line, keeps, pattern }))
    }
}

/// The path and every directory above it.
fn self_or_parent(path: &str) -> impl Iterator<Item = &str> {
    let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
    std::iter::once(path).chain(parents)
}

/// Go's `path.Clean`, and without the leading slash: `/a//b/../c/` is `a/c`.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(rules: &str, path: &str) -> bool {
        Ignore::parse(".dockerignore", rules).unwrap().excludes(path)
    }

    #[test]
    fn rules_apply_in_order_and_to_parents() {
        let table = [
            ("docs", "docs/README.md", true),
            ("docs\n!docs/README.md", "docs/README.md", false),
            ("docs/\n!docs/README.md", "docs/README.md", false),
            ("docs/*\n!docs/README.md", "docs/README.md", false),
            ("!x.go\n*.go", "x.go", true),
            ("*.go\n!x.go", "x.go", false),
            ("*.go\n!x.go", "y.go", true),
            ("*.go", "sub/x.go", false),
            ("**/*.go", "sub/x.go", true),
            ("/sub", "sub/x", true),
            ("./sub/../other", "other", true),
            ("  sub  ", "sub", true),
            ("! sub", "sub", false),
            ("*\n! sub", "sub/x", false),
            ("*\n!/sub/x", "sub/x", false),
            ("*\n!/sub/x", "sub/y", true),
            ("#sub", "#sub", false),
            (" #sub", "#sub", true),
            ("**\n!util/web", "util/web/foo", false),
            ("**\n!util/web\nutil/web/foo", "util/web/foo", true),
            ("**\n!dist/*.whl", "dist/a-1.whl", false),
            (".", "x", false),
            ("/", "x", false),
            ("", "x", false),
            ("\u{feff}x", "x", true),
            ("x\r\ny", "x", true),
            ("*/temp*", "a/tempfile", true),
            ("*/temp*", "a/b/tempfile", false),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
        ];
        for (rules, path, wanted) in table {
            assert_eq!(excludes(rules, path), wanted, "{rules:?} {path}");
        }
    }

    #[test]
    fn a_malformed_rule_is_named() {
        let error = Ignore::parse("D.dockerignore", "ok\n[a").unwrap_err();
        assert_eq!(error.to_string(), "D.dockerignore:2: pattern `[a` is malformed");
        assert!(Ignore::parse("x", "!").is_err());
        assert!(Ignore::parse("x", "! ").is_err());
    }

    #[test]
    fn the_rule_that_excludes_is_named() {
        let ignore = Ignore::parse(".dockerignore", "# no\n*.log").unwrap();
        assert_eq!(ignore.excluded_by("a.log").as_deref(), Some("`*.log` (.dockerignore, line 2)"));
        assert_eq!(ignore.excluded_by("a"), None);
    }
}
