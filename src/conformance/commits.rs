//! Guarded writes of several keys: all or nothing, or the typed refusal.

use super::subject::{Checked, Subject, refused};
use crate::error::{Error, ErrorKind};
use crate::key::{Key, Tag};
use crate::store::{
    Append, Commit, Committed, Condition, Delete, Expiry, Naming, Node, Put, StoreExt, Watch,
    Withdraw,
};

checks![
    a_store_without_commits_says_so_and_changes_nothing,
    a_commit_does_all_it_is_asked_for,
    a_commit_whose_check_fails_does_nothing_and_names_it,
    a_commit_whose_operation_fails_does_nothing,
    a_reader_never_sees_half_a_commit,
    a_commit_is_told_whole_and_in_order,
    a_commit_appends_as_an_append_does,
    appends_of_a_commit_are_all_or_none,
    a_commit_into_empty_lines_finds_them_empty,
    what_a_commit_cannot_do_is_refused_by_its_kind,
];

fn put(on: &Subject, path: &str, value: &str) -> Checked<Put> {
    Ok(Put::new(on.key(path)?, value.to_owned(), Expiry::Never))
}

async fn a_store_without_commits_says_so_and_changes_nothing(on: Subject) -> Checked {
    if on.about().commits {
        return Ok(());
    }
    let commit = Commit::new()
        .put(put(&on, "a", "x")?)
        .put(put(&on, "b", "x")?);
    refused(on.commit(commit).await, ErrorKind::Unsupported, "a commit")?;
    ensure_eq!(on.children(&on.dir).await?, [], "afterwards");
    Ok(())
}

async fn a_commit_does_all_it_is_asked_for(on: Subject) -> Checked {
    if !on.about().commits {
        return Ok(());
    }
    let old = on.write("old", "x").await?;
    let value = on.write("value", "v").await?.node;
    let commit = Commit::new()
        .check(on.key("absent")?, Condition::Absent)
        .check(on.key("value")?, Condition::Value("v".into()))
        .check(on.key("value")?, Condition::Index(value.modified))
        .check(on.key("value")?, Condition::Created(value.created))
        .check(on.key("value")?, Condition::Present)
        .put(put(&on, "a/1", "one")?)
        .delete(Delete::new(on.key("old")?))
        .put(put(&on, "a/2", "two")?.when(Condition::Absent))
        .delete(Delete::new(on.key("nothing")?));
    let committed = on.commit(commit).await?;
    ensure!(committed.index > old.index(), "{committed:?}");
    let found = vec![on.read("a/1").await?, None, on.read("a/2").await?, None];
    ensure_eq!(committed.nodes, found, "the answer is what is there");
    ensure_eq!(
        on.text("a/1").await?.as_deref(),
        Some("one"),
        "the first write"
    );
    ensure_eq!(on.text("a/2").await?.as_deref(), Some("two"), "the second");
    ensure_eq!(on.read("old").await?, None, "the deletion");
    let last = found.iter().flatten().map(|node| node.modified).max();
    ensure!(
        last <= Some(committed.index),
        "{last:?} after {committed:?}"
    );
    Ok(())
}

async fn a_commit_whose_check_fails_does_nothing_and_names_it(on: Subject) -> Checked {
    if !on.about().commits {
        return Ok(());
    }
    let old = on.write("old", "x").await?.node;
    for (path, condition) in [
        ("old", Condition::Absent),
        ("old", Condition::Value("y".into())),
        ("old", Condition::Index(old.modified.next())),
        ("old", Condition::Created(old.created.next())),
        ("nothing", Condition::Present),
        ("nothing", Condition::Value("x".into())),
        ("nothing", Condition::Created(old.created)),
    ] {
        let commit = Commit::new()
            .check(on.key("old")?, Condition::Present)
            .check(on.key(path)?, condition.clone())
            .check(on.key("old")?, Condition::Absent)
            .put(put(&on, "new", "x")?)
            .delete(Delete::new(on.key("old")?));
        let what = format!("{path} on {condition:?}");
        let error = refused(on.commit(commit).await, ErrorKind::ConditionFailed, &what)?;
        ensure_eq!(
            error.key(),
            Some(&on.key(path)?),
            "the key of the first check that fails"
        );
        ensure_eq!(on.read("new").await?, None, "after {what}");
        ensure_eq!(on.read("old").await?.as_ref(), Some(&old), "after {what}");
    }
    Ok(())
}

