//! Docker's own credentials: `config.json`, and the credential helpers that it names.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use berth_types::image::BasicAuth;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ConfigError, Credentials};

/// Docker's key for the credentials of docker.io.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// Most of a `config.json` that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// A helper that asks a keychain or a cloud takes a moment, but none that waits for somebody to type a password is waited for.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most that is read of a helper's answer, in bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// In place of a user name, by the helpers' protocol: the secret is an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Where Docker keeps its configuration for the user that Berth runs as.
pub(crate) fn config_path() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("DOCKER_CONFIG") {
        return Some(PathBuf::from(dir).join("config.json"));
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    Some(home.join(".docker/config.json"))
}

/// Credentials for `host`, by the file at `path`: the host's own helper, the file itself, the store for all hosts.
pub(crate) async fn credentials(path: &Path, host: &str) -> Result<Option<Credentials>, ConfigError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let form = |what: String| ConfigError::DockerConfigForm { path: path.to_owned(), what };
    let config: DockerConfig = serde_json::from_slice(&bytes).map_err(|e| form(e.to_string()))?;
    let names = names(host);
    if let Some(helper) = names.iter().find_map(|n| config.cred_helpers.get(n)) {
        return ask_helper(helper, server(host), host, path).await;
    }
    let auth = names.iter().find_map(|n| config.auths.get(n));
    if let Some(found) = auth.map(|auth| from_file(auth, host, &form)).transpose()?.flatten() {
        return Ok(Some(found));
    }
    match &config.creds_store {
        Some(helper) => ask_helper(helper, server(host), host, path).await,
        None => Ok(None),
    }
}

/// Keys under which a host may stand.
fn names(host: &str) -> Vec<String> {
    match host {
        "docker.io" => vec![DOCKER_HUB_KEY.into(), "index.docker.io".into(), "docker.io".into()],
        _ => vec![
            host.into(),
            format!("https://{host}"),
            format!("http://{host}"),
            format!("https://{host}/"),
            format!("https://{host}/v1/"),
            format!("https://{host}/v2/"),
        ],
    }
}

/// What a helper knows the host by.
fn server(host: &str) -> &str {
    if host == "docker.io" { DOCKER_HUB_KEY } else { host }
}

fn from_file(
    auth: &DockerAuth,
    host: &str,
    form: &dyn Fn(String) -> ConfigError,
) -> Result<Option<Credentials>, ConfigError> {
    let encoded = auth.auth.as_deref().filter(|encoded| !encoded.is_empty());
    let decoded = encoded.map(|encoded| {
        decode(encoded).ok_or_else(|| form(format!("\"auth\" of {host} is not base64 of USER:PASSWORD")))
    });
    let decoded = decoded.transpose()?;
    if let Some(token) = auth.identitytoken.as_ref().filter(|token| !token.is_empty()) {
        let user = decoded.map(|auth| auth.username).filter(|user| !user.is_empty());
        return Ok(Some(Credentials::Identity {
            user: user.unwrap_or_else(|| TOKEN_USER.into()),
            token: token.clone(),
        }));
    }
    if let (Some(username), Some(password)) = (&auth.username, &auth.password) {
        let (username, password) = (username.clone(), password.clone());
        return Ok(Some(Credentials::Basic(BasicAuth { username, password })));
    }
    Ok(decoded.map(Credentials::Basic))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, ConfigError> {
    let failed = |source| ConfigError::DockerConfig { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_CONFIG {
        let what = format!("it is longer than {MAX_CONFIG} bytes");
        return Err(ConfigError::DockerConfigForm { path: path.to_owned(), what });
    }
    Ok(Some(bytes))
}

pub(super) fn decode(encoded: &str) -> Option<BasicAuth> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Docker pads passwords with zero bytes in some versions.
    Some(BasicAuth { username: username.into(), password: password.trim_end_matches('\0').into() })
}

/// Asks `docker-credential-HELPER get` for `server`. A helper that knows nothing of it is no failure.
async fn ask_helper(
    helper: &str,
    server: &str,
    host: &str,
    path: &Path,
) -> Result<Option<Credentials>, ConfigError> {
    let failed = |what: String| ConfigError::CredentialHelper {
        host: host.to_owned(),
        helper: helper.to_owned(),
        path: path.to_owned(),
        what,
    };
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(sound) {
        return Err(failed("that is no helper's name".into()));
    }
    let program = PathBuf::from(format!("docker-credential-{helper}"));
    let answer = ask_program(&program, server).await;
    answer.map_err(failed)
}

/// The same of a program, wherever it is; what went wrong as text.
async fn ask_program(program: &Path, server: &str) -> Result<Option<Credentials>, String> {
    let asked = tokio::time::timeout(HELPER_TIMEOUT, run(program, server)).await;
    let (well, out) = match asked {
        Err(_) => return Err(format!("it did not answer within {} s", HELPER_TIMEOUT.as_secs())),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("{} is not installed", program.display()));
        }
        Ok(Err(e)) => return Err(e.to_string()),
        Ok(Ok(answer)) => answer,
    };
    if !well {
        let said = String::from_utf8_lossy(&out).trim().to_lowercase();
        // The protocol has no code for it, only these words.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(match said.lines().next() {
            Some(line) => format!("it failed: {}", line.chars().take(200).collect::<String>()),
            None => "it failed".into(),
        });
    }
    // What serde says of it would quote the secret.
    let answer: HelperAnswer =
        serde_json::from_slice(&out).map_err(|_| "its answer is not the protocol's JSON".to_owned())?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credentials::Identity { user: TOKEN_USER.into(), token: answer.secret },
        _ => Credentials::Basic(BasicAuth { username: answer.username, password: answer.secret }),
    }))
}

