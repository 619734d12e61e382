//! `RUN --mount`: its options as written.

use super::flags::Flags;
use crate::fault::{Fault, Problem, nearest};
use crate::syntax::{Statement, Word};

/// The keys that a mount may have, each with its first spelling.
const KEYS: [(&str, &str); 17] = [
    ("type", "type"),
    ("from", "from"),
    ("source", "source"),
    ("src", "source"),
    ("target", "target"),
    ("dst", "target"),
    ("destination", "target"),
    ("readonly", "readonly"),
    ("ro", "readonly"),
    ("readwrite", "readwrite"),
    ("rw", "readwrite"),
    ("id", "id"),
    ("sharing", "sharing"),
    ("required", "required"),
    ("size", "size"),
    ("env", "env"),
    ("mode", "mode"),
];
/// And these, which need no other spelling.
const OWNER_KEYS: [&str; 2] = ["uid", "gid"];
/// Keys that may stand without a value.
const ALONE: [&str; 3] = ["readonly", "readwrite", "required"];

/// A `--mount`, its variables not expanded. What its values mean is decided when they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Keys in their first spelling, with their values, in order.
    pub options: Vec<(&'static str, Option<String>)>,
    /// The flag as it stands in the file.
    pub word: Word,
}

impl Mount {
    /// The last value given for a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.options.iter().rev().find(|(known, _)| *known == key).and_then(|(_, value)| value.as_deref())
    }

    /// `from`, as a word.
    pub fn from(&self) -> Option<Word> {
        let text = self.get("from").filter(|from| !from.is_empty())?.to_owned();
        Some(Word { text, span: self.word.span })
    }
}

/// The mounts of a `RUN`.
pub(super) fn mounts(statement: &Statement, flags: &Flags<'_>) -> Result<Vec<Mount>, Box<Fault>> {
    flags.all("mount").into_iter().map(|word| mount(statement, word)).collect()
}

fn mount(statement: &Statement, word: Word) -> Result<Mount, Box<Fault>> {
    let mut options = Vec::new();
    let Some(fields) = fields(&word.text) else {
        return Err(expected(statement, &word, "a closed quote", format!("`{}`", word.text)));
    };
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (field.as_str(), None),
        };
        let lower = key.trim().to_lowercase();
        let known = KEYS.iter().find(|(name, _)| *name == lower).map(|(_, first)| *first);
        let known = known.or_else(|| OWNER_KEYS.into_iter().find(|name| *name == lower));
        let Some(known) = known else {
            let names = KEYS.iter().map(|(name, _)| *name).chain(OWNER_KEYS);
            let problem = Problem::UnknownMountKey { key: key.to_owned(), nearest: nearest(key, names) };
            return Err(statement.fault(word.span, problem));
        };
        if value.is_none() && !ALONE.contains(&known) {
            return Err(expected(statement, &word, "`key=value` in `--mount`", format!("`{field}`")));
        }
        options.push((known, value));
    }
    Ok(Mount { options, word })
}

fn expected(statement: &Statement, word: &Word, expected: &'static str, found: String) -> Box<Fault> {
    statement.fault(word.span, Problem::Expected { instruction: "RUN", expected, found })
}

/// The fields between commas; a field that begins with a double quote may hold commas, as in CSV. `None` when it is
/// not closed.
fn fields(text: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (field, after) = quoted_field(quoted)?;
            fields.push(field);
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None if after.is_empty() => return Some(fields),
                None => return None,
            }
            continue;
        }
        match rest.split_once(',') {
            Some((field, more)) => {
                fields.push(field.to_owned());
                rest = more;
            }
            None => {
                fields.push(rest.to_owned());
                return Some(fields);
            }
        }
    }
}

/// What stands before the quote that closes, two quotes being one, and what follows.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"')?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Some((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fields;

    #[test]
    fn fields_are_cut_as_in_csv() {
        let table = [
            ("type=bind,target=/x", Some(vec!["type=bind", "target=/x"])),
            ("ro", Some(vec!["ro"])),
            ("\"target=/a,b\",ro", Some(vec!["target=/a,b", "ro"])),
            ("\"id=a\"\"b\"", Some(vec!["id=a\"b"])),
            ("a,,b", Some(vec!["a", "", "b"])),
            ("\"open", None),
            ("\"a\"b", None),
        ];
        for (text, wanted) in table {
            let wanted = wanted.map(|fields| fields.into_iter().map(str::to_owned).collect());
            assert_eq!(fields(text), wanted, "{text}");
        }
    }
}
