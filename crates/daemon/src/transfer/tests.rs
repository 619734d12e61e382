//! Bodies both ways, with contents that are made up.

use std::collections::VecDeque;

use berth_types::error::Kind;
use futures_util::stream;
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use tokio::io::AsyncReadExt;

use super::*;

const PLAIN: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Pieces, and then the end or an error.
struct Fake(VecDeque<Bytes>, Option<ApiError>);

impl Contents for Fake {
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        match (self.0.pop_front(), self.1.take()) {
            (Some(piece), error) => {
                self.1 = error;
                Ok(Some(piece))
            }
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }

    fn report(&self) -> Option<ArchiveOutReport> {
        Some(ArchiveOutReport { skipped_count: 3, ..ArchiveOutReport::default() })
    }
}

fn headers(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
    lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
}

fn fake(error: Option<ApiError>) -> Fake {
    Fake((0u8..5).map(|number| Bytes::from(vec![number; 100_000])).collect(), error)
}

fn whole() -> Vec<u8> {
    (0u8..5).flat_map(|number| vec![number; 100_000]).collect()
}

fn lost() -> Option<ApiError> {
    Some(ApiError::new(Kind::Unavailable, "sandbox_lost", "it is gone"))
}

fn respond(contents: Fake, asked: &[(HeaderName, &'static str)]) -> Response {
    answer(contents, PLAIN, &headers(asked)).unwrap_or_else(|error| panic!("{error:?}"))
}

#[tokio::test]
async fn contents_are_plain_unless_zstd_is_asked_for() {
    let plain = respond(fake(None), &[]);
    assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
    assert_eq!(plain.into_body().collect().await.unwrap().to_bytes(), whole());
    let packed = respond(fake(None), &[(header::ACCEPT_ENCODING, "gzip, zstd")]);
    assert_eq!(packed.headers()[header::CONTENT_ENCODING], "zstd");
    let bytes = packed.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.len() < 10_000);
    assert_eq!(zstd::decode_all(&bytes[..]).unwrap(), whole());
}

#[tokio::test]
async fn what_breaks_off_is_cut_or_told_and_never_ends_in_order() {
    for coding in ["identity", "zstd"] {
        let asked = [(header::ACCEPT_ENCODING, coding)];
        assert!(respond(fake(lost()), &asked).into_body().collect().await.is_err(), "{coding}");
        let asked = [(header::ACCEPT_ENCODING, coding), (header::TE, "trailers")];
        let body = respond(fake(lost()), &asked).into_body().collect().await.unwrap();
        assert!(
            body.trailers().unwrap()[ARCHIVE_ERROR].to_str().unwrap().contains("sandbox%5Flost"),
            "{coding}"
        );
        if coding == "zstd" {
            assert!(zstd::decode_all(&body.to_bytes()[..]).is_err());
        }
    }
}

#[tokio::test]
async fn a_report_follows_what_is_complete() {
    for coding in ["identity", "zstd"] {
        let asked = [(header::ACCEPT_ENCODING, coding), (header::TE, "trailers")];
        let body = respond(fake(None), &asked).into_body().collect().await.unwrap();
        let told = body.trailers().unwrap()[ARCHIVE_REPORT].to_str().unwrap();
        let told = percent_decode_str(told).decode_utf8().unwrap();
        let report: ArchiveOutReport = serde_json::from_str(&told).unwrap();
        assert_eq!(report.skipped_count, 3, "{coding}");
    }
}

async fn read(coding: &'static str, pieces: Vec<Result<Bytes, io::Error>>) -> (io::Result<Vec<u8>>, Fault) {
    let body = Body::from_stream(stream::iter(pieces));
    let upload = Upload::new(&headers(&[(header::CONTENT_ENCODING, coding)]), body);
    let (mut reader, fault) = upload.unwrap_or_else(|error| panic!("{error:?}")).split();
    let mut all = Vec::new();
    let read = reader.read_to_end(&mut all).await;
    (read.map(|_| all), fault)
}

/// The code of what a call that failed for another reason comes to.
fn code(fault: &Fault) -> String {
    let failed = berth_node::Error::SandboxNotFound { id: "x".into() };
    match fault.explain::<()>(Err(failed)) {
        Ok(()) => panic!("a failure is no success"),
        Err(Failure(error)) => error.code,
    }
}

#[tokio::test]
async fn uploads_are_decoded_and_their_faults_are_the_clients() {
    let packed = Bytes::from(zstd::encode_all(&whole()[..], 1).unwrap());
    let (all, fault) = read("zstd", vec![Ok(packed.clone())]).await;
    assert_eq!(all.unwrap(), whole());
    assert_eq!(code(&fault), "sandbox_not_found");
    let (all, fault) = read("zstd", vec![Ok(packed.slice(..packed.len() - 1))]).await;
    assert!(all.is_err());
    assert_eq!(code(&fault), "bad_body");
    let (all, fault) = read("identity", vec![Ok(packed), Err(io::ErrorKind::BrokenPipe.into())]).await;
    assert!(all.is_err());
    assert_eq!(code(&fault), "bad_body");
    let gzip = headers(&[(header::CONTENT_ENCODING, "gzip")]);
    let Err(Failure(error)) = Upload::new(&gzip, Body::empty()) else { panic!("gzip was taken") };
    assert_eq!(error.code, "unsupported_encoding");
}