async fn a_commit_whose_operation_fails_does_nothing(on: Subject) -> Checked {
    if !on.about().commits {
        return Ok(());
    }
    let old = on.write("dir/old", "x").await?.node;
    let mut refused = vec![
        Commit::new().put(put(&on, "dir/old", "y")?.when(Condition::Absent)),
        Commit::new().delete(Delete::new(old.key.clone()).when(Condition::Value("y".into()))),
    ];
    if on.about().directories {
        refused.push(Commit::new().put(put(&on, "dir/old/below", "y")?));
        refused.push(Commit::new().put(put(&on, "dir", "y")?));
    }
    for last in refused {
        let mut commit = Commit::new().put(put(&on, "new", "x")?);
        commit.operations.extend(last.operations);
        let what = format!("{commit:?}");
        let answer = on.commit(commit).await;
        ensure!(answer.is_err(), "{what} gave {answer:?}");
        ensure_eq!(on.read("new").await?, None, "after {what}");
        ensure_eq!(
            on.read("dir/old").await?.as_ref(),
            Some(&old),
            "after {what}"
        );
    }
    Ok(())
}

async fn a_reader_never_sees_half_a_commit(on: Subject) -> Checked {
    if !on.about().commits {
        return Ok(());
    }
    let write = async {
        for round in 0..50 {
            let value = round.to_string();
            let commit = Commit::new()
                .put(put(&on, "p/a", &value)?)
                .put(put(&on, "p/b", &value)?);
            on.commit(commit).await?;
        }
        Checked::Ok(())
    };
    let read = async {
        for _ in 0..50 {
            let nodes = on.children(&on.key("p")?).await?;
            let mut values = nodes.iter().map(|node| &node.value);
            let (a, b) = (values.next(), values.next());
            ensure_eq!(a, b, "both halves of a commit");
            tokio::task::yield_now().await;
        }
        Checked::Ok(())
    };
    futures_util::try_join!(write, read)?;
    Ok(())
}

async fn a_commit_is_told_whole_and_in_order(on: Subject) -> Checked {
    if !on.about().commits {
        return Ok(());
    }
    let mut watch = on.follow(Watch::tree(on.dir.clone())).await?;
    on.write("old", "x").await?;
    watch.event().await?;
    let commit = Commit::new()
        .put(put(&on, "z", "1")?)
        .delete(Delete::new(on.key("old")?))
        .put(put(&on, "a", "2")?);
    on.commit(commit).await?;
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(watch.event().await?.key);
    }
    keys.sort_unstable();
    ensure_eq!(
        keys,
        [on.key("a")?, on.key("old")?, on.key("z")?],
        "what was told"
    );
    let next = on.write("next", "x").await?;
    watch.sees_put(&next.node).await
}

/// Whether appends can be parts of commits: then they can be taken back for good.
fn appends(on: &Subject) -> bool {
    on.about().commits && on.about().cancels
}

fn ticket(dir: &Key, tag: Tag) -> Append {
    Append::ticket(dir.clone(), tag, Expiry::Never)
}

