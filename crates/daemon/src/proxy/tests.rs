//! Requests through the proxy to servers that are made up.

use std::sync::Arc;

use axum::http::{Method, header};
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::activity::Activity;

fn busy() -> Busy {
    Arc::new(Activity::default()).begin()
}

async fn through(far: DuplexStream, request: Request) -> Reply<Response> {
    exchange(far, request, false, busy(), CancellationToken::new()).await
}

fn get(path: &str) -> Request {
    Request::builder().uri(path).header(header::HOST, "localhost:1").body(Body::empty()).unwrap()
}

/// A server that answers with what `script` makes of the bytes of the first request's head.
fn raw(script: impl FnOnce(String) -> Vec<u8> + Send + 'static) -> DuplexStream {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let mut head = BytesMut::new();
        while !head.ends_with(b"\r\n\r\n") {
            if far.read_buf(&mut head).await.unwrap() == 0 {
                return;
            }
        }
        let answer = script(String::from_utf8(head.to_vec()).unwrap());
        let _ = far.write_all(&answer).await;
    });
    near
}

#[test]
fn ports() {
    let parse = |text: &str| Target::parse(text).map_err(|Failure(error)| error.code);
    assert_eq!(parse("8080").unwrap(), Target { port: 8080, is_tls: false });
    assert_eq!(parse("http:80").unwrap(), Target { port: 80, is_tls: false });
    assert_eq!(parse("https:8443").unwrap(), Target { port: 8443, is_tls: true });
    for bad in
        ["", "0", "65536", "+80", "-1", "x", "https:", "https:https:1", "ftp:21", "localhost:80", "80 "]
    {
        assert_eq!(parse(bad).unwrap_err(), "bad_path", "{bad:?}");
    }
}

#[test]
fn the_path_is_cut_where_the_sandboxs_begins_and_left_as_it_is() {
    for (uri, prefix, rest) in [
        ("/v1/sandboxes/a/proxy/80", "/v1/sandboxes/a/proxy/80", "/"),
        ("/v1/sandboxes/a/proxy/80?q=1", "/v1/sandboxes/a/proxy/80", "/?q=1"),
        ("/v1/sandboxes/a/proxy/80/", "/v1/sandboxes/a/proxy/80", "/"),
        (
            "/v1/sandboxes/a/proxy/https:80//x/../%2e%2F%zz?a=%20&b",
            "/v1/sandboxes/a/proxy/https:80",
            "//x/../%2e%2F%zz?a=%20&b",
        ),
    ] {
        let uri: Uri = uri.parse().unwrap();
        let place = Place::of(&uri).unwrap_or_else(|_| panic!("{uri}"));
        assert_eq!((place.prefix, place.rest.to_string().as_str()), (prefix, rest), "{uri}");
    }
}

#[tokio::test]
async fn path_and_query_reach_the_server_as_they_were() {
    let near =
        raw(|head| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len()).into_bytes());
    let answer = through(near, get("/a%20b//%2F?q=%41&q")).await.unwrap_or_else(|error| panic!("{error:?}"));
    let head = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(head.starts_with(b"GET /a%20b//%2F?q=%41&q HTTP/1.1\r\n"), "{head:?}");
}

#[tokio::test]
async fn bodies_stream_both_ways_and_back_pressure_holds() {
    let (near, far) = tokio::io::duplex(4 << 10);
    let echo = service_fn(async |request: axum::http::Request<Incoming>| {
        assert_eq!(request.method(), Method::PATCH);
        Ok::<_, std::convert::Infallible>(axum::http::Response::new(request.into_body()))
    });
    tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(far), echo));
    let (sender, pieces) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let pieces =
        futures_util::stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
    let request = Request::builder()
        .method("PATCH")
        .uri("/")
        .header(header::HOST, "x")
        .body(Body::from_stream(pieces))
        .unwrap();
    let feed = tokio::spawn(async move {
        let mut sent = 0;
        for _ in 0..64 {
            let piece = Bytes::from(vec![5; 64 << 10]);
            match tokio::time::timeout(Duration::from_millis(300), sender.reserve()).await {
                Ok(room) => room.unwrap().send(Ok(piece)),
                // The echo is not being read.
                Err(_) if sent > 0 => break,
                Err(_) => panic!("nothing is taken at all"),
            }
            sent += 64 << 10;
        }
        sent
    });
    let answer = through(near, request).await.unwrap_or_else(|error| panic!("{error:?}"));
    let sent = feed.await.unwrap();
    assert!(sent < 4 << 20, "4 MiB were gathered somewhere");
    let echoed = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(echoed.len(), sent);
}

