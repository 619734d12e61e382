//! Whether anybody still needs the daemon.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use berth_node::Node;
use http_body_util::{BodyStream, StreamBody};
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
    fn begin(self: &Arc<Self>) -> Busy {
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
    next.run(request).await.map(|body| {
        // Frames, not data alone: an archive ends in trailers.
        let stream = futures_util::StreamExt::map(BodyStream::new(body), move |frame| {
            let _held = &busy;
            frame
        });
        axum::body::Body::new(StreamBody::new(stream))
    })
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
