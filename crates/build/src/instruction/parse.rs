//! From a statement to a typed instruction.

use std::ops::Range;
use std::sync::Arc;

use super::flags::Takes::{Bool, Value, Values};
use super::flags::{Flags, Known};
use super::mount::mounts;
use super::{Arg, CommandLine, Copy, CopySource, From, Healthcheck, Instruction, Located, NAMES, Pair, Run};
use crate::fault::{Fault, Problem, nearest};
use crate::source::Source;
use crate::syntax::words::{json_of_other_things, json_strings, split_blanks, split_quoted};
use crate::syntax::{Heredoc, Statement, Word};

type Parsed<T> = Result<T, Box<Fault>>;

const FROM_FLAGS: &[Known] = &[("platform", Value)];
const RUN_FLAGS: &[Known] = &[("mount", Values), ("network", Value), ("security", Value), ("device", Values)];
const COPY_FLAGS: &[Known] = &[
    ("from", Value),
    ("chown", Value),
    ("chmod", Value),
    ("link", Bool),
    ("parents", Bool),
    ("exclude", Values),
];
const ADD_FLAGS: &[Known] = &[
    ("chown", Value),
    ("chmod", Value),
    ("link", Bool),
    ("exclude", Values),
    ("checksum", Value),
    ("keep-git-dir", Bool),
    ("unpack", Bool),
];
const HEALTH_FLAGS: &[Known] = &[
    ("interval", Value),
    ("timeout", Value),
    ("start-period", Value),
    ("start-interval", Value),
    ("retries", Value),
];

/// Reads one statement.
pub fn instruction(statement: Statement) -> Parsed<Located> {
    let Some(name) = NAMES.iter().copied().find(|name| *name == statement.keyword) else {
        let nearest = nearest(&statement.keyword, NAMES);
        let name = statement.text.split_whitespace().next().unwrap_or_default().to_owned();
        let problem = Problem::UnknownInstruction { name, nearest };
        return Err(statement.fault(statement.keyword_span(), problem));
    };
    let known = match name {
        "FROM" => FROM_FLAGS,
        "RUN" => RUN_FLAGS,
        "COPY" => COPY_FLAGS,
        "ADD" => ADD_FLAGS,
        "HEALTHCHECK" => HEALTH_FLAGS,
        _ => &[],
    };
    // ONBUILD's flags are those of its trigger, which begins with a word of its own.
    let flags = Flags::take(&statement, name, known)?;
    let instruction = Reader { statement: &statement, name, flags }.read()?;
    Ok(Located { instruction, statement })
}

struct Reader<'a> {
    statement: &'a Statement,
    name: &'static str,
    flags: Flags<'a>,
}

