//! The two hashes by which Harbor's records name a task's content.
//!
//! Both are Harbor's own definitions, so that a job run here and one run by Harbor agree on which task it was.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use sha2::{Digest, Sha256};

use super::Error;

/// Left out of [`content_digest`] when the task has no `.gitignore`.
const DEFAULT_IGNORES: [&str; 6] = ["__pycache__/", "*.pyc", ".DS_Store", "*.swp", "*.swo", "*~"];

/// Deepest directory nesting: a symlink cycle ends there.
const MAX_DEPTH: usize = 64;

/// Hash over the files that make up a published task: path and content of each, sorted by path.
pub(super) fn content_digest(dir: &Path) -> Result<String, Error> {
    let ignored = ignore_rules(dir)?;
    let mut files = Vec::new();
    for name in ["task.toml", "instruction.md", "README.md", "trajectory.json"] {
        if dir.join(name).is_file() {
            files.push(name.to_owned());
        }
    }
    for name in ["environment", "tests", "solution", "steps"] {
        if dir.join(name).is_dir() {
            collect(dir, name, &mut files, MAX_DEPTH)?;
        }
    }
    files.retain(|file| !ignored.matched_path_or_any_parents(file, false).is_ignore());
    files.sort();
    let mut outer = Sha256::new();
    for file in &files {
        let hash = file_hash(&dir.join(file))?;
        outer.update(format!("{file}\0{hash}\n"));
    }
    Ok(format!("sha256:{}", hex(&outer.finalize())))
}

/// Hash over the whole directory, symlinks followed, empty directories left out.
pub(super) fn directory_checksum(dir: &Path) -> Result<String, Error> {
    Ok(directory_hash(dir, MAX_DEPTH)?.unwrap_or_default())
}

fn collect(root: &Path, relative: &str, files: &mut Vec<String>, depth: usize) -> Result<(), Error> {
    for (name, path) in entries(&root.join(relative))? {
        let relative = format!("{relative}/{name}");
        let is_symlink = path.symlink_metadata().map_err(|source| read(&path, source))?.is_symlink();
        // A link to a directory stays a link; a link to a file counts as the file.
        if path.is_dir() && !is_symlink && depth > 0 {
            collect(root, &relative, files, depth - 1)?;
        } else if path.is_file() {
            files.push(relative);
        }
    }
    Ok(())
}

fn directory_hash(dir: &Path, depth: usize) -> Result<Option<String>, Error> {
    let mut descriptors = Vec::new();
    for (name, path) in entries(dir)? {
        if path.is_dir() {
            if depth == 0 {
                return Err(read(
                    &path,
                    io::Error::other("directories nest too deep, or links form a cycle"),
                ));
            }
            if let Some(hash) = directory_hash(&path, depth - 1)? {
                descriptors.push(format!("dirhash:{hash}\0name:{name}"));
            }
        } else if path.is_file() {
            descriptors.push(format!("data:{}\0name:{name}", file_hash(&path)?));
        }
    }
    if descriptors.is_empty() {
        return Ok(None);
    }
    descriptors.sort();
    Ok(Some(hex(&Sha256::digest(descriptors.join("\0\0")))))
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|source| read(dir, source))? {
        let entry = entry.map_err(|source| read(dir, source))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != ".harborignore" {
            entries.push((name, entry.path()));
        }
    }
    Ok(entries)
}

fn ignore_rules(dir: &Path) -> Result<Gitignore, Error> {
    // The root is left empty: the paths that are matched are relative to the task already.
    let mut builder = GitignoreBuilder::new("");
    let file = dir.join(".gitignore");
    if file.is_file() {
        for line in super::read_text(&file)?.lines() {
            // Git skips a pattern that it cannot read.
            let _ = builder.add_line(None, line);
        }
    } else {
        for pattern in DEFAULT_IGNORES {
            let _ = builder.add_line(None, pattern);
        }
    }
    builder.build().map_err(|source| read(&file, io::Error::other(source)))
}

fn file_hash(path: &Path) -> Result<String, Error> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).map_err(|source| read(path, source))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match io::Read::read(&mut file, &mut buffer).map_err(|source| read(path, source))? {
            0 => return Ok(hex(&hasher.finalize())),
            length => hasher.update(&buffer[..length]),
        }
    }
}

fn read(path: &Path, source: io::Error) -> Error {
    Error::Read { path: path.to_owned(), source }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
