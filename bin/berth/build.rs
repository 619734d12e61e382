//! Builds berth-guest as a static executable, for `main.rs` to embed.
//!
//! A cargo of its own, in a target directory of its own: the guest needs other flags than the rest
//! (static linking, small), and cargo cannot give one package of a build its own flags.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = workspace_root();
    for watched in ["bin/berth-guest", "crates/sys", "crates/wire", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let built = build_guest(&root, &out.join("guest"), &target);
    let guest = out.join("berth-guest");
    std::fs::copy(&built, &guest).unwrap_or_else(|error| panic!("cannot copy {}: {error}", built.display()));
    println!("cargo::rustc-env=BERTH_GUEST={}", guest.display());
}

fn workspace_root() -> PathBuf {
    let here = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let root = Path::new(&here).join("../..");
    root.canonicalize().expect("the workspace's root is two directories up")
}

fn build_guest(root: &Path, target_dir: &Path, target: &str) -> PathBuf {
    let cargo = env::var_os("CARGO").expect("cargo sets CARGO");
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args(["build", "--locked", "--package", "berth-guest", "--profile", "guest", "--target", target])
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // What the outer cargo sets for this build script must not leak into the inner one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let status = command.status().expect("cargo runs");
    assert!(status.success(), "building berth-guest failed: {status}");
    target_dir.join(target).join("guest/berth-guest")
}
