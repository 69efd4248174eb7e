//! Time-to-live: never a moment too early, soon afterwards, and only as long as it is asked for.

use std::time::Duration;

use super::subject::{Checked, SWEEP, Subject, TTL, read_grace, refused};
use crate::error::ErrorKind;
use crate::key::Ttl;
use crate::store::{Append, Condition, Expiry, Put, StoreExt, Watch};

checks![
    a_key_lives_as_long_as_it_was_given,
    a_new_expiry_replaces_the_old_one,
    a_write_that_never_expires_makes_permanent,
    an_expired_key_is_absent_to_every_call,
    an_append_expires,
    a_node_tells_how_long_it_has_left,
    an_expiry_is_told_once_and_as_one,
];

async fn a_key_lives_as_long_as_it_was_given(on: Subject) -> Checked {
    let sent = on.clock.now();
    let put = Put::new(on.key("k")?, "v", Expiry::After(TTL));
    let grace = read_grace(&on.put(put).await?.node);
    let heard = on.clock.now();
    on.gone("k", sent + TTL.get(), heard + TTL.get() + grace)
        .await?;
    ensure_eq!(on.children(&on.dir).await?, [], "in the list");
    Ok(())
}

async fn a_new_expiry_replaces_the_old_one(on: Subject) -> Checked {
    let key = on.key("k")?;
    let first = on.set(&key, "v".into(), Expiry::After(Ttl::MAX)).await?;
    let sent = on.clock.now();
    let renewed = on.replace(&key, "v".into(), first.index(), Expiry::After(TTL));
    let grace = read_grace(&renewed.await?.node);
    let heard = on.clock.now();
    on.gone("k", sent + TTL.get(), heard + TTL.get() + grace)
        .await?;
    // And the other way: a longer one.
    on.set(&key, "v".into(), Expiry::After(TTL)).await?;
    on.set(&key, "v".into(), Expiry::After(Ttl::MAX)).await?;
    on.stays("k", on.clock.now() + TTL.get() + SWEEP).await
}

async fn a_write_that_never_expires_makes_permanent(on: Subject) -> Checked {
    for (path, condition) in [("any", Condition::Any), ("present", Condition::Present)] {
        let key = on.key(path)?;
        on.set(&key, "v".into(), Expiry::After(TTL)).await?;
        let put = Put::new(key, "v", Expiry::Never).when(condition);
        let node = on.put(put).await?.node;
        ensure_eq!(node.ttl, None, "the time left at {path}");
    }
    on.stays("any", on.clock.now() + TTL.get() + SWEEP).await?;
    ensure!(on.read("present").await?.is_some(), "it stays too");
    Ok(())
}

async fn an_expired_key_is_absent_to_every_call(on: Subject) -> Checked {
    let mut watch = on.follow(Watch::tree(on.key("d")?).deletes_only()).await?;
    let sent = on.clock.now();
    let mut grace = Duration::ZERO;
    for path in ["d/k", "d/l"] {
        let put = Put::new(on.key(path)?, "v", Expiry::After(TTL));
        grace = read_grace(&on.put(put).await?.node);
    }
    let latest = on.clock.now() + TTL.get() + grace;
    on.gone("d/k", sent + TTL.get(), latest).await?;
    on.gone("d/l", sent + TTL.get(), latest).await?;
    ensure_eq!(on.list("d").await?, [""; 0], "in a list");
    // Reads must know better; writes may meet it until it has been swept.
    for _ in 0..2 {
        watch.event().await?;
    }
    let put = Put::new(on.key("d/k")?, "w", Expiry::Never);
    let present = on.put(put.clone().when(Condition::Present)).await;
    refused(present, ErrorKind::NotFound, "an update of an expired key")?;
    let value = on.put(put.clone().when(Condition::Value("v".into()))).await;
    refused(
        value,
        ErrorKind::NotFound,
        "a replacement of an expired key",
    )?;
    ensure_eq!(
        on.remove(&on.key("d/l")?).await?,
        None,
        "there is nothing to delete"
    );
    let written = on.put(put.when(Condition::Absent)).await?;
    ensure_eq!(
        written.node.text(),
        Some("w"),
        "a creation after the expiry"
    );
    Ok(())
}

async fn an_append_expires(on: Subject) -> Checked {
    let sent = on.clock.now();
    let append = Append::ticket(on.key("line")?, on.tag(), Expiry::After(TTL));
    let node = on.append(append).await?.node;
    let heard = on.clock.now();
    let path = format!("line/{}", node.key.name());
    let latest = heard + TTL.get() + read_grace(&node);
    on.gone(&path, sent + TTL.get(), latest).await
}

async fn a_node_tells_how_long_it_has_left(on: Subject) -> Checked {
    let ttl = Ttl::new(Duration::from_secs(100))?;
    let written = on
        .set(&on.key("k")?, "v".into(), Expiry::After(ttl))
        .await?;
    for node in [Some(written.node), on.read("k").await?] {
        // A node that tells its lease need not tell more.
        let leased = node.as_ref().is_some_and(|node| node.lease.is_some());
        let left = node.as_ref().and_then(|node| node.ttl);
        let plausible = Duration::from_secs(80)..=ttl.get();
        ensure!(
            left.map_or(leased, |left| plausible.contains(&left)),
            "{node:?} of {ttl}"
        );
    }
    Ok(())
}

async fn an_expiry_is_told_once_and_as_one(on: Subject) -> Checked {
    let key = on.key("k")?;
    let mut watch = on.follow(Watch::tree(on.dir.clone())).await?;
    let sent = on.clock.now();
    let written = on.set(&key, "v".into(), Expiry::After(TTL)).await?;
    let heard = on.clock.now();
    watch.sees_put(&written.node).await?;
    let (index, expired) = watch.sees_delete(&key).await?;
    let told = on.clock.now();
    // Where a time-to-live is a lease, its end deletes like anybody.
    let leased = written.node.lease.is_some();
    ensure!(expired || leased, "an expiry is told as one");
    ensure!(index > written.index(), "it has an index of its own");
    let early = (sent + TTL.get()).since(told);
    ensure!(early.is_zero(), "told {early:?} too early");
    let late = told.since(heard + TTL.get() + SWEEP);
    ensure!(late.is_zero(), "told {late:?} too late");
    ensure_eq!(on.read("k").await?, None, "and it is gone");
    // Nothing else comes before the next write.
    let again = on.set(&key, "w".into(), Expiry::Never).await?;
    watch.sees_put(&again.node).await
}
