//! Appending: order, names, tickets, and who is before whom.

use futures_util::future::{join_all, try_join_all};

use super::subject::{Checked, Subject, names, refused};
use crate::error::ErrorKind;
use crate::key::{Key, Tag};
use crate::store::{Append, Expiry, Layout, Naming, Node, StoreExt, Withdraw};

checks![
    a_ticket_is_read_back_as_it_was_given,
    a_later_ticket_is_behind_an_earlier_one,
    racing_tickets_all_get_a_place_of_their_own,
    those_before_are_told_rightly_or_not_at_all,
    an_append_named_by_its_tag_happens_once,
    an_append_below_a_file_is_refused,
    an_append_goes_to_its_own_directory,
    a_raw_append_is_stored_as_it_is_and_in_order,
    a_raw_append_is_not_withdrawn,
];

async fn a_raw_append_is_stored_as_it_is_and_in_order(on: Subject) -> Checked {
    let dir = on.key("queue")?;
    let mut appended = Vec::new();
    for body in ["test", "", "same", "same", " two words & more"] {
        let answer = on
            .append(Append::raw(dir.clone(), body, Expiry::Never))
            .await?;
        ensure_eq!(answer.node.text(), Some(body), "the value");
        ensure_eq!(answer.node.key.parent(), Some(dir.clone()), "where it is");
        appended.push(answer.node);
    }
    ensure_eq!(
        on.children(&dir).await?,
        appended,
        "in the order of the appends"
    );
    Ok(())
}

async fn a_raw_append_is_not_withdrawn(on: Subject) -> Checked {
    let dir = on.key("queue")?;
    let node = on
        .append(Append::raw(dir.clone(), "x", Expiry::Never))
        .await?
        .node;
    let withdraw = Withdraw::new(dir.clone(), Tag::NONE, Naming::Raw);
    for withdraw in [withdraw.clone(), withdraw.node(node.clone())] {
        refused(
            on.withdraw(withdraw).await,
            ErrorKind::Unsupported,
            "of a raw append",
        )?;
    }
    // And it leaves no mark that refuses others.
    on.append(Append::raw(dir.clone(), "y", Expiry::Never))
        .await?;
    let nodes = on.children(&dir).await?;
    ensure_eq!(nodes.len(), 2, "nodes in the queue");
    ensure_eq!(nodes.first(), Some(&node), "the first is still there");
    Ok(())
}

async fn a_ticket_is_read_back_as_it_was_given(on: Subject) -> Checked {
    let (layout, line) = (on.about().layout, on.key("line")?);
    for body in ["", "who", " two words & more", "{\"weight\":3}"] {
        let tag = on.tag();
        let append = Append::ticket(line.clone(), tag, Expiry::Never).body(body);
        let node = on.append(append).await?.node;
        ensure_eq!(
            on.node(&node.key).await?,
            Some(node.clone()),
            "the node in the answer"
        );
        let Some(ticket) = layout.ticket(&line, &node) else {
            ensure!(false, "{node:?} is no ticket to {layout:?}");
            return Ok(());
        };
        ensure_eq!(ticket.tag, Some(tag), "its tag");
        ensure!(
            ticket.body == body,
            "its body: wanted {body:?}, found {:?}",
            ticket.body
        );
        ensure_eq!(ticket.position.key, node.key, "its key");
        ensure_eq!(
            layout.position(&line, &node.key, node.created),
            Some(ticket.position),
            "by key alone"
        );
    }
    Ok(())
}

async fn a_later_ticket_is_behind_an_earlier_one(on: Subject) -> Checked {
    let (layout, line) = (on.about().layout, on.key("line")?);
    let mut last = None;
    for _ in 0..20 {
        let node = on.ticket("line", on.tag()).await?.node;
        let position = layout.position(&line, &node.key, node.created);
        ensure!(position > last, "{position:?} was appended after {last:?}");
        last = position;
        // Other writes come between, and deletions of the last in line must not reset it.
        on.write("elsewhere", "x").await?;
        on.remove(&node.key).await?;
    }
    Ok(())
}

