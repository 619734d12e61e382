//! Streams of tar for [`Step::unpack`], written by a thread of their own while the other end reads.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::io::SyncIoBridge;

use super::digest;
use crate::archive::Compression;
use crate::chmod::Modes;
use crate::context::{Context, Entry, EntryKind};
use crate::ignore::Ignore;
use crate::key::Digest;
use crate::plan::is_left_out;
use crate::runner::{Owner, RunnerError, Step, Tar};

/// Bytes between the two ends.
const PIPE: usize = 256 << 10;
/// Longest text of a link that a tar header has itself, in bytes.
const LINK_IN_HEADER: usize = 100;

/// A tar under way.
pub(super) struct Stream {
    tar: Tar,
    writer: JoinHandle<io::Result<()>>,
}

impl Stream {
    /// Starts writing.
    pub(super) fn start(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Self {
        let (reader, pipe) = tokio::io::duplex(PIPE);
        let writer = tokio::task::spawn_blocking(move || {
            let mut pipe = SyncIoBridge::new(pipe);
            write(&mut pipe)
        });
        Self { tar: Box::new(reader), writer }
    }

    /// Unpacks it. A writer that failed is the cause, whatever the reader made of the broken stream.
    pub(super) async fn unpack(
        self,
        step: &mut dyn Step,
        target: &str,
        owner: Owner,
        mode: Option<u32>,
    ) -> Result<(), RunnerError> {
        let unpacked = step.unpack(target, owner, mode, self.tar).await;
        settled(self.writer, unpacked).await
    }

    /// Digest of what it holds.
    pub(super) async fn digest(self) -> Result<Digest, RunnerError> {
        let digest = digest::of_tar(self.tar).await;
        settled(self.writer, digest).await
    }
}

/// What the reader made of a stream, unless its writer failed.
async fn settled<T>(
    writer: JoinHandle<io::Result<()>>,
    read: Result<T, RunnerError>,
) -> Result<T, RunnerError> {
    let message = "cannot read the files to copy".to_owned();
    match writer.await {
        Ok(Ok(())) => read,
        // The reader had enough: it knows whether that was well.
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => read,
        Ok(Err(error)) if is_content(&error) => {
            Err(RunnerError::User { message, source: Some(error.into()) })
        }
        Ok(Err(error)) => Err(RunnerError::Infrastructure { message, source: Some(error.into()) }),
        Err(error) => Err(RunnerError::Infrastructure { message, source: Some(error.into()) }),
    }
}

/// Whether an error says that the bytes of a file are wrong, for example those of a damaged archive.
fn is_content(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof, Unsupported};
    matches!(error.kind(), InvalidData | InvalidInput | Unsupported | UnexpectedEof)
}

/// A file with a text.
pub(super) fn inline(name: String, content: String, mode: u32) -> Stream {
    Stream::start(move |out| {
        let entry = Entry { kind: EntryKind::File(content.len() as u64), mode, mtime: 0 };
        let mut builder = tar::Builder::new(out);
        append(&mut builder, &name, &entry, content.as_bytes())?;
        builder.finish()
    })
}

/// What a stream has, by the names that it gets.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// The contents of a directory of the context.
    Tree { path: String, without: Vec<String> },
    /// A file of the context.
    File { path: String, name: String },
    /// A text.
    Text { name: String, content: String },
}

/// Files of the context, in order.
pub(super) fn context(context: Arc<Context>, items: Vec<Item>, modes: Option<Modes>) -> Stream {
    Stream::start(move |out| {
        let mut writer = Writer { builder: tar::Builder::new(out), modes, links: Links::default() };
        for item in items {
            writer.item(&context, item)?;
        }
        writer.builder.finish()
    })
}

/// An archive of the context, decompressed.
pub(super) fn archive(context: Arc<Context>, path: String, compression: Compression) -> Stream {
    Stream::start(move |out| {
        let mut reader = compression.reader(context.open_file(&path)?)?;
        io::copy(&mut reader, out).map(drop)
    })
}

