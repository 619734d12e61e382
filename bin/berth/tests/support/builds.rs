//! Builds and replays by the API, without the command line.

use std::io::{Read, Write};

use serde_json::Value;

use super::{Daemon, text};

/// What came of a build: every line that it told, and its end.
pub(crate) struct Built {
    pub(crate) lines: Vec<Value>,
}

impl Built {
    #[track_caller]
    pub(crate) fn result(&self) -> &Value {
        let last = self.lines.last().unwrap();
        assert!(last["result"].is_object(), "{last}\n{}", self.output());
        &last["result"]
    }

    #[track_caller]
    pub(crate) fn succeeded(&self) {
        self.result();
    }

    #[track_caller]
    pub(crate) fn error(&self) -> &Value {
        let last = self.lines.last().unwrap();
        assert!(last["error"].is_object(), "{last}");
        &last["error"]
    }

    /// What its steps wrote.
    pub(crate) fn output(&self) -> String {
        self.told("output")
    }

    pub(crate) fn messages(&self) -> String {
        self.told("message")
    }

    fn told(&self, what: &str) -> String {
        let told = self.lines.iter().map(|line| &line["progress"]).filter(|line| line["what"] == what);
        told.filter_map(|line| line["text"].as_str()).collect()
    }
}

/// Sends options and context of a build, or of a replay.
pub(crate) fn send(daemon: &Daemon, path: &str, options: &Value, context: &[(&str, u32, &str)]) -> Built {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode, content) in context {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    let mut body = options.to_string().into_bytes();
    let length = body.len();
    body.extend(tar.into_inner().unwrap());
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(300))).unwrap();
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: berth\r\nContent-Type: application/x-tar\r\nberth-build-options: {length}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let body = text(&answer[end + 4..]);
    let lines = body.lines().map(|line| match serde_json::from_str(line) {
        Ok(line) => line,
        Err(_) => panic!("{}", text(&answer)),
    });
    Built { lines: lines.collect() }
}
