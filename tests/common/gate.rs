//! A gate in front of one server: passes bytes on, or does not, whatever they mean.
#![allow(dead_code, unreachable_pub)] // each test crate uses a part

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    All,
    /// What the client sends; answers wait.
    Requests,
    /// What the server sends; requests wait.
    Answers,
    /// Nothing; connections stay.
    Nothing,
    /// Everything, so much later in each direction.
    Late(Duration),
}

/// A gate on a loopback port. Dropping it closes the port and all connections.
pub struct Gate {
    addr: SocketAddr,
    pass: Arc<watch::Sender<Pass>>,
    /// Counts up when all connections are closed.
    cut: Arc<watch::Sender<u64>>,
    task: AbortHandle,
}

impl Gate {
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (pass, cut) = (watch::Sender::new(Pass::All), watch::Sender::new(0));
        let (pass, cut) = (Arc::new(pass), Arc::new(cut));
        let task = tokio::spawn(accept(listener, port, pass.clone(), cut.clone()));
        Self {
            addr,
            pass,
            cut,
            task: task.abort_handle(),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Lets this pass from now on; what waited goes first.
    pub fn set(&self, pass: Pass) {
        self.pass.send_replace(pass);
    }

    /// Closes all connections; what waited is thrown away.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    port: u16,
    pass: Arc<watch::Sender<Pass>>,
    cut: Arc<watch::Sender<u64>>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (pass, mut cut) = (pass.clone(), cut.subscribe());
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
                return;
            };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                biased;
                _ = cut.changed() => {}
                () = copy(from_client, to_server, pass.subscribe(), Pass::Requests) => {}
                () = copy(from_server, to_client, pass.subscribe(), Pass::Answers) => {}
            }
        });
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut pass: watch::Receiver<Pass>,
    own: Pass,
) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(number) = from.read(&mut bytes).await {
        let passes = |it: &Pass| matches!(it, Pass::All | Pass::Late(_)) || *it == own;
        let open = match pass.wait_for(passes).await.map(|it| *it) {
            Ok(Pass::Late(late)) => {
                tokio::time::sleep(late).await;
                true
            }
            outcome => outcome.is_ok(),
        };
        if number == 0 || !open || to.write_all(&bytes[..number]).await.is_err() {
            return;
        }
    }
}