/// A file of this machine that was brought from elsewhere.
pub(super) fn brought(file: File, name: String, mode: u32, mtime: i64, modes: Option<Modes>) -> Stream {
    Stream::start(move |out| {
        let mut writer = Writer { builder: tar::Builder::new(out), modes, links: Links::default() };
        let entry = Entry { kind: EntryKind::File(file.metadata()?.len()), mode, mtime };
        writer.file(&name, &entry, file)?;
        writer.builder.finish()
    })
}

/// An archive that was brought from elsewhere, decompressed.
pub(super) fn brought_archive(file: File, compression: Compression) -> Stream {
    Stream::start(move |out| io::copy(&mut compression.reader(file)?, out).map(drop))
}

/// The contents of a directory of this machine that nobody else writes, every file as of one time.
pub(super) fn directory(root: PathBuf, mtime: i64, excludes: Option<Ignore>, modes: Option<Modes>) -> Stream {
    Stream::start(move |out| {
        let mut writer = Writer { builder: tar::Builder::new(out), modes, links: Links::default() };
        let mut found = list(&root)?;
        found.retain(|name, _| !excludes.as_ref().is_some_and(|excludes| excludes.excludes(name)));
        for (name, mut entry) in with_parents(found, &root)? {
            entry.mtime = mtime;
            match entry.kind {
                EntryKind::File(_) => writer.file(&name, &entry, File::open(root.join(&name))?)?,
                _ => writer.other(&name, &entry)?,
            }
        }
        writer.builder.finish()
    })
}

/// Everything below a directory, by name.
fn list(root: &Path) -> io::Result<BTreeMap<String, Entry>> {
    let (mut found, mut queue) = (BTreeMap::new(), vec![String::new()]);
    while let Some(dir) = queue.pop() {
        for item in std::fs::read_dir(root.join(&dir))? {
            let Ok(name) = item?.file_name().into_string() else {
                let message = format!("a file in `/{dir}` has a name that is not UTF-8");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            };
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let entry = entry_of(&root.join(&path))?;
            if entry.kind == EntryKind::Dir {
                queue.push(path.clone());
            }
            found.insert(path, entry);
        }
    }
    Ok(found)
}

fn entry_of(path: &Path) -> io::Result<Entry> {
    let metadata = path.symlink_metadata()?;
    let kind = match metadata.file_type() {
        kind if kind.is_file() => EntryKind::File(metadata.len()),
        kind if kind.is_dir() => EntryKind::Dir,
        kind if kind.is_symlink() => match std::fs::read_link(path)?.into_os_string().into_string() {
            Ok(target) => EntryKind::Link(target),
            Err(_) => EntryKind::Special("a symbolic link whose target is not UTF-8"),
        },
        _ => EntryKind::Special("a special file"),
    };
    Ok(Entry { kind, mode: metadata.mode() & 0o7777, mtime: metadata.mtime() })
}

/// Brings directories back that files which are kept stand in.
fn with_parents(kept: BTreeMap<String, Entry>, root: &Path) -> io::Result<BTreeMap<String, Entry>> {
    let mut all = kept.clone();
    for name in kept.keys() {
        for (at, _) in name.match_indices('/') {
            if !all.contains_key(&name[..at]) {
                all.insert(name[..at].to_owned(), entry_of(&root.join(&name[..at]))?);
            }
        }
    }
    Ok(all)
}

/// A tar that is being written.
struct Writer<'a> {
    builder: tar::Builder<&'a mut dyn Write>,
    modes: Option<Modes>,
    links: Links,
}

