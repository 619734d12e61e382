//! The `--flags` of an instruction: which there are, which are known but not built yet.

use crate::fault::{Fault, Problem, nearest};
use crate::syntax::words::split_flags;
use crate::syntax::{Statement, Word};

/// The flags that an instruction may carry.
pub(super) struct Known {
    /// Taken, each with a value.
    pub(super) valued: &'static [&'static str],
    /// Part of the Dockerfile syntax, not built yet. `--x=false` is the same as not giving it.
    pub(super) unsupported: &'static [&'static str],
}

/// Flags as given, and the rest of the arguments.
pub(super) struct Flags<'a> {
    given: Vec<(&'static str, Word)>,
    /// What follows the flags.
    pub(super) rest: &'a str,
    /// Where that begins in the statement's text.
    pub(super) at: usize,
}

impl<'a> Flags<'a> {
    /// Takes the flags off a statement's arguments.
    pub(super) fn take(
        statement: &'a Statement,
        instruction: &'static str,
        known: &Known,
    ) -> Result<Self, Box<Fault>> {
        let (arguments, begin) = statement.arguments();
        let (raw, rest_at) = split_flags(arguments);
        let mut given: Vec<(&'static str, Word)> = Vec::new();
        for flag in raw {
            let span = statement.span(flag.range.start + begin..flag.range.end + begin);
            let fault = |problem| Err(statement.fault(span, problem));
            if let Some(name) = known.unsupported.iter().find(|name| **name == flag.name) {
                if flag.value.as_deref() == Some("false") {
                    continue;
                }
                return fault(Problem::Unsupported { what: format!("`{instruction} --{name}`") });
            }
            let Some(name) = known.valued.iter().find(|name| **name == flag.name) else {
                let nearest = nearest(&flag.name, known.valued.iter().copied());
                return fault(Problem::UnknownFlag { instruction, flag: flag.name, nearest });
            };
            let Some(value) = flag.value.filter(|value| !value.is_empty()) else {
                let found = format!("`--{name}` without one");
                return fault(Problem::Expected { instruction, expected: "`--flag=value`", found });
            };
            if given.iter().any(|(earlier, _)| earlier == name) {
                return fault(Problem::FlagRepeated { instruction, flag: flag.name });
            }
            given.push((name, Word { text: value, span }));
        }
        Ok(Self { given, rest: &arguments[rest_at..], at: begin + rest_at })
    }

    /// The value of a flag.
    pub(super) fn get(&self, name: &str) -> Option<Word> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, word)| word.clone())
    }
}
