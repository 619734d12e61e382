//! Symbolic modes, as `COPY --chmod=u=rwX,go=rX` has them: those of `chmod(1)`, with no umask.

/// A parsed symbolic mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Modes(Vec<Change>);

/// A text that is no symbolic mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a symbolic mode, expected something like `u=rwX,go=rX`")]
pub(crate) struct BadMode {
    /// What stands there.
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    /// The bits that it may touch.
    affected: u32,
    operator: char,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// These bits, and with `X` those to execute where something may be executed already or is a directory.
    Bits { bits: u32, search: bool },
    /// What another class has: shift of its three bits.
    Of(u32),
}

impl Modes {
    /// Reads clauses, separated by commas: `[ugoa…][+-=][rwxXst…|u|g|o]…`.
    pub(crate) fn parse(text: &str) -> Result<Self, BadMode> {
        let bad = || BadMode { text: text.to_owned() };
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let operators = clause.find(['+', '-', '=']).ok_or_else(bad)?;
            let (who, mut rest) = clause.split_at(operators);
            let affected = affected(who).ok_or_else(bad)?;
            while let Some(operator) = rest.chars().next() {
                let perms = &rest[1..];
                let end = perms.find(['+', '-', '=']).unwrap_or(perms.len());
                let value = value(&perms[..end]).ok_or_else(bad)?;
                changes.push(Change { affected, operator, value });
                rest = &perms[end..];
            }
        }
        Ok(Self(changes))
    }

    /// The bits that something with `mode` gets.
    pub(crate) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        // As with `chmod(1)`, a directory keeps set-id bits that no clause speaks of.
        let kept = if is_dir { 0o6000 & !self.mentioned() } else { 0 };
        self.0.iter().fold(mode, |mode, change| {
            let bits = match change.value {
                Value::Of(shift) => (mode >> shift & 7) * 0o111,
                Value::Bits { bits, search } => {
                    bits | if search && (is_dir || mode & 0o111 != 0) { 0o111 } else { 0 }
                }
            } & change.affected;
            match change.operator {
                '+' => mode | bits,
                '-' => mode & !bits,
                _ => mode & (!change.affected | kept) | bits,
            }
        })
    }

    fn mentioned(&self) -> u32 {
        let bits = |change: &Change| match change.value {
            Value::Bits { bits, .. } => bits & change.affected,
            Value::Of(_) => 0,
        };
        self.0.iter().map(bits).fold(0, |all, bits| all | bits)
    }
}

/// Nobody named is everybody.
fn affected(who: &str) -> Option<u32> {
    if who.is_empty() {
        return Some(0o7777);
    }
    who.chars().try_fold(0, |bits, class| {
        Some(
            bits | match class {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                'a' => 0o7777,
                _ => return None,
            },
        )
    })
}

fn value(perms: &str) -> Option<Value> {
    match perms {
        "u" => return Some(Value::Of(6)),
        "g" => return Some(Value::Of(3)),
        "o" => return Some(Value::Of(0)),
        _ => {}
    }
    let (mut bits, mut search) = (0, false);
    for perm in perms.chars() {
        match perm {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= 0o111,
            's' => bits |= 0o6000,
            't' => bits |= 0o1000,
            'X' => search = true,
            _ => return None,
        }
    }
    Some(Value::Bits { bits, search })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_modes_mean_what_chmod_means() {
        let table = [
            ("u+x", 0o644, 0o744),
            ("+x", 0o644, 0o755),
            ("a-w", 0o666, 0o444),
            ("go=", 0o777, 0o700),
            ("u=rwX,go=rX", 0o600, 0o644),
            ("u=rwX,go=rX", 0o700, 0o755),
            ("g=u", 0o640, 0o660),
            ("o=g-w", 0o670, 0o675),
            ("u=g,g=o", 0o751, 0o511),
            ("u+s", 0o755, 0o4755),
            ("g+s", 0o755, 0o2755),
            ("o+s", 0o755, 0o755),
            ("+t", 0o755, 0o1755),
            ("u+t", 0o755, 0o755),
            ("ug=rw,o=r", 0o4777, 0o664),
            ("a=", 0o7777, 0),
            ("=r", 0o7777, 0o444),
            ("u=rw+x", 0o000, 0o700),
            ("a+X", 0o644, 0o644),
            ("u+x,a+X", 0o644, 0o755),
            ("g-s", 0o2755, 0o755),
        ];
        for (text, before, after) in table {
            let found = Modes::parse(text).unwrap().apply(before, false);
            assert_eq!(found, after, "{text} of {before:o}: {found:o}");
        }
    }

    #[test]
    fn directories_may_be_searched_and_keep_set_id_bits() {
        let dir = |text: &str, mode| Modes::parse(text).unwrap().apply(mode, true);
        assert_eq!(dir("u=rwX,go=rX", 0o700), 0o755);
        assert_eq!(dir("a=rX", 0o2770), 0o2555);
        assert_eq!(dir("g-s", 0o2755), 0o755);
        assert_eq!(dir("a+X", 0o600), 0o711);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "u", "z+x", "u+y", "u+x,", ",u+x", "u+ug", "u x"] {
            assert_eq!(Modes::parse(text), Err(BadMode { text: text.to_owned() }), "{text}");
        }
    }
}
