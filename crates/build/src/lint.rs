//! What is not wrong with a Dockerfile but looks like a mistake: BuildKit's build checks, by the same names.
//!
//! Checks of how the file is written are here; those that need values are where the values are, in the plan.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use berth_types::image::BuildWarning;

use crate::fault::{Fault, Problem};
use crate::instruction::{Instruction, Located};
use crate::source::{Source, Span};
use crate::syntax::words::split_quoted;
use crate::syntax::{Statement, Syntax, Word};

/// What BuildKit does not count among its checks, and so neither skips nor fails for.
const OWN: [&str; 2] = ["UnusedBuildArg", "CopyNothing"];
/// Checks that are made only where the file asks for them.
const EXPERIMENTAL: [&str; 1] = ["InvalidDefinitionDescription"];
/// Words of a variable's name that tell of a secret.
const SECRET_WORDS: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];

/// What a check found.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) message: String,
    pub(crate) source: Arc<Source>,
    pub(crate) span: Span,
}

impl Finding {
    pub(crate) fn new(check: &'static str, statement: &Statement, span: Span, message: String) -> Self {
        Self { check, message, source: statement.source.clone(), span }
    }

    fn warning(&self, line: u32) -> BuildWarning {
        let mut message = self.message.clone();
        if self.source.brought_by.is_some() {
            message.push_str(&format!(" (in `{}` of the base image)", self.source.name));
        }
        BuildWarning { check: self.check.to_owned(), message, file: self.place().0.name.clone(), line }
    }

    /// The file to show, and where in it: of a trigger its `FROM`.
    fn place(&self) -> (&Source, usize) {
        let (source, span) = self.source.in_file(self.span);
        (source, span.start)
    }
}

/// Counts the lines of places that come in order, so that a file with many is read through once.
#[derive(Default)]
struct Lines<'a> {
    source: Option<&'a Source>,
    at: usize,
    line: u32,
}

impl<'a> Lines<'a> {
    fn of(&mut self, finding: &'a Finding) -> u32 {
        let (source, start) = finding.place();
        if !self.source.is_some_and(|known| std::ptr::eq(known, source)) {
            *self = Self { source: Some(source), at: 0, line: 1 };
        }
        let bytes = source.text.as_bytes();
        let upto = start.clamp(self.at, bytes.len().max(self.at));
        let passed = bytes.get(self.at..upto).unwrap_or_default();
        let newlines = passed.iter().filter(|byte| **byte == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(newlines).unwrap_or(u32::MAX));
        self.at = upto;
        self.line
    }
}

/// Which checks are made, and what becomes of what they find: `# check=skip=…;error=…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checks {
    skip: BTreeSet<String>,
    skip_all: bool,
    experimental: BTreeSet<String>,
    error: bool,
}

impl Checks {
    /// Reads the directive. What BuildKit does not know in it is told to be wrong.
    pub(crate) fn read(word: &Word, source: &Arc<Source>) -> Result<Self, Box<Fault>> {
        Self::parse(&word.text).map_err(|found| {
            let expected = "`skip=`, `error=` or `experimental=` with a value, joined by `;`";
            let problem = Problem::Expected { instruction: "# check", expected, found };
            Fault::new(source, word.span, problem)
        })
    }

