//! Whether anybody still needs the daemon.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use berth_node::Node;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio_util::sync::CancellationToken;

use crate::App;

/// Requests under way, and when the last one ended.
#[derive(Debug)]
pub(crate) struct Activity {
    open: AtomicUsize,
    last: Mutex<Instant>,
}

impl Default for Activity {
    fn default() -> Self {
        Activity { open: AtomicUsize::new(0), last: Mutex::new(Instant::now()) }
    }
}

impl Activity {
    /// Notes that something is under way until what this gives is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.open.fetch_add(1, Ordering::SeqCst);
        Busy(self.clone())
    }

    fn idle_for(&self) -> Duration {
        if self.open.load(Ordering::SeqCst) > 0 {
            return Duration::ZERO;
        }
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// Held while a request, its response's body included, is under way.
pub(crate) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts every request as activity until its response has been sent.
pub(crate) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let busy = app.activity.begin();
    next.run(request).await.map(|body| Body::new(Counted { body, _busy: busy }))
}

/// A body that counts as activity while it is there. All else is the body's own: its length, where that is known, makes
/// for an answer in one piece.
struct Counted {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Cancels `stop` once there has been no sandbox and no request for `limit`.
pub(crate) async fn stop_when_idle(
    activity: Arc<Activity>,
    node: Node,
    limit: Duration,
    stop: CancellationToken,
) {
    let mut idle_since: Option<Instant> = None;
    let step = (limit / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
    while !stop.is_cancelled() {
        tokio::time::sleep(step).await;
        if node.has_sandboxes() || activity.idle_for() < step {
            idle_since = None;
        } else if idle_since.get_or_insert_with(Instant::now).elapsed() >= limit {
            tracing::info!(?limit, "idle, ending");
            stop.cancel();
        }
    }
}
