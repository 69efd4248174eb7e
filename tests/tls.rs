//! TLS to a real etcd: a server is believed if the system's roots vouch for it, and only then.
//!
//! The roots are those of a process, so the client is this test binary again, told by its
//! environment which file to trust.
#![cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tenure::Client;

mod common;

use common::etcd::{Etcd, Options};

const URL: &str = "TENURE_TLS_URL";

/// A directory that goes away with its value.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tenure-tls-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An authority that can vouch for servers.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for this host, and its key.
    fn vouch(&self, host: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }
}

/// Takes and gives back a lock, as a process that trusts this file; what it says.
fn client(url: &str, trusted: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "a_server_is_believed_if_the_roots_vouch_for_its_name",
        ])
        .env(URL, url)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let line = said.lines().find_map(|line| line.strip_prefix("CLIENT "));
    line.unwrap_or_else(|| panic!("the client said nothing: {said}"))
        .to_owned()
}

async fn take_a_lock(url: &str) -> tenure::Result<()> {
    let client = Client::connect(url).await?;
    client.lock("a").acquire().await?.release().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_believed_if_the_roots_vouch_for_its_name() {
    if let Ok(url) = std::env::var(URL) {
        let outcome = take_a_lock(&url).await;
        let outcome = outcome.map_err(|error| format!("{:?}: {error}", error.kind()));
        println!("\nCLIENT {outcome:?}");
        return;
    }
    let (ours, another) = (Authority::new(), Authority::new());
    let files = Directory::new();
    let (trusted, stranger) = (
        files.write("ours", &ours.pem),
        files.write("another", &another.pem),
    );
    for (host, name) in [("127.0.0.1", "right"), ("10.9.8.7", "wrong")] {
        let (certificate, key) = ours.vouch(host);
        let certificate = files.write(&format!("{name}.pem"), &certificate);
        let tls = Some((certificate, files.write(&format!("{name}.key"), &key)));
        let server = Etcd::start_with(&Options {
            tls,
            ..Options::default()
        });
        let url = format!("etcd2s://{}", server.tls_host());
        let said = client(&url, &trusted);
        if name == "wrong" {
            assert!(
                said.contains("Unreachable") && said.contains("certificate"),
                "{said}"
            );
            continue;
        }
        assert_eq!(said, "Ok(())");
        let said = client(&url, &stranger);
        assert!(
            said.contains("Unreachable") && said.contains("certificate"),
            "{said}"
        );
    }
}
