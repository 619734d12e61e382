//! Authentication: what a registry asks for in its 401, and the header that answers it.
//!
//! Basic credentials go to the registry as they are. Bearer tokens are fetched from the realm that the challenge names, for
//! the scope of this pull or push, and again when the registry no longer takes them; an identity token is exchanged there by
//! OAuth 2 (`grant_type=refresh_token`). Credentials never go to a realm on plain HTTP when the registry itself is on TLS.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Request, Url};
use serde::Deserialize;

use super::error::Trouble;
use super::http::{Http, shown};
use super::retry::checked;
use crate::config::{Credentials, is_loopback};

/// How long a token lives that does not say, by the specification of tokens.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const MAX_TOKEN: usize = 1 << 20;
const CLIENT_ID: &str = "berth";

/// What a 401 asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

/// The credentials for one endpoint, and what the registry gave for them.
pub(crate) struct Authorizer {
    credentials: Option<Credentials>,
    /// What is asked for where the challenge does not say more: `repository:x:pull`.
    scopes: Vec<String>,
    over_tls: bool,
    current: Mutex<Option<Answer>>,
}

#[derive(Clone)]
struct Answer {
    header: HeaderValue,
    challenge: Challenge,
    until: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenBody {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Authorizer {
    pub(crate) fn new(credentials: Option<Credentials>, scopes: Vec<String>, over_tls: bool) -> Self {
        Self { credentials, scopes, over_tls, current: Mutex::default() }
    }

    pub(crate) fn user(&self) -> Option<String> {
        self.credentials.as_ref().map(|c| c.user().to_owned())
    }

    /// Adds what the registry accepted last, renewed when it is about to end.
    pub(crate) async fn sign(&self, http: &Http, request: &mut Request) -> Result<bool, Trouble> {
        let Some(mut answer) = self.lock().clone() else { return Ok(false) };
        if answer.until.is_some_and(|until| until <= Instant::now()) {
            answer = self.answer(http, answer.challenge).await?;
        }
        request.headers_mut().insert(AUTHORIZATION, answer.header);
        Ok(true)
    }

    /// Answers the challenge of a 401; `false` when there is nothing to answer it with.
    pub(crate) async fn meet(&self, http: &Http, headers: &HeaderMap) -> Result<bool, Trouble> {
        let given = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let given: Vec<&str> = given.collect();
        let Some(challenge) = choose(given.iter().flat_map(|text| parse(text)))? else {
            return Ok(false);
        };
        if challenge == Challenge::Basic && !matches!(self.credentials, Some(Credentials::Basic(_))) {
            return Ok(false);
        }
        self.answer(http, challenge).await.map(|_| true)
    }

    async fn answer(&self, http: &Http, challenge: Challenge) -> Result<Answer, Trouble> {
        let (header, until) = match (&challenge, &self.credentials) {
            (Challenge::Basic, Some(Credentials::Basic(auth))) => {
                (basic(&auth.username, &auth.password)?, None)
            }
            (Challenge::Basic, _) => {
                return Err(Trouble::Challenge("Basic, for which there is no password".into()));
            }
            (Challenge::Bearer { realm, service, scope }, _) => {
                let fetched = self.token(http, realm, service.as_deref(), scope.as_deref()).await;
                let (token, life) = fetched.map_err(|source| match source {
                    source @ Trouble::Tls { .. } => source,
                    source => Trouble::Token { realm: shown(realm), source: Box::new(source) },
                })?;
                // Renewed a little before its end, so that it does not end on the way.
                (secret(format!("Bearer {token}"))?, Some(Instant::now() + life.mul_f32(0.9)))
            }
        };
        let answer = Answer { header, challenge, until };
        *self.lock() = Some(answer.clone());
        Ok(answer)
    }

    async fn token(
        &self,
        http: &Http,
        realm: &Url,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<(String, Duration), Trouble> {
        let host = realm.host_str().unwrap_or_default();
        if self.credentials.is_some() && self.over_tls && realm.scheme() != "https" && !is_loopback(host) {
            let what = "its token server is on plain HTTP, and credentials are not sent there".to_owned();
            return Err(Trouble::Challenge(what));
        }
        let request = self.token_request(realm, service, scope)?;
        let mut response = checked(http.send(request).await?).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Trouble::of)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_TOKEN {
                return Err(Trouble::Protocol(format!("a token is longer than {MAX_TOKEN} bytes")));
            }
        }
        // What serde says of it would quote the token.
        let body: TokenBody = serde_json::from_slice(&bytes)
            .map_err(|_| Trouble::Protocol("the token server's answer is not JSON with a token".into()))?;
        let token = body.token.or(body.access_token).filter(|token| !token.is_empty());
        let token =
            token.ok_or_else(|| Trouble::Protocol("the token server's answer has no token".into()))?;
        Ok((token, body.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs)))
    }

