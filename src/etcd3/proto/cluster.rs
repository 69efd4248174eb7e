//! Users, members, and how a member is.

use prost::Message;

use super::ResponseHeader;

#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub(in crate::etcd3) struct AuthenticateRequest {
    #[prost(string, tag = "1")]
    pub(in crate::etcd3) name: String,
    #[prost(string, tag = "2")]
    pub(in crate::etcd3) password: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub(in crate::etcd3) struct AuthenticateResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(string, tag = "2")]
    pub(in crate::etcd3) token: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct MemberListRequest {
    /// Before etcd 3.5 nobody reads it, and the server answers what it knows.
    #[prost(bool, tag = "1")]
    pub(in crate::etcd3) linearizable: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct MemberListResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    pub(in crate::etcd3) members: Vec<MemberEntry>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct MemberEntry {
    #[prost(uint64, tag = "1")]
    pub(in crate::etcd3) id: u64,
    #[prost(string, tag = "2")]
    pub(in crate::etcd3) name: String,
    #[prost(string, repeated, tag = "3")]
    pub(in crate::etcd3) peer_urls: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(in crate::etcd3) client_urls: Vec<String>,
    #[prost(bool, tag = "5")]
    pub(in crate::etcd3) is_learner: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct StatusRequest {}

#[derive(Clone, PartialEq, Eq, Message)]
pub(in crate::etcd3) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(in crate::etcd3) header: Option<ResponseHeader>,
    #[prost(string, tag = "2")]
    pub(in crate::etcd3) version: String,
    #[prost(int64, tag = "3")]
    pub(in crate::etcd3) db_size: i64,
    #[prost(uint64, tag = "4")]
    pub(in crate::etcd3) leader: u64,
    #[prost(uint64, tag = "5")]
    pub(in crate::etcd3) raft_index: u64,
    #[prost(uint64, tag = "6")]
    pub(in crate::etcd3) raft_term: u64,
    #[prost(uint64, tag = "7")]
    pub(in crate::etcd3) raft_applied_index: u64,
    #[prost(string, repeated, tag = "8")]
    pub(in crate::etcd3) errors: Vec<String>,
    #[prost(int64, tag = "9")]
    pub(in crate::etcd3) db_size_in_use: i64,
    #[prost(bool, tag = "10")]
    pub(in crate::etcd3) is_learner: bool,
}

macro_rules! hide {
    ($($message:ident),+) => {$(
        impl std::fmt::Debug for $message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($message), "(…)"))
            }
        }
    )+};
}
// A password and a token show nowhere.
hide!(AuthenticateRequest, AuthenticateResponse);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_and_a_token_show_nowhere() {
        let request = AuthenticateRequest {
            name: "me".into(),
            password: "secret".into(),
        };
        let reply = AuthenticateResponse {
            header: None,
            token: "secret".into(),
        };
        assert!(!format!("{request:?}{reply:?}").contains("secret"));
    }
}
