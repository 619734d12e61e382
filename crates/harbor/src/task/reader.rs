//! Walks a parsed TOML document and knows, for every value, the line it stands on.
//!
//! Serde would tell less: an unknown key is a warning here, not an error (Harbor ignores it), and it has to name the
//! nearest key that exists; and Harbor's own reader takes numbers written as strings, which must not be refused.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Error, Warning};

/// One `task.toml` while it is read.
pub(super) struct Document<'a> {
    file: PathBuf,
    text: &'a str,
    warnings: RefCell<Vec<Warning>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &Path, text: &'a str) -> Self {
        Self { file: file.to_owned(), text, warnings: RefCell::default() }
    }

    /// Parse the text; a syntax error names line and column.
    pub(super) fn parse(&self) -> Result<DeTable<'a>, Error> {
        DeTable::parse(self.text).map(Spanned::into_inner).map_err(|source| {
            let offset = source.span().map_or(0, |span| span.start);
            let (line, column) = self.position(offset);
            Error::Syntax { file: self.file.clone(), line, column, source: Box::new(source) }
        })
    }

    pub(super) fn into_warnings(self) -> Vec<Warning> {
        let mut warnings = self.warnings.into_inner();
        warnings.sort_by_key(|warning| warning.line);
        warnings
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    fn line(&self, offset: usize) -> usize {
        self.position(offset).0
    }

    fn warn(&self, line: usize, message: String) {
        self.warnings.borrow_mut().push(Warning { file: self.file.clone(), line, message });
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) line: usize,
}

/// One table of the document, read key by key; what nobody asked for is reported by [`Section::finish`].
pub(super) struct Section<'a, 'd> {
    doc: &'d Document<'a>,
    table: &'d DeTable<'a>,
    name: String,
    known: RefCell<Vec<&'static str>>,
}

impl<'a, 'd> Section<'a, 'd> {
    pub(super) fn root(doc: &'d Document<'a>, table: &'d DeTable<'a>) -> Self {
        Self { doc, table, name: String::new(), known: RefCell::default() }
    }

    /// The raw value of a key; remembers that the key exists.
    fn get(&self, key: &'static str) -> Option<&'d Spanned<DeValue<'a>>> {
        self.known.borrow_mut().push(key);
        self.table.get(key)
    }

    /// Whether a key is there, with its line, whatever it holds.
    pub(super) fn line_of(&self, key: &'static str) -> Option<usize> {
        self.get(key).map(|value| self.doc.line(value.span().start))
    }

    /// An array or table that is there and not empty.
    pub(super) fn filled(&self, key: &'static str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let line = self.doc.line(value.span().start);
        match value.get_ref() {
            DeValue::Array(items) => Ok((!items.is_empty()).then_some(line)),
            DeValue::Table(_) => Ok(Some(line)),
            other => Err(self.wrong(key, line, "an array of tables", other)),
        }
    }

    pub(super) fn string(&self, key: &'static str) -> Result<Option<Located<String>>, Error> {
        self.read(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn boolean(&self, key: &'static str) -> Result<Option<Located<bool>>, Error> {
        self.read(key, "true or false", DeValue::as_bool)
    }

    /// A user: a name, or a number.
    pub(super) fn user(&self, key: &'static str) -> Result<Option<String>, Error> {
        let user = self.read(key, "a user's name or number", |value| match value {
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .ok()
                .filter(|uid| *uid >= 0)
                .map(|uid| uid.to_string()),
            DeValue::String(name) if !name.is_empty() => Some(name.to_string()),
            _ => None,
        })?;
        Ok(user.map(|user| user.value))
    }

    /// A finite number that `accept` takes.
    pub(super) fn number(
        &self,
        key: &'static str,
        expected: &'static str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<Option<Located<f64>>, Error> {
        let found = self.read(key, expected, |value| {
            let number = match value {
                DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok()? as f64,
                DeValue::Float(number) => number.as_str().parse().ok()?,
                DeValue::String(text) => text.trim().parse().ok()?,
                _ => return None,
            };
            (number.is_finite() && accept(number)).then_some(number)
        })?;
        if let Some(number) = &found
            && self.table.get(key).is_some_and(|value| value.get_ref().is_str())
        {
            let key = self.path(key);
            self.doc.warn(number.line, format!("{key} is a string; read as the number {}", number.value));
        }
        Ok(found)
    }

    /// A whole number of at least `least`; `2.0` counts, `2.5` does not.
    pub(super) fn whole(
        &self,
        key: &'static str,
        expected: &'static str,
        least: u64,
    ) -> Result<Option<Located<u64>>, Error> {
        // 2^53: up to there every whole number is exact in an f64.
        let accept = |number: f64| {
            number.fract() == 0.0 && number >= least as f64 && number <= 9_007_199_254_740_992.0
        };
        let found = self.number(key, expected, accept)?;
        Ok(found.map(|number| Located { value: number.value as u64, line: number.line }))
    }

    /// A table of strings, each with its line.
    pub(super) fn strings_table(&self, key: &'static str) -> Result<Vec<(String, Located<String>)>, Error> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let line = self.doc.line(value.span().start);
        let Some(table) = value.get_ref().as_table() else {
            return Err(self.wrong(key, line, "a table of strings", value.get_ref()));
        };
        let mut entries = Vec::with_capacity(table.len());
        for (name, value) in table {
            let line = self.doc.line(value.span().start);
            let Some(text) = value.get_ref().as_str() else {
                let key = format!("{}.{}", self.path(key), name.get_ref());
                return Err(self.doc_error(line, key, "a string", value.get_ref()));
            };
            entries.push((name.get_ref().to_string(), Located { value: text.to_owned(), line }));
        }
        Ok(entries)
    }

    /// A list of strings.
    pub(super) fn strings(&self, key: &'static str) -> Result<Option<Vec<String>>, Error> {
        let list = self.read(key, "a list of strings", |value| {
            value.as_array()?.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        })?;
        Ok(list.map(|list: Located<Vec<String>>| list.value))
    }

    /// A sub-table.
    pub(super) fn section(&self, key: &'static str) -> Result<Option<Section<'a, 'd>>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::Table(table) => {
                Ok(Some(Section { doc: self.doc, table, name: self.path(key), known: RefCell::default() }))
            }
            other => Err(self.wrong(key, self.doc.line(value.span().start), "a table", other)),
        }
    }

