//! Leases, and the stream of their renewals.

use prost::Message;

use super::{Headed, ResponseHeader};

/// The stream of renewals.
pub(in crate::etcd3) const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    pub(in crate::etcd3) ttl: i64,
    #[prost(int64, tag = "2")]
    pub(in crate::etcd3) id: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct LeaseGrantResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(int64, tag = "3")]
    pub(in crate::etcd3) ttl: i64,
    #[prost(string, tag = "4")]
    pub(in crate::etcd3) error: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct LeaseRevokeRequest {
    #[prost(int64, tag = "1")]
    pub(in crate::etcd3) id: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct LeaseRevokeResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct LeaseKeepAliveRequest {
    #[prost(int64, tag = "1")]
    pub(in crate::etcd3) id: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct LeaseKeepAliveResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub(in crate::etcd3) id: i64,
    /// Zero: there is no such lease (any more).
    #[prost(int64, tag = "3")]
    pub(in crate::etcd3) ttl: i64,
}

impl Headed for LeaseKeepAliveResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header.as_ref()
    }
}
