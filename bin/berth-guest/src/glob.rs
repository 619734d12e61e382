//! Finding paths by a pattern per component.

use std::io::Write;

use berth_wire::{FailureCode, Glob, Outcome};
use rustix::fs::{AtFlags, CWD, Dir, OFlags};
use rustix::io::Errno;

use crate::failure::{self, Result};
use crate::pattern::Component;

/// Carries out the request: paths to `output`, each with a NUL after it, sorted.
pub(crate) fn find(request: &Glob, output: &mut impl Write) -> Result<Outcome> {
    failure::absolute(&request.pattern)?;
    let components = request.pattern.split('/').filter(|component| !component.is_empty());
    let components = components
        .map(Component::new)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| failure::because(FailureCode::Invalid, error.to_string(), None))?;
    let mut found = Vec::new();
    descend(b"", &components, &mut found)?;
    found.sort_unstable();
    for path in &found {
        let written = output.write_all(path).and_then(|()| output.write_all(b"\0"));
        written
            .map_err(|_| failure::because(FailureCode::Cancelled, "nobody takes the paths any more", None))?;
    }
    let flushed = output.flush();
    flushed.map_err(|_| failure::because(FailureCode::Cancelled, "nobody takes the paths any more", None))?;
    Ok(Outcome::Globbed { found: found.len() as u64 })
}

/// As deep as the pattern, which is as deep as the host asked for.
fn descend(base: &[u8], components: &[Component], found: &mut Vec<Vec<u8>>) -> Result<()> {
    let Some((component, rest)) = components.split_first() else {
        found.push(if base.is_empty() { b"/".to_vec() } else { base.to_vec() });
        return Ok(());
    };
    let names = match component.literal() {
        Some(name) => vec![name],
        None => names(base, component)?,
    };
    for name in names {
        let path = [base, b"/", &name].concat();
        if rustix::fs::statat(CWD, &path[..], AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            descend(&path, rest, found)?;
        }
    }
    Ok(())
}

/// Names in the directory `base` that the component matches; none where it is no directory.
fn names(base: &[u8], component: &Component) -> Result<Vec<Vec<u8>>> {
    let path = if base.is_empty() { b"/" } else { base };
    let fail = |errno| failure::at("read directory", path, errno);
    let dir = match crate::places::open(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
        Err(errno) => return Err(fail(errno)),
    };
    let mut names = Vec::new();
    for entry in Dir::new(dir).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." && component.matches(&name) {
            names.push(name);
        }
    }
    Ok(names)
}
