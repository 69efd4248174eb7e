//! Taking appends back: by tag, again and again, and never anybody else's.

use super::subject::{Checked, Subject, refused};
use crate::error::ErrorKind;
use crate::key::{Key, Tag};
use crate::store::{
    Append, Commit, Condition, Expiry, Layout, Naming, Node, Put, StoreExt, Withdraw,
};

checks![
    a_withdrawal_finds_its_node_with_or_without_help,
    a_withdrawal_again_finds_nothing_and_succeeds,
    a_withdrawal_of_what_never_was_succeeds,
    a_withdrawal_takes_only_its_own,
    a_withdrawal_spares_what_took_the_nodes_place,
    a_withdrawn_append_comes_never_where_the_store_says_so,
    a_tag_can_be_used_again_where_it_is_the_name,
];

const NAMINGS: [Naming; 2] = [Naming::Ticket, Naming::Tag];

fn append(dir: &Key, tag: Tag, naming: Naming) -> Append {
    match naming {
        Naming::Ticket => Append::ticket(dir.clone(), tag, Expiry::Never).body("body"),
        Naming::Tag => Append::tagged(dir.clone(), tag, "body", Expiry::Never),
        Naming::Raw => Append::raw(dir.clone(), "body", Expiry::Never),
    }
}

async fn a_withdrawal_finds_its_node_with_or_without_help(on: Subject) -> Checked {
    let dir = on.key("dir")?;
    for naming in NAMINGS {
        for helped in [true, false] {
            let tag = on.tag();
            let node = on.append(append(&dir, tag, naming)).await?.node;
            let mut withdraw = Withdraw::new(dir.clone(), tag, naming);
            if helped {
                withdraw = withdraw.node(node.clone());
            }
            let withdrawn = on.withdraw(withdraw).await?;
            ensure!(
                withdrawn.removed,
                "{naming:?}, helped: {helped}: {withdrawn:?}"
            );
            ensure!(
                withdrawn.index > node.modified,
                "{withdrawn:?} took back {node:?}"
            );
            let left = on.node(&node.key).await?;
            ensure_eq!(left, None, "{naming:?}, helped: {helped}");
        }
    }
    Ok(())
}

async fn a_withdrawal_again_finds_nothing_and_succeeds(on: Subject) -> Checked {
    let dir = on.key("dir")?;
    for naming in NAMINGS {
        let tag = on.tag();
        let node = on.append(append(&dir, tag, naming)).await?.node;
        let withdraw = Withdraw::new(dir.clone(), tag, naming).node(node);
        ensure!(
            on.withdraw(withdraw.clone()).await?.removed,
            "the first time"
        );
        for again in [withdraw, Withdraw::new(dir.clone(), tag, naming)] {
            ensure!(!on.withdraw(again).await?.removed, "{naming:?}: once more");
        }
    }
    Ok(())
}

async fn a_withdrawal_of_what_never_was_succeeds(on: Subject) -> Checked {
    for naming in NAMINGS {
        for path in ["never", "jobs"] {
            let withdraw = Withdraw::new(on.key(path)?, on.tag(), naming);
            let withdrawn = on.withdraw(withdraw).await?;
            ensure!(!withdrawn.removed, "{naming:?}: {withdrawn:?}");
            let settled = withdrawn.settled || !on.about().cancels;
            ensure!(
                settled,
                "a store that cancels knows that nothing comes: {withdrawn:?}"
            );
            on.write("jobs/other", "x").await?;
        }
    }
    ensure_eq!(
        on.text("jobs/other").await?.as_deref(),
        Some("x"),
        "what else is there"
    );
    Ok(())
}

