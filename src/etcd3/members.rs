//! Which servers there are, and of which cluster: the members' own addresses are learned whenever
//! [`Discovery`](crate::transport::Discovery) says so.

use std::sync::Arc;

use super::error::{Judged, Next};
use super::proto::{Headed, MemberListRequest, MemberListResponse, ResponseHeader, Rpc};
use super::rpc::{Trouble, Wire};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Instant;
use crate::transport::{Attempts, Endpoint, Limits, PATIENCE};

impl Wire {
    /// Learns which addresses the members advertise, if that is wanted and due. Never fails, and
    /// takes at most half a second and a quarter of the time that is left.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the list as it is, for the next five seconds.
    pub(super) async fn refresh_members(self: &Arc<Self>, deadline: Instant) {
        let Some(discovery) = &self.discovery else {
            return;
        };
        let (clock, endpoints) = (&self.runtime.clock, &self.endpoints);
        let now = clock.now();
        if !discovery.claim(endpoints.moves(), now) {
            return;
        }
        let until = now + PATIENCE.min(deadline.since(now) / 4);
        let request = MemberListRequest::default();
        for endpoint in endpoints.order(now) {
            // Half of what is left, so that one that hangs is not the only one that is asked.
            let part = clock.now() + until.since(clock.now()) / 2;
            let answer = self.once(&request, &endpoint, false, part).await;
            if let Ok(answer) = answer
                && endpoints.advertise(&addresses(&answer))
            {
                discovery.came();
                return;
            }
            if clock.has_passed(until) {
                return;
            }
        }
    }

    /// Asks one server after the other, each once, until one answers.
    ///
    /// # Errors
    /// As of every read; what the last one that answered refuses it with.
    pub(super) async fn ask_any<Q: Rpc>(
        self: &Arc<Self>,
        request: &Q,
        deadline: Instant,
    ) -> Result<Q::Reply> {
        let clock = &self.runtime.clock;
        let began = clock.now();
        let mut log = Attempts::default();
        let order = self.endpoints.order(began);
        for (others, endpoint) in (0..order.len() as u32).rev().zip(&order) {
            let now = clock.now();
            let share = self.latency.attempt(self.timeout, 0);
            let until = now + share.min(deadline.since(now) / (others + 1));
            match self.once(request, endpoint, false, until).await {
                Ok(reply) => return Ok(reply),
                Err(Trouble::Refused(judged)) => {
                    let error = judged.error.on(&*endpoint.origin);
                    log.answered(&endpoint.origin, error.detail().to_owned(), error);
                }
                Err(Trouble::Failure(failure)) => log.failed(&endpoint.origin, failure),
            }
        }
        Err(log
            .give_up(clock.now().since(began))
            .unwrap_or_else(|error| error))
    }

    /// Asks one server, and once more if it only wants a new token.
    pub(super) async fn once<Q: Rpc>(
        self: &Arc<Self>,
        request: &Q,
        endpoint: &Arc<Endpoint>,
        led: bool,
        until: Instant,
    ) -> Result<Q::Reply, Trouble> {
        let limits = Limits {
            connect: until,
            answer: until,
        };
        let reply = match self.attempt(request, endpoint, led, limits).await {
            Err(Trouble::Refused(judged))
                if judged.next == Next::NewToken && self.auth.is_asked_for() =>
            {
                self.attempt(request, endpoint, led, limits).await?
            }
            outcome => outcome?,
        };
        // A proxy answers for itself, and then names no cluster.
        let checked = reply.header().map_or(Ok(()), |it| self.check_cluster(it));
        let refused = |error| {
            let next = Next::Final;
            Trouble::Refused(Box::new(Judged { error, next }))
        };
        checked.map_err(refused)?;
        Ok(reply)
    }
}

impl Wire {
    /// Learns the cluster from the first answer and compares it with every later one.
    pub(super) fn check_cluster(&self, header: &ResponseHeader) -> Result<()> {
        if header.cluster_id == 0 {
            let text = "the answer names no cluster, as those of `etcd grpc-proxy` do, which is not \
                        supported: connect to the etcd servers themselves";
            return Err(Error::new(ErrorKind::Protocol, text));
        }
        let known = *self.cluster.get_or_init(|| header.cluster_id);
        if known == header.cluster_id {
            return Ok(());
        }
        let text = format!(
            "this is cluster {:x}, and so far it was {known:x}",
            header.cluster_id
        );
        Err(Error::new(ErrorKind::ClusterChanged, text))
    }
}

/// What the members advertise, as [`Endpoints`](crate::transport::Endpoints) take it. One that has
/// not started yet advertises nothing.
fn addresses(list: &MemberListResponse) -> String {
    let urls = list.members.iter().flat_map(|it| &it.client_urls);
    urls.map(String::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd3::Etcd3;

    #[test]
    fn the_first_cluster_counts_and_who_names_none_is_a_proxy() {
        let store = Etcd3::new("http://h").unwrap();
        let check = |cluster_id| {
            store.0.wire.check_cluster(&ResponseHeader {
                cluster_id,
                ..ResponseHeader::default()
            })
        };
        let error = check(0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(error.to_string().contains("grpc-proxy"), "{error}");
        check(7).unwrap();
        assert_eq!(check(8).unwrap_err().kind(), ErrorKind::ClusterChanged);
        assert_eq!(check(0).unwrap_err().kind(), ErrorKind::Protocol);
    }
}