    /// The same of a plain text; the error is what is wrong in it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut checks = Self::default();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}`"))?;
            let names = || value.split(',').map(|name| name.trim().to_owned()).collect::<BTreeSet<_>>();
            match key.trim() {
                "skip" if value.trim() == "all" => checks.skip_all = true,
                "skip" => checks.skip = names(),
                "experimental" => checks.experimental = names(),
                "error" => {
                    checks.error = go_bool(value.trim()).ok_or_else(|| format!("`{part}`"))?;
                }
                _ => return Err(format!("`{part}`")),
            }
        }
        Ok(checks)
    }

    fn wants(&self, check: &str) -> bool {
        if OWN.contains(&check) {
            return true;
        }
        let asked = self.experimental.contains(check) || self.experimental.contains("all");
        let on = !EXPERIMENTAL.contains(&check) || asked;
        on && !self.skip_all && !self.skip.contains(check)
    }

    /// The warnings that are left of what was found, in the order of the file.
    pub(crate) fn judge(&self, mut found: Vec<Finding>) -> Result<Vec<BuildWarning>, Box<Fault>> {
        found.retain(|finding| self.wants(finding.check));
        let order = |finding: &Finding| {
            let (source, start) = finding.place();
            (source.name.clone(), start, finding.span.start)
        };
        found.sort_by_cached_key(order);
        let fatal = |finding: &&Finding| !OWN.contains(&finding.check);
        if self.error
            && let Some(first) = found.iter().find(fatal)
        {
            let (check, message) = (first.check, first.message.clone());
            let more = found.iter().filter(fatal).count() - 1;
            return Err(Fault::new(&first.source, first.span, Problem::Check { check, message, more }));
        }
        let (mut lines, mut seen) = (Lines::default(), HashSet::new());
        let lined = found.iter().map(|finding| (finding, lines.of(finding)));
        let new = lined.filter(|(finding, line)| {
            seen.insert((finding.check, finding.message.as_str(), finding.source.name.as_str(), *line))
        });
        let warnings = new.map(|(finding, line)| finding.warning(line)).collect();
        Ok(warnings)
    }
}

/// A boolean as Go reads it.
pub(crate) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Whether a variable's name tells of a secret.
pub(crate) fn names_secret(name: &str) -> bool {
    let lower = name.to_lowercase();
    let mut words = lower.split('_');
    !words.clone().any(|word| word == "public") && words.any(|word| SECRET_WORDS.contains(&word))
}

/// Checks of the file's layout.
pub(crate) fn syntax(syntax: &Syntax) -> Vec<Finding> {
    let mut found: Vec<Finding> = syntax
        .empty_continuations
        .iter()
        .map(|span| Finding {
            check: "NoEmptyContinuation",
            message: "Empty continuation line".to_owned(),
            source: syntax.source.clone(),
            span: *span,
        })
        .collect();
    found.extend(casing(&syntax.statements));
    found
}

/// Every instruction is to be written in capitals, or every one without.
fn casing(statements: &[Statement]) -> Vec<Finding> {
    let written =
        |statement: &Statement| statement.text.split_whitespace().next().unwrap_or_default().to_owned();
    let (mut lower, mut upper) = (0, 0);
    for keyword in statements.iter().map(written) {
        lower += usize::from(keyword == keyword.to_lowercase());
        upper += usize::from(keyword == keyword.to_uppercase());
    }
    let (name, fits): (_, fn(&str) -> String) = match lower > upper {
        true => ("lowercase", str::to_lowercase),
        false => ("uppercase", str::to_uppercase),
    };
    let odd = statements.iter().filter(|statement| written(statement) != fits(&written(statement)));
    odd.map(|statement| {
        let message = format!(
            "Command '{}' should match the case of the command majority ({name})",
            written(statement)
        );
        Finding::new("ConsistentInstructionCasing", statement, statement.keyword_span(), message)
    })
    .collect()
}

/// Checks of one instruction that need nothing else.
pub(crate) fn instruction(located: &Located) -> Vec<Finding> {
    let statement = &located.statement;
    let whole = statement.keyword_span();
    let mut found = Vec::new();
    let mut add = |check, span, message| found.push(Finding::new(check, statement, span, message));
    match &located.instruction {
        Instruction::From(from) => {
            if let Some(name) = &from.name {
                stage_name(statement, name, from.keyword.as_ref(), &mut add);
            }
            for name in from.name.iter() {
                description(statement, &name.text, &mut add);
            }
        }
        Instruction::Maintainer(_) => add(
            "MaintainerDeprecated",
            whole,
            "Maintainer instruction is deprecated in favor of using label".to_owned(),
        ),
        Instruction::Arg(args) => {
            for arg in args {
                secret("ARG", &arg.name, &mut add);
                description(statement, &arg.name.text, &mut add);
            }
        }
        Instruction::Env(pairs) | Instruction::Label(pairs) => {
            let keyword = statement.keyword.as_str();
            let words = split_quoted(statement.arguments().0, statement.escape);
            if words.first().is_some_and(|(word, _)| !word.contains('=')) {
                let message = format!(
                    "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
                );
                add("LegacyKeyValueFormat", whole, message);
            }
            if keyword == "ENV" {
                pairs.iter().for_each(|pair| secret("ENV", &pair.key, &mut add));
            }
        }
        _ => {}
    }
    found
}

