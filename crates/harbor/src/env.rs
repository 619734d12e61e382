//! What a trial asks of Berth, as a trait, so that the trial's flow can be tested without a daemon.
//!
//! The only file that knows the client's calls.

#[cfg(test)]
pub(crate) mod fake;

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use berth_client::{Client, Error, ExecOutput, LeaseGuard, archive};
use berth_types::exec::{ExecRequest, ExecStatus};
use berth_types::files::{ArchiveIn, ArchiveOut, ArchiveReport, FsRequest, FsResponse};
use berth_types::image::{BuildImage, Image, PullImage};
use berth_types::progress::Progress;
use berth_types::sandbox::{CreateSandbox, QueuePlace, Sandbox};

/// Receives what a command writes, stdout and stderr in the order in which they came.
pub(crate) type Output<'a> = &'a mut (dyn FnMut(&[u8]) + Send);

/// Receives what an image build or pull tells.
pub(crate) type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// The calls that a trial makes.
pub(crate) trait Platform: Send + Sync {
    /// Keeps sandboxes alive while it is held.
    type Lease: Send + Sync;

    fn hold_lease(&self, ttl: Duration) -> impl Future<Output = Result<Self::Lease, Error>> + Send;
    fn lease_id(lease: &Self::Lease) -> &str;
    /// Ends the lease; its sandboxes are gone when this returns.
    fn release(&self, lease: Self::Lease) -> impl Future<Output = Result<(), Error>> + Send;
    /// Lets a sandbox outlive the lease.
    fn keep(&self, sandbox: &str) -> impl Future<Output = Result<(), Error>> + Send;

    fn build(
        &self,
        request: &BuildImage,
        context: &Path,
        on_progress: OnProgress<'_>,
    ) -> impl Future<Output = Result<Image, Error>> + Send;
    fn pull(
        &self,
        request: &PullImage,
        on_progress: OnProgress<'_>,
    ) -> impl Future<Output = Result<Image, Error>> + Send;
    fn create(&self, request: &CreateSandbox) -> impl Future<Output = Result<Sandbox, Error>> + Send;
    /// The place in the queue of a sandbox that is being made, while it waits for room.
    fn queue_place(&self, sandbox: &str) -> impl Future<Output = Result<Option<QueuePlace>, Error>> + Send;

    /// Whether the disk of the sandbox's machine is full, or was when a command of it failed.
    fn machine_disk_full(&self, sandbox: &str) -> impl Future<Output = Result<bool, Error>> + Send;

    fn exec(
        &self,
        sandbox: &str,
        request: &ExecRequest,
        output: Output<'_>,
    ) -> impl Future<Output = Result<ExecStatus, Error>> + Send;
    fn kill_exec(&self, sandbox: &str, exec: &str) -> impl Future<Output = Result<(), Error>> + Send;

    fn upload_dir(
        &self,
        sandbox: &str,
        source: &Path,
        target: &str,
    ) -> impl Future<Output = Result<ArchiveReport, Error>> + Send;
    fn upload_tar(
        &self,
        sandbox: &str,
        tar: Vec<u8>,
        target: &str,
    ) -> impl Future<Output = Result<ArchiveReport, Error>> + Send;
    /// A directory of the sandbox, merged into one of this side; tells what was refused.
    fn download(
        &self,
        sandbox: &str,
        source: &ArchiveOut,
        target: &Path,
    ) -> impl Future<Output = Result<Vec<String>, Error>> + Send;
    /// One file of the sandbox, to a path whose parent is there.
    fn download_file(
        &self,
        sandbox: &str,
        source: &str,
        target: &Path,
    ) -> impl Future<Output = Result<(), Error>> + Send;
    fn fs(
        &self,
        sandbox: &str,
        request: &FsRequest,
    ) -> impl Future<Output = Result<FsResponse, Error>> + Send;
}

impl Platform for Client {
    type Lease = LeaseGuard;

