//! `RUN --mount`: what its options mean, with variables replaced and defaults filled in.

use std::collections::BTreeMap;

use super::copy::CopyRoot;
use super::find::Finder;
use super::stage::{Current, absolute};
use super::{MountKind, PlannedMount, Planner};
use crate::context::EntryKind;
use crate::error::Error;
use crate::fault::{Fault, Problem, nearest};
use crate::instruction::{Instruction, Mount, Run};
use crate::key::Hasher;
use crate::lint::go_bool;
use crate::runner::Sharing;
use crate::source::Span;
use crate::syntax::{Statement, Word};

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
/// Where a secret stands that says nothing else.
const SECRETS: &str = "/run/secrets";
const SSH: &str = "a build has no SSH agent; give the key or a token with `--mount=type=secret,id=…` and use that in the \
                   command";

/// The options of one mount, variables replaced.
struct Options<'a> {
    kind: &'static str,
    values: BTreeMap<&'static str, String>,
    read_only: bool,
    statement: &'a Statement,
    span: Span,
}

impl Planner<'_> {
    pub(super) fn mounts(
        &mut self,
        current: &Current<'_>,
        instruction: &Instruction,
        run: &Run,
        statement: &Statement,
    ) -> Result<Vec<PlannedMount>, Error> {
        run.mounts.iter().map(|mount| self.mount(current, instruction, mount, statement)).collect()
    }

    fn mount(
        &mut self,
        current: &Current<'_>,
        instruction: &Instruction,
        mount: &Mount,
        statement: &Statement,
    ) -> Result<PlannedMount, Error> {
        let options = Options::read(current, mount, statement)?;
        let (span, read_only) = (options.span, options.read_only);
        if options.kind == "secret" {
            return Ok(options.secret(current)?);
        }
        let target = options.target(current)?;
        let kind = match options.kind {
            "tmpfs" => MountKind::Tmpfs { size: options.size()? },
            "cache" => {
                let from = options.get("from").is_some();
                let seed = match from {
                    true => Some(self.source(current, instruction, &options)?),
                    false if options.get("source").is_some() => {
                        let expected = "`from=` with the source of a cache";
                        return Err(options.expected(expected, "`source=` alone".to_owned()).into());
                    }
                    false => None,
                };
                let id = options
                    .get("id")
                    .map_or_else(|| clean(options.get("target").unwrap_or("")), str::to_owned);
                MountKind::Cache {
                    id,
                    sharing: options.sharing()?,
                    seed,
                    uid: options.number("uid", 0)?,
                    gid: options.number("gid", 0)?,
                    mode: options.mode(0o755)?,
                }
            }
            _ => {
                let (root, source) = self.source(current, instruction, &options)?;
                MountKind::Bind { root, source }
            }
        };
        Ok(PlannedMount { target, read_only, kind, span })
    }

    /// `from` and `source`.
    fn source(
        &mut self,
        current: &Current<'_>,
        instruction: &Instruction,
        options: &Options<'_>,
    ) -> Result<(CopyRoot, String), Error> {
        let (statement, span) = (options.statement, options.span);
        let written = options.get("source").unwrap_or("");
        let Some(from) = options.get("from") else {
            let finder = Finder::new(self.inputs.context, statement);
            let path = finder.resolve(written, &absolute("/", written)[1..], span)?;
            finder.check_special(&path, &[], span)?;
            return Ok((CopyRoot::Context, path));
        };
        let root = self.taken_from(current.stage.index, instruction, from, statement, span)?;
        Ok((CopyRoot::Root(root), absolute("/", written)))
    }

    /// What a key says of a mount: of what is read the content, of what is only kept or told the name. Gives what keys say
    /// of the root that lends it, if any does.
    pub(super) fn mount_key(&self, key: &mut Hasher, mount: &PlannedMount) -> Result<Option<String>, Error> {
        let mut lent = None;
        let access = if mount.read_only { "ro" } else { "rw" };
        key.field("mount").field(&mount.target).field(access);
        match &mount.kind {
            MountKind::Bind { root: CopyRoot::Root(root), source } => {
                key.field("bind").field(source);
                lent = Some(self.root_key(root));
            }
            MountKind::Bind { root: CopyRoot::Context, source } => {
                key.field("bind context");
                match self.inputs.context.entry(source).map(|entry| &entry.kind) {
                    Some(EntryKind::File(_)) => self.file_key(key, source)?,
                    _ => self.dir_key(key, source, &[])?,
                }
            }
            MountKind::Cache { id, sharing, seed, uid, gid, mode } => {
                key.field("cache").field(id).field(format!("{sharing:?} {uid} {gid} {mode:o}"));
                if let Some((root, source)) = seed {
                    key.field("seed").field(source);
                    // Without `from` there is none: a seed is never of the context.
                    lent = match root {
                        CopyRoot::Context => None,
                        CopyRoot::Root(root) => Some(self.root_key(root)),
                    };
                }
            }
            MountKind::Tmpfs { size } => drop(key.field("tmpfs").field(format!("{size:?}"))),
            MountKind::Secret { id, required, env, uid, gid, mode } => {
                key.field("secret").field(id).field(env.as_deref().unwrap_or(""));
                key.field(format!("{required} {uid} {gid} {mode:o}"));
            }
        }
        Ok(lent)
    }
}

