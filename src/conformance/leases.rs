//! Leases: keys live while theirs is renewed, and not longer.
//!
//! A store with real leases answers a renewal for the whole lease, one without key by key; what
//! follows from either is checked.

use std::time::Duration;

use super::subject::{Checked, SWEEP, Subject, TTL, refused};
use crate::error::ErrorKind;
use crate::key::{LeaseId, Ttl};
use crate::runtime::Instant;
use crate::store::{
    Append, Attached, Condition, Expiry, Grant, KeyRenewal, Node, Put, Renew, Renewed, StoreExt,
};

checks![
    a_grant_can_be_repeated,
    a_lease_that_is_not_renewed_takes_its_keys_along,
    a_renewed_lease_keeps_its_keys,
    a_renewal_of_no_lease_is_not_found,
    nothing_hangs_on_a_lease_that_is_gone,
    a_revocation_takes_the_keys_of_this_lease_only,
    a_revocation_can_be_repeated,
    a_revocation_spares_what_took_a_keys_place,
    a_key_written_with_another_lease_outlives_the_first,
    a_key_deleted_by_hand_is_gone_to_a_renewal,
    a_key_taken_over_is_gone_to_a_renewal,
    a_key_that_is_not_listed_is_renewed_only_with_the_whole_lease,
    a_node_tells_that_it_will_not_stay,
];

/// For leases that are renewed: a term that a busy machine does not miss.
const LONG: Duration = Duration::from_secs(2);

/// A lease that has been granted for [`LONG`], and its term.
async fn long_lease(on: &Subject) -> Checked<(LeaseId, Ttl)> {
    let lease = on.new_lease();
    let granted = on.grant(Grant::new(lease, Ttl::new(LONG)?)).await?;
    Ok((lease, granted.ttl))
}

async fn hang(on: &Subject, path: &str, lease: LeaseId) -> Checked<Node> {
    let put = Put::new(on.key(path)?, path.to_owned(), Expiry::With(lease));
    Ok(on.put(put).await?.node)
}

async fn renew(on: &Subject, lease: LeaseId, nodes: &[&Node]) -> Checked<Renewed> {
    let attached = |node: &&Node| Attached::new(node.key.clone(), node.value.clone());
    let keys: Vec<_> = nodes.iter().map(attached).collect();
    let at = on.clock.now();
    let renewed = on.renew(Renew::new(lease, at, keys)).await?;
    ensure!(
        renewed.since <= at,
        "a term counts from a call, not from {:?}",
        renewed.since
    );
    ensure!(
        renewed.keys.is_empty() || renewed.keys.len() == nodes.len(),
        "an answer for each key or for none: {renewed:?}"
    );
    Ok(renewed)
}

/// The answer for a key, if the store answers by key.
fn answer(renewed: &Renewed, node: &Node) -> Option<KeyRenewal> {
    let mut keys = renewed.keys.iter();
    keys.find(|(key, _)| *key == node.key)
        .map(|(_, answer)| *answer)
}

async fn a_grant_can_be_repeated(on: Subject) -> Checked {
    let lease = on.new_lease();
    for _ in 0..2 {
        let granted = on.grant(Grant::new(lease, TTL)).await?;
        ensure!(granted.ttl >= TTL, "{granted:?} is shorter than asked for");
        ensure!(
            granted.ttl.get() <= 10 * TTL.get(),
            "{granted:?} is much longer"
        );
    }
    let node = hang(&on, "k", lease).await?;
    on.grant(Grant::new(lease, TTL)).await?;
    ensure!(
        on.node(&node.key).await?.is_some(),
        "a repeated grant harms nobody"
    );
    Ok(())
}

async fn a_lease_that_is_not_renewed_takes_its_keys_along(on: Subject) -> Checked {
    let sent = on.clock.now();
    let (lease, ttl) = on.lease().await?;
    hang(&on, "k", lease).await?;
    let append = Append::ticket(on.key("line")?, on.tag(), Expiry::With(lease));
    let ticket = on.append(append).await?.node;
    let heard = on.clock.now();
    let latest = heard + ttl.get() + SWEEP;
    on.gone("k", sent + ttl.get(), latest).await?;
    let path = format!("line/{}", ticket.key.name());
    on.gone(&path, sent + ttl.get(), latest).await
}