impl Reader<'_> {
    fn read(&self) -> Parsed<Instruction> {
        if self.flags.rest.is_empty() && self.name != "HEALTHCHECK" {
            let span = self.statement.whole_span();
            return self.expected("an argument", "nothing".to_owned(), Some(span));
        }
        Ok(match self.name {
            "FROM" => Instruction::From(self.from()?),
            "ARG" => Instruction::Arg(self.args()?),
            "ENV" => Instruction::Env(self.pairs()?),
            "LABEL" => Instruction::Label(self.pairs()?),
            "WORKDIR" => Instruction::Workdir(self.whole()),
            "USER" => Instruction::User(self.whole()),
            "STOPSIGNAL" => Instruction::StopSignal(self.whole()),
            "RUN" => self.run()?,
            "CMD" => Instruction::Cmd(self.command(self.flags.rest)?),
            "ENTRYPOINT" => Instruction::Entrypoint(self.command(self.flags.rest)?),
            "COPY" => Instruction::Copy(self.copy(false)?),
            "ADD" => Instruction::Copy(self.copy(true)?),
            "EXPOSE" => Instruction::Expose(self.words()),
            "VOLUME" => Instruction::Volume(self.json_or_words()?),
            "HEALTHCHECK" => Instruction::Healthcheck(self.healthcheck()?),
            "SHELL" => Instruction::Shell(self.shell()?),
            "MAINTAINER" => Instruction::Maintainer(self.flags.rest.to_owned()),
            _ => Instruction::Onbuild(self.onbuild()?),
        })
    }

    fn expected<T>(
        &self,
        expected: &'static str,
        found: String,
        span: Option<crate::source::Span>,
    ) -> Parsed<T> {
        let span = span.unwrap_or_else(|| self.whole().span);
        Err(self.statement.fault(span, Problem::Expected { instruction: self.name, expected, found }))
    }

    fn word(&self, text: &str, range: Range<usize>) -> Word {
        let at = self.flags.at;
        Word { text: text.to_owned(), span: self.statement.span(range.start + at..range.end + at) }
    }

    fn whole(&self) -> Word {
        self.word(self.flags.rest, 0..self.flags.rest.len())
    }

    fn words(&self) -> Vec<Word> {
        split_blanks(self.flags.rest).into_iter().map(|(text, range)| self.word(&text, range)).collect()
    }

    fn json_or_words(&self) -> Parsed<Vec<Word>> {
        self.refuse_other_json(self.flags.rest)?;
        let Some(strings) = json_strings(self.flags.rest) else { return Ok(self.words()) };
        let span = self.whole().span;
        Ok(strings.into_iter().map(|text| Word { text, span }).collect())
    }

    fn refuse_other_json(&self, text: &str) -> Parsed<()> {
        match json_of_other_things(text) {
            true => self.expected("a JSON array of strings only", format!("`{text}`"), None),
            false => Ok(()),
        }
    }

    fn from(&self) -> Parsed<From> {
        let words = self.words();
        let (name, keyword) = match words.as_slice() {
            [_] => (None, None),
            [_, middle, name] if middle.text.eq_ignore_ascii_case("as") => {
                (Some(self.stage_name(name)?), Some(middle.clone()))
            }
            _ => {
                let found = format!("`{}`", self.flags.rest);
                return self.expected("`FROM image` or `FROM image AS name`", found, None);
            }
        };
        Ok(From { image: words[0].clone(), name, keyword, platform: self.flags.get("platform") })
    }

    fn stage_name(&self, name: &Word) -> Parsed<Word> {
        let text = name.text.to_lowercase();
        let valid = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        match valid {
            true => Ok(Word { text, span: name.span }),
            false => self.expected(
                "a stage name of a letter and then letters, digits, `-`, `_` or `.`",
                format!("`{}`", name.text),
                Some(name.span),
            ),
        }
    }

    fn args(&self) -> Parsed<Vec<Arg>> {
        let words = split_quoted(self.flags.rest, self.statement.escape);
        words.into_iter().map(|(text, range)| self.arg(&text, range)).collect()
    }

    fn arg(&self, text: &str, range: Range<usize>) -> Parsed<Arg> {
        let (name, default) = match text.split_once('=') {
            Some((name, default)) => (name, Some(default)),
            None => (text, None),
        };
        if name.is_empty() {
            let span = self.word(text, range).span;
            return self.expected("`NAME` or `NAME=default`", format!("`{text}`"), Some(span));
        }
        let value_at = range.start + name.len() + 1;
        let default = default.map(|default| self.word(default, value_at..range.end));
        Ok(Arg { name: self.word(name, range.start..range.start + name.len()), default })
    }

    /// `k=v k=v …`, or the old form `k rest of the line`.
    fn pairs(&self) -> Parsed<Vec<Pair>> {
        let rest = self.flags.rest;
        let words = split_quoted(rest, self.statement.escape);
        let Some((first, range)) = words.first() else { return Ok(Vec::new()) };
        if !first.contains('=') {
            let key_end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let value = rest[key_end..].trim_start();
            if value.is_empty() {
                let span = self.word(first, range.clone()).span;
                return self.expected("`KEY=value` or `KEY value`", format!("`{first}`"), Some(span));
            }
            let value = self.word(value, rest.len() - value.len()..rest.len());
            return Ok(vec![Pair { key: self.word(&rest[..key_end], 0..key_end), value }]);
        }
        words.iter().map(|(text, range)| self.pair(text, range.clone())).collect()
    }

    fn pair(&self, text: &str, range: Range<usize>) -> Parsed<Pair> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                let value_at = range.start + key.len() + 1;
                let key = self.word(key, range.start..range.start + key.len());
                Ok(Pair { key, value: self.word(value, value_at..range.end) })
            }
            _ => {
                let span = self.word(text, range).span;
                self.expected("`KEY=value`", format!("`{text}`"), Some(span))
            }
        }
    }

    fn command(&self, text: &str) -> Parsed<CommandLine> {
        self.refuse_other_json(text)?;
        Ok(match json_strings(text) {
            Some(argv) => CommandLine::Exec(argv),
            None => CommandLine::Shell(text.to_owned()),
        })
    }

    fn run(&self) -> Parsed<Instruction> {
        let command = self.command(self.flags.rest)?;
        if command == CommandLine::Exec(Vec::new()) {
            return self.expected("a command", "an empty array".to_owned(), None);
        }
        let no_network = self.network()?;
        self.refuse_privileges()?;
        let (mounts, heredocs) = (mounts(self.statement, &self.flags)?, self.statement.heredocs.clone());
        Ok(Instruction::Run(Run { command, heredocs, mounts, no_network }))
    }

    /// Whether `--network` asks for none.
    fn network(&self) -> Parsed<bool> {
        let Some(word) = self.flags.get("network") else { return Ok(false) };
        match word.text.as_str() {
            "default" => Ok(false),
            "none" => Ok(true),
            "host" => self.refused(&word, "a build never shares the machine's network; without the flag it has the one that the build's policy gives"),
            other => {
                let found = format!("`--network={other}`");
                self.expected("`default` or `none` after `--network=`", found, Some(word.span))
            }
        }
    }

    fn refuse_privileges(&self) -> Parsed<()> {
        if let Some(word) = self.flags.all("device").first() {
            return self.refused(word, "steps of a build get no devices; use them in a sandbox of the image");
        }
        let Some(word) = self.flags.get("security") else { return Ok(()) };
        match word.text.as_str() {
            "sandbox" => Ok(()),
            "insecure" => self.refused(
                &word,
                "every step runs in a sandbox, where it is root without the machine's privileges; leave the flag out",
            ),
            other => {
                let found = format!("`--security={other}`");
                self.expected("`sandbox` after `--security=`", found, Some(word.span))
            }
        }
    }

    fn refused<T>(&self, word: &Word, instead: &'static str) -> Parsed<T> {
        let flag = &self.statement.source.text[word.span.start..word.span.end];
        let what = format!("`{} {flag}`", self.name);
        Err(self.statement.fault(word.span, Problem::Refused { what, instead }))
    }

    fn shell(&self) -> Parsed<Vec<String>> {
        match json_strings(self.flags.rest) {
            Some(argv) if !argv.is_empty() => Ok(argv),
            _ => self.expected(
                "a JSON array of strings, for example [\"/bin/bash\", \"-c\"]",
                format!("`{}`", self.flags.rest),
                None,
            ),
        }
    }

    fn copy(&self, add: bool) -> Parsed<Copy> {
        let mut words = self.json_or_words()?;
        let Some(dest) = words.pop().filter(|_| !words.is_empty()) else {
            let found = format!("`{}`", self.flags.rest);
            return self.expected("one or more sources and then a destination", found, None);
        };
        if crate::syntax::heredoc(&dest.text).is_some() {
            let found = format!("heredoc `{}`", dest.text);
            return self.expected("a path as the destination", found, Some(dest.span));
        }
        let mut heredocs = self.statement.heredocs.iter();
        let sources =
            words.into_iter().map(|word| self.copy_source(word, &mut heredocs)).collect::<Parsed<_>>()?;
        let flag = |name| self.flags.get(name);
        Ok(Copy {
            add,
            from: flag("from"),
            chown: flag("chown"),
            chmod: flag("chmod"),
            link: self.flags.bool("link").unwrap_or(false),
            parents: self.flags.bool("parents").unwrap_or(false),
            excludes: self.flags.all("exclude"),
            checksum: flag("checksum"),
            keep_git_dir: self.flags.bool("keep-git-dir"),
            unpack: self.flags.bool("unpack"),
            sources,
            dest,
        })
    }

    fn copy_source<'h>(
        &self,
        word: Word,
        heredocs: &mut impl Iterator<Item = &'h Heredoc>,
    ) -> Parsed<CopySource> {
        if self.statement.heredocs.is_empty() || crate::syntax::heredoc(&word.text).is_none() {
            return Ok(CopySource::Path(word));
        }
        match heredocs.next() {
            Some(heredoc) => Ok(CopySource::Inline(heredoc.clone(), word)),
            None => self.expected("a path or a heredoc", format!("`{}`", word.text), Some(word.span)),
        }
    }

    fn onbuild(&self) -> Parsed<String> {
        let trigger = self.flags.rest.split_whitespace().next().unwrap_or_default().to_uppercase();
        if matches!(trigger.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
            return self.expected("an instruction that may be a trigger", format!("`{trigger}`"), None);
        }
        let mut text = self.flags.rest.to_owned();
        for heredoc in &self.statement.heredocs {
            text.push('\n');
            text.push_str(&heredoc.content);
            text.push_str(&heredoc.name);
        }
        // A trigger that cannot be read is found here, not in the images built on top of this one.
        let source = Arc::new(Source::new(&self.statement.source.name, &text));
        let checked = Statement::detached(&source, self.statement.escape).and_then(instruction);
        match checked {
            Ok(_) => Ok(text),
            Err(fault) => {
                let found = format!("`{}` ({})", self.flags.rest, fault.problem());
                self.expected("a valid instruction as the trigger", found, None)
            }
        }
    }

    fn healthcheck(&self) -> Parsed<Healthcheck> {
        let kind = self.flags.rest.split_whitespace().next().unwrap_or_default();
        let rest = self.flags.rest[kind.len()..].trim_start();
        let command = match kind.to_uppercase().as_str() {
            "NONE" if rest.is_empty() => None,
            "CMD" if !rest.is_empty() => Some(self.command(rest)?),
            _ => {
                let found = if self.flags.rest.is_empty() { "nothing" } else { self.flags.rest };
                let span = self.statement.whole_span();
                return self.expected("`NONE` or `CMD command`", format!("`{found}`"), Some(span));
            }
        };
        Ok(Healthcheck {
            command,
            interval: self.duration("interval")?,
            timeout: self.duration("timeout")?,
            start_period: self.duration("start-period")?,
            start_interval: self.duration("start-interval")?,
            retries: self.retries()?,
        })
    }

    fn duration(&self, name: &str) -> Parsed<Option<i64>> {
        let Some(word) = self.flags.get(name) else { return Ok(None) };
        match go_duration(&word.text) {
            Some(0) => Ok(None),
            Some(nanos) if nanos >= 1_000_000 => Ok(Some(nanos)),
            _ => self.expected(
                "a duration of at least 1ms, for example `30s` or `1m30s`",
                format!("`{}`", word.text),
                Some(word.span),
            ),
        }
    }

    fn retries(&self) -> Parsed<Option<u32>> {
        let Some(word) = self.flags.get("retries") else { return Ok(None) };
        match word.text.parse() {
            Ok(0) => Ok(None),
            Ok(number) => Ok(Some(number)),
            Err(_) => self.expected("a whole number", format!("`{}`", word.text), Some(word.span)),
        }
    }
}

/// A duration as Go writes it (`1h30m`, `1.5s`, `200ms`), in nanoseconds.
fn go_duration(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1.0),
        ("us", 1e3),
        ("µs", 1e3),
        ("μs", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 60e9),
        ("h", 3600e9),
    ];
    if text == "0" {
        return Some(0);
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == &rest[..unit])?;
        total += number * factor;
        rest = &rest[unit..];
    }
    (!text.is_empty() && total < i64::MAX as f64).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::go_duration;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let table = [
            ("30s", Some(30_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            ("200ms", Some(200_000_000)),
            ("0", Some(0)),
            ("30", None),
            ("s", None),
            ("", Some(0)),
            ("1x", None),
        ];
        for (text, wanted) in table {
            let wanted = if text.is_empty() { None } else { wanted };
            assert_eq!(go_duration(text), wanted, "{text}");
        }
    }
}
