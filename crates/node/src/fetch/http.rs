//! One file by HTTP.
//!
//! What fails for a reason that may pass is tried again, from where it broke off if the server can say that the file is
//! still the same. What was fetched before is asked for only if it has changed since.

use std::error::Error as StdError;
use std::io::{self, Seek as _, Write as _};
use std::time::Duration;

use berth_build::runner::{Fetched, RunnerError};
use berth_types::progress::Progress;
use reqwest::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_RANGE, ETAG, HeaderMap, HeaderName,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use reqwest::{Certificate, Client, NoProxy, Proxy, Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::cache::{Cache, Known, hex};
use super::names::Names;
use super::{Options, Proxies, infrastructure, shown, user};
use crate::images::Sink;

const ATTEMPTS: u32 = 5;
/// Wait before the second attempt; doubled for each after it.
const FIRST_WAIT: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 500 });
/// Longest wait that a server is granted.
const MAX_WAIT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest silence of a server.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// Fewest bytes between two reports.
const REPORT_STEP: u64 = 1 << 20;

/// What is wanted.
pub(super) struct Want {
    pub(super) url: Url,
    /// `sha256:…`.
    pub(super) checksum: Option<String>,
}

/// Fetches it, or finds that what is kept is still the same.
pub(super) async fn fetch(
    options: &Options,
    cache: &Cache,
    names: Names,
    proxies: &Proxies,
    want: Want,
    sink: &Sink,
) -> Result<Fetched, RunnerError> {
    let checksum = want.checksum.as_deref().map(checked).transpose()?;
    let url = want.url.as_str().to_owned();
    let kept = cache.look(&url);
    // Whoever says what the bytes are need not ask whether they are others by now.
    let settled = kept.as_ref().filter(|known| checksum.as_deref() == Some(known.digest.as_str()));
    if let Some(known) = settled
        && let Some(fetched) = lend(cache, &want.url, known)?
    {
        return Ok(fetched);
    }
    let client = client(options, names, proxies)?;
    let mut download = Download {
        client,
        options,
        sink,
        name: shown(&want.url),
        url: want.url.clone(),
        kept,
        partial: None,
    };
    let known = match download.run(cache).await? {
        Got::Same(known) => match lend(cache, &want.url, &known)? {
            Some(fetched) if checksum.as_ref().is_none_or(|sum| *sum == known.digest) => return Ok(fetched),
            Some(_) => return Err(differs(&download.name, &checksum, &known.digest)),
            // It was thrown out meanwhile: all of it, then.
            None => {
                download.kept = None;
                match download.run(cache).await? {
                    Got::New(known) => known,
                    Got::Same(_) => return Err(user(format!("{} is not what it says it is", download.name))),
                }
            }
        },
        Got::New(known) => known,
    };
    let Some(partial) = download.partial.take() else { return Err(user("nothing came")) };
    if checksum.as_ref().is_some_and(|sum| *sum != known.digest) {
        return Err(differs(&download.name, &checksum, &known.digest));
    }
    if !partial.private {
        partial.file.as_file().sync_data().map_err(|e| full(&e, "cannot keep what was fetched"))?;
        cache
            .keep(&url, partial.file.path(), &known)
            .map_err(|e| full(&e, "cannot keep what was fetched"))?;
    }
    Ok(fetched(&want.url, &known, partial.file.into_temp_path()))
}

fn lend(cache: &Cache, url: &Url, known: &Known) -> Result<Option<Fetched>, RunnerError> {
    let lent = cache.lend(&known.digest).map_err(|e| full(&e, "cannot use what is kept of a URL"))?;
    Ok(lent.map(|path| fetched(url, known, path)))
}

fn fetched(url: &Url, known: &Known, path: tempfile::TempPath) -> Fetched {
    Fetched {
        path: path.to_path_buf(),
        digest: format!("sha256:{}", known.digest),
        name: name_of(url).or_else(|| known.name.clone()),
        modified: known.modified.as_deref().and_then(seconds),
        keep: Box::new(path),
    }
}

fn differs(name: &str, checksum: &Option<String>, found: &str) -> RunnerError {
    let wanted = checksum.as_deref().unwrap_or_default();
    user(format!("{name} has the checksum sha256:{found}, not sha256:{wanted}"))
}

