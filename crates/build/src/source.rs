//! The text that is being built, and places in it.

use std::sync::Arc;

/// A run of bytes in a [`Source`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// The bytes from `start` up to `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end: end.max(start) }
    }
}

/// One Dockerfile, or a trigger of a base image: the name it goes by in messages, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What messages call it, as the user named it.
    pub name: String,
    /// Its text.
    pub text: String,
    /// For a trigger: the `FROM` that brought it. Whatever is wrong with it is shown there.
    pub brought_by: Option<(Arc<Source>, Span)>,
}

impl Source {
    /// A text under a name.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), brought_by: None }
    }

    /// Line of a byte, from 1.
    pub fn line_of(&self, offset: usize) -> u32 {
        let upto = &self.text.as_bytes()[..offset.min(self.text.len())];
        let newlines = upto.iter().filter(|byte| **byte == b'\n').count();
        u32::try_from(newlines).unwrap_or(u32::MAX - 1) + 1
    }

    /// The file of a place and the place in it: for a trigger those of the `FROM`.
    pub fn in_file(&self, span: Span) -> (&Source, Span) {
        match &self.brought_by {
            Some((source, span)) => source.in_file(*span),
            None => (self, span),
        }
    }

    /// Name of the file that messages show for a place, and the line there.
    pub fn file_and_line(&self, span: Span) -> (String, u32) {
        let (source, span) = self.in_file(span);
        (source.name.clone(), source.line_of(span.start))
    }
}
