//! Equal builds asked for at once are one, and so are the transfers of their contexts.
//!
//! ```text
//!   manifest ──► a job under way? ──► join it
//!            ──► in the cache? ─────► the image
//!            ──► whose turn? ───┬───► mine: send the context ──► compare ──► job ──► image
//!                               └───► another's: wait, and from the top
//! ```
//!
//! A job's key is what the context holds and what is asked for, but for the tags: everybody who waits gives the image his
//! own. It runs as a task of its own, is told to all who wait, goes on as long as one of them does, and ends with the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use berth_image::{FlightError, Flights, Flying};
use berth_types::image::ContextManifest;
use berth_types::progress::Progress;

use super::listing::{Listing, Texts};
use super::runner::Kept;
use super::slots::Slots;
use super::turns::{Turn, Turns};
use super::upload::{Received, Room, drain, receive};
use super::{Asked, BuildPolicy};
use crate::images::{Body, Sink};
use crate::{Error, Node};

/// An image that was built or found, and everything that keeps it in the store.
pub(super) struct Built {
    pub(super) outcome: berth_build::Outcome,
    pub(super) _kept: Kept,
}

/// Builds under way.
pub(crate) struct Builds {
    jobs: Flights<String, Arc<Built>, Error>,
    lookups: Flights<String, Option<Arc<Built>>, Error>,
    turns: Turns,
    /// Room for contexts.
    pub(super) room: Arc<Room>,
    /// Of all builds together.
    pub(super) slots: Slots,
    /// How many jobs have ended.
    ended: AtomicU64,
}

/// A context that was spoken of.
struct Said {
    manifest: Arc<ContextManifest>,
    listing: Listing,
    texts: Texts,
    key: String,
}

impl Builds {
    pub(crate) fn new(policy: &BuildPolicy) -> Builds {
        Builds {
            jobs: Flights::new(),
            lookups: Flights::new(),
            turns: Turns::default(),
            room: Room::new(policy.context_bytes),
            slots: Slots::new(policy.parallel_steps),
            ended: AtomicU64::new(0),
        }
    }
}

impl Said {
    fn new(asked: &Asked, manifest: ContextManifest) -> Result<Said, Error> {
        let listing = Listing::of_manifest(&manifest)?;
        let texts = asked.texts(|name| Ok(manifest.texts.get(name).cloned()))?;
        let key = job_key(&listing, &texts, asked);
        Ok(Said { manifest: Arc::new(manifest), listing, texts, key })
    }
}

fn job_key(listing: &Listing, texts: &Texts, asked: &Asked) -> String {
    format!("{}.{}", listing.key(texts), asked.key)
}

impl Node {
    /// The image of a context that comes without a word about what it holds.
    pub(super) async fn build_unsaid(
        &self,
        asked: &Arc<Asked>,
        context: Body,
        sink: &Sink,
    ) -> Result<(Arc<Built>, bool), Error> {
        let came = receive(context, &self.0.tmp, &self.0.builds.room).await?;
        let texts = asked.texts_of(&came).await?;
        let key = job_key(&came.listing, &texts, asked);
        land(self.begin_job(key, asked, came, sink)).await
    }

    /// The image of a context by what it holds, with the context at hand or without.
    pub(super) async fn build_said(
        &self,
        asked: &Arc<Asked>,
        manifest: ContextManifest,
        mut context: Option<Body>,
        sink: &Sink,
    ) -> Result<(Arc<Built>, bool), Error> {
        let said = Arc::new(Said::new(asked, manifest)?);
        let mut told = false;
        loop {
            let ended = self.0.builds.ended.load(Ordering::SeqCst);
            if let Some(found) = self.there(asked, &said, &mut context, sink).await? {
                return Ok(found);
            }
            let turn = match self.0.builds.turns.ask(&said.key, context.is_some()) {
                Turn::Yours(turn) => turn,
                Turn::Wait(waiting) => {
                    if !std::mem::replace(&mut told, true) {
                        let text = "another client sends the same build context, waiting for it".to_owned();
                        sink(Progress::Message { text });
                    }
                    waiting.over().await;
                    continue;
                }
            };
            // The one whose turn it was may have come to an end since it was looked.
            let is_news = self.0.builds.jobs.attach(&said.key, Arc::new(|_| {})).is_some()
                || self.0.builds.ended.load(Ordering::SeqCst) != ended;
            if is_news && let Some(found) = self.there(asked, &said, &mut context, sink).await? {
                return Ok(found);
            }
            let Some(body) = context.take() else {
                turn.promise();
                return Err(Error::ContextNeeded);
            };
            let came = self.take_said(asked, &said, body).await?;
            let flying = self.begin_job(said.key.clone(), asked, came, sink);
            drop(turn);
            return land(flying).await;
        }
    }