/// The hex digits of a checksum.
fn checked(text: &str) -> Result<String, RunnerError> {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digits.to_ascii_lowercase());
    }
    Err(user(format!("{text:?} is no checksum of a file: sha256: and 64 hexadecimal digits")))
}

fn client(options: &Options, names: Names, proxies: &Proxies) -> Result<Client, RunnerError> {
    let mut builder = Client::builder()
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(reqwest::redirect::Policy::limited(MAX_REDIRECTS))
        .referer(false)
        // The daemon's own environment is none of a build's.
        .no_proxy()
        .dns_resolver(std::sync::Arc::new(names));
    if let Some(path) = &options.ca_bundle {
        let text =
            std::fs::read(path).map_err(|e| infrastructure("cannot read the certificates to trust", e))?;
        let certificates = Certificate::from_pem_bundle(&text);
        let certificates =
            certificates.map_err(|e| infrastructure("the certificates to trust are none", e))?;
        builder = builder.tls_certs_merge(certificates);
    }
    let none = proxies.none.as_deref().and_then(NoProxy::from_string);
    type Make = fn(&str) -> reqwest::Result<Proxy>;
    let kinds: [(&Option<String>, Make); 2] =
        [(&proxies.http, |url| Proxy::http(url)), (&proxies.https, |url| Proxy::https(url))];
    for (proxy, make) in kinds {
        let Some(proxy) = proxy.as_deref().filter(|proxy| !proxy.is_empty()) else { continue };
        let made = make(proxy).map_err(|_| user("a proxy of this build has no URL that can be used"))?;
        builder = builder.proxy(made.no_proxy(none.clone()));
    }
    builder.build().map_err(|e| infrastructure("cannot set up HTTP", e))
}

/// What an attempt came to.
enum Got {
    /// What is kept is what the server has.
    Same(Known),
    /// All of it is in [`Download::partial`].
    New(Known),
}

/// Why an attempt failed.
enum Trouble {
    /// The next would fail alike.
    Final(RunnerError),
    /// It may pass.
    Passing(RunnerError, Option<Duration>),
}

/// What there is of the file so far.
struct Partial {
    file: NamedTempFile,
    hash: Sha256,
    bytes: u64,
    /// By which the server knows whether the rest is of the same file.
    validator: Option<String>,
    etag: Option<String>,
    modified: Option<String>,
    name: Option<String>,
    /// Whether the server wants it to be kept by nobody.
    private: bool,
}

struct Download<'a> {
    client: Client,
    options: &'a Options,
    sink: &'a Sink,
    url: Url,
    /// The URL as it may be told.
    name: String,
    kept: Option<Known>,
    partial: Option<Partial>,
}