async fn run(program: &Path, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input may still answer.
        drop(stdin.write_all(server.as_bytes()).await);
    }
    let mut out = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_end(&mut out).await?;
    }
    Ok((child.wait().await?.success(), out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(text: &str) -> DockerAuth {
        serde_json::from_str(text).unwrap()
    }

    fn of(text: &str) -> Result<Option<Credentials>, ConfigError> {
        let form = |what| ConfigError::DockerConfigForm { path: "x".into(), what };
        from_file(&auth(text), "h", &form)
    }

    #[test]
    fn the_file_holds_passwords_or_identity_tokens() {
        let encoded = base64::engine::general_purpose::STANDARD.encode("me:pw:with:colons");
        let basic = of(&format!(r#"{{"auth":"{encoded}"}}"#)).unwrap().unwrap();
        assert!(
            matches!(&basic, Credentials::Basic(a) if a.username == "me" && a.password == "pw:with:colons")
        );
        let token = of(&format!(r#"{{"auth":"{encoded}","identitytoken":"t"}}"#)).unwrap().unwrap();
        assert!(matches!(&token, Credentials::Identity { user, token } if user == "me" && token == "t"));
        assert!(of("{}").unwrap().is_none());
        assert!(of(r#"{"auth":"!"}"#).unwrap_err().to_string().contains("base64"));
        assert!(!format!("{basic:?} {token:?}").contains("pw"));
    }

    #[tokio::test]
    async fn a_helper_that_is_none_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("config.json");
        std::fs::write(
            &path,
            r#"{"credHelpers":{"a":"berth-no-such-helper","b":"../x"},"credsStore":"berth-none"}"#,
        )
        .unwrap();
        for (host, words) in [
            ("a", "docker-credential-berth-no-such-helper is not installed"),
            ("b", "no helper's name"),
            ("other", "docker-credential-berth-none is not installed"),
        ] {
            let error = credentials(&path, host).await.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[tokio::test]
    async fn a_helper_gives_a_password_a_token_nothing_or_an_error() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        let answer = async |script: &str| {
            let program = tmp.path().join("docker-credential-x");
            std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            ask_program(&program, "r.example").await
        };
        let echo =
            r#"read -r host; printf '{"ServerURL":"%s","Username":"me@%s","Secret":"pw"}' "$host" "$host""#;
        // The host comes without a newline, at which `read` fails but has read it.
        let basic = answer(echo).await.unwrap().unwrap();
        assert!(
            matches!(&basic, Credentials::Basic(a) if a.username == "me@r.example" && a.password == "pw")
        );
        let token = answer(r#"echo '{"Username":"<token>","Secret":"t"}'"#).await.unwrap().unwrap();
        assert!(matches!(&token, Credentials::Identity { token, .. } if token == "t"));
        let none = answer("echo 'credentials not found in native keychain'; exit 1").await.unwrap();
        assert!(none.is_none());
        assert_eq!(answer("echo locked; exit 1").await.unwrap_err(), "it failed: locked");
        let error = answer(r#"echo '{"Secret":"hidden"'"#).await.unwrap_err();
        assert!(error.contains("JSON") && !error.contains("hidden"), "{error}");
    }
}
