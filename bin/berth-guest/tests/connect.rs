//! Sockets of the sandbox, through the host's side.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod rig;

use std::io::{Read, Write};
use std::net::TcpListener;

use berth_sandbox::guest::{Connect, Error, FailureCode};
use rig::Rig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server that says what it was told, in capitals, once it was told everything; and its port.
fn shouter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut said = Vec::new();
                if peer.read_to_end(&mut said).is_ok() {
                    let _ = peer.write_all(&said.to_ascii_uppercase());
                }
            });
        }
    });
    port
}

fn local(port: u16) -> Connect {
    Connect::Tcp { host: "localhost".into(), port }
}

#[tokio::test]
async fn a_server_inside_is_spoken_to_and_each_half_closes_by_itself() {
    let rig = Rig::new().await;
    let mut socket = rig.guest.connect_to(local(shouter())).await.unwrap();
    socket.write_all(b"hello").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "HELLO");
}

#[tokio::test]
async fn megabytes_come_and_go_on_many_sockets_while_commands_run() {
    let rig = Rig::new().await;
    let port = shouter();
    let mut tasks = Vec::new();
    for number in 0..20_u8 {
        let socket = rig.guest.connect_to(local(port)).await.unwrap();
        tasks.push(tokio::spawn(async move {
            let said: Vec<u8> =
                (0..1_000_000_usize).map(|at| b'a' + ((at + usize::from(number)) % 26) as u8).collect();
            let (mut reader, mut writer) = tokio::io::split(socket);
            writer.write_all(&said).await.unwrap();
            writer.shutdown().await.unwrap();
            let mut answer = Vec::new();
            reader.read_to_end(&mut answer).await.unwrap();
            assert!(answer == said.to_ascii_uppercase(), "{number}");
        }));
    }
    assert_eq!(rig.sh("echo meanwhile").await.out(), "meanwhile\n");
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn where_nobody_listens_the_reason_is_told() {
    let rig = Rig::new().await;
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused =
        |error: Error| error.refusal().map(|failure| (failure.code, failure.message.clone())).unwrap();
    let (code, message) = refused(rig.guest.connect_to(local(port)).await.err().unwrap());
    assert_eq!(code, FailureCode::NotConnected);
    assert!(message.contains("Connection refused"), "{message}");
    let path = Connect::Unix { path: "/nowhere/socket".into() };
    let (code, message) = refused(rig.guest.connect_to(path).await.err().unwrap());
    assert_eq!(code, FailureCode::NotConnected, "{message}");
}

#[tokio::test]
async fn whoever_lets_go_of_a_socket_closes_it_inside() {
    let rig = Rig::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = rig.guest.connect_to(local(listener.local_addr().unwrap().port())).await.unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    drop(socket);
    let read = tokio::task::spawn_blocking(move || peer.read(&mut [0; 1])).await.unwrap();
    assert_eq!(read.unwrap(), 0);
}
