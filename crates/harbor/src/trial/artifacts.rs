//! What is fetched after the agent: its logs, and the artifacts with their manifest.
//!
//! All of it is best effort, as in Harbor: what cannot be fetched is told in the manifest and in the log, and the
//! verifier still runs.

use std::io;
use std::path::{Path, PathBuf};

use berth_client::Error as ClientError;
use berth_types::files::{ArchiveOut, FileKind, FsRequest};
use serde::Serialize;

use super::{AGENT_LOGS, ARTIFACTS, Trial};
use crate::env::Platform;
use crate::observer::Phase;
use crate::record;
use crate::task::Artifact;
use crate::verdict::Exception;

/// `ArtifactManifestEntry`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ManifestEntry {
    source: String,
    destination: String,
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    service: Option<String>,
    exclude: Vec<String>,
}

impl<P: Platform> Trial<'_, P> {
    pub(super) async fn collect(&mut self) {
        self.enter(Phase::Collecting);
        if let Err(error) = self.download(AGENT_LOGS, &self.plan.dir.join("agent")).await {
            self.log.line(&Exception::of_call("cannot download the agent's logs", &error).trace());
        }
        if let Err(error) = self.add_agent_files().await {
            self.log.line(&format!("cannot write the agent's files: {error}"));
        }
        if let Err(error) = self.collect_artifacts().await {
            self.log.line(&format!("cannot write the artifacts: {error}"));
        }
        self.collected = true;
    }

    async fn collect_artifacts(&self) -> io::Result<()> {
        let root = self.plan.dir.join("artifacts");
        let mut claimed: Vec<PathBuf> = Vec::new();
        let mut manifest = Vec::new();
        for artifact in with_convention(&self.plan.task.task.config.artifacts) {
            let place = host_path(&artifact);
            let overlaps = claimed.iter().any(|other| other.starts_with(&place) || place.starts_with(other));
            let (kind, status) = if overlaps {
                self.log
                    .line(&format!("artifact {} overlaps an earlier one and was skipped", artifact.source));
                (guess_kind(&artifact.source), "skipped")
            } else {
                claimed.push(place.clone());
                self.collect_one(&artifact, &root.join(&place)).await
            };
            manifest.push(ManifestEntry::new(artifact, &place, kind, status));
        }
        record::write_json(&root.join("manifest.json"), &manifest)
    }

    async fn collect_one(&self, artifact: &Artifact, target: &Path) -> (&'static str, &'static str) {
        let kind = match self.kind_of(&artifact.source).await {
            Ok(Some(FileKind::Dir)) => "directory",
            Ok(_) => "file",
            Err(_) => guess_kind(&artifact.source),
        };
        let fetched = match kind {
            "directory" => self.fetch_dir(artifact, target).await,
            _ => self.fetch_file(artifact, target).await,
        };
        match fetched {
            Ok(()) => (kind, "ok"),
            Err(exception) => {
                self.log.line(&exception.trace());
                (kind, "failed")
            }
        }
    }

    async fn kind_of(&self, path: &str) -> Result<Option<FileKind>, Exception> {
        let request = FsRequest::Stat { path: path.to_owned(), user: None };
        let answer = self.job.platform.fs(self.sandbox_id()?, &request).await;
        let answer = answer.map_err(|error| Exception::of_call("cannot look at an artifact", &error))?;
        Ok(answer.stat.map(|stat| stat.kind))
    }

    async fn fetch_dir(&self, artifact: &Artifact, target: &Path) -> Result<(), Exception> {
        std::fs::create_dir_all(target).map_err(|error| local(&artifact.source, &error))?;
        let exclude = artifact.exclude.join("\n");
        let source = ArchiveOut { exclude, ..ArchiveOut::new(&artifact.source) };
        let fetched = self.job.platform.download(self.sandbox_id()?, &source, target).await;
        let refused = fetched.map_err(|error| remote(&artifact.source, &error))?;
        self.log_refused(&artifact.source, &refused);
        Ok(())
    }

    async fn fetch_file(&self, artifact: &Artifact, target: &Path) -> Result<(), Exception> {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(|error| local(&artifact.source, &error))?;
        }
        let fetched = self.job.platform.download_file(self.sandbox_id()?, &artifact.source, target).await;
        fetched.map_err(|error| remote(&artifact.source, &error))
    }
}

impl ManifestEntry {
    fn new(artifact: Artifact, place: &Path, kind: &'static str, status: &'static str) -> Self {
        let exclude = if kind == "directory" { artifact.exclude } else { Vec::new() };
        let destination = match place.as_os_str().is_empty() {
            true => "artifacts".to_owned(),
            false => format!("artifacts/{}", place.display()),
        };
        Self { source: artifact.source, destination, kind, status, service: artifact.service, exclude }
    }
}

/// The task's artifacts; the convention directory first, unless the task declares it itself.
fn with_convention(declared: &[Artifact]) -> Vec<Artifact> {
    let mut artifacts = declared.to_vec();
    if !artifacts.iter().any(|artifact| artifact.source.trim_end_matches('/') == ARTIFACTS) {
        artifacts.insert(0, Artifact { source: ARTIFACTS.to_owned(), ..Artifact::default() });
    }
    artifacts
}

/// Place below `artifacts/`: the destination, or the source's own path.
fn host_path(artifact: &Artifact) -> PathBuf {
    let path = artifact.destination.as_deref().unwrap_or(&artifact.source);
    path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect()
}

/// For what could not be looked at: a name with a suffix is taken for a file.
fn guess_kind(source: &str) -> &'static str {
    if Path::new(source).extension().is_some() { "file" } else { "directory" }
}

fn local(source: &str, error: &io::Error) -> Exception {
    let doing = format!("cannot keep artifact {source}");
    Exception::caused(crate::verdict::Failure::RuntimeRequest, doing, error)
}

fn remote(source: &str, error: &ClientError) -> Exception {
    Exception::of_call(&format!("cannot fetch artifact {source}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_lands_below_the_artifacts_directory() {
        let table = [
            ("/logs/artifacts", None, "logs/artifacts"),
            ("/var/log/x.txt", None, "var/log/x.txt"),
            ("/var//log/./x/", None, "var/log/x"),
            ("/var/log", Some("logs"), "logs"),
        ];
        for (source, destination, expected) in table {
            let destination = destination.map(str::to_owned);
            let artifact = Artifact { source: source.to_owned(), destination, ..Artifact::default() };
            assert_eq!(host_path(&artifact), Path::new(expected), "{source}");
        }
    }

    #[test]
    fn the_convention_directory_comes_first_and_once() {
        let own = Artifact { source: "/logs/artifacts/".to_owned(), ..Artifact::default() };
        assert_eq!(with_convention(std::slice::from_ref(&own)), [own]);
        let other = Artifact { source: "/app".to_owned(), ..Artifact::default() };
        let sources: Vec<String> =
            with_convention(&[other]).into_iter().map(|artifact| artifact.source).collect();
        assert_eq!(sources, ["/logs/artifacts", "/app"]);
    }
}
