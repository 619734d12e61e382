//! Long calls: progress lines as they come, then the result or the error, as NDJSON.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use berth_types::error::ApiError;
use berth_types::progress::{Line, PROGRESS_TYPE, Progress};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc;

/// Where a long call reports to; never blocks it.
pub(crate) type Sink = std::sync::Arc<dyn Fn(Progress) + Send + Sync>;

/// Runs `call` and streams what it reports. A client that goes away drops the call.
pub(crate) fn respond<T, F, C>(call: C) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, berth_node::Error>> + Send + 'static,
    C: FnOnce(Sink) -> F,
{
    let (sender, receiver) = mpsc::unbounded_channel();
    let work = call(std::sync::Arc::new(move |progress| {
        // Nobody listening any more means that this very future is about to be dropped.
        let _ = sender.send(progress);
    }));
    let work = stream::once(async move {
        match work.await {
            Ok(result) => line(&Line::Result(result)),
            Err(error) => line(&Line::<()>::Error(ApiError::from(&error))),
        }
    });
    let lines = stream::unfold(receiver, |mut receiver| async {
        let progress = receiver.recv().await?;
        Some((line(&Line::<()>::Progress(progress)), receiver))
    });
    let all = Ordered { progress: Box::pin(lines).fuse(), end: Box::pin(work), ended: None };
    let mut response = Response::new(Body::from_stream(all.map(Ok::<_, Infallible>)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROGRESS_TYPE));
    response
}

fn line<T: Serialize>(line: &Line<T>) -> Bytes {
    // The API's own types always serialise: string keys, no non-finite numbers.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

/// Progress as it comes while the work runs; what is left of it, then the end.
struct Ordered<P, E> {
    progress: P,
    end: E,
    ended: Option<Bytes>,
}

impl<P, E> stream::Stream for Ordered<P, E>
where
    P: stream::Stream<Item = Bytes> + Unpin,
    E: stream::Stream<Item = Bytes> + Unpin,
{
    type Item = Bytes;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Bytes>> {
        use std::task::Poll;
        if self.ended.is_none()
            && let Poll::Ready(end) = self.end.poll_next_unpin(context)
        {
            // The work's own sink is dropped with it, so the progress stream ends after what it still holds.
            self.ended = end.or_else(|| Some(Bytes::new()));
        }
        match self.progress.poll_next_unpin(context) {
            Poll::Ready(Some(bytes)) => Poll::Ready(Some(bytes)),
            Poll::Pending if self.ended.is_none() => Poll::Pending,
            Poll::Pending | Poll::Ready(None) => match self.ended.as_mut() {
                Some(end) if !end.is_empty() => Poll::Ready(Some(std::mem::take(end))),
                Some(_) => Poll::Ready(None),
                None => Poll::Pending,
            },
        }
    }
}