async fn a_renewed_lease_keeps_its_keys(on: Subject) -> Checked {
    let (lease, ttl) = long_lease(&on).await?;
    let node = hang(&on, "k", lease).await?;
    let append = Append::ticket(on.key("line")?, on.tag(), Expiry::With(lease));
    let ticket = on.append(append).await?.node;
    let ticket_path = format!("line/{}", ticket.key.name());
    let until = on.clock.now() + ttl.get() + SWEEP;
    let mut sent;
    loop {
        sent = on.clock.now();
        let renewed = renew(&on, lease, &[&node, &ticket]).await?;
        ensure!(renewed.ttl >= TTL, "{renewed:?} is shorter than asked for");
        for node in [&node, &ticket] {
            match answer(&renewed, node) {
                None => {}
                Some(KeyRenewal::Live { since }) if since <= sent + SWEEP => {}
                other => ensure!(false, "{} was renewed: {other:?}", node.key),
            }
        }
        if on.clock.has_passed(until) {
            break;
        }
        on.stays("k", on.clock.now() + ttl.get() / 3).await?;
        ensure!(
            on.read(&ticket_path).await?.is_some(),
            "the ticket stays too"
        );
    }
    let heard = on.clock.now();
    ensure_eq!(
        on.text("k").await?.as_deref(),
        Some("k"),
        "renewal keeps the value"
    );
    on.gone("k", sent + ttl.get(), heard + ttl.get() + SWEEP)
        .await
}

async fn a_renewal_of_no_lease_is_not_found(on: Subject) -> Checked {
    let at = on.clock.now();
    let unknown = on.renew(Renew::new(on.new_lease(), at, Vec::new())).await;
    refused(
        unknown,
        ErrorKind::NotFound,
        "a lease that was never granted",
    )?;
    let (lease, _) = long_lease(&on).await?;
    let node = hang(&on, "k", lease).await?;
    on.revoke(lease).await?;
    let attached = Attached::new(node.key, node.value);
    let revoked = on.renew(Renew::new(lease, at, vec![attached])).await;
    refused(revoked, ErrorKind::NotFound, "a lease that was revoked")?;
    Ok(())
}

async fn nothing_hangs_on_a_lease_that_is_gone(on: Subject) -> Checked {
    let (revoked, _) = on.lease().await?;
    on.revoke(revoked).await?;
    for lease in [on.new_lease(), revoked] {
        let put = Put::new(on.key("k")?, "x", Expiry::With(lease));
        refused(on.put(put).await, ErrorKind::NotFound, "a write")?;
        let append = Append::ticket(on.key("line")?, on.tag(), Expiry::With(lease));
        refused(on.append(append).await, ErrorKind::NotFound, "an append")?;
    }
    ensure_eq!(on.read("k").await?, None, "after the refusals");
    ensure_eq!(on.list("line").await?, [""; 0], "after the refusals");
    Ok(())
}

async fn a_revocation_takes_the_keys_of_this_lease_only(on: Subject) -> Checked {
    let (mine, _) = on.lease().await?;
    let other = on.new_lease();
    on.grant(Grant::new(other, Ttl::DEFAULT)).await?;
    hang(&on, "mine/a", mine).await?;
    hang(&on, "mine/b", mine).await?;
    hang(&on, "others", other).await?;
    let append = Append::ticket(on.key("line")?, on.tag(), Expiry::With(mine));
    on.append(append).await?;
    on.write("permanent", "x").await?;
    on.revoke(mine).await?;
    ensure_eq!(on.list("mine").await?, [""; 0], "the keys of the lease");
    ensure_eq!(on.list("line").await?, [""; 0], "its tickets");
    for path in ["others", "permanent"] {
        ensure!(on.read(path).await?.is_some(), "{path} stays");
    }
    on.revoke(other).await?;
    ensure_eq!(on.read("others").await?, None, "the other's turn");
    Ok(())
}

async fn a_revocation_can_be_repeated(on: Subject) -> Checked {
    let (lease, _) = on.lease().await?;
    hang(&on, "k", lease).await?;
    for _ in 0..3 {
        on.revoke(lease).await?;
    }
    on.revoke(on.new_lease()).await?;
    Ok(())
}

async fn a_revocation_spares_what_took_a_keys_place(on: Subject) -> Checked {
    let (lease, _) = long_lease(&on).await?;
    let node = hang(&on, "replaced", lease).await?;
    on.write("replaced", "by another").await?;
    hang(&on, "deleted", lease).await?;
    on.remove(&on.key("deleted")?).await?;
    on.write("deleted", "and written by another").await?;
    on.revoke(lease).await?;
    let found = on.node(&node.key).await?;
    ensure_eq!(
        found.as_ref().and_then(Node::text),
        Some("by another"),
        "a replaced key"
    );
    ensure!(on.read("deleted").await?.is_some(), "a key written again");
    Ok(())
}

