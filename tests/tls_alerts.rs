//! Servers made of rustls, for what etcd's TLS does not do on demand: the old version, precise
//! alerts, and hanging up without a word.
#![cfg(all(feature = "etcd2", any(feature = "tls-ring", feature = "tls-aws-lc")))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion, version};
use tenure::etcd2::Etcd2;
use tenure::store::Expiry;
use tenure::transport::Tls;
use tenure::{Error, ErrorKind, StoreExt};

mod common;
#[path = "common/tls.rs"]
mod tls;

use common::words::key;
use tls::Authority;

type Version = &'static SupportedProtocolVersion;

/// Serves each connection, one after the other, until the process ends.
fn serve(each: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            each(stream.unwrap());
        }
    });
    address
}

/// A server that shows a certificate of `ours`, and wants one signed by `clients`.
fn config(ours: &Authority, clients: Option<&Authority>, versions: &[Version]) -> ServerConfig {
    #[cfg(feature = "tls-aws-lc")]
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    #[cfg(not(feature = "tls-aws-lc"))]
    let provider = Arc::new(rustls::crypto::ring::default_provider());

    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(versions).unwrap();
    let builder = match clients {
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            let ca = CertificateDer::from_pem_slice(clients.pem.as_bytes());
            roots.add(ca.unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    let shown = ours.vouch("127.0.0.1");
    let chain = CertificateDer::from_pem_slice(shown.certificate.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes());
    builder
        .with_single_cert(vec![chain.unwrap()], key.unwrap())
        .unwrap()
}

/// Shakes hands and reads what comes with it, or says why not.
fn shake(config: &Arc<ServerConfig>, stream: &mut TcpStream) -> Option<ServerConnection> {
    let mut tls = ServerConnection::new(config.clone()).unwrap();
    while tls.is_handshaking() {
        if tls.complete_io(stream).is_err() {
            // The alert.
            while tls.wants_write() && tls.write_tls(stream).is_ok() {}
            return None;
        }
    }
    Some(tls)
}

async fn put(address: SocketAddr, tls: Tls) -> Error {
    let store = Etcd2::builder(format!("https://{address}")).tls(tls);
    let store = store.timeout(Duration::from_secs(20)).build().unwrap();
    let put = store.set(&key("/a"), "x".into(), Expiry::Never).await;
    put.unwrap_err()
}

fn says(error: &Error, kind: ErrorKind, words: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(words), "{words}: {error}");
}

#[tokio::test]
async fn a_refused_client_is_told_why_in_both_versions_of_tls() {
    let ours = Authority::new();
    let stranger = Authority::new().vouch("us");
    let old = ours.vouch_during("us", (2020, 2021));
    let wants = "wants a client certificate, and none was given";
    for version in [&version::TLS12, &version::TLS13] {
        let config = Arc::new(config(&ours, Some(&ours), &[version]));
        let server = serve(move |mut stream| drop(shake(&config, &mut stream)));
        let base = Tls::new().ca_pem(&*ours.pem);
        for (tls, words) in [
            (base.clone(), wants),
            (
                base.clone().identity_pem(stranger.combined()),
                "does not know the authority",
            ),
            (base.identity_pem(old.combined()), "it has expired"),
        ] {
            let error = put(server, tls).await;
            says(&error, ErrorKind::Untrusted, words);
        }
    }
}

#[tokio::test]
async fn a_connection_that_stood_and_is_cut_without_an_alert_may_have_carried_the_request() {
    let ours = Authority::new();
    for version in [&version::TLS12, &version::TLS13] {
        let config = Arc::new(config(&ours, None, &[version]));
        let server = serve(move |mut stream| {
            let Some(mut tls) = shake(&config, &mut stream) else {
                return;
            };
            // The first byte of the request, and then nothing more.
            let mut byte = [0];
            let _ = rustls::Stream::new(&mut tls, &mut stream).read(&mut byte);
        });
        let error = put(server, Tls::new().ca_pem(&*ours.pem)).await;
        says(&error, ErrorKind::Ambiguous, "");
    }
}

#[tokio::test]
async fn a_server_that_answers_the_handshake_with_something_else_does_not_speak_tls() {
    let server = serve(|mut stream| {
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let error = put(server, Tls::new().ca_pem(Authority::new().pem)).await;
    says(&error, ErrorKind::Untrusted, "does not speak TLS");
}

#[tokio::test]
async fn a_server_that_hangs_up_on_everybody_is_only_not_reached() {
    let server = serve(|mut stream| drop(stream.read(&mut [0; 512])));
    let store = Etcd2::builder(format!("https://{server}"));
    let store = store.tls(Tls::new().ca_pem(Authority::new().pem));
    let store = store.timeout(Duration::from_millis(500)).build().unwrap();
    let put = store.set(&key("/a"), "x".into(), Expiry::Never).await;
    let error = put.unwrap_err();
    says(&error, ErrorKind::Unreachable, "tls handshake eof");
    assert!(error.is_transient());
}
