//! A licence for three, shared by a fleet: eight jobs take a part of it each, one of them a double
//! one, and an operator buys two more while they wait.
//!
//! ```sh
//! cargo run --example semaphore                             # embedded store
//! cargo run --example semaphore -- etcd://127.0.0.1:2379    # etcd, from as many machines as you like
//! ```

use std::time::Duration;

use tenure::{Client, ErrorKind, Permit, Result, Semaphore};

const SEATS: u32 = 3;

/// What a service would contain: take a part of the semaphore, work while it is held, give it back.
async fn job(number: u32, seats: Semaphore) -> Result<()> {
    let weight = if number == 3 { 2 } else { 1 };
    // Without a timeout it waits for as long as it takes; first come, first served.
    let permit = seats
        .acquire()
        .weight(weight)
        .timeout(Duration::from_secs(20))
        .await?;
    println!("job {number} has {weight} of {} seats", permit.limit());
    // Stops at once if the permit is lost: then others may have the seat.
    permit.run(work(&permit)).await?;
    println!("job {number} is done");
    permit.release().await
}

/// The token is larger than that of every permit before: hand it to what you write to.
async fn work(permit: &Permit) {
    tracing::debug!(token = permit.token(), "working");
    tokio::time::sleep(Duration::from_millis(150)).await;
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1);
    let client = Client::connect(url.as_deref().unwrap_or("embedded:")).await?;
    // The first to come makes the limit; another number later is an error that names both.
    let seats = client
        .semaphore("examples/licence")
        .ttl(Duration::from_secs(5))
        .permits(SEATS);
    let jobs: Vec<_> = (1..=8)
        .map(|number| tokio::spawn(job(number, seats.clone())))
        .collect();

    // Looks, and does not wait.
    tokio::time::sleep(Duration::from_millis(50)).await;
    match seats.try_acquire().await? {
        Some(_permit) => println!("a seat was free"),
        None => println!("no seat is free now"),
    }
    match seats.acquire().weight(99).await {
        Err(error) if error.kind() == ErrorKind::TooHeavy => println!("as it should be: {error}"),
        other => println!("unexpected: {other:?}"),
    }

    let before = seats.resize(SEATS + 2).await?;
    println!("{} seats now, {before} before", seats.limit().await?);
    for contender in seats.contenders().await? {
        let state = if contender.holds() {
            "holds"
        } else {
            "waits for"
        };
        println!(
            "  token {} {state} {}",
            contender.token(),
            contender.weight()
        );
    }
    for job in jobs {
        if let Ok(outcome) = job.await {
            outcome?;
        }
    }
    // Back to what the next run expects.
    seats.resize(SEATS).await?;
    client.shutdown(Duration::from_secs(2)).await;
    Ok(())
}
