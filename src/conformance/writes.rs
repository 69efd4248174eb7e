//! Writing: every condition on every state, previous nodes, indexes, directories, races.

use bytes::Bytes;
use futures_util::future::join_all;

use super::subject::{Checked, Subject, refused};
use crate::error::ErrorKind;
use crate::key::Index;
use crate::store::{Condition, Delete, Expiry, Node, Put, StoreExt};

checks![
    a_write_where_nothing_is_obeys_its_condition,
    a_write_where_something_is_obeys_its_condition,
    an_empty_value_is_a_value_to_conditions,
    the_previous_node_is_told_rightly_or_not_at_all,
    a_conditional_update_keeps_the_created_index,
    a_node_deleted_and_written_again_is_a_new_one,
    every_mutation_has_an_index_of_its_own,
    a_write_makes_the_directories_above_it,
    a_write_never_lands_on_a_directory_or_below_a_file,
    a_refusal_names_the_operation_and_the_key,
    of_racing_creators_one_wins,
    of_racing_replacers_one_wins,
];

fn of(number: u64) -> Checked<Index> {
    Index::new(number).ok_or_else(|| super::Failure::new("an index of zero".into()))
}

/// Conditions on one node.
pub(super) struct Conditions {
    pub(super) hold: Vec<Condition>,
    /// Each with the error of a write.
    pub(super) fail: Vec<(Condition, ErrorKind)>,
}

/// Conditions that hold for a node as it is, and such that do not.
pub(super) fn conditions(node: &Node) -> Checked<Conditions> {
    let (value, index) = (node.value.clone(), node.modified);
    let (other, stale) = (Bytes::from_static(b"other"), of(index.get() - 1)?);
    let hold = vec![
        Condition::Any,
        Condition::Present,
        Condition::Value(value.clone()),
        Condition::Index(index),
        Condition::Both {
            value: value.clone(),
            index,
        },
    ];
    let fail = [
        Condition::Value(other.clone()),
        Condition::Value(Bytes::new()),
        Condition::Index(stale),
        Condition::Index(index.next()),
        Condition::Both {
            value: value.clone(),
            index: stale,
        },
        Condition::Both {
            value: other,
            index,
        },
    ];
    let mut fail = Vec::from(fail.map(|condition| (condition, ErrorKind::ConditionFailed)));
    fail.push((Condition::Absent, ErrorKind::AlreadyExists));
    Ok(Conditions { hold, fail })
}

async fn a_write_where_nothing_is_obeys_its_condition(on: Subject) -> Checked {
    let put = |path: &str, condition| -> Checked<Put> {
        Ok(Put::new(on.key(path)?, "new", Expiry::Never).when(condition))
    };
    for (path, condition) in [("any", Condition::Any), ("absent", Condition::Absent)] {
        let written = on.put(put(path, condition)?).await?;
        ensure_eq!(
            on.read(path).await?,
            Some(written.node),
            "written on {path}"
        );
        ensure_eq!(written.previous, None, "there was nothing before");
    }
    let index = on.write("elsewhere", "x").await?.index();
    let value = Bytes::from_static(b"x");
    for condition in [
        Condition::Present,
        Condition::Value(value.clone()),
        Condition::Value(Bytes::new()),
        Condition::Index(index),
        Condition::Both { value, index },
    ] {
        let answer = on.put(put("nothing", condition.clone())?).await;
        refused(answer, ErrorKind::NotFound, &format!("on {condition:?}"))?;
        ensure_eq!(on.read("nothing").await?, None, "after {condition:?}");
    }
    let created = on.put(put("nothing", Condition::Created(index))?).await;
    match created {
        Err(error) if error.kind() == ErrorKind::Unsupported => {}
        answer => drop(refused(answer, ErrorKind::NotFound, "on Created")?),
    }
    ensure_eq!(on.read("nothing").await?, None, "after Created");
    Ok(())
}

async fn a_write_where_something_is_obeys_its_condition(on: Subject) -> Checked {
    let node = on.write("k", "old").await?.node;
    let Conditions { hold, fail } = conditions(&node)?;
    for (condition, kind) in fail {
        let put = Put::new(node.key.clone(), "new", Expiry::Never).when(condition.clone());
        refused(on.put(put).await, kind, &format!("on {condition:?}"))?;
        let found = on.read("k").await?;
        ensure_eq!(found.as_ref(), Some(&node), "after {condition:?}");
    }
    for at in 0..hold.len() {
        let node = on.write("k", "old").await?.node;
        let Some(condition) = conditions(&node)?.hold.into_iter().nth(at) else {
            continue;
        };
        let put = Put::new(node.key.clone(), "new", Expiry::Never).when(condition.clone());
        let written = on.put(put).await?;
        ensure!(
            written.index() > node.modified,
            "{written:?} on {condition:?}"
        );
        ensure_eq!(written.node.text(), Some("new"), "on {condition:?}");
        ensure_eq!(on.read("k").await?, Some(written.node), "on {condition:?}");
    }
    let node = on.write("c", "old").await?.node;
    for (created, holds) in [(node.created.next(), false), (node.created, true)] {
        let condition = Condition::Created(created);
        let put = Put::new(node.key.clone(), "new", Expiry::Never).when(condition);
        match on.put(put).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Ok(_) if holds => {}
            answer => {
                refused(answer, ErrorKind::ConditionFailed, "another created index")?;
                ensure_eq!(
                    on.read("c").await?.as_ref(),
                    Some(&node),
                    "after the refusal"
                );
            }
        }
    }
    Ok(())
}