#[tokio::test]
async fn what_does_not_speak_http_is_a_bad_gateway() {
    for answer in [
        &b"SSH-2.0-x\r\n"[..],
        b"",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let near = raw(move |_| answer.to_vec());
        let Failure(error) = through(near, get("/")).await.unwrap_err();
        assert_eq!(error.code, "bad_gateway", "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_does_not_look_complete() {
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let near = raw(move |_| format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc").into_bytes());
        let answer = through(near, get("/")).await.unwrap_or_else(|error| panic!("{error:?}"));
        assert!(answer.into_body().collect().await.is_err(), "{head}");
    }
}

#[tokio::test]
async fn redirects_and_cookies_are_left_alone_and_what_is_of_the_connection_is_not() {
    let near = raw(|_| {
        b"HTTP/1.1 302 Found\r\nLocation: http://localhost:1/x\r\nSet-Cookie: a=b; Path=/\r\nKeep-Alive: timeout=1\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n".to_vec()
    });
    let answer = through(near, get("/")).await.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(answer.status(), StatusCode::FOUND);
    assert_eq!(answer.headers()[header::LOCATION], "http://localhost:1/x");
    assert_eq!(answer.headers()[header::SET_COOKIE], "a=b; Path=/");
    assert!(!answer.headers().contains_key("keep-alive") && !answer.headers().contains_key("connection"));
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_connection_inside() {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let server = tokio::spawn(async move {
        let mut head = BytesMut::new();
        while !head.ends_with(b"\r\n\r\n") {
            far.read_buf(&mut head).await.unwrap();
        }
        far.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await.unwrap();
        far.read(&mut [0]).await.unwrap()
    });
    drop(through(near, get("/")).await);
    assert_eq!(server.await.unwrap(), 0);
}

#[tokio::test]
async fn an_upgrade_passes_bytes_both_ways_until_both_are_done() {
    let near = {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            let mut head = BytesMut::new();
            while !head.ends_with(b"\r\n\r\n") {
                far.read_buf(&mut head).await.unwrap();
            }
            let head = String::from_utf8(head.to_vec()).unwrap().to_lowercase();
            assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
            let agreed =
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nearly";
            far.write_all(agreed).await.unwrap();
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).await.unwrap();
            far.write_all(&heard).await.unwrap();
        });
        near
    };
    // The client's side: a connection served by the proxy.
    let (mut client, ours) = tokio::io::duplex(64 << 10);
    let near = std::sync::Mutex::new(Some(near));
    let pass = service_fn(move |request: axum::http::Request<Incoming>| {
        let near = near.lock().unwrap().take().unwrap();
        async move {
            let mut request = request.map(Body::new);
            let upgrade = head::rewrite(request.headers_mut(), &Target { port: 1, is_tls: false }, "/p");
            Ok::<_, std::convert::Infallible>(
                exchange(near, request, upgrade, busy(), CancellationToken::new())
                    .await
                    .unwrap_or_else(|error| panic!("{error:?}")),
            )
        }
    });
    tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(ours), pass).with_upgrades());
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    client.write_all(b"and back").await.unwrap();
    client.shutdown().await.unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    let all = String::from_utf8(all).unwrap();
    assert!(all.starts_with("HTTP/1.1 101 "), "{all}");
    assert!(all.ends_with("\r\n\r\nearlyand back"), "{all}");
}