    /// The result of the same build where that is under way, or was done before.
    async fn there(
        &self,
        asked: &Arc<Asked>,
        said: &Arc<Said>,
        context: &mut Option<Body>,
        sink: &Sink,
    ) -> Result<Option<(Arc<Built>, bool)>, Error> {
        let found = async {
            if let Some(flying) = self.0.builds.jobs.attach(&said.key, sink.clone()) {
                return land(flying).await.map(Some);
            }
            if asked.settings.no_cache {
                return Ok(None);
            }
            let (node, asked, manifest) = (self.clone(), asked.clone(), said.manifest.clone());
            let looking =
                self.0.builds.lookups.join(said.key.clone(), sink.clone(), move |report| async move {
                    let began = Instant::now();
                    let found = node.look_up(&asked, &manifest, report).await;
                    match &found {
                        Ok(Some(built)) => node.note_found(began, built),
                        Ok(None) => {}
                        Err(error) => node.note_failed(began, error),
                    }
                    found
                });
            Ok(landed(looking).await?.map(|built| (built, false)))
        };
        let found = found.await?;
        if found.is_some()
            && let Some(context) = context.take()
        {
            drain(context).await;
        }
        Ok(found)
    }

    /// Takes in a context, and makes sure that it is the one that was spoken of.
    async fn take_said(&self, asked: &Arc<Asked>, said: &Said, context: Body) -> Result<Received, Error> {
        let came = receive(context, &self.0.tmp, &self.0.builds.room).await?;
        let ignore = asked.ignore(&said.texts)?;
        let mut difference = said.listing.difference(&came.listing, &ignore);
        if difference.is_none() && asked.texts_of(&came).await? != said.texts {
            difference = Some("the Dockerfile or the ignore file is not what was said of it".to_owned());
        }
        if let Some(difference) = difference {
            return Err(Error::ContextChanged { difference });
        }
        Ok(came)
    }

    /// The job of a key: a new one, or the one that somebody began meanwhile.
    fn begin_job(
        &self,
        key: String,
        asked: &Arc<Asked>,
        came: Received,
        sink: &Sink,
    ) -> Flying<String, Arc<Built>, Error> {
        let (node, asked) = (self.clone(), asked.clone());
        self.0.builds.jobs.join(key, sink.clone(), move |report| async move {
            let _ended = Ended(node.clone());
            let began = Instant::now();
            let work = node.carry_out(&asked, &came, report);
            let result = match node.0.build_policy.timeout {
                None => work.await.map(Arc::new),
                Some(limit) => in_time(limit, work).await.map(Arc::new),
            };
            match &result {
                Ok(built) => node.note_built(began, built),
                Err(error) => node.note_failed(began, error),
            }
            result
        })
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let done = tokio::time::timeout(limit, work).await;
    done.unwrap_or(Err(Error::BuildTimeout { seconds: limit.as_secs() }))
}

/// Notes the end of a job, however it comes.
struct Ended(Node);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.0.builds.ended.fetch_add(1, Ordering::SeqCst);
    }
}

async fn land(flying: Flying<String, Arc<Built>, Error>) -> Result<(Arc<Built>, bool), Error> {
    let joined = flying.joined();
    Ok((landed(flying).await?, joined))
}

async fn landed<T: Clone>(flying: Flying<String, T, Error>) -> Result<T, Error> {
    flying.landed().await.map_err(|error| match error {
        FlightError::Failed(error) => Error::Shared(error),
        FlightError::Cut => Error::BuildCut,
    })
}
