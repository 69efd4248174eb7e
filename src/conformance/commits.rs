//! Guarded writes of several keys: all or nothing, or the typed refusal.

use super::subject::{Checked, Subject, refused};
use crate::error::ErrorKind;
use crate::store::{Commit, Condition, Delete, Expiry, Put, StoreExt, Watch};

checks![
    a_store_without_commits_says_so_and_changes_nothing,
    a_commit_does_all_it_is_asked_for,
    a_commit_whose_check_fails_does_nothing_and_names_it,
    a_commit_whose_operation_fails_does_nothing,
    a_reader_never_sees_half_a_commit,
    a_commit_is_told_whole_and_in_order,
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
