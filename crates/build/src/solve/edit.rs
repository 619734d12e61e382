//! A tar from a stage or image, on its way to where it is copied: names changed, files left out, modes changed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tokio::runtime::Handle;
use tokio_util::io::SyncIoBridge;

use super::tars::Stream;
use crate::chmod::Modes;
use crate::ignore::Ignore;
use crate::pattern::Pattern;
use crate::runner::{Attributes, Tar};

/// Extended headers that say again what a changed header says.
const OWN: [&str; 3] = ["path", "linkpath", "size"];

/// What is to be changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Edit {
    /// Directory that all names are put below; `""` for none.
    pub(super) below: String,
    /// What the directories on the way there are to be, the outermost first; 0755 and root's where that is not known.
    pub(super) ways: Vec<Option<Attributes>>,
    /// For a tar of one file: its new name, below `below`.
    pub(super) rename: Option<String>,
    /// What alone is taken, by names before they are put below anything: what it matches, and all below that.
    pub(super) includes: Option<Pattern>,
    /// What is left out, by names below `below`.
    pub(super) excludes: Option<Ignore>,
    /// `--chmod`.
    pub(super) modes: Option<Modes>,
    /// Names that stay, and the directories above them.
    pub(super) kept: HashSet<PathBuf>,
    /// Files that are left out but have other names that are not: the first of those, by the one that is left out.
    pub(super) promoted: Promoted,
}

pub(super) type Promoted = HashMap<PathBuf, PathBuf>;

impl Edit {
    /// Whether it changes nothing.
    pub(super) fn is_nothing(&self) -> bool {
        self.below.is_empty() && self.rename.is_none() && self.modes.is_none() && !self.chooses()
    }
}

impl Edit {
    /// Whether names decide what is left out: then the tar has to be read twice.
    pub(super) fn chooses(&self) -> bool {
        self.excludes.is_some() || self.includes.is_some()
    }

