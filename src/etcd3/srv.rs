//! The options of a client of the servers that DNS names.

use super::Builder;
use crate::error::Result;
use crate::transport::Srv;

impl Builder {
    /// The options of a client of the servers that DNS names for this domain: the SRV records of
    /// `_etcd-client-ssl._tcp` (then https), `_etcd-client._tcp` (http), `_etcd-ssl._tcp`,
    /// `_etcd._tcp`, whichever has any first. By ascending priority, and at random by weight
    /// within one (RFC 2782). Up to four requests to DNS; none to etcd.
    ///
    /// Certificates must be for the hosts that the records name, unless
    /// [`Tls::server_name`](crate::transport::Tls::server_name) says otherwise. Records are read
    /// once: how long they are valid is not heeded.
    ///
    /// # Errors
    /// `NotFound`: DNS is sure that there are no records, or that the service is not available.
    /// `Unreachable`: DNS fails, refuses or does not answer within 5 s.
    /// `InvalidOptions`: not a domain. `Protocol`: a record names no valid host.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn discover(domain: &str) -> Result<Self> {
        Self::discover_with(domain, &Srv::new()).await
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn discover_with(domain: &str, options: &Srv) -> Result<Self> {
        let endpoints = options.endpoints(domain).await?;
        Ok(Self::new(endpoints).runtime(options.own_runtime()))
    }
}
