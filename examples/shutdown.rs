//! A service that ends well: told to stop, it finishes the jobs it has begun, gives back what it
//! holds, and says what it had to leave.
//!
//! ```sh
//! cargo run --example shutdown                             # embedded store
//! cargo run --example shutdown -- etcd://127.0.0.1:2379    # etcd
//! ```
//!
//! A real one is told by SIGTERM or Ctrl-C; this one also tells itself after half a second.

use std::time::Duration;

use tenure::{Client, Job, Leadership, Result};

/// How long an orchestrator waits before it kills.
const PATIENCE: Duration = Duration::from_secs(5);

async fn thumbnails(client: Client) -> Result<()> {
    let images = client.queue("images");
    for number in 0..40 {
        images.push(format!("image {number}")).await?;
    }
    // Ends when the client is shut down: no new job is begun, those that are begun are finished.
    let report = images
        .worker()
        .concurrency(4)
        .run(async |_job: Job| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok::<_, std::convert::Infallible>(())
        })
        .await?;
    println!("thumbnails: {report:?}");
    // Nothing was cut off, and what was not begun waits for the next process.
    assert_eq!((report.lost, report.running), (0, 0));
    Ok(())
}

async fn scheduler(client: Client) -> Result<()> {
    let work = async |leadership: &Leadership| {
        println!("scheduler: leads, term {}", leadership.token());
        std::future::pending::<()>().await;
    };
    // `Closed` is what it is told when the client is shut down.
    match client.election("scheduler").lead("me", work).await {
        Err(error) if error.kind() == tenure::ErrorKind::Closed => Ok(()),
        outcome => outcome,
    }
}

async fn told_to_stop() {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = tokio::time::sleep(Duration::from_millis(500)) => {}
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1);
    let client = Client::connect(url.as_deref().unwrap_or("embedded:")).await?;
    let thumbnails = tokio::spawn(thumbnails(client.clone()));
    let scheduler = tokio::spawn(scheduler(client.clone()));

    told_to_stop().await;
    println!("stopping");
    let shutdown = client.shutdown(PATIENCE).await;
    println!("{shutdown:?}");
    for task in [thumbnails, scheduler] {
        // A panic of a task is ours.
        task.await
            .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    }
    assert_eq!(shutdown.left_to_ttl, 0);
    Ok(())
}
