//! Calls that tell how they get on: NDJSON, one [`Line`] a line, the last one the result or an error.

use berth_types::progress::{Line, Progress};
use bytes::BytesMut;
use serde::de::DeserializeOwned;

use crate::transport::{Answer, Call};
use crate::{Client, Error};

impl Client {
    /// Sends `call` and hands on each progress until the end comes.
    pub(crate) async fn follow<T: DeserializeOwned>(
        &self,
        call: Call,
        on_progress: impl FnMut(Progress),
    ) -> Result<T, Error> {
        read_lines(self.send(call).await?, on_progress).await
    }
}

async fn read_lines<T: DeserializeOwned>(
    mut answer: Answer,
    mut on_progress: impl FnMut(Progress),
) -> Result<T, Error> {
    let mut buffer = BytesMut::new();
    // How much of the buffer is known to hold no line's end, so that long lines are not searched again.
    let mut searched = 0;
    while let Some(chunk) = answer.chunk().await? {
        buffer.extend_from_slice(&chunk);
        while let Some(at) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(searched + at + 1);
            searched = 0;
            if let Some(end) = read_line(&answer, &line, &mut on_progress)? {
                return end;
            }
        }
        searched = buffer.len();
    }
    match read_line(&answer, &buffer, &mut on_progress)? {
        Some(end) => end,
        None => Err(Error::ProgressEnded { operation: answer.operation().to_owned() }),
    }
}

/// Reads one line; the last one gives the call's end.
fn read_line<T: DeserializeOwned>(
    answer: &Answer,
    line: &[u8],
    on_progress: &mut impl FnMut(Progress),
) -> Result<Option<Result<T, Error>>, Error> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let operation = || answer.operation().to_owned();
    match serde_json::from_slice(line).map_err(|source| Error::Decode { operation: operation(), source })? {
        Line::Progress(progress) => on_progress(progress),
        Line::Result(result) => return Ok(Some(Ok(result))),
        Line::Error(source) => {
            return Ok(Some(Err(Error::Api { operation: operation(), source: Box::new(source) })));
        }
    }
    Ok(None)
}