async fn racing_tickets_all_get_a_place_of_their_own(on: Subject) -> Checked {
    let (layout, line) = (on.about().layout, on.key("line")?);
    let tags: Vec<_> = (0..32).map(|_| on.tag()).collect();
    let race = join_all(tags.iter().map(|&tag| on.ticket("line", tag))).await;
    let mut sequences = Vec::new();
    for (answer, tag) in race.into_iter().zip(tags) {
        let node = answer?.node;
        let ticket = layout.ticket(&line, &node);
        ensure_eq!(
            ticket.as_ref().and_then(|ticket| ticket.tag),
            Some(tag),
            "{node:?}"
        );
        sequences.extend(ticket.map(|ticket| ticket.position.sequence));
    }
    sequences.sort_unstable();
    sequences.dedup();
    ensure_eq!(sequences.len(), 32, "different sequences");
    let listed = on.children(&line).await?;
    let mut places: Vec<_> = listed
        .iter()
        .filter_map(|node| layout.position(&line, &node.key, node.created))
        .collect();
    if layout == Layout::Leased {
        // The list is in the order of names, and these do not tell the order.
        places.sort_unstable();
    }
    let order: Vec<_> = places.iter().map(|position| position.sequence).collect();
    ensure_eq!(order, sequences, "the list is in the order of the line");
    Ok(())
}

async fn those_before_are_told_rightly_or_not_at_all(on: Subject) -> Checked {
    let mut live: Vec<Node> = Vec::new();
    for round in 0..6 {
        let appended = on.ticket("line", on.tag()).await?;
        if let Some(before) = &appended.before {
            ensure_eq!(names(before), names(&live), "those before number {round}");
        }
        live.push(appended.node);
        if round == 3 {
            let gone = live.remove(1);
            on.remove(&gone.key).await?;
        }
    }
    Ok(())
}

async fn an_append_named_by_its_tag_happens_once(on: Subject) -> Checked {
    let (jobs, tag) = (on.key("jobs")?, on.tag());
    let append = Append::tagged(jobs.clone(), tag, "payload", Expiry::Never);
    let node = on.append(append).await?.node;
    ensure_eq!(
        node.key,
        jobs.join(&tag.to_string())?,
        "the tag is the name"
    );
    ensure_eq!(node.text(), Some("payload"), "the value is stored as it is");
    ensure_eq!(
        on.node(&node.key).await?,
        Some(node.clone()),
        "the node in the answer"
    );
    let again = Append::tagged(jobs, tag, "other", Expiry::Never);
    refused(
        on.append(again).await,
        ErrorKind::AlreadyExists,
        "the same tag again",
    )?;
    ensure_eq!(on.node(&node.key).await?, Some(node), "after the refusal");
    Ok(())
}

async fn an_append_below_a_file_is_refused(on: Subject) -> Checked {
    if !on.about().directories {
        return Ok(());
    }
    let file: Key = on.write("file", "x").await?.node.key;
    let ticket = Append::ticket(file.clone(), on.tag(), Expiry::Never);
    refused(
        on.append(ticket).await,
        ErrorKind::NotADirectory,
        "a ticket",
    )?;
    let tagged = Append::tagged(file.clone(), on.tag(), "x", Expiry::Never);
    refused(on.append(tagged).await, ErrorKind::NotADirectory, "a job")?;
    let withdraw = Withdraw::new(file, on.tag(), Naming::Ticket);
    ensure!(
        !on.withdraw(withdraw).await?.removed,
        "there was nothing to withdraw"
    );
    ensure_eq!(on.text("file").await?.as_deref(), Some("x"), "afterwards");
    Ok(())
}

async fn an_append_goes_to_its_own_directory(on: Subject) -> Checked {
    let lines = ["q", "q2", "q/deeper", "_q"];
    let append = lines.map(|line| on.ticket(line, on.tag()));
    let appended = try_join_all(append).await?;
    for (line, appended) in lines.iter().zip(appended) {
        ensure_eq!(
            appended.node.key.parent(),
            Some(on.key(line)?),
            "its directory"
        );
        let nodes = on.children(&on.key(line)?).await?;
        let files = nodes.iter().filter(|node| !node.is_dir).count();
        ensure_eq!(files, 1, "tickets in {line}");
    }
    Ok(())
}