impl Download<'_> {
    async fn run(&mut self, cache: &Cache) -> Result<Got, RunnerError> {
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            let (error, asked) = match self.attempt(cache).await {
                Ok(got) => return Ok(got),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(error, asked)) => (error, asked),
            };
            if attempt >= ATTEMPTS {
                return Err(error);
            }
            let text = format!("{}; trying again", crate::error::chain(&error));
            (self.sink)(Progress::Message { text });
            tokio::time::sleep(asked.unwrap_or(wait).min(MAX_WAIT)).await;
            wait *= 2;
        }
        Err(user("unreachable"))
    }

    async fn attempt(&mut self, cache: &Cache) -> Result<Got, Trouble> {
        let response = self.ask().await?;
        let status = response.status();
        match (status, &self.kept) {
            (StatusCode::NOT_MODIFIED, Some(known)) => return Ok(Got::Same(known.clone())),
            (StatusCode::OK, _) => self.begin(cache, response.headers())?,
            (StatusCode::PARTIAL_CONTENT, _) if self.continues(response.headers()) => {}
            (StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE, _)
                if self.partial.is_some() =>
            {
                self.partial = None;
                return Err(Trouble::Passing(
                    self.machine("the server lost track of the rest of", None),
                    None,
                ));
            }
            _ => return Err(self.refused(&response)),
        }
        self.read(response).await
    }

    async fn ask(&self) -> Result<Response, Trouble> {
        let mut request = self.client.get(self.url.clone()).header(ACCEPT_ENCODING, "identity");
        let resumed =
            self.partial.as_ref().and_then(|partial| Some((partial.bytes, partial.validator.as_ref()?)));
        if let Some((bytes, validator)) = resumed.filter(|(bytes, _)| *bytes > 0) {
            request = request.header(RANGE, format!("bytes={bytes}-")).header(IF_RANGE, validator);
        } else if let Some(known) = &self.kept {
            if let Some(etag) = &known.etag {
                request = request.header(IF_NONE_MATCH, etag);
            } else if let Some(modified) = &known.modified {
                request = request.header(IF_MODIFIED_SINCE, modified);
            }
        }
        request.send().await.map_err(|error| self.unsent(error))
    }

    /// Why there was no answer.
    fn unsent(&self, error: reqwest::Error) -> Trouble {
        // Its own text has the URL, with all that is in it.
        let error = error.without_url();
        if error.is_builder() {
            return Trouble::Final(user(format!("{} cannot be asked for: {error}", self.name)));
        }
        if error.is_redirect() {
            let text =
                format!("{} leads on and on: more than {MAX_REDIRECTS} times, or in a circle", self.name);
            return Trouble::Final(user(text));
        }
        let what = match () {
            () if error.is_dns() => "cannot find the host of",
            () if is_tls(&error) => "cannot trust, or not speak TLS with, the host of",
            () if error.is_timeout() => "no answer in time for",
            () if error.is_connect() => "cannot connect to the host of",
            () => "cannot fetch",
        };
        Trouble::Passing(self.machine(what, Some(Box::new(error))), None)
    }

    fn machine(&self, what: &str, source: Option<Box<dyn StdError + Send + Sync>>) -> RunnerError {
        RunnerError::Infrastructure { message: format!("{what} {}", self.name), source }
    }

    fn refused(&self, response: &Response) -> Trouble {
        let status = response.status();
        let text = format!("{}: the server answers {status}", self.name);
        let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
        if passing {
            let after = header(response.headers(), RETRY_AFTER).and_then(|text| text.trim().parse().ok());
            let error = RunnerError::Infrastructure { message: text, source: None };
            return Trouble::Passing(error, after.map(Duration::from_secs));
        }
        Trouble::Final(user(text))
    }

    /// A file from its first byte on.
    fn begin(&mut self, cache: &Cache, headers: &HeaderMap) -> Result<(), Trouble> {
        let mut file = match self.partial.take() {
            Some(partial) => partial.file,
            None => cache.scratch().map_err(|e| unwritten(&e))?,
        };
        file.as_file_mut()
            .set_len(0)
            .and_then(|()| file.as_file_mut().rewind())
            .map_err(|e| unwritten(&e))?;
        let etag = header(headers, ETAG);
        let modified = header(headers, LAST_MODIFIED);
        // Only a strong one says that the bytes are the same.
        let strong = etag.clone().filter(|etag| etag.starts_with('"'));
        let private = header(headers, CACHE_CONTROL)
            .is_some_and(|text| text.split(',').any(|word| word.trim().eq_ignore_ascii_case("no-store")));
        self.partial = Some(Partial {
            file,
            hash: Sha256::new(),
            bytes: 0,
            validator: strong.or_else(|| modified.clone()),
            etag,
            modified,
            name: header(headers, CONTENT_DISPOSITION).and_then(|text| given_name(&text)),
            private,
        });
        Ok(())
    }

    /// Whether a part of the file begins where what is there ends.
    fn continues(&self, headers: &HeaderMap) -> bool {
        let range = header(headers, CONTENT_RANGE);
        let first = range.as_deref().and_then(|range| range.strip_prefix("bytes ")?.split_once('-'));
        let first = first.and_then(|(first, _)| first.trim().parse::<u64>().ok());
        self.partial.as_ref().is_some_and(|partial| partial.bytes > 0 && first == Some(partial.bytes))
    }

    async fn read(&mut self, mut response: Response) -> Result<Got, Trouble> {
        let (max, name, sink) = (self.options.max_bytes, self.name.clone(), self.sink);
        let Some(partial) = self.partial.as_mut() else { return Err(Trouble::Final(user("nothing came"))) };
        let total = response.content_length().map(|rest| partial.bytes + rest);
        let too_long = || {
            let text = format!("{name} has more than the {max} bytes that a fetched file may have");
            Trouble::Final(user(text))
        };
        if total.is_some_and(|total| total > max) {
            return Err(too_long());
        }
        let report = |current| {
            let (item, action) = (name.clone(), "download".to_owned());
            sink(Progress::Transfer { item, action, current, total });
        };
        let mut reported = partial.bytes;
        report(reported);
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    let message = format!("{name} broke off after {} bytes", partial.bytes);
                    let source = Some(Box::new(error.without_url()) as _);
                    return Err(Trouble::Passing(RunnerError::Infrastructure { message, source }, None));
                }
            };
            partial.bytes += chunk.len() as u64;
            if partial.bytes > max {
                return Err(too_long());
            }
            partial.hash.update(&chunk);
            partial.file.write_all(&chunk).map_err(|e| unwritten(&e))?;
            if partial.bytes - reported >= REPORT_STEP {
                reported = partial.bytes;
                report(reported);
            }
        }
        if total.is_some_and(|total| total != partial.bytes) {
            let message = format!("{name} ended after {} bytes", partial.bytes);
            return Err(Trouble::Passing(RunnerError::Infrastructure { message, source: None }, None));
        }
        report(partial.bytes);
        let digest = hex(&partial.hash.clone().finalize());
        let (etag, modified, name) = (partial.etag.clone(), partial.modified.clone(), partial.name.clone());
        Ok(Got::New(Known::new(digest, partial.bytes, etag, modified, name)))
    }
}

