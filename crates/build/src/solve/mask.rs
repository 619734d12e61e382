//! Secrets in a command's output, masked while it comes.

use std::cmp::Reverse;

/// Shortest line of a secret of several lines that is masked on its own, in bytes: shorter ones are brackets and the
/// like, which stand everywhere.
const LINE: usize = 8;

/// What is not to be shown.
#[derive(Clone, Default)]
pub(super) struct Masks(Vec<Mask>);

#[derive(Clone)]
struct Mask {
    bytes: Vec<u8>,
    instead: Vec<u8>,
}

impl Masks {
    /// Masks a secret, without the blanks around it, and each of its longer lines.
    pub(super) fn add(&mut self, id: &str, secret: &[u8]) {
        let whole = secret.trim_ascii();
        let lines = secret.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
        let lines = lines.filter(|line| line.len() >= LINE);
        for bytes in std::iter::once(whole).chain(lines).filter(|bytes| !bytes.is_empty()) {
            self.0.push(Mask { bytes: bytes.to_vec(), instead: format!("[secret {id}]").into_bytes() });
        }
        // Where several begin, the longest one is it.
        self.0.sort_by_key(|mask| Reverse(mask.bytes.len()));
    }
}

/// One output under way.
pub(super) struct Masker<'a> {
    masks: &'a Masks,
    /// What may be the beginning of a secret.
    held: Vec<u8>,
}

impl<'a> Masker<'a> {
    pub(super) fn new(masks: &'a Masks) -> Self {
        Self { masks, held: Vec::new() }
    }

    /// What can be shown now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        self.take(false)
    }

    /// What was held back.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.take(true)
    }

    fn take(&mut self, end: bool) -> Vec<u8> {
        if self.masks.0.is_empty() {
            return std::mem::take(&mut self.held);
        }
        let (mut shown, mut at) = (Vec::new(), 0);
        while at < self.held.len() {
            let rest = &self.held[at..];
            let begins = |mask: &&Mask| mask.bytes.len() > rest.len() && mask.bytes.starts_with(rest);
            if !end && self.masks.0.iter().any(|mask| begins(&mask)) {
                break;
            }
            match self.masks.0.iter().find(|mask| rest.starts_with(&mask.bytes)) {
                Some(mask) => {
                    shown.extend_from_slice(&mask.instead);
                    at += mask.bytes.len();
                }
                None => {
                    shown.push(rest[0]);
                    at += 1;
                }
            }
        }
        self.held.drain(..at);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(secrets: &[(&str, &str)], chunks: &[&str]) -> String {
        let mut masks = Masks::default();
        for (id, secret) in secrets {
            masks.add(id, secret.as_bytes());
        }
        let mut masker = Masker::new(&masks);
        let mut shown: Vec<u8> = chunks.iter().flat_map(|chunk| masker.push(chunk.as_bytes())).collect();
        shown.extend(masker.finish());
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn secrets_are_masked_wherever_chunks_end() {
        let text = "a hunter2 b hunter hunter2hunter2";
        for size in 1..text.len() {
            let chunks: Vec<String> =
                text.as_bytes().chunks(size).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
            let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
            let shown = masked(&[("pw", "hunter2\n")], &chunks);
            assert_eq!(shown, "a [secret pw] b hunter [secret pw][secret pw]", "{size}");
        }
    }

    #[test]
    fn the_longest_secret_wins_and_lines_are_secrets_too() {
        assert_eq!(
            masked(&[("a", "token"), ("b", "token-long")], &["tok", "en-long token-lo"]),
            "[secret b] [secret a]-lo"
        );
        let key = "-----BEGIN-----\nabcdefghij\n}\n-----END-----\n";
        assert_eq!(masked(&[("key", key)], &["> abcdefghij\n> }\n"]), "> [secret key]\n> }\n");
        assert_eq!(masked(&[("key", key)], &[key]), "[secret key]\n");
    }

    #[test]
    fn nothing_is_held_that_begins_no_secret() {
        let mut masks = Masks::default();
        masks.add("empty", b"\n");
        masks.add("pw", b"hunter2");
        let mut masker = Masker::new(&masks);
        assert_eq!(masker.push(b"one\ntwo hun"), b"one\ntwo ");
        assert_eq!(masker.push(b"dred"), b"hundred");
        assert_eq!(masker.finish(), b"");
    }
}