impl<'a> Options<'a> {
    fn read(current: &Current<'_>, mount: &Mount, statement: &'a Statement) -> Result<Self, Box<Fault>> {
        let span = mount.word.span;
        let (mut values, mut access) = (BTreeMap::new(), None);
        let mut options = Self { kind: "bind", values: BTreeMap::new(), read_only: false, statement, span };
        for (key, value) in &mount.options {
            let value = match value {
                Some(text) => current.expand(&Word { text: text.clone(), span }, statement)?,
                None => "true".to_owned(),
            };
            match *key {
                "readonly" => access = Some(options.boolean(&value)?),
                "readwrite" => access = Some(!options.boolean(&value)?),
                key => drop(values.insert(key, value)),
            }
        }
        if let Some(kind) = values.remove("type") {
            let Some(known) = TYPES.into_iter().find(|known| *known == kind) else {
                let expected = match nearest(&kind, TYPES).as_deref() {
                    Some("bind") => "`bind` after `type=`",
                    Some("cache") => "`cache` after `type=`",
                    Some("secret") => "`secret` after `type=`",
                    Some("tmpfs") => "`tmpfs` after `type=`",
                    _ => "`bind`, `cache`, `secret` or `tmpfs` after `type=`",
                };
                return Err(options.expected(expected, format!("`{kind}`")));
            };
            options.kind = known;
        }
        if options.kind == "ssh" {
            let what = "`RUN --mount=type=ssh`".to_owned();
            return Err(statement.fault(span, Problem::Refused { what, instead: SSH }));
        }
        if let (Some(from), Some(written)) = (values.get("from"), mount.get("from"))
            && from.is_empty()
            && !written.is_empty()
        {
            let found = format!("`{written}`, which expands to nothing");
            return Err(options.expected("a stage or an image after `from=`", found));
        }
        values.retain(|_, value| !value.is_empty());
        options.values = values;
        options.read_only = access.unwrap_or(matches!(options.kind, "bind" | "secret"));
        options.check_keys()?;
        Ok(options)
    }