    /// Reads the tar for what will be left out, which no single entry tells: a directory stays when anything below it
    /// does, and so does a file by its first name that stays.
    pub(super) async fn survey(self, tar: Tar) -> io::Result<Self> {
        let handle = Handle::current();
        let read = move || {
            let mut archive = tar::Archive::new(SyncIoBridge::new_with_handle(tar, handle));
            let (mut kept, mut promoted) = (HashSet::new(), Promoted::new());
            for entry in archive.entries()? {
                let entry = entry?;
                let name = name_of(&entry);
                if !self.wants(&name) {
                    continue;
                }
                if entry.header().entry_type() == tar::EntryType::Link {
                    let target = link_of(&entry)?;
                    if !self.wants(&target) {
                        promoted.entry(target).or_insert_with(|| name.clone());
                    }
                }
                kept.extend(name.ancestors().map(Path::to_owned));
            }
            Ok(Self { kept, promoted, ..self })
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }

    /// Whether only what a pattern matches is taken.
    pub(super) fn takes_some(&self) -> bool {
        self.includes.is_some()
    }

    /// Whether anything stays of what was surveyed.
    pub(super) fn keeps_any(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Whether a path is included and not excluded. Names that are not UTF-8 match by their readable parts.
    fn wants(&self, name: &Path) -> bool {
        let included =
            |pattern: &Pattern| name.ancestors().any(|part| pattern.matches(&part.to_string_lossy()));
        let excluded = |excludes: &Ignore| excludes.excludes(&self.placed(name).to_string_lossy());
        self.includes.as_ref().is_none_or(included) && !self.excludes.as_ref().is_some_and(excluded)
    }
}

/// The tar as it is to be unpacked.
pub(super) fn edited(tar: Tar, edit: Edit) -> Stream {
    let handle = Handle::current();
    Stream::start(move |out| {
        let mut archive = tar::Archive::new(SyncIoBridge::new_with_handle(tar, handle));
        let mut builder = tar::Builder::new(out);
        edit.parents(&mut builder)?;
        for entry in archive.entries()? {
            edit.entry(&mut builder, entry?)?;
        }
        builder.finish()
    })
}

impl Edit {
    fn parents(&self, builder: &mut tar::Builder<&mut dyn Write>) -> io::Result<()> {
        let ends = self.below.match_indices('/').map(|(at, _)| at).chain([self.below.len()]);
        for (number, end) in ends.enumerate().filter(|(_, end)| *end > 0) {
            let unknown = Attributes { mode: 0o755, uid: 0, gid: 0 };
            let known = self.ways.get(number).copied().flatten();
            let Attributes { mode, uid, gid } = known.unwrap_or(unknown);
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(self.mode(mode, true));
            header.set_mtime(0);
            header.set_uid(uid.into());
            header.set_gid(gid.into());
            header.set_size(0);
            builder.append_data(&mut header, format!("{}/", &self.below[..end]), io::empty())?;
        }
        Ok(())
    }

    fn entry<R: io::Read>(
        &self,
        builder: &mut tar::Builder<&mut dyn Write>,
        mut entry: tar::Entry<'_, R>,
    ) -> io::Result<()> {
        let mut name = name_of(&entry);
        if name.as_os_str().is_empty() {
            return Ok(());
        }
        if self.chooses() && !self.kept.contains(&name) {
            match self.promoted.get(&name) {
                Some(kept) => name = kept.clone(),
                None => return Ok(()),
            }
        }
        let mut header = entry.header().clone();
        let kind = header.entry_type();
        let mut link = None;
        if kind == tar::EntryType::Link {
            let target = link_of(&entry)?;
            let target = self.promoted.get(&target).cloned().unwrap_or(target);
            if target == name {
                // The file itself has this name now.
                return Ok(());
            }
            link = Some(self.placed(&target));
        } else if kind == tar::EntryType::Symlink {
            link = entry.link_name()?.map(|target| target.into_owned());
        }
        if kind != tar::EntryType::Symlink {
            header.set_mode(self.mode(header.mode()?, kind == tar::EntryType::Directory));
        }
        extensions(builder, &mut entry)?;
        let name = match &self.rename {
            Some(rename) => self.placed(Path::new(rename)),
            None => self.placed(&name),
        };
        header.set_size(entry.size());
        match link {
            Some(link) => super::tars::append_link(builder, &mut header, &name, &link),
            None => builder.append_data(&mut header, name, &mut entry),
        }
    }

    fn placed(&self, name: &Path) -> PathBuf {
        Path::new(&self.below).join(name)
    }

    fn mode(&self, mode: u32, is_dir: bool) -> u32 {
        self.modes.as_ref().map_or(mode, |modes| modes.apply(mode, is_dir))
    }
}

/// Extended headers, but for those that the changed header says again.
fn extensions<R: io::Read>(
    builder: &mut tar::Builder<&mut dyn Write>,
    entry: &mut tar::Entry<'_, R>,
) -> io::Result<()> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    let mut kept = Vec::new();
    for extension in extensions {
        let extension = extension?;
        let key = extension.key().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if !OWN.contains(&key) {
            kept.push((key.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    if kept.is_empty() {
        return Ok(());
    }
    builder.append_pax_extensions(kept.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
}

/// Its name, without `./` before and `/` after it.
pub(super) fn name_of<R: io::Read>(entry: &tar::Entry<'_, R>) -> PathBuf {
    plain(&entry.path_bytes())
}

pub(super) fn link_of<R: io::Read>(entry: &tar::Entry<'_, R>) -> io::Result<PathBuf> {
    let target = entry.link_name_bytes();
    let target =
        target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a hard link to nothing"))?;
    Ok(plain(&target))
}

fn plain(bytes: &[u8]) -> PathBuf {
    let path = Path::new(OsStr::from_bytes(bytes));
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}
