//! A service that follows its configuration: typed, always at hand, and there at the next start
//! even if the store is not.
//!
//! ```sh
//! cargo run --example config                             # embedded store
//! cargo run --example config -- etcd://127.0.0.1:2379    # etcd
//! ```

use std::error::Error as _;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tenure::store::Expiry;
use tenure::{Cache, Change, Client, Key, StoreExt as _};

/// One tenant's limits, stored as JSON at `/example/limits/<tenant>`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    jobs: u32,
    megabytes: u32,
}

const PREFIX: &str = "/example/limits";

type Failure = Box<dyn std::error::Error>;

/// What a service would contain: look at the limits where they are needed, and do something when
/// they change.
async fn serve(limits: Cache<Limits>) {
    let mut changes = limits.changes();
    while let Some(change) = changes.next().await {
        match &*change {
            Change::Update(diff) | Change::Resync(diff) => {
                for changed in &diff.changed {
                    let name = changed.key.name();
                    println!("{name}: {:?} -> {:?}", changed.old, changed.new);
                }
            }
            Change::Bad { key, error } => {
                let kept = limits.get(key);
                let cause = error.source().map(ToString::to_string);
                println!("{error} ({cause:?}); still {kept:?}");
            }
            Change::Trouble(error) => println!("{error}"),
            _ => {}
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let url = std::env::args().nth(1);
    let url = url.unwrap_or_else(|| "embedded:".to_owned());
    let file = std::env::temp_dir().join(format!("tenure-example-{}.json", std::process::id()));
    // Asks nothing yet: a service starts also while the store is down.
    let client = Client::open(&url)?;
    let limits = client
        .cache(PREFIX)
        .decode(|_, value| serde_json::from_slice::<Limits>(value))
        .disk(&file)
        .start()?;
    if tokio::time::timeout(Duration::from_secs(1), limits.synced())
        .await
        .is_err()
    {
        let error = limits.last_error().map(|it| it.to_string());
        println!(
            "no store yet ({error:?}); going on with what was on disk: {:?}",
            limits.source()
        );
        return Ok(());
    }
    let service = tokio::spawn(serve(limits.clone()));

    // Somebody else changes the configuration.
    let store = client.store();
    let tenant = |name: &str| Key::new(format!("{PREFIX}/{name}"));
    for (name, jobs) in [("acme", 10), ("globex", 20), ("acme", 15)] {
        let value = serde_json::to_vec(&Limits {
            jobs,
            megabytes: 512,
        })?;
        store
            .set(&tenant(name)?, value.into(), Expiry::Never)
            .await?;
    }
    let typo = r#"{"jobs": "many"}"#.into();
    store.set(&tenant("acme")?, typo, Expiry::Never).await?;
    store.remove(&tenant("globex")?).await?;
    let (key, value) = (tenant("initech")?, r#"{"jobs":1,"megabytes":2}"#.into());
    let last = store.set(&key, value, Expiry::Never).await?;
    limits.caught_up_to(last.index()).await?;

    let snapshot = limits.snapshot();
    println!(
        "{:?} at index {:?}, {} values:",
        limits.state(),
        snapshot.index(),
        snapshot.len()
    );
    for (key, value) in snapshot.iter() {
        println!("  {key} {value:?}");
    }
    assert_eq!(
        snapshot.get("acme").map(|it| it.jobs),
        Some(15),
        "the last good one"
    );
    assert!(!snapshot.contains("globex"));

    // Ends the service, and writes the file that the next start finds.
    client.shutdown(Duration::from_secs(1)).await;
    service.await?;
    let next = Client::open(&url)?;
    let limits = next
        .cache(PREFIX)
        .decode(|_, value| serde_json::from_slice::<Limits>(value))
        .disk(&file)
        .start()?;
    println!(
        "started again: {} values from {:?}",
        limits.len(),
        limits.source()
    );
    // The embedded store went with the first client, so there the list that follows may have come
    // already, and is empty.
    if url != "embedded:" {
        assert_eq!(limits.get("acme").map(|it| it.jobs), Some(15));
    }
    next.shutdown(Duration::from_secs(1)).await;
    if url != "embedded:" {
        let client = Client::open(&url)?;
        let tree = tenure::store::Delete::tree(Key::new(PREFIX)?);
        client.store().delete(tree).await?;
    }
    std::fs::remove_file(&file)?;
    Ok(())
}
