//! Which Debian mirror this machine itself uses: a reading of apt's source lists.

use std::fs;
use std::path::Path;

/// Suites that a Debian mirror may carry, newest development last.
pub(crate) const KNOWN_SUITES: &[&str] = &[
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];
/// Most of one source list that is read, in bytes.
const MAX_LIST: u64 = 1 << 20;

/// One source of binary packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) uri: String,
    pub(crate) suites: Vec<String>,
    pub(crate) components: Vec<String>,
    pub(crate) signed_by: String,
}

/// Debian's archive, as this machine reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) main: String,
    pub(crate) security: Option<String>,
}

/// The mirror of the machine's own configuration.
pub(crate) fn machine_mirror(etc_apt: &Path) -> Option<Mirror> {
    let mut sources = Vec::new();
    let mut paths = vec![etc_apt.join("sources.list")];
    let parts = fs::read_dir(etc_apt.join("sources.list.d")).into_iter().flatten();
    let mut parts: Vec<_> = parts.flatten().map(|entry| entry.path()).collect();
    parts.sort();
    paths.extend(parts);
    for path in paths {
        let small = fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_LIST);
        let Some(text) = small.then(|| fs::read_to_string(&path).ok()).flatten() else { continue };
        match path.extension().and_then(|e| e.to_str()) {
            Some("list") => sources.extend(parse_lines(&text)),
            Some("sources") => sources.extend(parse_stanzas(&text)),
            _ => {}
        }
    }
    choose(&sources)
}

/// Debian proper among the sources: by the archive's path, by the key that signs it, by the suites it is used for.
pub(crate) fn choose(sources: &[Source]) -> Option<Mirror> {
    let security = |s: &&Source| {
        s.suites.iter().any(|suite| suite.ends_with("-security") || suite.ends_with("/updates"))
    };
    let fits = |s: &&Source| !security(s) && s.components.iter().any(|c| c == "main");
    let candidates: Vec<&Source> = sources.iter().filter(fits).collect();
    let by = |test: &dyn Fn(&Source) -> bool| candidates.iter().find(|s| test(s)).copied();
    let main = by(&|s| s.uri.trim_end_matches('/').ends_with("/debian"))
        .or_else(|| by(&|s| s.signed_by.contains("debian-archive-keyring")))
        .or_else(|| by(&|s| s.suites.iter().any(|suite| KNOWN_SUITES.contains(&suite.as_str()))))?;
    let security = sources.iter().find(|s| security(s) && s.components.iter().any(|c| c == "main"));
    let clean = |uri: &str| uri.trim_end_matches('/').to_owned();
    Some(Mirror { main: clean(&main.uri), security: security.map(|s| clean(&s.uri)) })
}

/// The one-line format: `deb [ option=value … ] URI suite component …`.
fn parse_lines(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb").filter(|r| r.starts_with([' ', '\t', '[']))?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by="));
    Some(Source {
        uri: words.next()?,
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: signed_by.unwrap_or_default().to_owned(),
    })
}

/// The deb822 format: stanzas of `Field: values`, continued on indented lines.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| stanza_field(stanza, name);
        let enabled = !matches!(
            field("enabled").to_lowercase().as_str(),
            "no" | "false" | "without" | "off" | "disable"
        );
        let words =
            |name: &str| -> Vec<String> { field(name).split_whitespace().map(str::to_owned).collect() };
        if !enabled || !words("types").iter().any(|t| t == "deb") {
            continue;
        }
        sources.extend(words("uris").into_iter().map(|uri| Source {
            uri,
            suites: words("suites"),
            components: words("components"),
            signed_by: field("signed-by"),
        }));
    }
    sources
}

fn stanza_field(stanza: &[&str], name: &str) -> String {
    let mut value = String::new();
    let mut inside = false;
    for line in stanza {
        if line.starts_with([' ', '\t']) {
            if inside {
                value.push(' ');
                value.push_str(line.trim());
            }
            continue;
        }
        let (key, rest) = line.split_once(':').unwrap_or((line, ""));
        inside = key.trim().eq_ignore_ascii_case(name);
        if inside {
            rest.trim().clone_into(&mut value);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "\
Types: deb
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main contrib

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
";

    #[test]
    fn reads_stanzas() {
        let sources = parse_stanzas(STANZAS);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        let mirror = choose(&sources).unwrap();
        assert_eq!(mirror.main, "http://mirror.example/debian");
        assert_eq!(mirror.security.as_deref(), Some("http://mirror.example/debian-security"));
    }

    #[test]
    fn reads_lines_and_passes_others_over() {
        let sources = parse_lines(
            "deb https://tools.example/apt stable main\n\
             deb-src http://m.example/debian trixie main\n\
             # deb http://old.example/debian trixie main\n\
             deb [ arch=amd64 signed-by=/k.gpg ] http://m.example/debian trixie main non-free # why\n\
             deb http://m.example/debian-security trixie-security main\n",
        );
        assert_eq!(sources.len(), 3);
        assert_eq!(sources[1].signed_by, "/k.gpg");
        let mirror = choose(&sources).unwrap();
        assert_eq!((mirror.main.as_str(), mirror.security.is_some()), ("http://m.example/debian", true));
    }

    #[test]
    fn a_mirror_under_another_name_is_known_by_key_or_suite() {
        let source = |uri: &str, suite: &str, signed_by: &str| Source {
            uri: uri.into(),
            suites: vec![suite.into()],
            components: vec!["main".into()],
            signed_by: signed_by.into(),
        };
        let other = source("https://tools.example/apt", "any", "");
        let keyed =
            source("http://proxy.example/deb-remote", "x", "/usr/share/keyrings/debian-archive-keyring.gpg");
        let suited = source("http://proxy.example/r", "trixie", "");
        assert_eq!(choose(std::slice::from_ref(&other)), None);
        assert_eq!(choose(&[other.clone(), suited.clone(), keyed.clone()]).unwrap().main, keyed.uri);
        assert_eq!(choose(&[other, suited.clone()]).unwrap().main, suited.uri);
    }
}
