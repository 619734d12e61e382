//! From a request to a plan: the Dockerfile and the context read, and images and remote sources brought as the plan
//! asks for them. Which ones those are is known only bit by bit: an image's `ONBUILD` may name another.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use berth_types::image::ContextManifest;
use futures_util::future::{try_join, try_join_all};

use super::{ContextSource, DockerfileSource, Request};
use crate::context::{Context, Digests};
use crate::error::{Error, Needed, Needs};
use crate::fault::nearest;
use crate::graph::Graph;
use crate::plan::{Inputs, Plan, plan};
use crate::runner::{Base, Fetched, Remote, Runner};
use crate::source::Source;

/// What a build begins with.
pub(super) struct Prepared {
    pub(super) graph: Arc<Graph>,
    pub(super) context: Arc<Context>,
    pub(super) brought: Brought,
    pub(super) plan: Plan,
}

/// What was brought for a plan.
#[derive(Default)]
pub(super) struct Brought {
    pub(super) bases: Arc<BTreeMap<String, Base>>,
    pub(super) remotes: BTreeMap<Remote, Arc<Fetched>>,
}

/// A context that can be sent to another thread.
enum Owned {
    Directory(PathBuf, Digests),
    Manifest(Box<ContextManifest>),
}

impl Owned {
    fn of(source: ContextSource<'_>) -> Self {
        match source {
            ContextSource::Directory(path) => Self::Directory(path.to_owned(), Digests::default()),
            ContextSource::Hashed(path, known) => Self::Directory(path.to_owned(), known.clone()),
            ContextSource::Manifest(manifest) => Self::Manifest(Box::new(manifest.clone())),
        }
    }

    fn dockerfile(&self, dockerfile: DockerfileSource) -> Result<Source, Error> {
        let name = match dockerfile {
            DockerfileSource::Text { name, text } => return Ok(Source::new(name, text)),
            DockerfileSource::InContext(name) => name,
        };
        match self {
            Self::Directory(path, _) => match Context::read(path, &name)? {
                Some(text) => Ok(Source::new(name, text)),
                None => Err(Error::NoDockerfile { name, context: path.clone() }),
            },
            Self::Manifest(manifest) => text_of(manifest, name),
        }
    }

    fn open(&self, dockerfile: &str) -> Result<Context, Error> {
        Ok(match self {
            Self::Directory(path, known) => Context::open(path, dockerfile)?.knowing(known.clone()),
            Self::Manifest(manifest) => Context::of_manifest(manifest, dockerfile)?,
        })
    }
}

fn text_of(manifest: &ContextManifest, name: String) -> Result<Source, Error> {
    let plain = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| !matches!(*part, "" | ".")).map(str::to_owned).collect()
    };
    let wanted = plain(&name);
    if let Some((_, text)) = manifest.texts.iter().find(|(path, _)| plain(path) == wanted) {
        return Ok(Source::new(name, text.clone()));
    }
    // It may be a link, or the client did not know that it is the Dockerfile: the context itself will tell.
    Err(Error::ContextNeeded { path: name })
}

/// The Dockerfile as stages, and the one to build.
pub(super) async fn graph(request: &Request<'_>) -> Result<(Graph, usize), Error> {
    let (owned, dockerfile) = (Owned::of(request.context), request.dockerfile.clone());
    let (build_args, platform) = (request.build_args.clone(), request.platform.clone());
    let wanted = request.target.clone();
    let read = move || -> Result<Graph, Error> {
        let source = Arc::new(owned.dockerfile(dockerfile)?);
        Ok(Graph::read_for(&source, &build_args, &platform, wanted.as_deref())?)
    };
    let graph = tokio::task::spawn_blocking(read).await.map_err(Error::Reader)??;
    let target = target(&graph, request.target.as_deref())?;
    Ok((graph, target))
}

