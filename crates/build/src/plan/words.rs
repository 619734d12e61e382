//! Words of a stage's instructions, with the variables as they stand.

use super::stage::Current;
use crate::expand::{ExpandError, Rules, expand_noting, expand_words};
use crate::fault::{Fault, Problem, nearest};
use crate::instruction::Pair;
use crate::lint::Finding;
use crate::source::Span;
use crate::syntax::{Heredoc, Statement, Word};

fn cannot_expand(statement: &Statement, word: &Word, source: ExpandError) -> Box<Fault> {
    statement.fault(word.span, Problem::Expand { word: word.text.clone(), source })
}

impl Current<'_> {
    fn lookup(&self, name: &str) -> Option<String> {
        self.vars.get(name).map(str::to_owned)
    }

    /// A text with its variables replaced; those that nobody set are noted.
    fn replaced(
        &self,
        text: &str,
        rules: Rules,
        span: Span,
        statement: &Statement,
    ) -> Result<String, ExpandError> {
        let mut unset = Vec::new();
        let value = expand_noting(text, rules, &|name| self.lookup(name), &mut unset)?;
        unset.retain(|name| !self.declared.contains(name));
        for name in unset {
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(nearest) = nearest(&name, self.vars.iter().map(|(known, _)| known)) {
                message.push_str(&format!(" (did you mean ${nearest}?)"));
            }
            self.found.borrow_mut().push(Finding::new("UndefinedVar", statement, span, message));
        }
        Ok(value)
    }

    /// A word with its variables replaced and quotes removed.
    pub(super) fn expand(&self, word: &Word, statement: &Statement) -> Result<String, Box<Fault>> {
        let rules = Rules { escape: statement.escape, quotes: true };
        self.replaced(&word.text, rules, word.span, statement)
            .map_err(|source| cannot_expand(statement, word, source))
    }

    /// The same of a flag, which is as if it were not there when nothing is left of it.
    pub(super) fn expand_flag(
        &self,
        word: Option<&Word>,
        statement: &Statement,
    ) -> Result<Option<String>, Box<Fault>> {
        let value = word.map(|word| self.expand(word, statement)).transpose()?;
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// A word that must not be empty.
    pub(super) fn expand_some(
        &self,
        word: &Word,
        statement: &Statement,
        instruction: &'static str,
        expected: &'static str,
    ) -> Result<String, Box<Fault>> {
        let value = self.expand(word, statement)?;
        if value.is_empty() {
            let found = format!("`{}`, which expands to nothing", word.text);
            return Err(statement.fault(word.span, Problem::Expected { instruction, expected, found }));
        }
        Ok(value)
    }

    /// The words that one word becomes.
    pub(super) fn expand_many(&self, word: &Word, statement: &Statement) -> Result<Vec<String>, Box<Fault>> {
        // For what it notes.
        self.expand(word, statement)?;
        let rules = Rules { escape: statement.escape, quotes: true };
        expand_words(&word.text, rules, &|name| self.lookup(name))
            .map_err(|source| cannot_expand(statement, word, source))
    }

    /// A heredoc's lines, variables replaced unless its word was quoted.
    pub(super) fn heredoc(
        &self,
        heredoc: &Heredoc,
        word: &Word,
        statement: &Statement,
    ) -> Result<String, Box<Fault>> {
        if !heredoc.expand {
            return Ok(heredoc.body());
        }
        let rules = Rules { escape: '\\', quotes: false };
        self.replaced(&heredoc.body(), rules, word.span, statement)
            .map_err(|source| cannot_expand(statement, word, source))
    }

    pub(super) fn pairs(
        &self,
        pairs: &[Pair],
        statement: &Statement,
    ) -> Result<Vec<(String, String)>, Box<Fault>> {
        pairs
            .iter()
            .map(|pair| Ok((self.expand(&pair.key, statement)?, self.expand(&pair.value, statement)?)))
            .collect()
    }
}
