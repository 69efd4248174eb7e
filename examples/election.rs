//! Two replicas of a service, of which one leads; an observer sees who.
//!
//! ```sh
//! cargo run --example election                             # embedded store
//! cargo run --example election -- etcd://127.0.0.1:2379    # etcd
//! ```

use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::{Client, Leadership, Result};

const TTL: Duration = Duration::from_secs(5);

/// What a service would contain: campaign, work while it leads, and campaign again when it was lost.
async fn serve(client: Client, address: String) -> Result<()> {
    let election = client.election("scheduler").ttl(TTL);
    let proposal = address.clone();
    // `async move`, and no references captured: so the future can be spawned.
    let work = async move |leadership: &Leadership| -> Result<()> {
        // Dropped at the next await when the leadership is lost. The term goes to whatever the
        // work writes to, so that a leader of before cannot write any more.
        println!("{address} leads, term {}", leadership.token());
        tokio::time::sleep(Duration::from_millis(200)).await;
        leadership.proclaim(format!("{address}, warm")).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        // A service would go on for ever; this one resigns.
        Ok(())
    };
    election.lead(proposal, work).await?
}

/// What its users contain: who leads now, and every change. They would go on for ever; this one ends
/// when nobody leads any more.
async fn observe(client: Client) -> Result<()> {
    let mut leaders = client.election("scheduler").observe();
    let mut led = false;
    while let Some(leader) = leaders.next().await {
        match leader? {
            Some(leader) => {
                let proposal = String::from_utf8_lossy(leader.proposal());
                println!("observed: {proposal} in term {}", leader.token());
                led = true;
            }
            None => {
                println!("observed: nobody leads");
                if led {
                    break;
                }
            }
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1);
    let client = Client::connect(url.as_deref().unwrap_or("embedded:")).await?;
    let observer = tokio::spawn(observe(client.clone()));
    let replicas = ["10.0.0.7:8080", "10.0.0.8:8080"].map(|address| {
        // Replicas are processes with clients of their own; here they share one.
        tokio::spawn(serve(client.clone(), address.to_owned()))
    });
    for task in replicas.into_iter().chain([observer]) {
        // A panic of a task is ours.
        task.await
            .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
    }
    for contender in client.election("scheduler").candidates().await? {
        println!("still in line: {contender:?}");
    }
    client.shutdown(Duration::from_secs(1)).await;
    Ok(())
}