async fn a_withdrawal_takes_only_its_own(on: Subject) -> Checked {
    let dir = on.key("dir")?;
    for naming in NAMINGS {
        let (mine, other) = (on.tag(), on.tag());
        let others = on.append(append(&dir, other, naming)).await?.node;
        on.append(append(&dir, mine, naming)).await?;
        let later = on.append(append(&dir, on.tag(), naming)).await?.node;
        on.withdraw(Withdraw::new(dir.clone(), mine, naming))
            .await?;
        for node in [others, later] {
            ensure_eq!(
                on.node(&node.key).await?,
                Some(node.clone()),
                "another's, {naming:?}"
            );
        }
    }
    // The same tag in another directory is another append.
    let tag = on.tag();
    let elsewhere = on
        .append(append(&on.key("elsewhere")?, tag, Naming::Tag))
        .await?
        .node;
    on.withdraw(Withdraw::new(dir, tag, Naming::Tag)).await?;
    ensure_eq!(
        on.node(&elsewhere.key).await?,
        Some(elsewhere.clone()),
        "elsewhere"
    );
    Ok(())
}

async fn a_withdrawal_spares_what_took_the_nodes_place(on: Subject) -> Checked {
    let (dir, tag) = (on.key("dir")?, on.tag());
    let node = on.append(append(&dir, tag, Naming::Ticket)).await?.node;
    on.remove(&node.key).await?;
    let put = Put::new(node.key.clone(), "a stranger's", Expiry::Never);
    let stranger = on.put(put).await?.node;
    let withdraw = Withdraw::new(dir, tag, Naming::Ticket).node(node);
    let withdrawn = on.withdraw(withdraw).await?;
    ensure!(!withdrawn.removed, "{withdrawn:?}");
    ensure_eq!(
        on.node(&stranger.key).await?,
        Some(stranger.clone()),
        "the stranger's"
    );
    Ok(())
}

async fn a_withdrawn_append_comes_never_where_the_store_says_so(on: Subject) -> Checked {
    if !on.about().cancels {
        return Ok(());
    }
    let dir = on.key("dir")?;
    for naming in NAMINGS {
        for appended_before in [false, true] {
            let tag = on.tag();
            if appended_before {
                on.append(append(&dir, tag, naming)).await?;
            }
            let withdrawn = on.withdraw(Withdraw::new(dir.clone(), tag, naming)).await?;
            ensure!(withdrawn.settled, "{naming:?}: {withdrawn:?}");
            let late = on.append(append(&dir, tag, naming)).await;
            refused(late, ErrorKind::ConditionFailed, "a late append")?;
            ensure_eq!(
                on.children(&dir).await?,
                [],
                "after a late append, {naming:?}"
            );
        }
    }
    Ok(())
}

async fn a_tag_can_be_used_again_where_it_is_the_name(on: Subject) -> Checked {
    if on.about().layout != Layout::Leased {
        return Ok(());
    }
    let (dir, tag) = (on.key("dir")?, on.tag());
    let ticket = append(&dir, tag, Naming::Ticket);
    let withdraw = Withdraw::new(dir.clone(), tag, Naming::Ticket);
    let mut before: Vec<Node> = Vec::new();
    for _ in 0..3 {
        let node = on.append(ticket.clone()).await?.node;
        for earlier in &before {
            // A repeat that comes late.
            let late = on.withdraw(withdraw.clone().node(earlier.clone())).await?;
            ensure!(!late.removed, "{late:?} of {earlier:?} took {node:?}");
            ensure!(node.created > earlier.created, "{node:?} after {earlier:?}");
            ensure_eq!(on.node(&node.key).await?, Some(node.clone()), "the later");
            if on.about().commits {
                let put = Put::new(on.key("fenced")?, "x", Expiry::Never);
                let commit = Commit::new()
                    .check(node.key.clone(), Condition::Created(earlier.created))
                    .put(put);
                let outcome = on.commit(commit).await;
                refused(outcome, ErrorKind::ConditionFailed, "the earlier's write")?;
            }
        }
        let withdrawn = on.withdraw(withdraw.clone().node(node.clone())).await?;
        ensure!(withdrawn.removed, "{withdrawn:?} of {node:?}");
        ensure_eq!(on.node(&node.key).await?, None, "{node:?}");
        before.push(node);
    }
    on.withdraw(withdraw).await?;
    let late = on.append(ticket).await;
    refused(late, ErrorKind::ConditionFailed, "after one for good")?;
    Ok(())
}
