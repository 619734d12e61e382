//! Asking again: what passes by itself after a moment, and registries that ask to wait.
//!
//! Nobody listening and a certificate that is not accepted are told at once. A gateway's 5xx and a broken connection are
//! tried [`ATTEMPTS`] times. Of a 429 (or a 503 that says so) the time that the registry asks for is waited, up to
//! [`PATIENCE`] in all; the wait is reported, and so is how long it asked for when that is more.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Response;
use reqwest::header::RETRY_AFTER;

use super::error::{Trouble, tidy};
use crate::progress::{Reporter, say};

/// How often a request is made in all, while nothing comes of it.
pub(crate) const ATTEMPTS: u32 = 4;
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// First wait after a 429 that says nothing of how long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest that one request waits in all because the registry asks to.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most that is read of the body of an error, in bytes.
const MAX_WORDS: usize = 16 << 10;

/// One request's patience.
pub(crate) struct Retry<'a> {
    registry: String,
    reporter: &'a Reporter,
    failed: u32,
    limited: u32,
    waited: Duration,
}

impl<'a> Retry<'a> {
    pub(crate) fn new(registry: String, reporter: &'a Reporter) -> Self {
        Self { registry, reporter, failed: 0, limited: 0, waited: Duration::ZERO }
    }

    /// Something came of it: the next failure is the first one again.
    pub(crate) fn went_on(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, or says that there is none.
    pub(crate) async fn after(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        match trouble {
            Trouble::RateLimited { asked, words, .. } => self.limited(asked, words).await,
            trouble if trouble.is_passing() => {
                self.failed += 1;
                if self.failed >= ATTEMPTS {
                    return Err(trouble);
                }
                self.note(&trouble);
                tokio::time::sleep(FIRST_BACKOFF * 2u32.pow(self.failed - 1)).await;
                Ok(())
            }
            trouble => Err(trouble),
        }
    }

    fn note(&self, trouble: &Trouble) {
        let error = trouble as &dyn std::error::Error;
        tracing::debug!(registry = self.registry, error, attempt = self.failed, "a registry is asked again");
    }

    async fn limited(&mut self, asked: Option<Duration>, words: String) -> Result<(), Trouble> {
        let wait = asked.unwrap_or_else(|| FIRST_WAIT * 2u32.pow(self.limited.min(6)));
        self.limited += 1;
        if self.waited + wait > PATIENCE || self.limited > 20 {
            return Err(Trouble::RateLimited { waited: self.waited, asked, words });
        }
        let seconds = wait.as_secs_f64();
        say(
            self.reporter,
            format!("{} limits requests (429): waiting {seconds:.0} s, as it asks", self.registry),
        );
        tokio::time::sleep(wait).await;
        self.waited += wait;
        Ok(())
    }
}

/// The answer, if it is one of success.
pub(crate) async fn checked(response: Response) -> Result<Response, Trouble> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let asked = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    let asked = asked.and_then(|v| parse_retry_after(v, Timestamp::now()));
    let limited = status.as_u16() == 429 || status.as_u16() == 503 && asked.is_some();
    let words = words(response).await;
    Err(match limited {
        true => Trouble::RateLimited { waited: Duration::ZERO, asked, words },
        false => Trouble::Status { status: status.as_u16(), words },
    })
}

/// What an answer of failure says: the codes and messages of the registry's JSON; nothing else, since the pages of gateways
/// say nothing more than the status.
async fn words(mut response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Envelope {
        #[serde(default)]
        errors: Vec<One>,
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_WORDS {
            break;
        }
    }
    let Ok(envelope) = serde_json::from_slice::<Envelope>(&bytes) else { return String::new() };
    let said = envelope.errors.iter().map(|e| match (e.code.as_str(), e.message.as_str()) {
        (code, "") => code.to_owned(),
        ("", message) => message.to_owned(),
        (code, message) => format!("{code}: {message}"),
    });
    tidy(&said.chain(envelope.details).collect::<Vec<_>>().join("; "))
}

/// Seconds, or a date in HTTP's form. A date that has passed is no wait.
fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value.trim()).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use berth_types::progress::Progress;

    use super::*;

    #[test]
    fn a_registry_may_give_seconds_or_a_date() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let of = |value: &str| parse_retry_after(value, now);
        assert_eq!(of("30"), Some(Duration::from_secs(30)));
        assert_eq!(of("Thu, 01 Jan 2026 00:01:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(of("Wed, 31 Dec 2025 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(of("soon"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_has_an_end_and_says_what_was_asked_for() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&heard);
        let reporter: Reporter = Arc::new(move |event| into.lock().unwrap().push(event));
        let mut retry = Retry::new("https://r".into(), &reporter);
        let limited = |asked| Trouble::RateLimited {
            waited: Duration::ZERO,
            asked: Some(Duration::from_secs(asked)),
            words: String::new(),
        };
        retry.after(limited(100)).await.unwrap();
        let error = retry.after(limited(3600)).await.unwrap_err();
        assert!(error.to_string().contains("wait 3600 s; waited 100s in all"), "{error}");
        let text = "https://r limits requests (429): waiting 100 s, as it asks".to_owned();
        assert_eq!(*heard.lock().unwrap(), [Progress::Message { text }]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_tried_again_and_what_does_not_is_told_at_once() {
        let reporter: Reporter = Arc::new(|_| {});
        let status = |status| Trouble::Status { status, words: String::new() };
        let mut retry = Retry::new("https://r".into(), &reporter);
        assert!(retry.after(status(404)).await.is_err());
        for _ in 1..ATTEMPTS {
            retry.after(status(502)).await.unwrap();
        }
        assert!(retry.after(status(502)).await.is_err());
        retry.went_on();
        assert!(retry.after(status(502)).await.is_ok());
    }
}