    fn token_request(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<Request, Trouble> {
        // The scopes that this pull or push needs, and whatever else the registry asks for.
        let mut scopes: Vec<&str> = self.scopes.iter().map(String::as_str).collect();
        let asked = scope.into_iter().flat_map(|s| s.split(' ')).filter(|s| !s.is_empty());
        scopes.extend(asked.filter(|asked| !self.scopes.iter().any(|own| covers(own, asked))));
        if let Some(Credentials::Identity { token, .. }) = &self.credentials {
            let mut form = Url::parse("http://form/").map_err(|e| Trouble::Protocol(e.to_string()))?;
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", CLIENT_ID)
                .append_pair("service", service.unwrap_or_default())
                .append_pair("scope", &scopes.join(" "))
                .append_pair("refresh_token", token);
            let mut request = Request::new(Method::POST, realm.clone());
            let content_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, content_type);
            *request.body_mut() = Some(form.query().unwrap_or_default().to_owned().into());
            return Ok(request);
        }
        let mut url = realm.clone();
        {
            let mut pairs = url.query_pairs_mut();
            service.map(|service| pairs.append_pair("service", service));
            for scope in &scopes {
                pairs.append_pair("scope", scope);
            }
            if let Some(Credentials::Basic(auth)) = &self.credentials {
                pairs.append_pair("account", &auth.username);
            }
        }
        let mut request = Request::new(Method::GET, url);
        if let Some(Credentials::Basic(auth)) = &self.credentials {
            request.headers_mut().insert(AUTHORIZATION, basic(&auth.username, &auth.password)?);
        }
        Ok(request)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Answer>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a scope of ours allows what the registry asks for.
fn covers(own: &str, asked: &str) -> bool {
    let split = |scope: &'_ str| scope.rsplit_once(':').map(|(what, how)| (what.to_owned(), how.to_owned()));
    let (Some((own, allowed)), Some((asked, wanted))) = (split(own), split(asked)) else {
        return own == asked;
    };
    own == asked && wanted.split(',').all(|w| allowed.split(',').any(|a| a == w))
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, Trouble> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    secret(format!("Basic {encoded}"))
}

fn secret(text: String) -> Result<HeaderValue, Trouble> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| Trouble::Protocol("the token holds characters that no header can".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A scheme with its parameters, as headers have them.
type Parsed = (String, Vec<(String, String)>);

/// The challenge to answer: a token where the registry gives tokens.
fn choose(challenges: impl Iterator<Item = Parsed>) -> Result<Option<Challenge>, Trouble> {
    let mut others = Vec::new();
    let mut basic = false;
    for (scheme, parameters) in challenges {
        let get = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        match scheme.as_str() {
            "bearer" => {
                let realm = get("realm").unwrap_or_default();
                let url = Url::parse(&realm).ok().filter(|u| matches!(u.scheme(), "http" | "https"));
                let Some(realm) = url else {
                    return Err(Trouble::Challenge(format!("a token from {realm:?}")));
                };
                return Ok(Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") }));
            }
            "basic" => basic = true,
            other => others.push(other.to_owned()),
        }
    }
    match (basic, others.is_empty()) {
        (true, _) => Ok(Some(Challenge::Basic)),
        (false, true) => Ok(None),
        (false, false) => Err(Trouble::Challenge(others.join(", "))),
    }
}

/// The challenges of one header: schemes in lower case, each with its parameters. RFC 9110, 11.6.1.
fn parse(header: &str) -> Vec<Parsed> {
    let mut found: Vec<Parsed> = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_whitespace() || c == ',' || c == '=').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        match (after.strip_prefix('='), found.last_mut()) {
            (Some(value), Some((_, parameters))) if !word.is_empty() => {
                let (value, after) = parameter(value.trim_start());
                parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            _ if word.is_empty() => rest = after.get(1..).unwrap_or_default(),
            _ => {
                found.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
        rest = rest.trim_start_matches([',', ' ', '\t']);
    }
    found
}

/// A token or a quoted string, and what comes after it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            c if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(header: &str) -> Result<Option<Challenge>, Trouble> {
        choose(parse(header).into_iter())
    }

    #[test]
    fn a_token_is_preferred_however_the_challenges_are_written() {
        let bearer = Challenge::Bearer {
            realm: Url::parse("https://auth.example/token").unwrap(),
            service: Some("r, \"x\"".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        for header in [
            r#"Bearer realm="https://auth.example/token",service="r, \"x\"",scope="repository:a/b:pull,push""#,
            r#"Basic realm="here", bearer  Realm = "https://auth.example/token" , service="r, \"x\"", scope=repository:a/b:pull,push"#
                .replace("repository:a/b:pull,push", "\"repository:a/b:pull,push\"").as_str(),
        ] {
            assert_eq!(one(header).unwrap(), Some(bearer.clone()), "{header}");
        }
        assert_eq!(one("Basic realm=x").unwrap(), Some(Challenge::Basic));
        assert_eq!(one("BASIC").unwrap(), Some(Challenge::Basic));
        assert_eq!(one("").unwrap(), None);
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        assert!(one("Negotiate").unwrap_err().to_string().contains("negotiate"));
        assert!(one(r#"Bearer realm="file:///etc/passwd""#).unwrap_err().to_string().contains("file:"));
        for odd in ["=", "=,=,", "\"", "a=\"", ",,,", "Bearer realm=\"\\"] {
            drop(parse(odd));
        }
    }

    #[test]
    fn a_scope_that_is_covered_is_not_asked_for_twice() {
        assert!(covers("repository:x:pull,push", "repository:x:pull"));
        assert!(!covers("repository:x:pull", "repository:x:pull,push"));
        assert!(!covers("repository:x:pull", "repository:y:pull"));
    }
}
