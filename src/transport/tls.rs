//! What TLS trusts, and what it shows of itself.

use std::fmt;
use std::path::PathBuf;

/// Options of TLS: see the drivers' builders.
///
/// Files are read when the client is made, and not again: make a new client for a renewed
/// certificate. Private keys are PKCS#8, PKCS#1 or SEC1, not encrypted; they show nowhere.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    pub(super) ca: Option<Pem>,
    pub(super) identity: Option<Pem>,
    pub(super) key: Option<Pem>,
    pub(super) server_name: Option<String>,
}

/// Text in PEM, or the file that holds it.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Pem {
    Text(Vec<u8>),
    File(PathBuf),
}

impl Tls {
    /// Trusts the system's roots and shows no certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities in this PEM file, instead of the system's.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca = Some(Pem::File(path.into()));
        self
    }

    /// Trusts the authorities in this PEM text, instead of the system's.
    #[must_use]
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(Pem::Text(pem.into()));
        self
    }

    /// Shows the certificate in this PEM file, which also holds its private key.
    #[must_use]
    pub fn identity_file(mut self, path: impl Into<PathBuf>) -> Self {
        (self.identity, self.key) = (Some(Pem::File(path.into())), None);
        self
    }

    /// Shows the certificate in this PEM text, which also holds its private key.
    #[must_use]
    pub fn identity_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        (self.identity, self.key) = (Some(Pem::Text(pem.into())), None);
        self
    }

    /// Shows the certificate in one PEM file, whose private key is in another.
    #[must_use]
    pub fn identity_files(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some(Pem::File(cert.into()));
        self.key = Some(Pem::File(key.into()));
        self
    }

    /// Shows the certificate in one PEM text, whose private key is in another.
    #[must_use]
    pub fn identity_pems(mut self, cert: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some(Pem::Text(cert.into()));
        self.key = Some(Pem::Text(key.into()));
        self
    }

    /// The name that every server's certificate must be for. Default: the host of its endpoint.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Whether anything is not as [`new`](Self::new) makes it.
    pub(crate) fn is_set(&self) -> bool {
        *self != Self::new()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