/// Reads, brings what is needed, plans.
pub(super) async fn prepare(request: &Request<'_>, runner: &dyn Runner) -> Result<Prepared, Error> {
    let (graph, target) = graph(request).await?;
    let graph = Arc::new(graph);
    let (owned, name) = (Owned::of(request.context), graph.source.name.clone());
    let opened = tokio::task::spawn_blocking(move || owned.open(&name)).await.map_err(Error::Reader)??;
    let context = Arc::new(opened);
    let mut brought = Brought::default();
    loop {
        match brought.plan(request, &graph, &context, target).await {
            Err(Error::Needs(needs)) if brought.lacks(&needs) => {
                brought.bring(*needs, &graph, runner).await?;
            }
            planned => return Ok(Prepared { graph, context, brought, plan: planned? }),
        }
    }
}

fn target(graph: &Graph, target: Option<&str>) -> Result<usize, Error> {
    graph.target(target).ok_or_else(|| {
        let target = target.unwrap_or_default().to_owned();
        let nearest = nearest(&target, graph.stages.iter().filter_map(|stage| stage.name.as_deref()));
        Error::UnknownTarget { file: graph.source.name.clone(), target, nearest }
    })
}

impl Brought {
    /// Plans with what there is. Hashing files is work for another thread.
    async fn plan(
        &self,
        request: &Request<'_>,
        graph: &Arc<Graph>,
        context: &Arc<Context>,
        target: usize,
    ) -> Result<Plan, Error> {
        let (graph, context, bases) = (graph.clone(), context.clone(), self.bases.clone());
        let (build_args, platform) = (request.build_args.clone(), request.platform.clone());
        let no_network = request.no_network;
        let remotes: BTreeMap<Remote, String> =
            self.remotes.iter().map(|(remote, fetched)| (remote.clone(), fetched.digest.clone())).collect();
        let job = move || {
            let (build_args, platform) = (&build_args, platform.as_str());
            let (graph, context, bases, remotes) = (&*graph, &*context, &*bases, &remotes);
            plan(&Inputs { graph, target, context, bases, remotes, build_args, no_network, platform })
        };
        tokio::task::spawn_blocking(job).await.map_err(Error::Reader)?
    }

    /// Whether any of that is not here: a plan that asks again for what it was given would never end.
    fn lacks(&self, needs: &Needs) -> bool {
        needs.bases.iter().any(|needed| !self.bases.contains_key(&needed.what))
            || needs.remotes.iter().any(|needed| !self.remotes.contains_key(&needed.what))
    }

    /// Brings all of it, side by side.
    async fn bring(&mut self, needs: Needs, graph: &Graph, runner: &dyn Runner) -> Result<(), Error> {
        let bases = needs.bases.into_iter().map(async |needed| {
            let base = base_image(&needed, graph, runner).await?;
            Ok::<_, Error>((needed.what, base))
        });
        let remotes = needs.remotes.into_iter().map(async |needed| {
            let fetched = fetch(&needed, runner).await?;
            Ok::<_, Error>((needed.what, fetched))
        });
        let (bases, remotes) = try_join(try_join_all(bases), try_join_all(remotes)).await?;
        Arc::make_mut(&mut self.bases).extend(bases);
        self.remotes.extend(remotes);
        Ok(())
    }
}

/// Finds an image, pulling it when it is missing.
pub(super) async fn base_image(
    needed: &Needed<String>,
    graph: &Graph,
    runner: &dyn Runner,
) -> Result<Base, Error> {
    runner.base_image(&needed.what).await.map_err(|source| Error::BaseImage {
        place: needed.place("this image"),
        nearest: graph.nearest_stage(&needed.what),
        reference: needed.what.clone(),
        source,
    })
}

async fn fetch(needed: &Needed<Remote>, runner: &dyn Runner) -> Result<Arc<Fetched>, Error> {
    runner.fetch(&needed.what).await.map_err(|source| Error::Remote {
        place: needed.place("this source"),
        url: needed.what.shown(),
        source,
    })
}