/// Renews until `until`, again and again, so that the lease itself lives on.
async fn keep(on: &Subject, lease: LeaseId, nodes: &[&Node], until: Instant) -> Checked {
    while !on.clock.has_passed(until) {
        renew(on, lease, nodes).await?;
        on.clock.sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

async fn a_key_written_with_another_lease_outlives_the_first(on: Subject) -> Checked {
    let ((first, _), (second, _)) = (long_lease(&on).await?, long_lease(&on).await?);
    let node = hang(&on, "k", first).await?;
    let pinned = Condition::Both {
        value: node.value.clone(),
        index: node.modified,
    };
    let put = Put::new(node.key.clone(), node.value.clone(), Expiry::With(second));
    let moved = on.put(put.when(pinned)).await?.node;
    ensure_eq!(moved.created, node.created, "it is the same node");
    on.revoke(first).await?;
    ensure!(
        on.node(&node.key).await?.is_some(),
        "the lease that it had took it along"
    );
    let renewed = renew(&on, second, &[&moved]).await?;
    let gone = answer(&renewed, &moved) == Some(KeyRenewal::Gone);
    ensure!(!gone, "it hangs on the second: {renewed:?}");
    on.revoke(second).await?;
    ensure_eq!(on.node(&node.key).await?, None, "and ends with that");
    Ok(())
}

async fn a_key_deleted_by_hand_is_gone_to_a_renewal(on: Subject) -> Checked {
    let (lease, _) = long_lease(&on).await?;
    let (kept, deleted) = (
        hang(&on, "kept", lease).await?,
        hang(&on, "deleted", lease).await?,
    );
    on.remove(&deleted.key).await?;
    let renewed = renew(&on, lease, &[&kept, &deleted]).await?;
    if !renewed.keys.is_empty() {
        let live = matches!(answer(&renewed, &kept), Some(KeyRenewal::Live { .. }));
        ensure!(live, "the one that was kept: {renewed:?}");
        let gone = answer(&renewed, &deleted) == Some(KeyRenewal::Gone);
        ensure!(gone, "the one that was deleted: {renewed:?}");
    }
    ensure_eq!(
        on.node(&deleted.key).await?,
        None,
        "a renewal never makes a key"
    );
    Ok(())
}

async fn a_key_taken_over_is_gone_to_a_renewal(on: Subject) -> Checked {
    let (lease, _) = long_lease(&on).await?;
    let (kept, taken) = (
        hang(&on, "kept", lease).await?,
        hang(&on, "taken", lease).await?,
    );
    on.remove(&taken.key).await?;
    on.write("taken", "by another").await?;
    let renewed = renew(&on, lease, &[&kept, &taken]).await?;
    if !renewed.keys.is_empty() {
        let gone = answer(&renewed, &taken) == Some(KeyRenewal::Gone);
        ensure!(gone, "the one that is another's: {renewed:?}");
    }
    let found = on.read("taken").await?;
    ensure_eq!(
        found.as_ref().and_then(Node::text),
        Some("by another"),
        "its value"
    );
    ensure_eq!(
        found.and_then(|node| node.ttl),
        None,
        "its expiry is not ours to set"
    );
    Ok(())
}

async fn a_key_that_is_not_listed_is_renewed_only_with_the_whole_lease(on: Subject) -> Checked {
    let sent = on.clock.now();
    let (lease, ttl) = long_lease(&on).await?;
    let (listed, other) = (
        hang(&on, "listed", lease).await?,
        hang(&on, "other", lease).await?,
    );
    let heard = on.clock.now();
    let by_key = !renew(&on, lease, &[&listed]).await?.keys.is_empty();
    let until = heard + ttl.get() + SWEEP;
    let see = async {
        if by_key {
            on.gone("other", sent + ttl.get(), until).await
        } else {
            on.stays("other", until).await
        }
    };
    // The answers are raced: whoever finds a fault first ends the check.
    let listed_only = [&listed];
    futures_util::try_join!(keep(&on, lease, &listed_only, until), see)?;
    ensure!(
        on.node(&listed.key).await?.is_some(),
        "the listed one stays"
    );
    ensure_eq!(
        on.node(&other.key).await?.is_some(),
        !by_key,
        "the other one is there"
    );
    Ok(())
}

async fn a_node_tells_that_it_will_not_stay(on: Subject) -> Checked {
    let (lease, _) = on.lease().await?;
    hang(&on, "k", lease).await?;
    let node = on.read("k").await?;
    let told = node
        .as_ref()
        .is_some_and(|node| node.ttl.is_some() || node.lease == Some(lease));
    ensure!(told, "{node:?} names neither its lease nor its time left");
    Ok(())
}