    async fn hold_lease(&self, ttl: Duration) -> Result<LeaseGuard, Error> {
        Client::hold_lease(self, ttl).await
    }

    fn lease_id(lease: &LeaseGuard) -> &str {
        lease.id()
    }

    async fn release(&self, lease: LeaseGuard) -> Result<(), Error> {
        lease.release().await
    }

    async fn keep(&self, sandbox: &str) -> Result<(), Error> {
        self.set_sandbox_lease(sandbox, None).await
    }

    async fn build(
        &self,
        request: &BuildImage,
        context: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<Image, Error> {
        let built = self.build_dir(request, context, on_progress).await?;
        Ok(built.image)
    }

    async fn pull(&self, request: &PullImage, on_progress: OnProgress<'_>) -> Result<Image, Error> {
        self.pull_image(request, on_progress).await
    }

    async fn create(&self, request: &CreateSandbox) -> Result<Sandbox, Error> {
        self.create_sandbox(request).await
    }

    async fn queue_place(&self, sandbox: &str) -> Result<Option<QueuePlace>, Error> {
        Ok(self.sandbox(sandbox).await?.queue)
    }

    async fn machine_disk_full(&self, sandbox: &str) -> Result<bool, Error> {
        Ok(self.sandbox(sandbox).await?.usage.is_some_and(|usage| usage.machine_disk_full))
    }

    async fn exec(
        &self,
        sandbox: &str,
        request: &ExecRequest,
        output: Output<'_>,
    ) -> Result<ExecStatus, Error> {
        let mut stream = Client::exec(self, sandbox, request).await?;
        while let Some(next) = stream.next().await {
            match next? {
                ExecOutput::Started { .. } => {}
                ExecOutput::Stdout(data) | ExecOutput::Stderr(data) => output(&data),
                ExecOutput::Gap { stream, from, to } => {
                    return Err(Error::ExecGap { sandbox: sandbox.to_owned(), stream, from, to });
                }
                ExecOutput::Exited(status) => return Ok(status),
                ExecOutput::Detached => break,
            }
        }
        Err(Error::ExecLost { sandbox: sandbox.to_owned(), source: None })
    }

    async fn kill_exec(&self, sandbox: &str, exec: &str) -> Result<(), Error> {
        Client::kill_exec(self, sandbox, exec).await
    }

    async fn upload_dir(&self, sandbox: &str, source: &Path, target: &str) -> Result<ArchiveReport, Error> {
        let target = ArchiveIn { path: target.to_owned(), keep_ids: false };
        self.put_packed(sandbox, &target, archive::pack_dir(source)).await
    }

    async fn upload_tar(&self, sandbox: &str, tar: Vec<u8>, target: &str) -> Result<ArchiveReport, Error> {
        let target = ArchiveIn { path: target.to_owned(), keep_ids: false };
        self.put_archive(sandbox, &target, io::Cursor::new(tar)).await
    }

    async fn download(
        &self,
        sandbox: &str,
        source: &ArchiveOut,
        target: &Path,
    ) -> Result<Vec<String>, Error> {
        let stream = self.get_archive(sandbox, source).await?;
        archive::unpack_into(stream, target)
            .await
            .map_err(|cause| unpack_error(sandbox, &source.path, target, cause))
    }

    async fn download_file(&self, sandbox: &str, source: &str, target: &Path) -> Result<(), Error> {
        let request = ArchiveOut::new(source);
        let stream = self.get_archive(sandbox, &request).await?;
        archive::unpack_file(stream, target)
            .await
            .map_err(|cause| unpack_error(sandbox, source, target, cause))
    }

    async fn fs(&self, sandbox: &str, request: &FsRequest) -> Result<FsResponse, Error> {
        Client::fs(self, sandbox, request).await
    }
}

fn unpack_error(sandbox: &str, from: &str, target: &Path, source: archive::Error) -> Error {
    let operation = format!("unpack {from} of sandbox {sandbox} into {}", target.display());
    Error::Archive { operation, source }
}
