//! A registry on loopback with one image, that tells what it was asked for and can stop in the middle of a layer.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) struct Registry {
    /// `127.0.0.1:PORT`.
    pub(crate) host: String,
    served: Arc<Served>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

struct Served {
    /// By the last part of their path: a tag, or a digest.
    files: Vec<(String, &'static str, Vec<u8>)>,
    layer: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    asked: Vec<String>,
    /// After how many bytes of the layer it stops.
    holds_at: Option<usize>,
    /// How many are being held.
    held: usize,
    ends: bool,
}

impl Registry {
    /// One with the image `NAME:1` for any name, of one layer.
    pub(crate) fn of(layer: Vec<u8>) -> Registry {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let layer_digest = digest(&layer);
        let config = json!({
            "os": "linux", "architecture": architecture, "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        });
        let config = config.to_string().into_bytes();
        let described = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": described("application/vnd.oci.image.config.v1+json", &config),
            "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let octets = "application/octet-stream";
        let files = vec![
            ("1".to_owned(), MANIFEST, manifest.clone()),
            (digest(&manifest), MANIFEST, manifest),
            (digest(&config), octets, config),
            (layer_digest.clone(), octets, layer),
        ];
        let served = Served { files, layer: layer_digest, state: Mutex::default(), changed: Condvar::new() };
        let served = Arc::new(served);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let accepting = std::thread::spawn({
            let served = served.clone();
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    if served.state.lock().unwrap().ends {
                        return;
                    }
                    let served = served.clone();
                    // Whoever hangs up does so on purpose.
                    std::thread::spawn(move || drop(served.answer(&stream)));
                }
            }
        });
        Registry { host, served, accepting: Some(accepting) }
    }

    /// How often the layer was asked for.
    pub(crate) fn layers_asked(&self) -> usize {
        let state = self.served.state.lock().unwrap();
        state.asked.iter().filter(|path| path.ends_with(&self.served.layer)).count()
    }

    /// How often the manifest was asked for, by its tag.
    pub(crate) fn manifests_asked(&self) -> usize {
        let state = self.served.state.lock().unwrap();
        state.asked.iter().filter(|path| path.ends_with("/manifests/1")).count()
    }

    /// Stops after so many bytes of the layer, from now on.
    pub(crate) fn hold(&self, after: usize) {
        self.served.state.lock().unwrap().holds_at = Some(after);
    }

    /// Whether somebody waits for the rest of a layer.
    pub(crate) fn holds_somebody(&self) -> bool {
        self.served.state.lock().unwrap().held > 0
    }

    /// Goes on.
    pub(crate) fn release(&self) {
        self.served.state.lock().unwrap().holds_at = None;
        self.served.changed.notify_all();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.served.state.lock().unwrap().ends = true;
        self.release();
        drop(TcpStream::connect(&self.host));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Served {
    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let (mut first, mut from) = (String::new(), 0);
        for (index, line) in BufReader::new(stream).lines().enumerate() {
            let line = line?;
            if index == 0 {
                first = line;
            } else if line.is_empty() {
                break;
            } else if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse().unwrap_or(0);
            }
        }
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if method == "GET" {
            self.state.lock().unwrap().asked.push(path.to_owned());
        }
        if path == "/v2/" {
            return write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}");
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        let Some((_, kind, bytes)) = self.files.iter().find(|(known, ..)| known == name) else {
            return write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            );
        };
        let all = bytes.len();
        let range = match from {
            0 => "HTTP/1.1 200 OK\r\n".to_owned(),
            from => format!("HTTP/1.1 206 Partial\r\nContent-Range: bytes {from}-{}/{all}\r\n", all - 1),
        };
        let (length, is) = (all - from, digest(bytes));
        write!(
            stream,
            "{range}Connection: close\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {is}\r\nContent-Length: {length}\r\n\r\n"
        )?;
        if method == "HEAD" {
            return Ok(());
        }
        let holds_at = self.state.lock().unwrap().holds_at.filter(|at| name == self.layer && *at > from);
        let Some(at) = holds_at else { return stream.write_all(&bytes[from..]) };
        stream.write_all(&bytes[from..at])?;
        stream.flush()?;
        let mut state = self.state.lock().unwrap();
        state.held += 1;
        while state.holds_at.is_some() {
            state = self.changed.wait(state).unwrap();
        }
        state.held -= 1;
        drop(state);
        stream.write_all(&bytes[at..])
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
