//! Reading, writing and transactions.

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

use super::ResponseHeader;

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(in crate::etcd3) key: Bytes,
    #[prost(int64, tag = "2")]
    pub(in crate::etcd3) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(in crate::etcd3) mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(in crate::etcd3) value: Bytes,
    #[prost(int64, tag = "6")]
    pub(in crate::etcd3) lease: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(in crate::etcd3) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(in crate::etcd3) range_end: Bytes,
    #[prost(int64, tag = "3")]
    pub(in crate::etcd3) limit: i64,
    #[prost(int64, tag = "4")]
    pub(in crate::etcd3) revision: i64,
    #[prost(int32, tag = "5")]
    pub(in crate::etcd3) sort_order: i32,
    #[prost(bool, tag = "7")]
    pub(in crate::etcd3) serializable: bool,
    #[prost(bool, tag = "8")]
    pub(in crate::etcd3) keys_only: bool,
}

/// `SortOrder.DESCEND`; the target is the key unless another is said.
pub(in crate::etcd3) const DESCENDING: i32 = 2;

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    pub(in crate::etcd3) kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    pub(in crate::etcd3) more: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(in crate::etcd3) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(in crate::etcd3) value: Bytes,
    #[prost(int64, tag = "3")]
    pub(in crate::etcd3) lease: i64,
    #[prost(bool, tag = "4")]
    pub(in crate::etcd3) prev_kv: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct PutResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(message, optional, tag = "2")]
    pub(in crate::etcd3) prev_kv: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct DeleteRangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(in crate::etcd3) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(in crate::etcd3) range_end: Bytes,
    #[prost(bool, tag = "3")]
    pub(in crate::etcd3) prev_kv: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct DeleteRangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub(in crate::etcd3) deleted: i64,
    #[prost(message, repeated, tag = "3")]
    pub(in crate::etcd3) prev_kvs: Vec<KeyValue>,
}

/// One operation of a transaction.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub(in crate::etcd3) enum Request {
    #[prost(message, tag = "1")]
    Range(RangeRequest),
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    Delete(DeleteRangeRequest),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct RequestOp {
    #[prost(oneof = "Request", tags = "1, 2, 3")]
    pub(in crate::etcd3) request: Option<Request>,
}

impl From<Request> for RequestOp {
    fn from(request: Request) -> Self {
        Self {
            request: Some(request),
        }
    }
}

/// What came of one operation of a transaction.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub(in crate::etcd3) enum Response {
    #[prost(message, tag = "1")]
    Range(RangeResponse),
    #[prost(message, tag = "2")]
    Put(PutResponse),
    #[prost(message, tag = "3")]
    Delete(DeleteRangeResponse),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct ResponseOp {
    #[prost(oneof = "Response", tags = "1, 2, 3")]
    pub(in crate::etcd3) response: Option<Response>,
}

/// What a comparison looks at; the operand of the same kind follows in [`Operand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub(in crate::etcd3) enum Subject {
    Version = 0,
    Create = 1,
    Mod = 2,
    Value = 3,
}

/// How a comparison compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub(in crate::etcd3) enum Relation {
    Equal = 0,
    Greater = 1,
}

#[derive(Clone, PartialEq, Eq, Oneof)]
pub(in crate::etcd3) enum Operand {
    #[prost(int64, tag = "4")]
    Version(i64),
    #[prost(int64, tag = "5")]
    Create(i64),
    #[prost(int64, tag = "6")]
    Mod(i64),
    #[prost(bytes = "bytes", tag = "7")]
    Value(Bytes),
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct Compare {
    #[prost(enumeration = "Relation", tag = "1")]
    pub(in crate::etcd3) result: i32,
    #[prost(enumeration = "Subject", tag = "2")]
    pub(in crate::etcd3) target: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(in crate::etcd3) key: Bytes,
    #[prost(oneof = "Operand", tags = "4, 5, 6, 7")]
    pub(in crate::etcd3) operand: Option<Operand>,
    #[prost(bytes = "bytes", tag = "64")]
    pub(in crate::etcd3) range_end: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub(in crate::etcd3) compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub(in crate::etcd3) success: Vec<RequestOp>,
    #[prost(message, repeated, tag = "3")]
    pub(in crate::etcd3) failure: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    pub(in crate::etcd3) succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub(in crate::etcd3) responses: Vec<ResponseOp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_look_on_the_wire_as_etcd_wants_them() {
        let compare = Compare {
            result: Relation::Greater.into(),
            target: Subject::Create.into(),
            key: "k".into(),
            operand: Some(Operand::Create(5)),
            range_end: "l".into(),
        };
        let wire = [
            0x08, 1, 0x10, 1, 0x1a, 1, b'k', 0x28, 5, 0x82, 0x04, 1, b'l',
        ];
        assert_eq!(compare.encode_to_vec(), wire);
        let put = PutRequest {
            key: "k".into(),
            value: "v".into(),
            lease: 7,
            prev_kv: true,
        };
        let op = RequestOp::from(Request::Put(put));
        let wire = [0x12, 10, 0x0a, 1, b'k', 0x12, 1, b'v', 0x18, 7, 0x20, 1];
        assert_eq!(op.encode_to_vec(), wire);
    }
}
