//! Authorities, the certificates they sign, and an etcd that shows or wants them.
#![allow(dead_code, unreachable_pub)] // each test crate uses a part

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::common::etcd::{Etcd, Options};

/// A directory that goes away with its value.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("tenure-tls-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
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

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Identity {
    /// Both in one text.
    pub fn combined(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

/// An authority that can vouch for servers and clients.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        Self::named(&format!(
            "Authority {}",
            MADE.fetch_add(1, Ordering::Relaxed)
        ))
    }

    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for this host, and its key.
    pub fn vouch(&self, host: &str) -> Identity {
        self.vouch_during(host, (2020, 2100))
    }

    /// A certificate for a client of this common name, and its key.
    pub fn vouch_for_user(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        Identity {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A certificate for this host, valid from the beginning of one year to the beginning of another.
    pub fn vouch_during(&self, host: &str, years: (i32, i32)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        Identity {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// An etcd that shows this certificate at [`Etcd::tls_host`], and wants one signed by `clients`.
pub fn etcd(files: &Directory, shown: &Identity, clients: Option<&Authority>) -> Etcd {
    let tls = Some((
        files.write("server.pem", &shown.certificate),
        files.write("server.key", &shown.key),
    ));
    let mut args = Vec::new();
    if let Some(clients) = clients {
        let ca = files.write("clients.pem", &clients.pem);
        args.push("--client-cert-auth".to_owned());
        args.push("--trusted-ca-file".to_owned());
        args.push(ca.display().to_string());
    }
    Etcd::start_with(&Options {
        tls,
        args,
        ..Options::default()
    })
}

/// `https://127.0.0.1:port`.
pub fn url(etcd: &Etcd) -> String {
    format!("https://{}", etcd.tls_host())
}
