//! The variables that a Dockerfile can see: build arguments, the platform's, and an environment in order.

use std::collections::BTreeMap;

/// Build arguments that count as declared without an `ARG`. They reach `RUN` but neither the image nor a cache key.
const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Build arguments that are for the builder itself, whatever the Dockerfile declares.
const BUILDERS: [&str; 1] = ["SOURCE_DATE_EPOCH"];

/// `KEY=value` pairs in the order in which they were first set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// Sets a variable; one that is set already keeps its place.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value.to_owned(),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Bytes of all names and values.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// A variable's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// All of them as `KEY=value`.
    pub fn lines(&self) -> Vec<String> {
        self.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Reads `KEY=value` lines.
    pub fn from_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut environment = Self::default();
        for line in lines {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            environment.set(name, value);
        }
        environment
    }
}

/// `os/arch[/variant]`, normalised: `linux/x86_64` is `linux/amd64`, `arm64` is `linux/arm64`.
pub(crate) fn normal_platform(platform: &str) -> String {
    let mut parts = platform.trim().to_lowercase();
    if !parts.contains('/') {
        parts = if parts == "linux" {
            format!("linux/{}", std::env::consts::ARCH)
        } else {
            format!("linux/{parts}")
        };
    }
    let mut parts = parts.split('/');
    let (os, arch) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (arch, implied) = match arch {
        "x86_64" | "x86-64" => ("amd64", None),
        "aarch64" | "arm64" => ("arm64", Some("v8")),
        "i386" | "i686" | "x86" => ("386", None),
        "arm" | "armhf" => ("arm", Some("v7")),
        other => (other, None),
    };
    match parts.next().filter(|variant| Some(*variant) != implied) {
        Some(variant) => format!("{os}/{arch}/{variant}"),
        None => format!("{os}/{arch}"),
    }
}

/// The platform arguments, as every stage can declare them. A build argument of the same name wins.
pub(crate) fn platform_args(
    platform: &str,
    build_args: &BTreeMap<String, String>,
    target: Option<&str>,
) -> Environment {
    let platform = normal_platform(platform);
    let mut parts = platform.split('/');
    let (os, arch) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let variant = parts.next().unwrap_or_default();
    let mut environment = Environment::default();
    for prefix in ["TARGET", "BUILD"] {
        for (name, value) in [
            ("PLATFORM", platform.as_str()),
            ("OS", os),
            ("OSVERSION", ""),
            ("ARCH", arch),
            ("VARIANT", variant),
        ] {
            let name = format!("{prefix}{name}");
            let value = build_args.get(&name).map_or(value, String::as_str);
            environment.set(&name, value);
        }
    }
    let target = target.filter(|target| !target.is_empty()).unwrap_or("default");
    environment.set("TARGETSTAGE", build_args.get("TARGETSTAGE").map_or(target, String::as_str));
    environment
}

/// Whether a build argument means something without an `ARG`.
pub(crate) fn is_predefined(name: &str) -> bool {
    PROXIES.contains(&name) || BUILDERS.contains(&name) || name.starts_with("BUILDKIT_")
}

/// The proxy settings among the build arguments.
pub(crate) fn proxies(build_args: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let given = build_args.iter().filter(|(name, _)| PROXIES.contains(&name.as_str()));
    given.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_have_one_spelling() {
        let table = [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("Linux/aarch64", "linux/arm64"),
            ("linux/arm/v7", "linux/arm"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("windows/amd64", "windows/amd64"),
        ];
        for (given, wanted) in table {
            assert_eq!(normal_platform(given), wanted);
        }
    }

    #[test]
    fn an_environment_keeps_the_first_order_and_the_last_value() {
        let environment = Environment::from_lines(["A=1", "B=2", "A=3", "C"]);
        assert_eq!(environment.lines(), ["A=3", "B=2", "C="]);
    }
}
