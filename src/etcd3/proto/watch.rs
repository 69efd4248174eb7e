//! The stream of watches: what is asked on it, and what comes.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::{KeyValue, ResponseHeader};

/// The stream of watches.
pub(in crate::etcd3) const WATCH: &str = "/etcdserverpb.Watch/Watch";

#[derive(Clone, PartialEq, Eq, Oneof)]
pub(in crate::etcd3) enum WatchAsk {
    #[prost(message, tag = "1")]
    Create(WatchCreateRequest),
    #[prost(message, tag = "2")]
    Cancel(WatchCancelRequest),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct WatchRequest {
    #[prost(oneof = "WatchAsk", tags = "1, 2")]
    pub(in crate::etcd3) ask: Option<WatchAsk>,
}

impl From<WatchAsk> for WatchRequest {
    fn from(ask: WatchAsk) -> Self {
        Self { ask: Some(ask) }
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct WatchCreateRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(in crate::etcd3) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(in crate::etcd3) range_end: Bytes,
    #[prost(int64, tag = "3")]
    pub(in crate::etcd3) start_revision: i64,
    #[prost(bool, tag = "4")]
    pub(in crate::etcd3) progress_notify: bool,
    /// `NOPUT` is 0.
    #[prost(int32, repeated, tag = "5")]
    pub(in crate::etcd3) filters: Vec<i32>,
    #[prost(int64, tag = "7")]
    pub(in crate::etcd3) watch_id: i64,
    #[prost(bool, tag = "8")]
    pub(in crate::etcd3) fragment: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct WatchCancelRequest {
    #[prost(int64, tag = "1")]
    pub(in crate::etcd3) watch_id: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub(in crate::etcd3) watch_id: i64,
    #[prost(bool, tag = "3")]
    pub(in crate::etcd3) created: bool,
    #[prost(bool, tag = "4")]
    pub(in crate::etcd3) canceled: bool,
    #[prost(int64, tag = "5")]
    pub(in crate::etcd3) compact_revision: i64,
    #[prost(string, tag = "6")]
    pub(in crate::etcd3) cancel_reason: String,
    #[prost(bool, tag = "7")]
    pub(in crate::etcd3) fragment: bool,
    #[prost(message, repeated, tag = "11")]
    pub(in crate::etcd3) events: Vec<WatchEvent>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct WatchEvent {
    /// 0: put, 1: deletion.
    #[prost(int32, tag = "1")]
    pub(in crate::etcd3) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(in crate::etcd3) kv: Option<KeyValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_is_asked_all_the_same() {
        // Zero values are not sent, so an absent `EQUAL VERSION` costs nothing.
        let empty = WatchRequest::from(WatchAsk::Create(WatchCreateRequest::default()));
        assert_eq!(empty.encode_to_vec(), [0x0a, 0]);
    }
}
