//! Files in and out of a sandbox: trees as tars, single files, changes, small calls.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use berth_sandbox::guest::{
    self, Connect, Notice, Owner, Pack, PackReport, PackSpec, ReadFile, Socket, UnpackSpec, Watch, WriteFile,
};
use berth_types::error::{ApiError, Kind};
use berth_types::files::{
    ArchiveIn, ArchiveOut, ArchiveOutReport, ArchiveReport, Change, FileIn, FileOut, FileReport, FsRequest,
    FsResponse, WatchQuery,
};
use berth_wire::message::FailureCode;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::images::Body;
use crate::patience::{Progress, SMALL, TRANSFER, while_alive};
use crate::registry::Live;
use crate::{Error, Node};

/// Pieces of an archive on their way out, in bytes.
const PIECE: usize = 64 << 10;

/// Most bytes that each list of a report holds, since trailers have to be small.
const LISTED_BYTES: usize = 2 << 10;

/// A tar that comes out of a sandbox.
pub struct Download {
    node: Node,
    sandbox: String,
    live: Live,
    path: String,
    pack: Pack,
}

impl Download {
    /// The next bytes; none at the end of a complete tar.
    ///
    /// # Errors
    /// The tar broke off, for the reason that the sandbox gives; it is in the log too.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = self.pack.read_buf(&mut piece);
        let read = while_alive(&self.live.machine.guest(), TRANSFER, &Progress::new(), read).await;
        let error = match read {
            Some(Ok(0)) => return Ok(None),
            Some(Ok(_)) => return Ok(Some(piece.freeze())),
            Some(Err(error)) => self.node.broken_off(&self.sandbox, error).await,
            None => ApiError::from(&self.node.unresponsive(&self.sandbox, TRANSFER)),
        };
        let (sandbox, path) = (&self.sandbox, &self.path);
        tracing::warn!(sandbox, path, reason = error.message, "an archive broke off");
        Err(error)
    }

    /// What is not in the tar as it was in the sandbox; complete once [`Download::next`] has come to its end.
    pub fn report(&self) -> ArchiveOutReport {
        self.pack.report().map(shown).unwrap_or_default()
    }
}

/// A part of a file that comes out of a sandbox.
pub struct FileContents {
    node: Node,
    sandbox: String,
    live: Live,
    size: u64,
    inner: guest::FileStream,
}

impl FileContents {
    /// Size of the whole file in bytes, as it was just before its contents were opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes; none at the end of what was asked for.
    ///
    /// # Errors
    /// It broke off, for the reason that the sandbox gives.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let next = self.inner.next();
        match while_alive(&self.live.machine.guest(), TRANSFER, &Progress::new(), next).await {
            Some(None) => Ok(None),
            Some(Some(Ok(piece))) => Ok(Some(piece)),
            Some(Some(Err(source))) => Err(self.node.guest_error(&self.sandbox, source).await),
            None => Err(self.node.unresponsive(&self.sandbox, TRANSFER)),
        }
    }
}

/// Changes of files, as they happen. Dropping it ends the watch.
pub struct Changes {
    node: Node,
    sandbox: String,
    inner: guest::Changes,
}

impl Changes {
    /// The next change; [`berth_types::files::ChangeKind::Ready`] is the first. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The watch has ended: what is watched is gone, or the sandbox is.
    pub async fn next(&mut self) -> Result<Change, Error> {
        match self.inner.next().await {
            Some(Ok(change)) => Ok(change),
            Some(Err(source)) => Err(self.node.guest_error(&self.sandbox, source).await),
            None => Err(self.node.guest_error(&self.sandbox, guest::Error::Gone).await),
        }
    }
}

/// A body on its way in, which notes whether it is the client who is waited for.
struct Watched {
    body: Body,
    progress: Progress,
}

impl Watched {
    fn new(body: Body) -> (Watched, Progress) {
        let progress = Progress::new();
        (Watched { body, progress: progress.clone() }, progress)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.body).poll_read(context, buffer);
        self.progress.moved(polled.is_pending());
        polled
    }
}

