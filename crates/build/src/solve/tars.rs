//! Streams of tar for [`Step::unpack`], written by a thread of their own while the other end reads.

use std::io::{self, Read, Write};
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::io::SyncIoBridge;

use crate::archive::Compression;
use crate::context::{Context, Entry, EntryKind};
use crate::runner::{Owner, RunnerError, Step, Tar};

/// Bytes between the two ends.
const PIPE: usize = 256 << 10;

/// A tar under way.
pub(super) struct Stream {
    tar: Tar,
    writer: JoinHandle<io::Result<()>>,
}

impl Stream {
    /// Starts writing.
    fn start(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Self {
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
        let message = "cannot read the files to copy".to_owned();
        match self.writer.await {
            Ok(Ok(())) => unpacked,
            // The reader had enough: it knows whether that was well.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => unpacked,
            Ok(Err(error)) if is_content(&error) => {
                Err(RunnerError::User { message, source: Some(error.into()) })
            }
            Ok(Err(error)) => Err(RunnerError::Infrastructure { message, source: Some(error.into()) }),
            Err(error) => Err(RunnerError::Infrastructure { message, source: Some(error.into()) }),
        }
    }
}

/// Whether an error says that the bytes of a file are wrong, for example those of a damaged archive.
fn is_content(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof, Unsupported};
    matches!(error.kind(), InvalidData | InvalidInput | Unsupported | UnexpectedEof)
}

/// A file with the text of a heredoc.
pub(super) fn inline(name: String, content: String, mode: u32) -> Stream {
    Stream::start(move |out| {
        let entry = Entry { kind: EntryKind::File(content.len() as u64), mode, mtime: 0 };
        let mut builder = tar::Builder::new(out);
        append(&mut builder, &name, &entry, content.as_bytes())?;
        builder.finish()
    })
}

/// One file of the context under another name.
pub(super) fn file(context: Arc<Context>, path: String, name: String) -> Stream {
    Stream::start(move |out| {
        let mut builder = tar::Builder::new(out);
        if let Some(entry) = context.entry(&path) {
            append_from(&mut builder, &context, &path, &name, entry)?;
        }
        builder.finish()
    })
}

/// The contents of a directory of the context.
pub(super) fn dir(context: Arc<Context>, path: String) -> Stream {
    Stream::start(move |out| {
        let mut builder = tar::Builder::new(out);
        for (name, entry) in context.below(&path) {
            let whole = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            append_from(&mut builder, &context, &whole, &name, entry)?;
        }
        builder.finish()
    })
}

/// An archive of the context, decompressed.
pub(super) fn archive(context: Arc<Context>, path: String, compression: Compression) -> Stream {
    Stream::start(move |out| {
        let mut reader = compression.reader(context.open_file(&path)?)?;
        io::copy(&mut reader, out).map(drop)
    })
}

/// The one file of a tar under another name.
pub(super) fn renamed(tar: Tar, name: String) -> Stream {
    let handle = tokio::runtime::Handle::current();
    Stream::start(move |out| {
        let mut archive = tar::Archive::new(SyncIoBridge::new_with_handle(tar, handle));
        let mut builder = tar::Builder::new(out);
        for entry in archive.entries()? {
            let mut entry = entry?;
            if let Some(extensions) = entry.pax_extensions()? {
                let kept: Vec<(String, Vec<u8>)> = extensions
                    .filter_map(Result::ok)
                    .filter_map(|extension| {
                        Some((extension.key().ok()?.to_owned(), extension.value_bytes().to_vec()))
                    })
                    .filter(|(key, _)| key != "path" && key != "linkpath" && key != "size")
                    .collect();
                builder.append_pax_extensions(
                    kept.iter().map(|(key, value)| (key.as_str(), value.as_slice())),
                )?;
            }
            let mut header = entry.header().clone();
            header.set_size(entry.size());
            builder.append_data(&mut header, &name, &mut entry)?;
        }
        builder.finish()
    })
}

fn append_from(
    builder: &mut tar::Builder<&mut dyn Write>,
    context: &Context,
    path: &str,
    name: &str,
    entry: &Entry,
) -> io::Result<()> {
    match &entry.kind {
        EntryKind::File(size) => append(builder, name, entry, context.open_file(path)?.take(*size)),
        _ => append(builder, name, entry, io::empty()),
    }
}

fn append(
    builder: &mut tar::Builder<&mut dyn Write>,
    name: &str,
    entry: &Entry,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_mtime(u64::try_from(entry.mtime).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
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
            builder.append_link(&mut header, name, target)
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
