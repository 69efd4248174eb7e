//! The options of a store URL: `?ca=FILE&cert=FILE&key=FILE&server_name=NAME`.

use std::path::PathBuf;

use super::{Scheme, StoreUrl, invalid};
use crate::error::{Error, ErrorKind, Result};

/// Files and names, none of them a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsOptions {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) server_name: Option<String>,
}

impl StoreUrl {
    /// Trusts the authorities in this PEM file, instead of those in the URL.
    ///
    /// # Errors
    /// `InvalidOptions`: the URL is none of TLS.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Result<Self> {
        self.tls()?.ca = Some(path.into());
        Ok(self)
    }

    /// Shows the certificate in this PEM file, which also holds its private key, instead of the one
    /// in the URL.
    ///
    /// # Errors
    /// `InvalidOptions`: the URL is none of TLS.
    pub fn identity_file(mut self, path: impl Into<PathBuf>) -> Result<Self> {
        let tls = self.tls()?;
        (tls.cert, tls.key) = (Some(path.into()), None);
        Ok(self)
    }

    /// Shows the certificate in one PEM file, whose private key is in another, instead of the one in
    /// the URL.
    ///
    /// # Errors
    /// `InvalidOptions`: the URL is none of TLS.
    pub fn identity_files(
        mut self,
        cert: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<Self> {
        let tls = self.tls()?;
        (tls.cert, tls.key) = (Some(cert.into()), Some(key.into()));
        Ok(self)
    }

    fn tls(&mut self) -> Result<&mut TlsOptions> {
        match self.scheme {
            Scheme::Etcd2 { tls: true } | Scheme::Etcd3 { tls: true } => Ok(&mut self.tls),
            _ => {
                let text = "a CA or a certificate is given, and the URL is none of TLS: write \
                            etcds:// (or etcd2s://)";
                Err(Error::new(ErrorKind::InvalidOptions, text).during("connect"))
            }
        }
    }
}

impl TlsOptions {
    #[cfg(any(feature = "etcd2", feature = "etcd3"))]
    pub(super) fn made(&self) -> crate::transport::Tls {
        let mut tls = crate::transport::Tls::new();
        if let Some(ca) = &self.ca {
            tls = tls.ca_file(ca);
        }
        tls = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => tls.identity_files(cert, key),
            (Some(both), None) => tls.identity_file(both),
            (None, _) => tls,
        };
        match &self.server_name {
            Some(name) => tls.server_name(name),
            None => tls,
        }
    }

    /// Parses `name=value&name=value`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut options = Self::default();
        for part in text.split('&') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let path = match name {
                "ca" => &mut options.ca,
                "cert" => &mut options.cert,
                "key" => &mut options.key,
                "server_name" => {
                    once(&mut options.server_name, name, value)?;
                    continue;
                }
                _ => return invalid(&format!("there is no option {name:?}")),
            };
            once(path, name, value)?;
        }
        if options.key.is_some() && options.cert.is_none() {
            return invalid("a `key` goes with a `cert`");
        }
        Ok(options)
    }
}

/// Sets an option that has one value.
fn once<T: From<String>>(place: &mut Option<T>, name: &str, value: &str) -> Result<()> {
    if value.is_empty() || place.is_some() {
        return invalid(&format!("the option {name:?} has one value"));
    }
    *place = Some(unescape(value)?.into());
    Ok(())
}

/// Undoes `%40` and the like, which a password with an `@` needs.
pub(super) fn unescape(text: &str) -> Result<String> {
    let bad = || {
        let text = "a `%` in a user, password or option begins an escape such as `%40`";
        Error::new(ErrorKind::InvalidOptions, text)
    };
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or_else(bad)?;
        // A sign would be taken for a part of the number.
        if !digits.bytes().all(|it| it.is_ascii_hexdigit()) {
            return Err(bad());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn files_replace_those_of_the_url_and_need_tls() {
        let url = || parse("etcds://h?ca=a&cert=c&key=k").unwrap();
        let tls = url().ca_file("A").unwrap().identity_file("C").unwrap().tls;
        let made = (tls.ca, tls.cert, tls.key);
        assert_eq!(made, (Some("A".into()), Some("C".into()), None));
        let tls = url().identity_files("C", "K").unwrap().tls;
        let made = (tls.ca, tls.cert, tls.key);
        assert_eq!(made, (Some("a".into()), Some("C".into()), Some("K".into())));
        for plain in ["etcd://h", "etcd2://h", "embedded:"] {
            let error = parse(plain).unwrap().ca_file("A").unwrap_err();
            assert!(error.to_string().contains("etcds://"), "{error}");
        }
    }
}
