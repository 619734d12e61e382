//! `ADD` of what is not in the context: URLs and git repositories.
//!
//! A git repository is `git://…`, or `http(s)://…` whose path ends in `.git`; a `#ref:subdir` or the query's `ref`,
//! `branch`, `tag`, `subdir` and `checksum` say which part of it. Every other `http(s)://…` is a file.

use crate::fault::{Problem, nearest};
use crate::lint::go_bool;
use crate::runner::Remote;

/// What a git repository's query may say.
const QUERY: [&str; 7] = ["ref", "branch", "tag", "subdir", "checksum", "commit", "keep-git-dir"];
const SSH: &str = "a build has no SSH key; use the repository's `https://…/name.git` address, or `RUN git clone` with a \
                   secret";

/// Whether a source is something else than a path.
pub(super) fn is_remote(path: &str) -> bool {
    let scheme =
        |scheme: &str| path.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme));
    ["http://", "https://", "git://", "ssh://"].into_iter().any(scheme) || is_scp(path)
}

/// `user@host:path`.
fn is_scp(path: &str) -> bool {
    let Some((user, rest)) = path.split_once('@') else { return false };
    let plain = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    rest.split_once(':').is_some_and(|(host, path)| plain(user) && plain(host) && !path.is_empty())
}

/// What a source means that [`is_remote`].
pub(super) fn parse(
    text: &str,
    checksum: Option<&str>,
    keep_git_dir: Option<bool>,
) -> Result<Remote, Problem> {
    let lower = text.to_lowercase();
    if lower.starts_with("ssh://") || !lower.contains("://") {
        return Err(Problem::Refused { what: format!("`ADD` of `{text}` over SSH"), instead: SSH });
    }
    let (address, fragment) =
        text.split_once('#').map_or((text, None), |(address, fragment)| (address, Some(fragment)));
    let (url, query) = address.split_once('?').map_or((address, None), |(url, query)| (url, Some(query)));
    let (_, after) = url.split_once("://").unwrap_or(("", url));
    let (host, path) = after.split_once('/').unwrap_or((after, ""));
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(expected("a URL with a host", text));
    }
    if !lower.starts_with("git://") && !path.ends_with(".git") {
        let checksum = checksum.map(sha256).transpose()?;
        return Ok(Remote::Url { url: text.to_owned(), checksum });
    }
    git(text, url, query, fragment, checksum, keep_git_dir)
}

fn expected(expected: &'static str, found: &str) -> Problem {
    Problem::Expected { instruction: "ADD", expected, found: format!("`{found}`") }
}

fn sha256(checksum: &str) -> Result<String, Problem> {
    let lower = checksum.to_lowercase();
    let digits = lower.strip_prefix("sha256:").unwrap_or_default();
    match digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        true => Ok(lower),
        false => Err(expected("`sha256:` and 64 hexadecimal digits after `--checksum=`", checksum)),
    }
}

/// What the parts of a git address say, each once.
#[derive(Default)]
struct Git {
    reference: Option<String>,
    subdir: Option<String>,
    checksum: Option<String>,
    keep_git_dir: Option<bool>,
}

impl Git {
    /// Sets a part; two that differ are a mistake.
    fn set(slot: &mut Option<String>, value: String, text: &str) -> Result<(), Problem> {
        if slot.as_ref().is_some_and(|earlier| *earlier != value) {
            return Err(expected("one value for each part of a git address", text));
        }
        *slot = Some(value);
        Ok(())
    }

    fn query(&mut self, query: &str, text: &str) -> Result<(), Problem> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value).ok_or_else(|| expected("a query in UTF-8", text))?;
            match key {
                "ref" => Self::set(&mut self.reference, value, text)?,
                "branch" => Self::set(&mut self.reference, format!("refs/heads/{value}"), text)?,
                "tag" => Self::set(&mut self.reference, format!("refs/tags/{value}"), text)?,
                "subdir" => Self::set(&mut self.subdir, value, text)?,
                "checksum" | "commit" => Self::set(&mut self.checksum, value, text)?,
                "keep-git-dir" => {
                    let value = if value.is_empty() { "true" } else { &value };
                    let keeps =
                        go_bool(value).ok_or_else(|| expected("`keep-git-dir=true` or `false`", text))?;
                    self.keep_git_dir = Some(keeps);
                }
                _ => {
                    let expects = match nearest(key, QUERY).as_deref() {
                        Some("ref") => "`ref=` in the query",
                        Some("branch") => "`branch=` in the query",
                        Some("tag") => "`tag=` in the query",
                        Some("subdir") => "`subdir=` in the query",
                        Some("checksum" | "commit") => "`checksum=` in the query",
                        _ => "`ref`, `branch`, `tag`, `subdir`, `checksum` or `keep-git-dir` in the query",
                    };
                    return Err(expected(expects, key));
                }
            }
        }
        Ok(())
    }
}

