//! Keys of layers that hold what a `RUN` mounts of the context. They cover the same as a `COPY`'s key but for the file
//! system below, of which such a layer knows nothing.

use super::tars::joined;
use crate::context::{Context, EntryKind};
use crate::error::Error;
use crate::key::Hasher;

/// Key of a layer that holds one path of the context.
pub(super) fn held(context: &Context, path: &str) -> Result<String, Error> {
    let mut key = Hasher::new("berth context layer 2");
    match context.entry(path).map(|entry| &entry.kind) {
        None | Some(EntryKind::Dir) => {
            key.field("tree");
            tree(&mut key, context, path)?;
        }
        Some(_) => entry(&mut key, context, path, "")?,
    }
    Ok(key.finish().to_string())
}

fn tree(key: &mut Hasher, context: &Context, path: &str) -> Result<(), Error> {
    for (name, _) in context.below(path) {
        entry(key, context, &joined(path, &name), &name)?;
    }
    Ok(())
}

fn entry(key: &mut Hasher, context: &Context, path: &str, name: &str) -> Result<(), Error> {
    let Some(entry) = context.entry(path) else { return Ok(()) };
    let (kind, content) = match &entry.kind {
        EntryKind::File(_) => ("file", context.digest(path)?.to_string()),
        EntryKind::Dir => ("dir", String::new()),
        EntryKind::Link(target) => ("link", target.clone()),
        EntryKind::Special(kind) => (*kind, String::new()),
    };
    let mode = if kind == "link" { 0 } else { entry.mode };
    key.field(kind).field(name).field(format!("{mode:o}")).field(content);
    Ok(())
}
