//! Which floor each crate is on, and who may import whom.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// The floors of the house, top first; crates by their names without `berth-`. A crate imports only from floors below its
/// own, whatever the import is for (tests included).
const FLOORS: &[(&str, &[&str])] = &[
    ("street", &["berth", "guest"]),
    ("floor 5", &["cli", "harbor", "daemon", "ssh"]),
    ("floor 4", &["client", "node"]),
    ("floor 3", &["sandbox", "build"]),
    ("floor 2", &["image", "disk", "jail", "vmm", "net", "compose", "store"]),
    ("floor 1", &["types", "wire"]),
    ("floor 0", &["sys"]),
];

/// Imports that stay on one floor but are part of the drawing.
const SIDEWAYS: &[(&str, &str)] = &[("cli", "harbor"), ("daemon", "ssh")];

/// Crates that may import only these: a client reaches a machine by HTTP alone, the guest is small.
const ONLY: &[(&str, &[&str])] = &[
    ("cli", &["harbor", "client", "types"]),
    ("harbor", &["client", "types"]),
    ("client", &["types"]),
    ("guest", &["wire", "sys"]),
];

/// Libraries that are the business of these crates only.
const CONFINED: &[(&str, &[&str])] = &[
    ("axum", &["daemon"]),
    ("clap", &["cli", "berth", "xtask"]),
    ("hyper", &["client", "daemon"]),
    ("libc", &["sys"]),
    ("nix", &["sys"]),
    ("rusqlite", &["store"]),
    ("russh", &["ssh"]),
    ("utoipa", &["types", "daemon"]),
];

/// Crates that are not part of the house.
const OUTSIDE: &[&str] = &["floor", "xtask"];

/// A crate of the workspace and what it imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Crate {
    /// Name without `berth-`.
    pub(crate) name: String,
    /// Crates of the workspace, named likewise.
    pub(crate) imports: BTreeSet<String>,
    /// Other libraries.
    pub(crate) libraries: BTreeSet<String>,
}

/// Reads the workspace at `root` by `cargo metadata`.
pub(crate) fn read(root: &Path) -> anyhow::Result<Vec<Crate>> {
    let output = crate::cargo::command()
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    parse(&output.stdout)
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Absent for an ordinary one.
    kind: Option<String>,
    /// Only on dependencies within the workspace.
    path: Option<String>,
}

fn parse(metadata: &[u8]) -> anyhow::Result<Vec<Crate>> {
    let metadata: Metadata = serde_json::from_slice(metadata).context("parsing cargo metadata")?;
    let mut crates: Vec<_> = metadata.packages.into_iter().map(to_crate).collect();
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(crates)
}

fn to_crate(package: Package) -> Crate {
    let (ours, others): (Vec<_>, Vec<_>) = package.dependencies.into_iter().partition(|d| d.path.is_some());
    Crate {
        name: short(&package.name).to_owned(),
        // Tests may come through any door: the guest's are driven by the host's own end.
        imports: ours
            .iter()
            .filter(|d| d.kind.as_deref() != Some("dev"))
            .map(|d| short(&d.name).to_owned())
            .collect(),
        libraries: others.into_iter().map(|d| d.name).collect(),
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("berth-").unwrap_or(name)
}

/// Everything that is against the drawing, one line each.
pub(crate) fn violations(crates: &[Crate]) -> Vec<String> {
    let mut found = Vec::new();
    for krate in crates {
        let name = &krate.name;
        if floor(name).is_none() && !OUTSIDE.contains(&name.as_str()) {
            found.push(format!("crate {name} has no floor: give it one in xtask/src/layers.rs"));
        }
        found.extend(krate.imports.iter().filter_map(|import| import_violation(name, import)));
        found.extend(krate.libraries.iter().filter_map(|library| library_violation(name, library)));
    }
    found
}

fn import_violation(name: &str, import: &str) -> Option<String> {
    if SIDEWAYS.contains(&(name, import)) {
        return None;
    }
    if let Some((_, allowed)) = ONLY.iter().find(|(n, _)| *n == name)
        && !allowed.contains(&import)
    {
        return Some(format!("{name} imports {import}: it may import only {}", allowed.join(", ")));
    }
    // Index 0 is the top.
    let (own, other) = (floor(name)?, floor(import)?);
    let place = |index: usize| FLOORS.get(index).map_or("", |(floor, _)| floor);
    (other <= own)
        .then(|| format!("{name} ({}) imports {import} ({}): imports go down only", place(own), place(other)))
}

fn library_violation(name: &str, library: &str) -> Option<String> {
    let (_, allowed) = CONFINED.iter().find(|(l, _)| *l == library)?;
    (!allowed.contains(&name))
        .then(|| format!("{name} uses {library}: that is for {} only", allowed.join(", ")))
}

fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|(_, crates)| crates.contains(&name))
}

