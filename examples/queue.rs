//! A service that sends mails: some are pushed, three at a time are sent, one fails and comes again,
//! one can never be sent and is set aside.
//!
//! ```sh
//! cargo run --example queue                             # embedded store
//! cargo run --example queue -- etcd://127.0.0.1:2379    # etcd
//! ```

use std::time::Duration;

use tenure::{Client, Job, Priority, Queue, Result};
use tokio::sync::mpsc;

/// What the web side of a service would contain.
async fn order_mails(mails: &Queue) -> Result<()> {
    mails.push("ada: welcome").id("welcome-ada").await?;
    // A form that is sent twice, a request that is repeated: the same id is the same job.
    let again = mails.push("ada: welcome").id("welcome-ada").await?;
    assert!(again.duplicate);
    mails
        .push("grace: reset your password")
        .priority(Priority::HIGHEST)
        .await?;
    mails
        .push("alan: how do you like it?")
        .delay(Duration::from_millis(300))
        .await?;
    for answer in mails
        .push_all(["nobody: bounces", "barbara: news", "edsger: news"])
        .await
    {
        println!("pushed {}", answer?.id);
    }
    Ok(())
}

/// What the worker side of a service would contain. It can be called twice for one job, so it has
/// to bear that: here by the job's id and attempt.
async fn send(job: Job, sent: mpsc::Sender<String>) -> std::result::Result<(), String> {
    let mail = String::from_utf8_lossy(job.payload()).into_owned();
    println!("attempt {} of {}: {mail}", job.attempt(), job.id());
    match mail.split_once(':') {
        Some(("nobody", _)) => return Err("there is no such mailbox".into()),
        Some(("barbara", _)) if job.attempt() == 1 => return Err("the mailbox is full".into()),
        _ => {}
    }
    sent.send(mail).await.map_err(|error| error.to_string())
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1);
    let client = Client::connect(url.as_deref().unwrap_or("embedded:")).await?;
    let mails = client.queue(format!("mails-{}", std::process::id()));
    order_mails(&mails).await?;
    println!("before: {:?}", mails.stats().await?);

    // A service would work until it is told to stop; this one ends when five mails are sent and one
    // is known to be hopeless.
    let (sent, mut outbox) = mpsc::channel(8);
    let books = mails.clone();
    let all_done = async move {
        for _ in 0..5 {
            outbox.recv().await;
        }
        while books.dead().await.is_ok_and(|dead| dead.is_empty()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let worker = mails
        .worker()
        .concurrency(3)
        .max_attempts(3)
        .retry_delay(|attempt| Duration::from_millis(20) * attempt)
        .until(all_done);
    let report = worker.run(move |job| send(job, sent.clone())).await?;
    println!("{report:?}");
    assert_eq!(report.acked, 5);

    for letter in mails.dead().await? {
        println!("set aside: {letter:?}");
        mails.purge(&letter.id).await?;
    }
    println!("after: {:?}", mails.stats().await?);
    client.shutdown(Duration::from_secs(1)).await;
    Ok(())
}