async fn an_empty_value_is_a_value_to_conditions(on: Subject) -> Checked {
    let empty = || Condition::Value(Bytes::new());
    let node = on.write("k", "").await?.node;
    let key = node.key.clone();
    let other = Condition::Value(Bytes::from_static(b"x"));
    let put = Put::new(key.clone(), "new", Expiry::Never).when(other);
    refused(
        on.put(put).await,
        ErrorKind::ConditionFailed,
        "another value",
    )?;
    let both = Condition::Both {
        value: Bytes::new(),
        index: node.modified,
    };
    let written = on
        .put(Put::new(key.clone(), "", Expiry::Never).when(both))
        .await?;
    ensure!(written.index() > node.modified, "{written:?}");
    on.put(Put::new(key.clone(), "full", Expiry::Never).when(empty()))
        .await?;
    let put = Put::new(key.clone(), "new", Expiry::Never).when(empty());
    refused(
        on.put(put).await,
        ErrorKind::ConditionFailed,
        "no longer empty",
    )?;
    let delete = Delete::new(key.clone()).when(empty());
    refused(
        on.delete(delete).await,
        ErrorKind::ConditionFailed,
        "no longer empty",
    )?;
    ensure_eq!(on.text("k").await?.as_deref(), Some("full"), "in the end");
    on.write("k", "").await?;
    on.delete(Delete::new(key).when(empty())).await?;
    ensure_eq!(on.read("k").await?, None, "deleted while empty");
    Ok(())
}

async fn the_previous_node_is_told_rightly_or_not_at_all(on: Subject) -> Checked {
    let first = on.write("k", "1").await?;
    ensure_eq!(first.previous, None, "before the first write");
    let second = on.write("k", "2").await?;
    ensure!(
        second.previous.is_none() || second.previous.as_ref() == Some(&first.node),
        "{:?} came before, not {:?}",
        first.node,
        second.previous
    );
    let deleted = on.delete(Delete::new(on.key("k")?)).await?;
    ensure!(
        deleted.previous.is_none() || deleted.previous.as_ref() == Some(&second.node),
        "{:?} came before, not {:?}",
        second.node,
        deleted.previous
    );
    Ok(())
}

async fn a_conditional_update_keeps_the_created_index(on: Subject) -> Checked {
    let first = on.write("k", "v").await?.node;
    let mut last = first.clone();
    for at in 1..conditions(&first)?.hold.len() {
        let Some(condition) = conditions(&last)?.hold.into_iter().nth(at) else {
            continue;
        };
        let put = Put::new(last.key.clone(), "v", Expiry::Never).when(condition.clone());
        last = on.put(put).await?.node;
        ensure_eq!(last.created, first.created, "after {condition:?}");
        ensure_eq!(
            on.read("k").await?,
            Some(last.clone()),
            "after {condition:?}"
        );
    }
    Ok(())
}

async fn a_node_deleted_and_written_again_is_a_new_one(on: Subject) -> Checked {
    let first = on.write("k", "v").await?.node;
    on.remove(&first.key).await?;
    let second = on.write("k", "v").await?.node;
    ensure!(
        second.created > first.modified,
        "{second:?} after {first:?}"
    );
    Ok(())
}

async fn every_mutation_has_an_index_of_its_own(on: Subject) -> Checked {
    let mut last = on.write("k", "v").await?.index();
    let mut follows = |what: &str, index: Index| -> Checked {
        ensure!(index > last, "{what} at {index} comes after {last}");
        last = index;
        Ok(())
    };
    follows("the same write again", on.write("k", "v").await?.index())?;
    follows("a write elsewhere", on.write("d/e", "v").await?.index())?;
    let appended = on.ticket("line", on.tag()).await?;
    follows("an append", appended.node.modified)?;
    ensure_eq!(
        appended.node.created,
        appended.node.modified,
        "of an append"
    );
    let index = on.write("k", "x").await?.index();
    let key = on.key("k")?;
    let replaced = on.replace(&key, "w".into(), index, Expiry::Never).await?;
    follows("a replacement", replaced.index())?;
    follows(
        "a deletion",
        on.delete(Delete::new(on.key("k")?)).await?.index,
    )?;
    follows(
        "a tree's deletion",
        on.delete(Delete::tree(on.key("d")?)).await?.index,
    )?;
    follows("a creation", on.write("k", "v").await?.index())
}

async fn a_write_makes_the_directories_above_it(on: Subject) -> Checked {
    on.write("a/b/c/d", "deep").await?;
    ensure_eq!(on.list("a/b/c").await?, ["d"], "the children of c");
    ensure_eq!(on.list("a").await?, ["b"], "the children of a");
    Ok(())
}

