//! What a context holds, by what a client says or by what came: two that are the same have the same key. Pure.

use std::collections::{BTreeMap, HashMap};

use berth_build::Digest;
use berth_build::ignore::Ignore;
use berth_types::image::{ContextKind, ContextManifest};
use sha2::{Digest as _, Sha256};

use super::settings::hex;
use crate::Error;

/// Links have no permissions of their own; this is what they show.
const LINK_MODE: u32 = 0o777;

/// Everything in a context, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing(BTreeMap<String, (u32, ContextKind)>);

/// The Dockerfile and the ignore files of a context, by path.
pub(super) type Texts = BTreeMap<String, String>;

impl Listing {
    /// What a manifest says, and its texts.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for one that cannot be of a directory, or whose texts are not those of its files.
    pub(super) fn of_manifest(manifest: &ContextManifest) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        for entry in &manifest.entries {
            let path = &entry.path;
            if path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
                return Err(bad(format!("{path:?} is no path within a context")));
            }
            if entry.mode > 0o7777 {
                return Err(bad(format!("{path:?} has the mode {:o}, expected permission bits", entry.mode)));
            }
            if let ContextKind::File { digest, .. } = &entry.kind
                && !is_digest(digest)
            {
                return Err(bad(format!(
                    "{path:?} has the digest {digest:?}, expected 64 digits of 0-9 and a-f"
                )));
            }
            if listing.insert(path.clone(), entry.mode, entry.kind.clone()) {
                return Err(bad(format!("{path:?} stands there twice")));
            }
        }
        for (path, text) in &manifest.texts {
            if let Some((_, ContextKind::File { digest, .. })) = listing.0.get(path)
                && *digest != hex(&Sha256::digest(text))
            {
                return Err(bad(format!("the text of {path:?} is not what its digest says")));
            }
        }
        Ok(listing)
    }

    /// Notes a file; whether something stood there before.
    pub(super) fn insert(&mut self, path: String, mode: u32, kind: ContextKind) -> bool {
        let mode = match kind {
            ContextKind::Link { .. } => LINK_MODE,
            ContextKind::Special => 0,
            ContextKind::File { .. } | ContextKind::Dir => mode,
        };
        self.0.insert(path, (mode, kind)).is_some()
    }

    /// SHA-256 of the bytes of its files, by path.
    pub(super) fn digests(&self) -> HashMap<String, Digest> {
        let files = self.0.iter().filter_map(|(path, (_, kind))| match kind {
            ContextKind::File { digest, .. } => Some((path.clone(), Digest::read(digest)?)),
            _ => None,
        });
        files.collect()
    }

    pub(super) fn get(&self, path: &str) -> Option<&ContextKind> {
        self.0.get(path).map(|(_, kind)| kind)
    }

    /// Key of a context with these files and texts.
    pub(super) fn key(&self, texts: &Texts) -> String {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        field(b"berth context 1");
        for (path, (mode, kind)) in &self.0 {
            field(path.as_bytes());
            field(&mode.to_be_bytes());
            match kind {
                ContextKind::File { size, digest } => {
                    field(b"file");
                    field(&size.to_be_bytes());
                    field(digest.as_bytes());
                }
                ContextKind::Dir => field(b"dir"),
                ContextKind::Link { target } => {
                    field(b"link");
                    field(target.as_bytes());
                }
                ContextKind::Special => field(b"special"),
            }
        }
        for (path, text) in texts {
            field(path.as_bytes());
            field(text.as_bytes());
        }
        hex(&hash.finalize())
    }

    /// In what a context that came is not what was said of it: the first difference, in words.
    ///
    /// What the ignore file excludes may have been left out of what was said; what cannot be copied is in no archive.
    pub(super) fn difference(&self, came: &Listing, ignore: &Ignore) -> Option<String> {
        for (path, (mode, kind)) in &self.0 {
            let what = match came.0.get(path) {
                _ if *kind == ContextKind::Special => continue,
                None => "did not come",
                Some((_, other)) if other != kind => "is not what was said of it",
                Some((other, _)) if other != mode => "has another mode than was said",
                Some(_) => continue,
            };
            return Some(format!("{path:?} {what}"));
        }
        let extra = came.0.keys().find(|path| !self.0.contains_key(*path) && !ignore.excludes(path));
        extra.map(|path| format!("{path:?} was not spoken of"))
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn bad(problem: String) -> Error {
    Error::BadRequest { field: "manifest", problem }
}

#[cfg(test)]
mod tests {
    use berth_types::image::ContextEntry;

    use super::*;

    fn file(text: &str) -> ContextKind {
        ContextKind::File { size: text.len() as u64, digest: hex(&Sha256::digest(text)) }
    }

    fn entry(path: &str, kind: ContextKind) -> ContextEntry {
        ContextEntry { path: path.to_owned(), mode: 0o644, kind }
    }

    fn manifest(entries: Vec<ContextEntry>) -> ContextManifest {
        ContextManifest { entries, texts: Texts::new() }
    }

    fn listing(entries: Vec<ContextEntry>) -> Listing {
        Listing::of_manifest(&manifest(entries)).unwrap()
    }

    #[test]
    fn the_order_of_entries_and_the_modes_of_links_make_no_other_key() {
        let link = || ContextKind::Link { target: "a".into() };
        let one = listing(vec![entry("a", file("x")), entry("b", link())]);
        let mut other = entry("b", link());
        other.mode = 0o777;
        let other = listing(vec![other, entry("a", file("x"))]);
        assert_eq!(one.key(&Texts::new()), other.key(&Texts::new()));
    }

    #[test]
    fn whatever_differs_makes_another_key() {
        let texts = Texts::from([("Dockerfile".to_owned(), "FROM scratch".to_owned())]);
        let mut executable = entry("a", file("x"));
        executable.mode = 0o755;
        let mut keys = vec![
            listing(vec![]).key(&Texts::new()),
            listing(vec![]).key(&texts),
            listing(vec![entry("a", file("x"))]).key(&Texts::new()),
            listing(vec![entry("b", file("x"))]).key(&Texts::new()),
            listing(vec![entry("a", file("y"))]).key(&Texts::new()),
            listing(vec![executable]).key(&Texts::new()),
            listing(vec![entry("a", ContextKind::Dir)]).key(&Texts::new()),
            listing(vec![entry("a", ContextKind::Special)]).key(&Texts::new()),
            listing(vec![entry("a", ContextKind::Link { target: "x".into() })]).key(&Texts::new()),
        ];
        let all = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn a_manifest_that_no_directory_has_is_refused_by_name() {
        for path in ["", "/etc", "a/../b", "..", "./a", "a//b", "a/"] {
            let refused = Listing::of_manifest(&manifest(vec![entry(path, file("x"))])).unwrap_err();
            assert!(refused.to_string().contains(&format!("{path:?}")), "{refused}");
        }
        let twice = manifest(vec![entry("a", file("x")), entry("a", ContextKind::Dir)]);
        assert!(Listing::of_manifest(&twice).unwrap_err().to_string().contains("twice"));
        let digest = ContextKind::File { size: 1, digest: "abc".into() };
        assert!(Listing::of_manifest(&manifest(vec![entry("a", digest)])).is_err());
        let mut lie = manifest(vec![entry("Dockerfile", file("FROM scratch"))]);
        lie.texts.insert("Dockerfile".into(), "FROM other".into());
        assert!(Listing::of_manifest(&lie).unwrap_err().to_string().contains("text of"));
    }

    #[test]
    fn what_came_is_compared_with_what_was_said() {
        let said = listing(vec![entry("a", file("x")), entry("pipe", ContextKind::Special)]);
        let ignore = Ignore::parse(".dockerignore", "*.log\n").unwrap();
        let with = |extra: Vec<ContextEntry>| listing([vec![entry("a", file("x"))], extra].concat());
        assert_eq!(said.difference(&with(vec![]), &ignore), None);
        assert_eq!(said.difference(&with(vec![entry("b.log", file("y"))]), &ignore), None);
        let difference = |came: &Listing| said.difference(came, &ignore).unwrap();
        assert_eq!(difference(&with(vec![entry("b", file("y"))])), r#""b" was not spoken of"#);
        assert_eq!(difference(&listing(vec![])), r#""a" did not come"#);
        assert_eq!(difference(&listing(vec![entry("a", file("z"))])), r#""a" is not what was said of it"#);
        let mut executable = entry("a", file("x"));
        executable.mode = 0o755;
        assert_eq!(difference(&listing(vec![executable])), r#""a" has another mode than was said"#);
    }
}