impl Writer<'_> {
    fn item(&mut self, context: &Context, item: Item) -> io::Result<()> {
        match item {
            Item::Text { name, content } => {
                let entry = Entry { kind: EntryKind::File(content.len() as u64), mode: 0o644, mtime: 0 };
                self.links.replaced(&name);
                let entry = self.changed(&entry);
                append(&mut self.builder, &name, &entry, content.as_bytes())?;
            }
            Item::File { path, name } => match context.entry(&path) {
                Some(entry) => self.entry(context, &path, &name, entry)?,
                None => {
                    let message = format!("`{path}` is not in the build context");
                    return Err(io::Error::new(io::ErrorKind::NotFound, message));
                }
            },
            Item::Tree { path, without } => {
                for (name, entry) in context.below(&path) {
                    if is_left_out(&name, &without) {
                        continue;
                    }
                    self.entry(context, &joined(&path, &name), &name, entry)?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, context: &Context, path: &str, name: &str, entry: &Entry) -> io::Result<()> {
        match &entry.kind {
            EntryKind::File(_) => self.file(name, entry, context.open_file(path)?),
            _ => self.other(name, entry),
        }
    }

    /// A regular file; one that stands here by another name already becomes a hard link to that.
    fn file(&mut self, name: &str, entry: &Entry, file: File) -> io::Result<()> {
        let EntryKind::File(size) = entry.kind else { return self.other(name, entry) };
        let earlier = self.links.earlier(name, &file.metadata()?);
        let entry = self.changed(entry);
        match earlier {
            None => append(&mut self.builder, name, &entry, file.take(size)),
            Some(earlier) => {
                let mut header = header(&entry);
                header.set_entry_type(tar::EntryType::Link);
                append_link(&mut self.builder, &mut header, name.as_ref(), earlier.as_ref())
            }
        }
    }

    fn other(&mut self, name: &str, entry: &Entry) -> io::Result<()> {
        if entry.kind != EntryKind::Dir {
            self.links.replaced(name);
        }
        let entry = self.changed(entry);
        append(&mut self.builder, name, &entry, io::empty())
    }

    /// As `--chmod` wants it.
    fn changed(&self, entry: &Entry) -> Entry {
        let mode = match &self.modes {
            Some(modes) => modes.apply(entry.mode, entry.kind == EntryKind::Dir),
            None => entry.mode,
        };
        Entry { mode, ..entry.clone() }
    }
}

/// Files with several names, by the name that each was written under.
#[derive(Default)]
struct Links {
    names: HashMap<(u64, u64), String>,
}

impl Links {
    /// The name that a file was written under before this one.
    fn earlier(&mut self, name: &str, metadata: &Metadata) -> Option<String> {
        self.replaced(name);
        if metadata.nlink() < 2 {
            return None;
        }
        let file = (metadata.dev(), metadata.ino());
        let earlier = self.names.get(&file).cloned();
        self.names.entry(file).or_insert_with(|| name.to_owned());
        earlier
    }

    /// What was written under a name, or below it, is something else from here on.
    fn replaced(&mut self, name: &str) {
        let below = |known: &str| {
            known.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.names.retain(|_, known| !below(known));
    }
}

/// `name` below a directory; `""` is no directory.
pub(super) fn joined(dir: &str, name: &str) -> String {
    match (dir, name) {
        ("", name) => name.to_owned(),
        (dir, "") => dir.to_owned(),
        (dir, name) => format!("{dir}/{name}"),
    }
}

fn append(
    builder: &mut tar::Builder<&mut dyn Write>,
    name: &str,
    entry: &Entry,
    content: impl Read,
) -> io::Result<()> {
    let mut header = header(entry);
    match &entry.kind {
        EntryKind::File(size) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(*size);
            let mut counted = Counted { inner: content, left: *size };
            builder.append_data(&mut header, name, &mut counted)?;
            // A tar with fewer bytes than its header says would be read wrongly from here on.
            match counted.left {
                0 => Ok(()),
                left => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("`{name}` became {left} bytes shorter while it was read"),
                )),
            }
        }
        EntryKind::Dir => {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, format!("{name}/"), io::empty())
        }
        EntryKind::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            append_link(builder, &mut header, name.as_ref(), target.as_ref())
        }
        EntryKind::Special(kind) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("`{name}` is {kind}, which cannot be copied"),
        )),
    }
}

/// Counts down the bytes that are still to come.
struct Counted<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

fn header(entry: &Entry) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_mtime(u64::try_from(entry.mtime).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// With the link's text as it is: the builder's own way makes `a/b` of `a//b`, but for those too long for a header.
pub(super) fn append_link<W: Write>(
    builder: &mut tar::Builder<W>,
    header: &mut tar::Header,
    name: &Path,
    target: &Path,
) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    if target.as_os_str().len() > LINK_IN_HEADER {
        return builder.append_link(header, name, target);
    }
    header.set_size(0);
    header.set_link_name_literal(target.as_os_str().as_bytes())?;
    builder.append_data(header, name, io::empty())
}
