//! Keys of layers that are made on nothing: of `COPY --link`, and of what a `RUN` mounts of the context. They cover the
//! same as a step's key but for the file system below, of which such a layer knows nothing.

use crate::context::{Context, EntryKind};
use crate::error::Error;
use crate::graph::Root;
use crate::key::Hasher;
use crate::plan::{CopyPlan, CopyRoot, Plan, PlannedSource};

use super::prepare::Brought;
use super::tars::joined;

/// Key of a linked `COPY`'s layer.
pub(super) fn linked(
    copy: &CopyPlan,
    plan: &Plan,
    context: &Context,
    brought: &Brought,
) -> Result<String, Error> {
    let mut key = Hasher::new("berth linked copy 1");
    key.field(&copy.dest).field([u8::from(copy.into), u8::from(copy.parents)]);
    key.field(copy.chown.as_deref().unwrap_or("")).field(format!("{:?}", copy.chmod)).fields(&copy.excludes);
    key.field(match &copy.root {
        CopyRoot::Context => "context".to_owned(),
        CopyRoot::Root(Root::Scratch) => "scratch".to_owned(),
        CopyRoot::Root(Root::Stage(index)) => plan.stages[index].key.to_string(),
        CopyRoot::Root(Root::Image(reference)) => {
            brought.bases.get(reference).map_or_else(|| reference.clone(), |base| base.id.clone())
        }
    });
    for source in &copy.sources {
        match source {
            PlannedSource::Inline { name, content } => drop(key.field("inline").field(name).field(content)),
            PlannedSource::Elsewhere { path, .. } => drop(key.field("elsewhere").field(path)),
            PlannedSource::Fetched { remote, unpack, .. } => {
                let digest = brought.remotes.get(remote).map_or("", |fetched| fetched.digest.as_str());
                key.field("fetched").field(format!("{remote:?} {unpack}")).field(digest);
            }
            PlannedSource::File { path, name, below, archive } => {
                key.field("file").field(joined(below, name)).field(format!("{archive:?}"));
                entry(&mut key, context, path, "")?;
            }
            PlannedSource::Dir { path, below, without } => {
                key.field("tree").field(below);
                tree(&mut key, context, path, without)?;
            }
        }
        ancestors(&mut key, context, source);
    }
    Ok(key.finish().to_string())
}

/// Key of a layer that holds one path of the context.
pub(super) fn held(context: &Context, path: &str) -> Result<String, Error> {
    let mut key = Hasher::new("berth context layer 1");
    match context.entry(path).map(|entry| &entry.kind) {
        None | Some(EntryKind::Dir) => {
            key.field("tree");
            tree(&mut key, context, path, &[])?;
        }
        Some(_) => entry(&mut key, context, path, "")?,
    }
    Ok(key.finish().to_string())
}

fn tree(key: &mut Hasher, context: &Context, path: &str, without: &[String]) -> Result<(), Error> {
    for (name, _) in context.below(path) {
        if without.binary_search(&name).is_err() {
            entry(key, context, &joined(path, &name), &name)?;
        }
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

/// Modes of the directories that `--parents` keeps.
fn ancestors(key: &mut Hasher, context: &Context, source: &PlannedSource) {
    for (name, mode) in super::copy::ways(context, source) {
        key.field(name).field(format!("{mode:o}"));
    }
}