type Add<'a> = dyn FnMut(&'static str, Span, String) + 'a;

fn stage_name(statement: &Statement, name: &Word, keyword: Option<&Word>, add: &mut Add<'_>) {
    let written = &statement.source.text[name.span.start..name.span.end];
    if written != name.text {
        add("StageNameCasing", name.span, format!("Stage name '{written}' should be lowercase"));
    }
    if matches!(name.text.as_str(), "scratch" | "context") {
        let message = format!("Stage name should not use the same name as reserved stage \"{}\"", name.text);
        add("ReservedStageName", name.span, message);
    }
    let from = statement.text.split_whitespace().next().unwrap_or_default();
    let lower = |word: &str| word.to_lowercase() == word;
    if let Some(keyword) = keyword.filter(|keyword| lower(&keyword.text) != lower(from)) {
        let message = format!("'{}' and '{from}' keywords' casing do not match", keyword.text);
        add("FromAsCasing", keyword.span, message);
    }
}

fn secret(instruction: &str, name: &Word, add: &mut Add<'_>) {
    if names_secret(&name.text) {
        let message = format!(
            "Do not use ARG or ENV instructions for sensitive data ({instruction} \"{}\")",
            name.text
        );
        add("SecretsUsedInArgOrEnv", name.span, message);
    }
}

fn description(statement: &Statement, name: &str, add: &mut Add<'_>) {
    let about = |line: &String| {
        line.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
    };
    if !statement.comment.is_empty() && !statement.comment.first().is_some_and(about) {
        let message = format!(
            "Comment for {} should follow the format: `# {name} <description>`. If this is not intended to be a \
             description comment, add an empty line between the instruction and the comment",
            if statement.keyword == "ARG" { "build argument" } else { "build stage" }
        );
        add("InvalidDefinitionDescription", statement.keyword_span(), message);
    }
}

/// Checks of one stage's instructions together: of those that only the last counts of, there is to be one.
pub(crate) fn stage(body: &[Located]) -> Vec<Finding> {
    let mut last: BTreeMap<&str, &Statement> = BTreeMap::new();
    let mut found = Vec::new();
    for Located { instruction, statement } in body {
        let name = match instruction {
            Instruction::Cmd(_) => "CMD",
            Instruction::Entrypoint(_) => "ENTRYPOINT",
            Instruction::Healthcheck(_) => "HEALTHCHECK",
            _ => continue,
        };
        if let Some(earlier) = last.insert(name, statement) {
            let message = format!(
                "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
            );
            let span = earlier.keyword_span();
            found.push(Finding::new("MultipleInstructionsDisallowed", earlier, span, message));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_told_from_others() {
        let table = [
            ("API_KEY", true),
            ("TOKEN", true),
            ("aws_secret_access", true),
            ("MYPASSWORD", false),
            ("KEYBOARD", false),
            ("PUBLIC_KEY", false),
            ("DB_PASSWD", true),
            ("AUTHOR", false),
        ];
        for (name, wanted) in table {
            assert_eq!(names_secret(name), wanted, "{name}");
        }
    }

    #[test]
    fn the_directive_is_read() {
        let checks = Checks::parse("skip=A, B;error=true").unwrap();
        assert_eq!(
            (checks.wants("A"), checks.wants("B"), checks.wants("C"), checks.error),
            (false, false, true, true)
        );
        let all = Checks::parse("skip=all").unwrap();
        assert_eq!((all.wants("A"), all.wants("UnusedBuildArg"), all.error), (false, true, false));
        assert!(!Checks::default().wants("InvalidDefinitionDescription"));
        assert!(Checks::parse("experimental=all").unwrap().wants("InvalidDefinitionDescription"));
        for bad in ["skip", "error=maybe", "sikp=A"] {
            assert!(Checks::parse(bad).is_err(), "{bad}");
        }
    }
}
