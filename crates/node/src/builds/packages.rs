//! Packages on top of an image: a Dockerfile of our own with one `RUN`, so that it is cached as any other step is. Pure.

use berth_image::Image;
use serde_json::Value;

use crate::Error;

/// What that Dockerfile calls the image that it stands on. No reference: registries have nothing by this name.
pub(super) const BELOW: &str = "berth.below/image:this";

/// Name of that Dockerfile in messages.
pub(super) const FILE: &str = "packages";

/// Longest name of a package, with its version.
const MAX_NAME: usize = 200;

/// Installs its arguments with what the image has for that, and leaves no lists of packages behind.
const INSTALL: &str = r#"set -e
export DEBIAN_FRONTEND=noninteractive
if command -v apt-get >/dev/null 2>&1; then
  apt-get -q update
  apt-get -q -y -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold install --no-install-recommends "$@"
  apt-get clean
  rm -rf /var/lib/apt/lists/*
elif command -v apk >/dev/null 2>&1; then
  apk add --no-cache "$@"
elif command -v microdnf >/dev/null 2>&1; then
  microdnf -y --nodocs --setopt=install_weak_deps=0 install "$@"
  microdnf clean all
elif command -v dnf >/dev/null 2>&1; then
  dnf -y --nodocs --setopt=install_weak_deps=False install "$@"
  dnf clean all
  rm -rf /var/cache/dnf /var/cache/libdnf5
elif command -v yum >/dev/null 2>&1; then
  yum -y --setopt=skip_missing_names_on_install=False install "$@"
  yum clean all
  rm -rf /var/cache/yum
elif command -v zypper >/dev/null 2>&1; then
  zypper --non-interactive install --no-recommends "$@"
  zypper clean --all
elif command -v pacman >/dev/null 2>&1; then
  pacman -Sy --noconfirm --needed "$@"
  rm -rf /var/cache/pacman/pkg/* /var/lib/pacman/sync/*
else
  echo "the image has none of apt-get, apk, microdnf, dnf, yum, zypper and pacman: no packages can be installed" >&2
  exit 1
fi
"#;

/// The packages of a request, sorted, each once.
///
/// # Errors
/// [`Error::BadRequest`] with the name of one that no package has. What package managers take for something else than a
/// name (options, patterns, groups, `name-` for "remove it") is none.
pub(super) fn checked(packages: &[String]) -> Result<Vec<String>, Error> {
    for name in packages {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let all = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._:=~@/".contains(&byte));
        if !first || !all || name.ends_with('-') || name.len() > MAX_NAME {
            let problem = format!(
                "{name:?} is no name of a package; expected up to {MAX_NAME} of a-z, A-Z, 0-9 and +-._:=~@/, beginning \
                 with a letter or digit and not ending in a dash"
            );
            return Err(Error::BadRequest { field: "packages", problem });
        }
    }
    let mut sorted = packages.to_vec();
    sorted.sort();
    sorted.dedup();
    Ok(sorted)
}

/// The command that installs packages.
pub(super) fn argv(packages: &[String]) -> Vec<String> {
    let fixed = ["/bin/sh", "-c", INSTALL, "install"].map(str::to_owned);
    fixed.into_iter().chain(packages.iter().cloned()).collect()
}

/// The Dockerfile that installs packages on `image`.
///
/// # Errors
/// [`Error::BadRequest`] for an image with `ONBUILD` instructions, which are meant for who builds on it and would be carried
/// out here.
pub(super) fn dockerfile(image: &Image, packages: &[String]) -> Result<String, Error> {
    let config = image.config_json();
    let field = |name: &str| &config["config"][name];
    if field("OnBuild").as_array().is_some_and(|triggers| !triggers.is_empty()) {
        let problem =
            "the image has ONBUILD instructions: no packages can be installed on top of it".to_owned();
        return Err(Error::BadRequest { field: "packages", problem });
    }
    let user = field("User").as_str().unwrap_or_default();
    // No variable is expanded in the exec form, and JSON keeps everything on one line.
    let run = Value::from(argv(packages)).to_string();
    Ok(match user {
        "" => format!("FROM {BELOW}\nRUN {run}\n"),
        user => format!("FROM {BELOW}\nUSER root\nRUN {run}\nUSER {}\n", literal(user)),
    })
}

/// A word of a Dockerfile that stands for itself.
fn literal(word: &str) -> String {
    let mut out = String::new();
    for c in word.chars() {
        if matches!(c, '$' | '\\' | '"' | '\'') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn packages_are_sorted_and_each_once() {
        let checked = checked(&names(&["jq", "git", "jq", "g++", "libc6:i386", "a=1.2-3~x", "py3-pip@edge"]));
        assert_eq!(checked.unwrap(), names(&["a=1.2-3~x", "g++", "git", "jq", "libc6:i386", "py3-pip@edge"]));
    }

    #[test]
    fn what_is_no_name_is_refused_by_name() {
        let long = "x".repeat(MAX_NAME + 1);
        for bad in [
            "",
            "-y",
            "--yes",
            "git;reboot",
            "a b",
            "$(x)",
            "vim-",
            "lib*",
            "^x",
            "a\n",
            "@group",
            "é",
            &long,
        ] {
            let refused = checked(&names(&["git", bad])).unwrap_err().to_string();
            assert!(refused.contains(&format!("{bad:?}")), "{refused}");
        }
    }

    #[test]
    fn users_stand_for_themselves() {
        assert_eq!(literal("app:1000"), "app:1000");
        assert_eq!(literal(r#"a$b\c"#), r#"a\$b\\c"#);
    }

    /// Runs the script where only these programs exist, each of which prints how it was called.
    fn installed(managers: &[&str]) -> (Option<i32>, String) {
        let dir = tempfile::tempdir().unwrap();
        for name in managers.iter().chain(&["rm"]) {
            let path = dir.path().join(name);
            std::fs::write(&path, "#!/bin/sh\necho \"${0##*/} $*\"\n").unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let script = ["-c", INSTALL, "install", "git", "jq"];
        let output = Command::new("/bin/sh").args(script).env("PATH", dir.path()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    #[test]
    fn the_image_s_own_manager_is_used() {
        let (code, text) = installed(&["apt-get", "dnf"]);
        assert_eq!(code, Some(0), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "apt-get -q update");
        assert!(lines[1].ends_with("install --no-install-recommends git jq"), "{text}");
        assert!(lines[3].starts_with("rm -rf /var/lib/apt/lists/"), "{text}");
        for (manager, expected) in [
            ("apk", "apk add --no-cache git jq"),
            ("microdnf", "microdnf -y --nodocs --setopt=install_weak_deps=0 install git jq"),
            ("dnf", "dnf -y --nodocs --setopt=install_weak_deps=False install git jq"),
            ("yum", "yum -y --setopt=skip_missing_names_on_install=False install git jq"),
            ("zypper", "zypper --non-interactive install --no-recommends git jq"),
            ("pacman", "pacman -Sy --noconfirm --needed git jq"),
        ] {
            let (code, text) = installed(&[manager]);
            assert_eq!((code, text.lines().next()), (Some(0), Some(expected)));
        }
        let (code, text) = installed(&[]);
        assert_eq!(code, Some(1));
        assert!(text.contains("none of apt-get"), "{text}");
    }
}