fn unwritten(error: &io::Error) -> Trouble {
    Trouble::Final(full(error, "cannot write what is fetched"))
}

fn full(error: &io::Error, what: &str) -> RunnerError {
    // The cause is looked for by its kind.
    infrastructure(what, io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(5)))
}

fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    // An io::Error's source is that of what it wraps, not the thing itself.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|inner| is_tls(inner))
        || error.source().is_some_and(is_tls)
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// The last name of the URL's path.
fn name_of(url: &Url) -> Option<String> {
    let last = url.path_segments()?.rfind(|name| !name.is_empty())?;
    let name = percent_decoded(last);
    plain(&name).then_some(name)
}

/// The file name of a `Content-Disposition`. RFC 6266, without what only browsers send.
fn given_name(text: &str) -> Option<String> {
    let value = text.split(';').skip(1).find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim().eq_ignore_ascii_case("filename").then(|| value.trim())
    })?;
    let value = value.trim_matches('"');
    let name = value.rsplit(['/', '\\']).next()?.to_owned();
    plain(&name).then_some(name)
}

/// Whether it can be the name of a file.
fn plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']) && name.len() <= 255
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut decoded, mut at) = (Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// An HTTP date, in seconds since the epoch.
fn seconds(text: &str) -> Option<i64> {
    let parser = jiff::fmt::rfc2822::DateTimeParser::new();
    Some(parser.parse_timestamp(text).ok()?.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_plain_names() {
        let of = |url: &str| name_of(&url.parse().unwrap());
        assert_eq!(of("http://x/a/b.tar.gz?q=1#f").as_deref(), Some("b.tar.gz"));
        assert_eq!(of("http://x/a/b%20c").as_deref(), Some("b c"));
        assert_eq!(of("http://x/dir/").as_deref(), Some("dir"));
        assert_eq!(of("http://x/"), None);
        assert_eq!(of("http://x/a%2Fb"), None);
        assert_eq!(given_name("attachment; filename=\"../etc/passwd\"").as_deref(), Some("passwd"));
        assert_eq!(given_name("attachment; filename=x.txt").as_deref(), Some("x.txt"));
        assert_eq!(given_name("attachment; filename=\"..\""), None);
        assert_eq!(given_name("inline"), None);
    }

    #[test]
    fn dates_and_checksums_are_read() {
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:00 GMT"), Some(1_445_412_480));
        assert_eq!(seconds("yesterday"), None);
        let digits = "A".repeat(64);
        assert_eq!(checked(&format!("sha256:{digits}")).unwrap(), "a".repeat(64));
        for bad in ["sha256:", "sha512:00", &digits, "sha256:zz"] {
            assert!(matches!(checked(bad), Err(RunnerError::User { .. })), "{bad}");
        }
    }
}
