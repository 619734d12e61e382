//! The API's document, kept in the repository so that a change of it is seen in review.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;

const DOCUMENT: &str = "docs/openapi.json";

/// Writes the document, or with `check` compares it; false when it is not the present one.
pub(crate) fn run(root: &Path, check: bool) -> anyhow::Result<bool> {
    let present = generate(root)?;
    let path = root.join(DOCUMENT);
    if !check {
        std::fs::write(&path, present).with_context(|| format!("writing {DOCUMENT}"))?;
        println!("openapi: {DOCUMENT} written");
        return Ok(true);
    }
    let kept = std::fs::read_to_string(&path).with_context(|| format!("reading {DOCUMENT}"))?;
    match first_difference(&kept, &present) {
        None => {
            println!("openapi: {DOCUMENT} is the present one");
            Ok(true)
        }
        Some(line) => {
            eprintln!("error: {DOCUMENT} is not the present one, from line {line} on");
            eprintln!("hint: cargo xtask openapi");
            Ok(false)
        }
    }
}

fn generate(root: &Path) -> anyhow::Result<String> {
    let output = crate::cargo::command()
        .args(["run", "--quiet", "--package", "berth", "--", "openapi"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("running berth openapi")?;
    anyhow::ensure!(output.status.success(), "berth openapi: {}", output.status);
    let text =
        String::from_utf8(output.stdout).context("berth openapi printed something that is not UTF-8")?;
    // Whoever edits or prints it: one newline at the end.
    Ok(format!("{}\n", text.trim_end()))
}

/// Number of the first line that differs, from 1.
fn first_difference(kept: &str, present: &str) -> Option<usize> {
    if kept == present {
        return None;
    }
    let same = kept.lines().zip(present.lines()).take_while(|(a, b)| a == b).count();
    Some(same + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_at_the_end_too() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(2));
        assert_eq!(first_difference("a\n", "a"), Some(2));
    }
}