    /// A list whose items are strings or tables.
    pub(super) fn items(&self, key: &'static str) -> Result<Vec<Item<'a, 'd>>, Error> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let line = self.doc.line(value.span().start);
        let Some(array) = value.get_ref().as_array() else {
            return Err(self.wrong(key, line, "a list", value.get_ref()));
        };
        let mut items = Vec::with_capacity(array.len());
        for item in array {
            let line = self.doc.line(item.span().start);
            items.push(match item.get_ref() {
                DeValue::String(text) => Item::Text(Located { value: text.to_string(), line }),
                DeValue::Table(table) => {
                    let name = self.path(key);
                    let section = Section { doc: self.doc, table, name, known: RefCell::default() };
                    Item::Table(section, line)
                }
                other => return Err(self.wrong(key, line, "a string or a table", other)),
            });
        }
        Ok(items)
    }

    /// An error about a key whose type is right but whose value is not.
    pub(super) fn invalid(&self, key: &str, line: usize, expected: &'static str, found: String) -> Error {
        Error::Invalid { file: self.doc.file.clone(), line, key: self.path(key), expected, found }
    }

    pub(super) fn warn(&self, line: usize, message: String) {
        self.doc.warn(line, message);
    }

    /// Line of the section's first key, for errors about keys that are not there.
    pub(super) fn first_line(&self) -> Option<usize> {
        self.table.iter().map(|(key, _)| self.doc.line(key.span().start)).min()
    }

    /// The section is read: warn of every key that nothing has asked for.
    pub(super) fn finish(self) {
        self.unknown_keys();
    }

    /// Warn of every key that nothing has asked for so far.
    pub(super) fn unknown_keys(&self) {
        let known = self.known.borrow();
        for (key, _) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let mut message = format!("unknown key {} is ignored", self.path(name));
            if let Some(nearest) = nearest(name, &known) {
                message.push_str(&format!("; did you mean {}?", self.path(nearest)));
            }
            self.doc.warn(self.doc.line(key.span().start), message);
        }
    }

    fn read<T>(
        &self,
        key: &'static str,
        expected: &'static str,
        convert: impl FnOnce(&DeValue<'a>) -> Option<T>,
    ) -> Result<Option<Located<T>>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let line = self.doc.line(value.span().start);
        match convert(value.get_ref()) {
            Some(converted) => Ok(Some(Located { value: converted, line })),
            None => Err(self.wrong(key, line, expected, value.get_ref())),
        }
    }

    fn wrong(&self, key: &str, line: usize, expected: &'static str, found: &DeValue<'a>) -> Error {
        self.doc_error(line, self.path(key), expected, found)
    }

    fn doc_error(&self, line: usize, key: String, expected: &'static str, found: &DeValue<'a>) -> Error {
        Error::Invalid { file: self.doc.file.clone(), line, key, expected, found: describe(found) }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

/// One item of [`Section::items`].
pub(super) enum Item<'a, 'd> {
    Text(Located<String>),
    Table(Section<'a, 'd>, usize),
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {text:?}"),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let score = |candidate: &&str| strsim::jaro_winkler(name, candidate);
    known
        .iter()
        .copied()
        .max_by(|a, b| score(a).total_cmp(&score(b)))
        // Below this two names merely share letters.
        .filter(|candidate| score(candidate) >= 0.8)
}