async fn a_commit_appends_as_an_append_does(on: Subject) -> Checked {
    if !appends(&on) {
        return Ok(());
    }
    let (lease, _) = on.lease().await?;
    let (one, two, jobs) = (on.key("one")?, on.key("two")?, on.key("jobs")?);
    let tags = [on.tag(), on.tag(), on.tag(), on.tag()];
    let mut leased = ticket(&two, tags[1]).body("two words");
    leased.expiry = Expiry::With(lease);
    let first = on.ticket("one", on.tag()).await?.node;
    let commit = Commit::new()
        .append(ticket(&one, tags[0]))
        .put(put(&on, "file", "x")?)
        .append(leased)
        .append(Append::tagged(jobs.clone(), tags[2], "raw", Expiry::Never))
        .append(ticket(&one, tags[3]));
    let committed = on.commit(commit).await?;
    let nodes: Vec<&Node> = committed.nodes.iter().flatten().collect();
    let [a, _, b, job, last] = nodes[..] else {
        ensure!(false, "a node for each operation: {committed:?}");
        return Ok(());
    };
    let layout = on.about().layout;
    for (dir, node, tag, body) in [
        (&one, a, tags[0], ""),
        (&two, b, tags[1], "two words"),
        (&one, last, tags[3], ""),
    ] {
        let there = on.node(&node.key).await?;
        // But for the time that is left.
        let same = |it: &Node| (it.value == node.value) && (it.created == node.created);
        ensure!(there.as_ref().is_some_and(same), "{there:?}, not {node:?}");
        let Some(ticket) = layout.ticket(dir, node) else {
            ensure!(false, "{node:?} is no ticket to {layout:?}");
            return Ok(());
        };
        ensure_eq!(ticket.tag, Some(tag), "its tag");
        ensure!(ticket.body == body, "its body is {:?}", ticket.body);
    }
    let wanted = jobs.join(&tags[2].to_string())?;
    ensure_eq!(
        (&job.key, job.text()),
        (&wanted, Some("raw")),
        "named by its tag"
    );
    // It stands behind who was there, and before who comes later.
    let later = on.ticket("one", on.tag()).await?.node;
    let place = |node: &Node| layout.position(&one, &node.key, node.created);
    let order = [place(&first), place(a), place(&later)];
    ensure!(
        order.is_sorted_by(|one, next| one < next),
        "out of order: {order:?}"
    );
    // It is taken back by its tag, as any other, or ends with its lease.
    let withdraw = Withdraw::new(one.clone(), tags[0], Naming::Ticket);
    let withdrawn = on.withdraw(withdraw).await?;
    ensure!(withdrawn.removed, "{withdrawn:?}");
    on.revoke(lease).await?;
    ensure_eq!(on.node(&a.key).await?, None, "what was taken back");
    ensure_eq!(on.children(&two).await?, [], "what hung on the lease");
    Ok(())
}

async fn appends_of_a_commit_are_all_or_none(on: Subject) -> Checked {
    if !appends(&on) {
        return Ok(());
    }
    let lines = [on.key("a")?, on.key("b")?, on.key("c")?];
    // In whichever line it was withdrawn, and whether it had been appended or not.
    for dir in &lines {
        for appended_before in [false, true] {
            let tag = on.tag();
            if appended_before {
                on.append(ticket(dir, tag)).await?;
            }
            let withdraw = Withdraw::new(dir.clone(), tag, Naming::Ticket);
            on.withdraw(withdraw).await?;
            let mut commit = Commit::new().put(put(&on, "file", "x")?);
            for line in &lines {
                let tag = if line == dir { tag } else { on.tag() };
                commit = commit.append(ticket(line, tag));
            }
            let checks = lines.iter().cloned();
            let into_empty = checks.fold(commit.clone(), |it, dir| it.check(dir, Condition::Empty));
            for commit in [commit, into_empty] {
                let what = format!("with {dir} withdrawn");
                nothing_done(&on, on.commit(commit).await, dir, &what).await?;
                for line in &lines {
                    ensure_eq!(on.children(line).await?, [], "{what}, in {line}");
                }
            }
        }
    }
    // What has been appended under its tag is not appended once more.
    let [first, second, _] = lines;
    let job = Append::tagged(first.clone(), on.tag(), "x", Expiry::Never);
    let node = on.append(job.clone()).await?.node;
    let again = Commit::new().append(ticket(&second, on.tag())).append(job);
    nothing_done(&on, on.commit(again).await, &first, "once more").await?;
    ensure_eq!(on.children(&first).await?, [node], "the first one");
    ensure_eq!(on.children(&second).await?, [], "the other line");
    Ok(())
}