fn shown(report: &PackReport) -> ArchiveOutReport {
    let list = |notices: &[Notice]| {
        let mut room = LISTED_BYTES;
        let texts = notices.iter().map(|notice| format!("{}: {}", notice.path, notice.why));
        texts.map_while(|text| room.checked_sub(text.len()).map(|left| (room = left, text).1)).collect()
    };
    ArchiveOutReport {
        skipped_count: report.skipped_count,
        skipped: list(&report.skipped),
        unread_count: report.unread_count,
        unread: list(&report.unread),
        changed_count: report.changed_count,
        changed: list(&report.changed),
    }
}

impl Node {
    /// Unpacks a tar into a directory of a sandbox.
    ///
    /// # Errors
    /// What the sandbox's files do not allow, and the sandbox's death; [`Error::Unresponsive`].
    pub async fn unpack(&self, sandbox: &str, request: ArchiveIn, tar: Body) -> Result<ArchiveReport, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let owner = if request.keep_ids { Owner::Keep } else { Owner::Root };
        let spec = UnpackSpec { path: request.path, owner, ..UnpackSpec::default() };
        let (tar, progress) = Watched::new(tar);
        let guest = live.guest().await;
        let call = guest.unpack(spec, tar);
        let report = self.ask_long(&sandbox, &live, TRANSFER, &progress, call).await?;
        let refused = report.refused.into_iter().map(|notice| format!("{}: {}", notice.path, notice.why));
        Ok(ArchiveReport {
            refused: refused.collect(),
            skipped: report.skipped.into_iter().map(|notice| notice.path).collect(),
        })
    }

    /// A tar of a path of a sandbox.
    ///
    /// # Errors
    /// What the sandbox's files do not allow, and the sandbox's death; [`Error::Unresponsive`].
    pub async fn pack(&self, sandbox: &str, request: ArchiveOut) -> Result<Download, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let lines = |text: &str| text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        let spec = PackSpec {
            path: request.path.clone(),
            exclude: lines(&request.exclude),
            follow: true,
            ignore_failed_read: request.ignore_failed_read,
            include: lines(&request.include),
            exclude_files: lines(&request.exclude_files),
            protect: lines(&request.protect),
            sparse: request.sparse,
            ..PackSpec::default()
        };
        let guest = live.guest().await;
        let call = guest.pack(spec);
        let pack = self.ask_long(&sandbox, &live, TRANSFER, &Progress::new(), call).await?;
        Ok(Download { node: self.clone(), sandbox, live, path: request.path, pack })
    }

    /// Bytes of one file of a sandbox.
    ///
    /// # Errors
    /// What the sandbox's files do not allow, and the sandbox's death; [`Error::Unresponsive`].
    pub async fn read_file(&self, sandbox: &str, request: FileOut) -> Result<FileContents, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let FileOut { path, offset, length, user } = request;
        // The guest tells the size last, and clients are to know it first.
        let nothing = ReadFile { path: path.clone(), offset: 0, length: Some(0), user: user.clone() };
        let look = async {
            let mut looked = live.guest().await.read_file(nothing).await?;
            while looked.next().await.transpose()?.is_some() {}
            looked.size().ok_or(guest::Error::Answer { request: "read_file" })
        };
        let size = self.ask_long(&sandbox, &live, SMALL, &Progress::new(), look).await?;
        let guest = live.guest().await;
        let call = guest.read_file(ReadFile { path, offset, length, user });
        let inner = self.ask_long(&sandbox, &live, TRANSFER, &Progress::new(), call).await?;
        Ok(FileContents { node: self.clone(), sandbox, live, size, inner })
    }

    /// Writes a file of a sandbox: it is there as a whole, or not at all.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a mode that is none; what the sandbox's files do not allow, among that `path_exists` with
    /// `create_only`; the sandbox's death; [`Error::Unresponsive`].
    pub async fn write_file(
        &self,
        sandbox: &str,
        request: FileIn,
        contents: Body,
    ) -> Result<FileReport, Error> {
        let mode = request.mode.as_deref().map(mode).transpose()?;
        let (sandbox, _, live) = self.live(sandbox)?;
        let FileIn { path, owner, create_only, .. } = request;
        let (contents, progress) = Watched::new(contents);
        let guest = live.guest().await;
        let call = guest.write_file(WriteFile { path, mode, owner, create_only }, contents);
        let bytes = self.ask_long(&sandbox, &live, TRANSFER, &progress, call).await?;
        Ok(FileReport { bytes })
    }

    /// Watches files of a sandbox.
    ///
    /// # Errors
    /// What the sandbox's files do not allow, and the sandbox's death; [`Error::Unresponsive`].
    pub async fn watch(&self, sandbox: &str, request: WatchQuery) -> Result<Changes, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let WatchQuery { path, recursive } = request;
        let guest = live.guest().await;
        let call = guest.watch(Watch { path, recursive });
        // A large tree takes a while to be looked through.
        let inner = self.ask_long(&sandbox, &live, SMALL, &Progress::new(), call).await?;
        Ok(Changes { node: self.clone(), sandbox, inner })
    }

    /// Connects to a socket inside a sandbox.
    ///
    /// # Errors
    /// `not_listening` when nobody does there; the sandbox's death; [`Error::Unresponsive`].
    pub async fn connect(&self, sandbox: &str, socket: Connect) -> Result<Socket, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let guest = live.guest().await;
        let call = guest.connect_to(socket);
        self.ask_long(&sandbox, &live, SMALL, &Progress::new(), call).await
    }

    /// A small call on a sandbox's files.
    ///
    /// # Errors
    /// What the sandbox's files do not allow, and the sandbox's death; [`Error::Unresponsive`].
    pub async fn fs(&self, sandbox: &str, request: FsRequest) -> Result<FsResponse, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        // Whole trees may have to go.
        let guest = live.guest().await;
        let call = guest.fs(request);
        self.ask_long(&sandbox, &live, SMALL, &Progress::new(), call).await
    }

    async fn broken_off(&self, sandbox: &str, error: io::Error) -> ApiError {
        match error.downcast::<guest::Error>() {
            Ok(error) => ApiError::from(&self.guest_error(sandbox, error).await),
            Err(error) => ApiError::new(Kind::Internal, "archive_broken", error.to_string()),
        }
    }
}