fn git(
    text: &str,
    url: &str,
    query: Option<&str>,
    fragment: Option<&str>,
    checksum: Option<&str>,
    keep_git_dir: Option<bool>,
) -> Result<Remote, Problem> {
    let mut parts = Git::default();
    parts.query(query.unwrap_or(""), text)?;
    let (reference, subdir) = fragment.map_or(("", ""), |part| part.split_once(':').unwrap_or((part, "")));
    for (slot, value) in [(&mut parts.reference, reference), (&mut parts.subdir, subdir)] {
        if !value.is_empty() {
            Git::set(slot, value.to_owned(), text)?;
        }
    }
    if let Some(checksum) = checksum {
        Git::set(&mut parts.checksum, checksum.to_owned(), text)?;
    }
    let some = |part: Option<String>| part.filter(|part| !part.is_empty());
    let checksum = some(parts.checksum).map(|checksum| checksum.to_lowercase());
    if let Some(checksum) = &checksum
        && (checksum.len() > 64 || !checksum.chars().all(|c| c.is_ascii_hexdigit()))
    {
        return Err(expected("a commit's digits as the checksum of a git repository", checksum));
    }
    let reference = some(parts.reference);
    if let Some(reference) = reference.as_deref().filter(|reference| reference.starts_with('-')) {
        return Err(expected("a branch, tag or commit", reference));
    }
    let subdir = some(parts.subdir).map(|subdir| super::stage::absolute("/", &subdir)[1..].to_owned());
    let keep_git_dir = keep_git_dir.or(parts.keep_git_dir).unwrap_or(false);
    Ok(Remote::Git { url: url.to_owned(), reference, subdir: some(subdir), keep_git_dir, checksum })
}

/// The name that a file gets from its URL.
pub(super) fn file_name(url: &str) -> Option<String> {
    let (_, after) = url.split_once("://")?;
    let path = after.split(['?', '#']).next().unwrap_or_default();
    let (_, path) = path.split_once('/')?;
    let name = decoded(path.trim_end_matches('/').rsplit('/').next()?)?;
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    (!matches!(name.as_str(), "" | "." | "..")).then_some(name)
}

/// A text with `%41` and the like replaced; `None` when what comes out is not UTF-8.
fn decoded(text: &str) -> Option<String> {
    percent_encoding::percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(text: &str) -> String {
        if !is_remote(text) {
            return "a path".to_owned();
        }
        match parse(text, None, None) {
            Ok(Remote::Url { url, .. }) => format!("file {url}"),
            Ok(Remote::Git { url, reference, subdir, keep_git_dir, checksum }) => {
                let parts = [reference, subdir, checksum].map(|part| part.unwrap_or("-".to_owned()));
                format!("git {url} {}{}", parts.join(" "), if keep_git_dir { " .git" } else { "" })
            }
            Err(problem) => problem.to_string(),
        }
    }

    #[test]
    fn sources_are_told_apart() {
        let table = [
            ("a/b", "a path"),
            ("github.com/a/b", "a path"),
            ("a@b", "a path"),
            ("dir/a@b:c", "a path"),
            ("http", "a path"),
            ("https://h/x.tar.gz?a=b", "file https://h/x.tar.gz?a=b"),
            ("HTTP://h/x", "file HTTP://h/x"),
            ("https://h/x.git", "git https://h/x.git - - -"),
            ("https://h/x.git#v1:docs", "git https://h/x.git v1 docs -"),
            ("https://h/x.git#:docs", "git https://h/x.git - docs -"),
            ("git://h/x#main", "git git://h/x main - -"),
            ("https://h/x.git?branch=a%2Fb&subdir=/s/", "git https://h/x.git refs/heads/a/b s -"),
            ("https://h/x.git?tag=v1&checksum=ABC", "git https://h/x.git refs/tags/v1 - abc"),
            ("https://h/x.git?ref=v1&keep-git-dir=true#v1", "git https://h/x.git v1 - - .git"),
            (
                "https://h/x.git?ref=v1#v2",
                "`ADD`: expected one value for each part of a git address, found `https://h/x.git?ref=v1#v2`",
            ),
            ("https://h/x.git?brunch=v1", "`ADD`: expected `branch=` in the query, found `brunch`"),
            ("https:///x", "`ADD`: expected a URL with a host, found `https:///x`"),
            (
                "https://h/x.git#--upload-pack",
                "`ADD`: expected a branch, tag or commit, found `--upload-pack`",
            ),
            ("git@h:a/b.git", "`ADD` of `git@h:a/b.git` over SSH is refused"),
            ("ssh://git@h/a.git", "`ADD` of `ssh://git@h/a.git` over SSH is refused"),
        ];
        for (text, wanted) in table {
            assert_eq!(short(text), wanted, "{text}");
        }
    }

    #[test]
    fn files_are_named_by_the_path_of_their_url() {
        let table = [
            ("http://h/a/b.txt?x=/y", Some("b.txt")),
            ("http://h/a%20b", Some("a b")),
            ("http://h/a/", Some("a")),
            ("http://h/", None),
            ("http://h", None),
            ("http://h/%2e%2e", None),
            ("http://h/a%2F..%2Fb", Some("b")),
        ];
        for (url, wanted) in table {
            assert_eq!(file_name(url).as_deref(), wanted, "{url}");
        }
    }
}
