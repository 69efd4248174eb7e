//! The program `peers` (`tests/peers/go`): etcd's own client library in Go, as Debian packages it.
#![allow(unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The built program. Building it takes ten seconds the first time, then one.
///
/// # Panics
/// Without go and Debian's golang-etcd-server-dev.
pub fn peers() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers");
        let mut go = Command::new("go");
        go.arg("build").arg("-o").arg(&built);
        go.arg("./tests/peers/go");
        go.current_dir(env!("CARGO_MANIFEST_DIR"));
        go.env("GO111MODULE", "off");
        go.env("GOPATH", "/usr/share/gocode");
        go.env("GOFLAGS", "");
        if std::env::var_os("HOME").is_none() && std::env::var_os("GOCACHE").is_none() {
            go.env("GOCACHE", built.with_file_name("go-cache"));
        }
        let hint = "run ./scripts/test, which fetches what the tests need";
        let output = go
            .output()
            .unwrap_or_else(|error| panic!("no go here ({error}): {hint}"));
        assert!(
            output.status.success(),
            "the Go program does not build: {}\nIf packages are missing: {hint}",
            String::from_utf8_lossy(&output.stderr)
        );
        built
    })
}
