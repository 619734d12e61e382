//! The `--flags` of an instruction.

use crate::fault::{Fault, Problem, nearest};
use crate::syntax::words::split_flags;
use crate::syntax::{Statement, Word};

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// A value, once.
    Value,
    /// `true` or `false`; alone it is `true`.
    Bool,
    /// A value, as often as it is given.
    Values,
}

/// A flag's name, and what it takes.
pub(super) type Known = (&'static str, Takes);

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
        known: &'static [Known],
    ) -> Result<Self, Box<Fault>> {
        let (arguments, begin) = statement.arguments();
        let (raw, rest_at) = split_flags(arguments);
        let mut given: Vec<(&'static str, Word)> = Vec::new();
        for flag in raw {
            let span = statement.span(flag.range.start + begin..flag.range.end + begin);
            let fault = |problem| Err(statement.fault(span, problem));
            let Some((name, takes)) = known.iter().find(|(name, _)| *name == flag.name) else {
                let nearest = nearest(&flag.name, known.iter().map(|(name, _)| *name));
                return fault(Problem::UnknownFlag { instruction, flag: flag.name, nearest });
            };
            if *takes != Takes::Values && given.iter().any(|(earlier, _)| earlier == name) {
                return fault(Problem::FlagRepeated { instruction, flag: flag.name });
            }
            let text = match (flag.value, takes) {
                (Some(value), Takes::Bool) => match value.to_lowercase().as_str() {
                    "true" | "" => "true".to_owned(),
                    "false" => "false".to_owned(),
                    _ => {
                        let (expected, found) = ("`true` or `false`", format!("`--{name}={value}`"));
                        return fault(Problem::Expected { instruction, expected, found });
                    }
                },
                (Some(value), _) => value,
                (None, Takes::Bool) => "true".to_owned(),
                (None, _) => {
                    let (expected, found) = ("`--flag=value`", format!("`--{name}` without one"));
                    return fault(Problem::Expected { instruction, expected, found });
                }
            };
            given.push((name, Word { text, span }));
        }
        Ok(Self { given, rest: &arguments[rest_at..], at: begin + rest_at })
    }

    /// The value of a flag; `None` also for an empty one, which is the same as not giving it.
    pub(super) fn get(&self, name: &str) -> Option<Word> {
        self.all(name).into_iter().next().filter(|word| !word.text.is_empty())
    }

    /// Every value of a flag.
    pub(super) fn all(&self, name: &str) -> Vec<Word> {
        self.given.iter().filter(|(given, _)| *given == name).map(|(_, word)| word.clone()).collect()
    }

    /// The value of a flag that takes `true` or `false`.
    pub(super) fn bool(&self, name: &str) -> Option<bool> {
        self.get(name).map(|word| word.text == "true")
    }
}
