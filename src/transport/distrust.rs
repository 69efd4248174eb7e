//! Why TLS trusts a server not, or a server not us, in words.
//!
//! In TLS 1.3 a client believes the handshake over before the server has looked at the client's
//! certificate, so a refusal comes as an alert on a connection that seems to stand, and behind the
//! request. The alerts about certificates belong to the handshake alone (RFC 8446, 6.2; neither
//! renegotiation nor authentication after the handshake is offered here): a server that sends one
//! has not looked at the request, and never will.

use std::error::Error as StdError;

/// When a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Before it stood.
    Handshake,
    /// Afterwards, as this side sees it.
    Connected,
}

/// The reason in words; `None` if the failure is not one of trust. `identity`: whether a client
/// certificate was there to be shown.
#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
pub(super) fn words(_: &(dyn StdError + 'static), _: Moment, _: bool) -> Option<String> {
    None
}

/// Whether it takes a server that speaks TLS to fail in this way.
#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
pub(super) fn is_tls(_: &(dyn StdError + 'static)) -> bool {
    false
}

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
pub(super) use with_tls::{is_tls, words};

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
mod with_tls {
    use std::io;

    use rustls::pki_types::UnixTime;
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};

    use super::{Moment, StdError};

    /// The reason in words; `None` if the failure is not one of trust. `identity`: whether a
    /// client certificate was there to be shown.
    pub(in super::super) fn words(
        error: &(dyn StdError + 'static),
        moment: Moment,
        identity: bool,
    ) -> Option<String> {
        let error = find(error)?;
        if let Error::AlertReceived(alert) = error
            && let Some(words) = refusal(*alert, identity)
        {
            return Some(words);
        }
        if moment == Moment::Connected {
            return None;
        }
        Some(match error {
            Error::InvalidCertificate(bad) => certificate(bad),
            Error::InvalidMessage(_) => {
                "the server does not speak TLS: is this an http:// endpoint? (In a store URL: \
                 etcd://, etcd2://)"
                    .to_owned()
            }
            Error::NoCertificatesPresented => "the server shows no certificate".to_owned(),
            Error::AlertReceived(Alert::InternalError | Alert::CloseNotify) => return None,
            Error::AlertReceived(alert) => {
                format!("the server refuses the TLS handshake (alert {alert:?})")
            }
            other => format!("the TLS handshake fails ({other})"),
        })
    }

    /// Whether it takes a server that speaks TLS to fail in this way.
    pub(in super::super) fn is_tls(error: &(dyn StdError + 'static)) -> bool {
        matches!(
            find(error),
            Some(Error::InvalidCertificate(_) | Error::AlertReceived(_))
        )
    }

    /// The server's word on our certificate.
    fn refusal(alert: Alert, identity: bool) -> Option<String> {
        let why = match alert {
            Alert::CertificateRequired => "it saw none",
            Alert::BadCertificate | Alert::CertificateUnknown => "it does not trust it",
            Alert::UnsupportedCertificate => "it does not support its kind",
            Alert::CertificateRevoked => "it was revoked",
            Alert::CertificateExpired => "it has expired or is not valid yet",
            Alert::UnknownCA => "it does not know the authority that signed it",
            Alert::AccessDenied => "it denies access with it",
            Alert::DecryptError => "the signature is wrong",
            Alert::HandshakeFailure if !identity => "it may want a client certificate",
            _ => return None,
        };
        Some(match (alert, identity) {
            (Alert::HandshakeFailure, _) => {
                format!("the server refuses the TLS handshake: {why}")
            }
            (_, true) => format!("the server refuses our client certificate: {why} ({alert:?})"),
            (_, false) => {
                format!("the server wants a client certificate, and none was given ({alert:?})")
            }
        })
    }

    /// What is wrong with the server's certificate.
    fn certificate(bad: &Bad) -> String {
        match bad {
            Bad::UnknownIssuer => {
                "the server's certificate is signed by an authority that is not trusted here".into()
            }
            Bad::ExpiredContext { time, not_after } => format!(
                "the server's certificate expired at {} (here it is {})",
                written(*not_after),
                written(*time)
            ),
            Bad::Expired => "the server's certificate has expired".into(),
            Bad::NotValidYetContext { time, not_before } => format!(
                "the server's certificate is not valid before {} (here it is {})",
                written(*not_before),
                written(*time)
            ),
            Bad::NotValidYet => "the server's certificate is not valid yet".into(),
            Bad::NotValidForNameContext {
                expected,
                presented,
            } => {
                let names: Vec<&str> = presented.iter().map(|it| bare(it)).collect();
                let names = match names.as_slice() {
                    [] => "no name at all".to_owned(),
                    names => names.join(", "),
                };
                let expected = expected.to_str();
                format!("the server's certificate is for {names}, not for {expected}")
            }
            Bad::NotValidForName => "the server's certificate is for another name".into(),
            Bad::BadSignature => "the server's certificate names a trusted authority that did not \
                 sign it: was that made anew under the same name?"
                .into(),
            Bad::Revoked => "the server's certificate was revoked".into(),
            other => format!("the server's certificate is refused ({other})"),
        }
    }

    /// The name in `DnsName("etcd.example")`.
    fn bare(presented: &str) -> &str {
        let name = presented
            .split_once('(')
            .and_then(|(_, rest)| rest.strip_suffix(')'));
        name.map_or(presented, |it| it.trim_matches('"'))
    }

    /// rustls' error within this one.
    fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref() {
                return Some(error);
            }
            // An I/O error names as its source not what it wraps but the source of that.
            next = match error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
            {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        None
    }

    /// `2026-11-22T08:16:58Z`: the civil date by Howard Hinnant's algorithm for days since 1970.
    fn written(time: UnixTime) -> String {
        let (days, seconds) = (time.as_secs() / 86_400, time.as_secs() % 86_400);
        // Years that begin in March, in eras of 400 years: leap days come last.
        let day = days + 719_468;
        let (era, day) = (day / 146_097, day % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + u64::from(month <= 2);
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    #[cfg(test)]
    mod tests {
        use std::time::Duration;

        use super::*;

        #[test]
        fn times_are_written_as_everybody_reads_them() {
            for (seconds, expected) in [
                (0, "1970-01-01T00:00:00Z"),
                (951_782_399, "2000-02-28T23:59:59Z"),
                (951_782_400, "2000-02-29T00:00:00Z"),
                (951_868_800, "2000-03-01T00:00:00Z"),
                (1_735_689_599, "2024-12-31T23:59:59Z"),
                (4_107_542_400, "2100-03-01T00:00:00Z"),
            ] {
                let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
                assert_eq!(written(time), expected);
            }
        }

        #[test]
        fn an_error_is_found_within_errors_within_errors() {
            let tls = Error::AlertReceived(Alert::CertificateRequired);
            let error = io::Error::other(io::Error::other(tls));
            let words = words(&error, Moment::Connected, false).unwrap();
            assert!(words.contains("wants a client certificate"), "{words}");
        }

        #[test]
        fn a_connection_that_stood_and_breaks_is_not_a_matter_of_trust() {
            for error in [
                Error::AlertReceived(Alert::InternalError),
                Error::AlertReceived(Alert::BadRecordMac),
                Error::DecryptError,
            ] {
                let error = io::Error::other(error);
                assert_eq!(words(&error, Moment::Connected, false), None);
            }
        }
    }
}