    /// Every option goes with the type.
    fn check_keys(&self) -> Result<(), Box<Fault>> {
        for key in self.values.keys().copied() {
            let fits = match key {
                "from" => matches!(self.kind, "bind" | "cache"),
                "source" => {
                    self.kind != "tmpfs" && !(self.kind == "secret" && self.values.contains_key("id"))
                }
                "sharing" => self.kind == "cache",
                "size" => self.kind == "tmpfs",
                "env" | "required" => self.kind == "secret",
                "mode" | "uid" | "gid" => matches!(self.kind, "cache" | "secret"),
                _ => true,
            };
            if !fits {
                return Err(self.statement.fault(self.span, Problem::MountKey { key, kind: self.kind }));
            }
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    fn expected(&self, expected: &'static str, found: String) -> Box<Fault> {
        self.statement.fault(self.span, Problem::Expected { instruction: "RUN", expected, found })
    }

    fn boolean(&self, text: &str) -> Result<bool, Box<Fault>> {
        go_bool(text).ok_or_else(|| self.expected("`true` or `false` in `--mount`", format!("`{text}`")))
    }

    fn target(&self, current: &Current<'_>) -> Result<String, Box<Fault>> {
        let target = absolute(&current.config.workdir(), self.get("target").unwrap_or(""));
        if target == "/" {
            let found = self.get("target").map_or("none".to_owned(), |target| format!("`target={target}`"));
            return Err(self.expected("a `target=` below the root in `--mount`", found));
        }
        Ok(target)
    }

    fn secret(&self, current: &Current<'_>) -> Result<PlannedMount, Box<Fault>> {
        let name = self.get("id").or_else(|| self.get("source"));
        let base = |path: &str| path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default().to_owned();
        let id = match (name, self.get("target")) {
            (Some(name), _) => name.to_owned(),
            (None, Some(target)) => base(target),
            (None, None) => String::new(),
        };
        if id.is_empty() {
            return Err(self.expected("`id=` or `target=` of the secret", format!("`{}`", self.written())));
        }
        let env = self.get("env").map(str::to_owned);
        let target = match self.get("target") {
            Some(target) => absolute(&current.config.workdir(), target),
            None if env.is_some() => String::new(),
            None => format!("{SECRETS}/{}", base(&id)),
        };
        let required = self.get("required").map(|text| self.boolean(text)).transpose()?.unwrap_or(false);
        let (uid, gid, mode) = (self.number("uid", 0)?, self.number("gid", 0)?, self.mode(0o400)?);
        let kind = MountKind::Secret { id, required, env, uid, gid, mode };
        Ok(PlannedMount { target, read_only: self.read_only, kind, span: self.span })
    }

    fn written(&self) -> &str {
        &self.statement.source.text[self.span.start..self.span.end]
    }

    fn sharing(&self) -> Result<Sharing, Box<Fault>> {
        match self.get("sharing") {
            None | Some("shared") => Ok(Sharing::Shared),
            Some("private") => Ok(Sharing::Private),
            Some("locked") => Ok(Sharing::Locked),
            Some(other) => {
                Err(self.expected("`shared`, `private` or `locked` after `sharing=`", format!("`{other}`")))
            }
        }
    }

    fn number(&self, key: &str, default: u32) -> Result<u32, Box<Fault>> {
        let Some(text) = self.get(key) else { return Ok(default) };
        text.parse().map_err(|_| self.expected("a number after `uid=` and `gid=`", format!("`{key}={text}`")))
    }

    fn mode(&self, default: u32) -> Result<u32, Box<Fault>> {
        let Some(text) = self.get("mode") else { return Ok(default) };
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| self.expected("an octal mode up to 7777 after `mode=`", format!("`{text}`")))
    }

    fn size(&self) -> Result<Option<u64>, Box<Fault>> {
        let Some(text) = self.get("size") else { return Ok(None) };
        let size = bytes(text).filter(|size| *size > 0);
        let expected = "a size like `512m` or `1g` after `size=`";
        size.map(Some).ok_or_else(|| self.expected(expected, format!("`{text}`")))
    }
}

/// A path as Go's `path.Clean` has it: `a//b/./../c/` is `a/c`.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (path.starts_with('/'), joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// A number of bytes with a unit of 1024: `64`, `64k`, `1.5g`, `64MiB`.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = (lower[..digits].parse::<f64>().ok()?, lower[digits..].trim());
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)?;
    let size = number * 1024f64.powi(i32::try_from(power).ok()?);
    (size < u64::MAX as f64).then_some(size as u64)
}

#[cfg(test)]
mod tests {
    use super::{bytes, clean};

    #[test]
    fn sizes_are_powers_of_1024() {
        let table = [
            ("64", Some(64)),
            ("1k", Some(1024)),
            ("1.5K", Some(1536)),
            ("64MiB", Some(64 << 20)),
            ("2gb", Some(2 << 30)),
            ("x", None),
            ("1x", None),
            ("", None),
        ];
        for (text, wanted) in table {
            assert_eq!(bytes(text), wanted, "{text}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_in_go() {
        for (path, wanted) in
            [("/a//b/../c/", "/a/c"), ("a/./b", "a/b"), ("", "."), ("/..", "/"), ("../a", "../a")]
        {
            assert_eq!(clean(path), wanted, "{path}");
        }
    }
}
