//! From the options of TLS to what rustls wants to be told. Whatever is wrong with them is said
//! here, with the file it is in, and never with a word of a private key.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::tls::{Pem, Tls};
use crate::error::{Error, ErrorKind, Result};

/// What rustls is to do; `tls` if any endpoint needs it.
pub(super) fn config(tls: Option<&Tls>) -> Result<ClientConfig> {
    // Always passed explicitly: with both providers in one dependency graph rustls cannot choose
    // and panics.
    #[cfg(feature = "tls-aws-lc")]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(feature = "tls-aws-lc"))]
    let provider = rustls::crypto::ring::default_provider();

    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .map_err(|cause| invalid("TLS cannot be set up").caused_by(cause))?;
    let Some(tls) = tls else {
        // Reading the system's certificates costs milliseconds that plain HTTP need not pay.
        return Ok(builder
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth());
    };
    let builder = match &tls.ca {
        Some(pem) => builder.with_root_certificates(roots(pem)?),
        None => builder.with_native_roots().map_err(|cause| {
            invalid("the system's root certificates cannot be read").caused_by(cause)
        })?,
    };
    let Some(identity) = &tls.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let certificate = Source::of(identity, "the client certificate");
    let key = match &tls.key {
        Some(key) => Source::of(key, "the client's key"),
        None => certificate.clone(),
    };
    let (chain, der) = (certificate.certificates()?, key.private_key()?);
    builder
        .with_client_auth_cert(chain, der)
        .map_err(|cause| certificate.mismatch(&key, &cause))
}

/// The name that every server's certificate must be for, if one was given.
pub(super) fn server_name(tls: &Tls) -> Result<Option<ServerName<'static>>> {
    let Some(name) = &tls.server_name else {
        return Ok(None);
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let parsed = ServerName::try_from(bare.to_owned()).map_err(|cause| {
        let text = format!("the TLS server name {name:?} is neither a host name nor an address");
        invalid(text).caused_by(cause)
    })?;
    Ok(Some(parsed))
}

fn roots(pem: &Pem) -> Result<RootCertStore> {
    let source = Source::of(pem, "the CA");
    let mut roots = RootCertStore::empty();
    for (number, certificate) in (1..).zip(source.certificates()?) {
        roots.add(certificate).map_err(|cause| {
            let name = &source.name;
            let text = format!("{name}: certificate {number} in it cannot be an authority");
            invalid(text).caused_by(cause)
        })?;
    }
    Ok(roots)
}

/// A PEM text, and what errors call it.
#[derive(Clone)]
struct Source<'a> {
    pem: &'a Pem,
    name: String,
}

impl<'a> Source<'a> {
    fn of(pem: &'a Pem, role: &str) -> Self {
        let name = match pem {
            Pem::Text(_) => format!("{role} (PEM text)"),
            Pem::File(path) => format!("{role} in {}", Path::display(path)),
        };
        Self { pem, name }
    }

    fn text(&self) -> Result<Cow<'a, [u8]>> {
        match self.pem {
            Pem::Text(text) => Ok(text.into()),
            Pem::File(path) => std::fs::read(path).map(Cow::from).map_err(|cause| {
                invalid(format!("{}: the file cannot be read ({cause})", self.name))
            }),
        }
    }

    /// At least one.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let text = self.text()?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            // Without the cause: the same text may hold a key, and the cause a part of it.
            .map_err(|_| invalid(format!("{}: the PEM is damaged", self.name)))?;
        if chain.is_empty() {
            let text = format!("{}: there is no certificate in it", self.name);
            return Err(invalid(text));
        }
        Ok(chain)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        use rustls::pki_types::pem::Error as Damage;

        const ENCRYPTED: &[u8] = b"ENCRYPTED";

        let text = self.text()?;
        PrivateKeyDer::from_pem_slice(&text).map_err(|cause| {
            let encrypted = text.windows(ENCRYPTED.len()).any(|it| it == ENCRYPTED);
            let what = match cause {
                _ if encrypted => "the private key in it is encrypted: store it decrypted",
                Damage::NoItemsFound => "there is no private key in it",
                _ => "the PEM is damaged",
            };
            invalid(format!("{}: {what}", self.name))
        })
    }

    fn mismatch(&self, key: &Self, cause: &rustls::Error) -> Error {
        let text = match cause {
            rustls::Error::InconsistentKeys(_) if self.name == key.name => {
                format!("{}: the key in it is not the certificate's", self.name)
            }
            rustls::Error::InconsistentKeys(_) => {
                format!("{} is not that of {}", key.name, self.name)
            }
            rustls::Error::InvalidCertificate(_) => {
                format!("{}: it cannot be used ({cause})", self.name)
            }
            _ => format!("{}: the private key cannot be used", key.name),
        };
        invalid(text)
    }
}

fn invalid(text: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOptions, text)
}
