//! An open connection as tonic wants it, and what a request carries besides its message.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use tonic::Request;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tower_service::Service;

use super::rpc::Token;
use crate::transport::{Channel, Endpoint, SendError};

/// The largest answer that is read.
const LARGEST: usize = 64 << 20;

/// What a token is called in a request's metadata.
const TOKEN: &str = "token";
/// A server that has no leader is to say so at once instead of trying for seconds.
const LED: &str = "hasleader";

/// A request with its metadata.
pub(super) fn dressed<T>(message: T, led: bool, token: Option<Token>) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    if led {
        metadata.insert(LED, MetadataValue::from_static("true"));
    }
    if let Some(token) = token {
        metadata.insert(TOKEN, token);
    }
    request
}

/// tonic's client on an open connection.
pub(super) fn grpc(channel: &Channel<Body>, endpoint: &Endpoint) -> Grpc<Link> {
    let origin = http::Uri::builder()
        .scheme(endpoint.scheme.clone())
        .authority(endpoint.authority.clone())
        .path_and_query("/")
        .build()
        .unwrap_or_default();
    Grpc::with_origin(Link(channel.clone()), origin).max_decoding_message_size(LARGEST)
}

/// A connection as tonic wants it.
pub(super) struct Link(Channel<Body>);

impl Service<http::Request<Body>> for Link {
    type Response = http::Response<Incoming>;
    type Error = SendError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, SendError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.clone().send(request))
    }
}