async fn a_commit_into_empty_lines_finds_them_empty(on: Subject) -> Checked {
    if !appends(&on) {
        return Ok(());
    }
    // Never used; used and left; with a neighbour that has a longer name; with somebody in it.
    let (new, full) = (on.key("new")?, on.key("full")?);
    let free = [new.clone(), on.key("left")?, on.key("line")?];
    let left = on.ticket("left", on.tag()).await?.node;
    on.remove(&left.key).await?;
    on.write("line-2/x", "x").await?;
    on.write("linen", "x").await?;
    let there = vec![on.ticket("full", on.tag()).await?.node];
    let into = |lines: &[&[Key]]| {
        lines.concat().into_iter().fold(Commit::new(), |it, dir| {
            let ticket = ticket(&dir, on.tag());
            it.check(dir, Condition::Empty).append(ticket)
        })
    };
    let last = std::slice::from_ref(&full);
    nothing_done(
        &on,
        on.commit(into(&[&free, last])).await,
        &full,
        "one full",
    )
    .await?;
    for line in &free {
        ensure_eq!(on.children(line).await?, [], "nothing was done in {line}");
    }
    let committed = on.commit(into(&[&free])).await?;
    let mut took = Vec::new();
    for (line, node) in free.iter().zip(committed.nodes.into_iter().flatten()) {
        let found = on.children(line).await?;
        ensure_eq!(found, std::slice::from_ref(&node), "who is in {line}");
        took.push(node);
    }
    ensure_eq!(took.len(), free.len(), "one in each");
    // Now they are not empty either, and the first of them is the one that is named.
    nothing_done(
        &on,
        on.commit(into(&[last, &free])).await,
        &full,
        "all full",
    )
    .await?;
    nothing_done(&on, on.commit(into(&[&free])).await, &new, "all full").await?;
    ensure_eq!(on.children(&full).await?, there, "who was there before");
    // Who comes now stands behind.
    let layout = on.about().layout;
    for (line, node) in free.iter().zip(took) {
        let later = on.append(ticket(line, on.tag())).await?.node;
        let place = |node: &Node| layout.position(line, &node.key, node.created);
        ensure!(place(&node) < place(&later), "{later:?} before {node:?}");
        on.remove(&node.key).await?;
        on.remove(&later.key).await?;
    }
    // The same lines again.
    on.commit(into(&[&free])).await?;
    Ok(())
}

/// The commit must have been refused because of what is in `line`, with the rest of it.
async fn nothing_done(
    on: &Subject,
    answer: Result<Committed, Error>,
    line: &Key,
    what: &str,
) -> Checked {
    let error = refused(answer, ErrorKind::ConditionFailed, what)?;
    ensure_eq!(error.key(), Some(line), "the line that is named, {what}");
    ensure_eq!(on.read("file").await?, None, "{what}");
    Ok(())
}

async fn what_a_commit_cannot_do_is_refused_by_its_kind(on: Subject) -> Checked {
    if !appends(&on) {
        return Ok(());
    }
    let dir = on.key("dir")?;
    let raw = Append::raw(dir.clone(), "x", Expiry::Never);
    let odd = || Ok::<_, super::Failure>(put(&on, "dir/a", "x")?.when(Condition::Empty));
    let delete = Delete::new(on.key("dir/a")?).when(Condition::Empty);
    for (what, commit) in [
        ("a raw append in a commit", Commit::new().append(raw)),
        ("a write where nothing is below", Commit::new().put(odd()?)),
        (
            "a deletion of what is empty",
            Commit::new().delete(delete.clone()),
        ),
    ] {
        refused(on.commit(commit).await, ErrorKind::Unsupported, what)?;
    }
    refused(
        on.put(odd()?).await,
        ErrorKind::Unsupported,
        "a write by itself",
    )?;
    refused(
        on.delete(delete).await,
        ErrorKind::Unsupported,
        "a deletion",
    )?;
    ensure_eq!(on.children(&dir).await?, [], "afterwards");
    Ok(())
}
