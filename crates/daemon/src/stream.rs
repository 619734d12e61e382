//! The exec stream as the body of a response.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream};
use hyper::body::{Body, Frame, SizeHint};

use crate::frames::{Queue, Told};

/// How much is taken from an exec before the first of it goes out. Beyond the first piece this only gathers what is
/// there already; nothing waits to be gathered.
const BATCH: usize = 64 << 10;

/// What is told of an exec, as a body. Dropping it detaches from the exec.
pub(crate) struct ExecBody {
    told: BoxStream<'static, Told>,
    queue: Queue,
    is_over: bool,
}

impl ExecBody {
    pub(crate) fn new(told: impl Stream<Item = Told> + Send + 'static) -> Self {
        Self { told: Box::pin(told), queue: Queue::default(), is_over: false }
    }

    /// Waits up to `limit` for the end, so that a command which takes no longer is answered by one write, its length
    /// told in the head.
    pub(crate) async fn gather(&mut self, limit: Duration) {
        let filled = std::future::poll_fn(|context| match self.fill(context) {
            Fill::Done => Poll::Ready(()),
            Fill::Waits => Poll::Pending,
        });
        let _ = tokio::time::timeout(limit, filled).await;
    }

    /// Takes what there is, up to [`BATCH`].
    fn fill(&mut self, context: &mut Context<'_>) -> Fill {
        while !self.is_over && self.queue.len() < BATCH {
            match self.told.as_mut().poll_next(context) {
                Poll::Ready(Some(told)) => self.is_over = self.queue.push(told),
                Poll::Ready(None) => self.is_over = true,
                Poll::Pending => return Fill::Waits,
            }
        }
        Fill::Done
    }
}

enum Fill {
    /// There is a batch, or no more will come.
    Done,
    /// Nothing more is there at present.
    Waits,
}

impl Body for ExecBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let fill = self.fill(context);
        match (self.queue.pop(), fill) {
            (Some(piece), _) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            (None, Fill::Waits) => Poll::Pending,
            (None, Fill::Done) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over && self.queue.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        let waits = self.queue.len() as u64;
        if self.is_over {
            return SizeHint::with_exact(waits);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(waits);
        hint
    }
}

#[cfg(test)]
mod tests {
    use berth_node::ExecOutput;
    use berth_types::exec::{ExecStatus, ExitReason, OutputStream};
    use futures_util::StreamExt;
    use futures_util::stream;
    use http_body_util::BodyExt;

    use super::*;

    fn output(len: usize) -> Told {
        let data = Bytes::from(vec![1; len]);
        Ok(ExecOutput::Output { stream: OutputStream::Stdout, offset: 0, time_us: 0, data })
    }

    fn exited() -> Told {
        Ok(ExecOutput::Exited(ExecStatus::new(0, ExitReason::Exited)))
    }

    #[tokio::test]
    async fn a_short_command_has_a_known_length_and_one_piece() {
        let mut body = ExecBody::new(stream::iter([output(3), exited()]));
        body.gather(Duration::from_secs(60)).await;
        let len = body.size_hint().exact().unwrap();
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece.len() as u64, len);
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn output_does_not_wait_for_more() {
        let mut body = ExecBody::new(stream::iter([output(3)]).chain(stream::pending()));
        body.gather(Duration::from_millis(1)).await;
        assert_eq!(body.size_hint().exact(), None);
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece.len(), 5 + 16 + 3);
        assert!(!body.is_end_stream());
    }

    #[tokio::test]
    async fn what_nobody_takes_is_bounded() {
        let mut body = ExecBody::new(stream::repeat_with(|| output(16 << 10)));
        body.gather(Duration::from_secs(60)).await;
        assert!(body.queue.len() < 2 * BATCH, "{}", body.queue.len());
        body.frame().await.unwrap().unwrap();
        assert!(body.queue.len() < 2 * BATCH);
    }

    #[tokio::test]
    async fn nothing_is_asked_for_after_the_end() {
        let told = stream::iter([exited()]).chain(stream::once(async { panic!("asked for more") }));
        assert_eq!(ExecBody::new(told).collect().await.unwrap().to_bytes()[0], 3);
    }
}