/// Permission bits from an octal number in text.
fn mode(text: &str) -> Result<u32, Error> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(mode),
        _ => Err(Error::BadRequest {
            field: "mode",
            problem: format!("{text:?} is not an octal number up to 7777"),
        }),
    }
}

/// The error for what the guest refused; `None` when the guest itself failed.
pub(crate) fn refusal(source: &guest::Error) -> Option<Error> {
    let failure = source.refusal()?;
    let (code, kind) = match failure.code {
        FailureCode::NotFound => ("path_not_found", Kind::NotFound),
        FailureCode::NotADirectory => ("not_a_directory", Kind::Conflict),
        FailureCode::IsADirectory => ("is_a_directory", Kind::Conflict),
        FailureCode::Permission => ("permission_denied", Kind::User),
        FailureCode::NoSpace => ("sandbox_disk_full", Kind::Capacity),
        FailureCode::Limit => ("sandbox_limit", Kind::Capacity),
        FailureCode::Io => ("sandbox_io", Kind::Internal),
        FailureCode::BadArchive => ("bad_archive", Kind::User),
        FailureCode::Refused | FailureCode::Invalid => ("bad_request", Kind::User),
        FailureCode::Conflict => ("exec_id_taken", Kind::Conflict),
        FailureCode::Exists => ("path_exists", Kind::Conflict),
        FailureCode::NotConnected => ("not_listening", Kind::Unavailable),
        FailureCode::Cancelled => ("cancelled", Kind::Unavailable),
    };
    let message = match &failure.path {
        Some(path) => format!("{path}: {}", failure.message),
        None => failure.message.clone(),
    };
    Some(Error::InSandbox { code, kind, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode("0644").unwrap(), 0o644);
        assert_eq!(mode("7777").unwrap(), 0o7777);
        for bad in ["", "8", "+7", "10000", "rw", "0o644"] {
            assert!(mode(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
