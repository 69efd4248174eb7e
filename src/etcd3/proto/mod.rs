//! The messages of etcd's gRPC API that are used here, with the field numbers of its `rpc.proto`
//! and `kv.proto`. Declared by hand: fields that nobody reads are left out, and what a server sends
//! in them is skipped.

mod cluster;
mod kv;
mod lease;
mod watch;

use prost::Message;

pub(super) use cluster::*;
pub(super) use kv::*;
pub(super) use lease::*;
pub(super) use watch::*;

/// What every answer begins with.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct ResponseHeader {
    #[prost(uint64, tag = "1")]
    pub(super) cluster_id: u64,
    #[prost(uint64, tag = "2")]
    pub(super) member_id: u64,
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
}

/// A request that has one answer.
pub(super) trait Rpc: Message + Default + Clone + 'static {
    const PATH: &'static str;
    type Reply: Headed + Message + Default + 'static;
}

/// An answer: all have a header.
pub(super) trait Headed {
    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! rpcs {
    ($($path:literal: $request:ident => $reply:ident,)+) => {$(
        impl Rpc for $request {
            const PATH: &'static str = concat!("/etcdserverpb.", $path);
            type Reply = $reply;
        }

        impl Headed for $reply {
            fn header(&self) -> Option<&ResponseHeader> {
                self.header.as_ref()
            }
        }
    )+};
}

rpcs! {
    "KV/Range": RangeRequest => RangeResponse,
    "KV/Txn": TxnRequest => TxnResponse,
    "KV/DeleteRange": DeleteRangeRequest => DeleteRangeResponse,
    "Lease/LeaseGrant": LeaseGrantRequest => LeaseGrantResponse,
    "Lease/LeaseRevoke": LeaseRevokeRequest => LeaseRevokeResponse,
    "Auth/Authenticate": AuthenticateRequest => AuthenticateResponse,
    "Cluster/MemberList": MemberListRequest => MemberListResponse,
    "Maintenance/Status": StatusRequest => StatusResponse,
}
