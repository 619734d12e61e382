//! `berth port-forward`: ports of a sandbox on this machine.

use std::net::IpAddr;

use berth_client::Client;
use clap::Args;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::Session;
use crate::failure::Failure;

/// Arguments of `berth port-forward`.
#[derive(Debug, Args)]
#[command(
    after_help = "Works in a sandbox without network too: the connections are made inside. Ends when interrupted."
)]
pub struct PortForward {
    /// Id or name
    sandbox: String,
    /// PORT, or LOCAL:PORT for another one here; 0:PORT for any that is free
    #[arg(required = true, value_name = "[LOCAL:]PORT", value_parser = ports)]
    ports: Vec<Ports>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: IpAddr,
    /// Host as the sandbox sees it
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    host: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    local: u16,
    inside: u16,
}

fn ports(text: &str) -> Result<Ports, String> {
    let (local, inside) = text.split_once(':').unwrap_or((text, text));
    let port = |text: &str| text.parse().map_err(|_| format!("{text:?} is no port: 0 to 65535"));
    match (port(local)?, port(inside)?) {
        (_, 0) => Err("the port inside is 1 to 65535".to_owned()),
        (local, inside) => Ok(Ports { local, inside }),
    }
}

impl PortForward {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        // A name that is wrong is said now, not at the first connection.
        let sandbox = client.sandbox(&self.sandbox).await?.id;
        let mut forwards = JoinSet::new();
        for Ports { local, inside } in self.ports {
            let asked = (self.address, local);
            let listen = async {
                let listener = TcpListener::bind(asked).await?;
                listener.local_addr().map(|address| (listener, address))
            };
            let (listener, address) = listen
                .await
                .map_err(|source| Failure::Listen { address: format!("{}:{local}", self.address), source })?;
            session.output.note(&format!("{address} -> {}:{inside} of {sandbox}", self.host));
            forwards.spawn(forward(listener, client.clone(), sandbox.clone(), self.host.clone(), inside));
        }
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::Stdin)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Stdin)?;
        tokio::select! {
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            Some(ended) = forwards.join_next() => match ended {
                Ok(source) => Err(Failure::Listen { address: self.address.to_string(), source }),
                Err(_) => Ok(()),
            },
        }
    }
}

/// Serves one port until listening fails.
async fn forward(
    listener: TcpListener,
    client: Client,
    sandbox: String,
    host: String,
    port: u16,
) -> std::io::Error {
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if error.raw_os_error().is_none() => return error,
            // One that went away, or no descriptors for now.
            Err(_) => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let (client, sandbox, host) = (client.clone(), sandbox.clone(), host.clone());
        connections.spawn(async move {
            if let Err(error) = serve(stream, &client, &sandbox, &host, port).await {
                error.print();
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(
    mut stream: TcpStream,
    client: &Client,
    sandbox: &str,
    host: &str,
    port: u16,
) -> Result<(), Failure> {
    let mut inside = client.connect_port(sandbox, host, port).await?;
    if copy_bidirectional(&mut stream, &mut inside).await.is_err() {
        // What was cut must not look as if it had come to its end: the other side is sent a reset. Where that cannot be, its
        // connection has ended already.
        let _ = stream.set_zero_linger();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_number_or_two() {
        assert_eq!(ports("8080"), Ok(Ports { local: 8080, inside: 8080 }));
        assert_eq!(ports("0:80"), Ok(Ports { local: 0, inside: 80 }));
        assert_eq!(ports("80:0").unwrap_err(), "the port inside is 1 to 65535");
        assert_eq!(ports("x:1").unwrap_err(), "\"x\" is no port: 0 to 65535");
        assert!(ports("70000").is_err());
    }
}
