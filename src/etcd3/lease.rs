//! Leases: granted under a name that the client chose, kept alive without a proposal.
//!
//! A grant that was given up may have been granted: the next finds "already exists". That lease is
//! ours, for nobody else draws its name; but its term began with the earlier grant, so it is renewed
//! at once, and the term counts from a request that was sent after this call.

use std::sync::Arc;
use std::time::Duration;

use super::driver::{Driver, lease_number};
use super::keep::Keeper;
use super::proto::{LeaseGrantRequest, LeaseRevokeRequest};
use super::rpc::{Ask, Wire};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{LeaseId, Ttl};
use crate::runtime::{Entropy, Instant};
use crate::store::{Grant, Granted, Renew, Renewed};

/// How often a lease is asked for that is there, and gone when it is renewed.
const TRIES: usize = 3;

impl Driver {
    pub(super) async fn grant(&self, grant: &Grant) -> Result<Granted> {
        self.grant_by(grant, self.deadline()).await
    }

    /// The same, not for longer than until `deadline`.
    pub(super) async fn grant_by(&self, grant: &Grant, deadline: Instant) -> Result<Granted> {
        let Grant { lease, ttl } = *grant;
        let grant = self
            .keeper
            .grant(&self.wire, lease, ttl.whole_secs(), deadline);
        grant.await
    }

    pub(super) async fn renew(&self, renew: &Renew) -> Result<Renewed> {
        let (deadline, lease) = (self.deadline_within(renew.patience), renew.lease);
        let ttl = self.keeper.keep_alive(&self.wire, lease, deadline).await?;
        Ok(Renewed::new(ttl, renew.at))
    }

    pub(super) async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let request = LeaseRevokeRequest {
            id: lease_number(lease),
        };
        let outcome = self.wire.call(&request, Ask::HARMLESS, self.deadline());
        match outcome.await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Keeper {
    /// A lease of so many seconds, granted or renewed by `deadline`.
    pub(super) async fn grant(
        &self,
        wire: &Arc<Wire>,
        lease: LeaseId,
        seconds: u64,
        deadline: Instant,
    ) -> Result<Granted> {
        let request = LeaseGrantRequest {
            ttl: i64::try_from(seconds).unwrap_or(i64::MAX),
            id: lease_number(lease),
        };
        for _ in 0..TRIES {
            match wire.call(&request, Ask::HARMLESS, deadline).await {
                Ok(reply) if !reply.body.error.is_empty() => {
                    let text = format!("the server grants no lease ({})", reply.body.error);
                    return Err(Error::new(ErrorKind::Unavailable, text).on(&*reply.server));
                }
                Ok(reply) => return Ok(Granted::new(ttl(reply.body.ttl)?)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    match self.keep_alive(wire, lease, deadline).await {
                        Ok(ttl) => return Ok(Granted::new(ttl)),
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let text = "the lease keeps running out before it can be renewed";
        Err(Error::new(ErrorKind::Unavailable, text))
    }
}

/// A lease that nobody has asked for yet.
pub(super) fn new_lease(entropy: &Entropy) -> LeaseId {
    loop {
        // 63 bits: etcd takes positive ids only.
        if let Some(lease) = LeaseId::new(entropy.u64() >> 1) {
            return lease;
        }
    }
}

/// A term of so many seconds, as a server said it.
pub(super) fn ttl(seconds: i64) -> Result<Ttl> {
    let term = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Ttl::new(term.min(Ttl::MAX.get())).map_err(|_| {
        let text = format!("the server granted a term of {seconds} s");
        Error::new(ErrorKind::Protocol, text)
    })
}