/// The house as it is: floors, crates that exist, what each imports.
pub(crate) fn draw(crates: &[Crate]) -> String {
    let mut drawing = String::new();
    for (floor, names) in FLOORS {
        let rooms: Vec<_> = names.iter().filter_map(|name| crates.iter().find(|c| c.name == *name)).collect();
        for (i, room) in rooms.iter().enumerate() {
            let label = if i == 0 { floor } else { "" };
            let imports: Vec<_> = room.imports.iter().map(String::as_str).collect();
            let arrow = if imports.is_empty() { "" } else { " -> " };
            // Writing to a String cannot fail.
            let _ = writeln!(drawing, "{label:<8} {:<8}{arrow}{}", room.name, imports.join(" "));
        }
    }
    drawing.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn krate(name: &str, imports: &[&str], libraries: &[&str]) -> Crate {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Crate { name: name.to_owned(), imports: set(imports), libraries: set(libraries) }
    }

    #[test]
    fn a_house_in_order() {
        let crates = [
            krate("sys", &[], &["libc"]),
            krate("types", &[], &["utoipa"]),
            krate("net", &["sys", "types"], &["libc-free"]),
            krate("client", &["types"], &["hyper"]),
            krate("harbor", &["client"], &[]),
            krate("cli", &["client", "harbor"], &["clap"]),
            krate("node", &["net", "sys"], &[]),
            krate("berth", &["cli", "node"], &["clap"]),
            krate("xtask", &[], &["clap"]),
        ];
        assert_eq!(violations(&crates), [""; 0]);
        insta::assert_snapshot!(draw(&crates), @r"
        street   berth    -> cli node
        floor 5  cli      -> client harbor
                 harbor   -> client
        floor 4  client   -> types
                 node     -> net sys
        floor 2  net      -> sys types
        floor 1  types
        floor 0  sys
        ");
    }

    #[test]
    fn what_is_against_the_drawing_is_named() {
        let crates = [
            krate("sandbox", &["build", "node"], &["axum"]),
            krate("cli", &["sandbox"], &[]),
            krate("net", &["store"], &["libc"]),
            krate("shed", &[], &[]),
        ];
        insta::assert_snapshot!(violations(&crates).join("\n"), @r"
        sandbox (floor 3) imports build (floor 3): imports go down only
        sandbox (floor 3) imports node (floor 4): imports go down only
        sandbox uses axum: that is for daemon only
        cli imports sandbox: it may import only harbor, client, types
        net (floor 2) imports store (floor 2): imports go down only
        net uses libc: that is for sys only
        crate shed has no floor: give it one in xtask/src/layers.rs
        ");
    }

    #[test]
    fn metadata_is_parsed() {
        let json = br#"{"packages": [{"name": "berth-net", "id": "x", "dependencies": [
            {"name": "berth-sys", "kind": null, "path": "/x/crates/sys"},
            {"name": "berth-node", "kind": "dev", "path": "/x/crates/node"}, {"name": "ipnet", "kind": "dev"}]}]}"#;
        assert_eq!(parse(json).unwrap(), [krate("net", &["sys"], &["ipnet"])]);
    }
}