async fn a_write_never_lands_on_a_directory_or_below_a_file(on: Subject) -> Checked {
    on.write("dir/file", "x").await?;
    if !on.about().directories {
        return writes_are_independent(&on).await;
    }
    for (path, kind) in [
        ("dir", ErrorKind::NotAFile),
        ("dir/file/below", ErrorKind::NotADirectory),
        ("dir/file/far/below", ErrorKind::NotADirectory),
    ] {
        let put = Put::new(on.key(path)?, "new", Expiry::Never);
        refused(on.put(put).await, kind, path)?;
    }
    ensure_eq!(
        on.text("dir/file").await?.as_deref(),
        Some("x"),
        "afterwards"
    );
    Ok(())
}

/// Where there are no directories a key is a file whatever lies above and below it.
async fn writes_are_independent(on: &Subject) -> Checked {
    for path in ["dir", "dir/file/below"] {
        on.write(path, path).await?;
    }
    for (path, text) in [
        ("dir", "dir"),
        ("dir/file", "x"),
        ("dir/file/below", "dir/file/below"),
    ] {
        ensure_eq!(
            on.text(path).await?.as_deref(),
            Some(text),
            "the value of {path}"
        );
    }
    ensure_eq!(on.list("dir").await?, ["file"], "the children of a file");
    on.delete(Delete::new(on.key("dir/file")?)).await?;
    ensure!(
        on.read("dir/file").await?.is_some_and(|node| node.is_dir),
        "what is left above"
    );
    for path in ["dir", "dir/file/below"] {
        ensure_eq!(
            on.text(path).await?.as_deref(),
            Some(path),
            "{path} after the deletion"
        );
    }
    Ok(())
}

async fn a_refusal_names_the_operation_and_the_key(on: Subject) -> Checked {
    let index = on.write("dir/file", "x").await?.index();
    let put = |path: &str, condition| -> Checked<Put> {
        Ok(Put::new(on.key(path)?, "new", Expiry::Never).when(condition))
    };
    let mut refusals = vec![
        (
            put("dir/file", Condition::Absent)?,
            ErrorKind::AlreadyExists,
        ),
        (
            put("dir/file", Condition::Index(index.next()))?,
            ErrorKind::ConditionFailed,
        ),
        (put("nothing", Condition::Present)?, ErrorKind::NotFound),
    ];
    if on.about().directories {
        refusals.push((put("dir", Condition::Any)?, ErrorKind::NotAFile));
    }
    for (put, kind) in refusals {
        let key = put.key.clone();
        let error = refused(on.put(put).await, kind, "a write")?;
        ensure_eq!(error.key(), Some(&key), "the key in {error}");
        ensure_eq!(error.operation(), Some("put"), "the operation in {error}");
    }
    let answer = on.delete(Delete::new(on.key("nothing")?)).await;
    let error = refused(answer, ErrorKind::NotFound, "a deletion")?;
    ensure_eq!(error.key(), Some(&on.key("nothing")?), "the key in {error}");
    ensure_eq!(
        error.operation(),
        Some("delete"),
        "the operation in {error}"
    );
    if !on.about().directories {
        return Ok(());
    }
    // Below a file, the file is as good an answer as the key.
    let answer = on.put(put("dir/file/below", Condition::Any)?).await;
    let error = refused(answer, ErrorKind::NotADirectory, "a write below a file")?;
    let named = error.key().is_some_and(|key| key.is_within(&on.dir));
    ensure!(named, "the key in {error}");
    Ok(())
}

async fn of_racing_creators_one_wins(on: Subject) -> Checked {
    let key = on.key("k")?;
    let race = (0..16).map(|who| {
        let put = Put::new(key.clone(), who.to_string(), Expiry::Never);
        on.put(put.when(Condition::Absent))
    });
    let mut winner = None;
    for answer in join_all(race).await {
        match answer {
            Ok(written) => {
                ensure_eq!(winner, None, "another winner than {written:?}");
                winner = Some(written.node);
            }
            lost => drop(refused(lost, ErrorKind::AlreadyExists, "a loser")?),
        }
    }
    ensure!(winner.is_some(), "nobody won");
    ensure_eq!(on.read("k").await?, winner, "the winner's node");
    Ok(())
}

async fn of_racing_replacers_one_wins(on: Subject) -> Checked {
    let start = on.write("k", "start").await?.node;
    let race = (0..16).map(|who| {
        let put = Put::new(start.key.clone(), who.to_string(), Expiry::Never);
        on.put(put.when(Condition::Index(start.modified)))
    });
    let mut winner = None;
    for answer in join_all(race).await {
        match answer {
            Ok(written) => {
                ensure_eq!(winner, None, "another winner than {written:?}");
                winner = Some(written.node);
            }
            lost => drop(refused(lost, ErrorKind::ConditionFailed, "a loser")?),
        }
    }
    ensure!(winner.is_some(), "nobody won");
    ensure_eq!(on.read("k").await?, winner, "the winner's node");
    Ok(())
}
