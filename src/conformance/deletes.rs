//! Deleting: conditions, directories, trees, races.

use bytes::Bytes;
use futures_util::future::join_all;

use super::subject::{Checked, Subject, refused};
use super::writes::conditions;
use crate::error::ErrorKind;
use crate::store::{Condition, Delete, StoreExt};

checks![
    a_deletion_of_nothing_is_not_found,
    a_deletion_obeys_its_condition,
    a_directory_is_deleted_only_with_all_in_it,
    a_tree_deletion_takes_the_tree_and_nothing_else,
    of_racing_deleters_one_wins,
];

async fn a_deletion_of_nothing_is_not_found(on: Subject) -> Checked {
    let index = on.write("file", "x").await?.index();
    for path in ["nothing", "nothing/below", "file/below"] {
        for condition in [
            Condition::Any,
            Condition::Present,
            Condition::Value(Bytes::from_static(b"x")),
            Condition::Value(Bytes::new()),
            Condition::Index(index),
        ] {
            let delete = Delete::new(on.key(path)?).when(condition.clone());
            let answer = on.delete(delete).await;
            refused(
                answer,
                ErrorKind::NotFound,
                &format!("{path} on {condition:?}"),
            )?;
        }
        let answer = on.delete(Delete::tree(on.key(path)?)).await;
        refused(answer, ErrorKind::NotFound, &format!("the tree {path}"))?;
    }
    ensure!(on.read("file").await?.is_some(), "the file stays");
    Ok(())
}

async fn a_deletion_obeys_its_condition(on: Subject) -> Checked {
    let node = on.write("k", "old").await?.node;
    for (condition, _) in conditions(&node)?.fail {
        let delete = Delete::new(node.key.clone()).when(condition.clone());
        let what = format!("on {condition:?}");
        match on.delete(delete).await {
            // To delete what is absent makes no sense, and a store may say just that.
            Err(error)
                if condition == Condition::Absent && error.kind() == ErrorKind::InvalidOptions => {}
            answer => drop(refused(answer, ErrorKind::ConditionFailed, &what)?),
        }
        ensure_eq!(on.read("k").await?.as_ref(), Some(&node), "after {what}");
    }
    for at in 0..conditions(&node)?.hold.len() {
        let node = on.write("k", "old").await?.node;
        let Some(condition) = conditions(&node)?.hold.into_iter().nth(at) else {
            continue;
        };
        let delete = Delete::new(node.key.clone()).when(condition.clone());
        let deleted = on.delete(delete).await?;
        ensure!(
            deleted.index > node.modified,
            "{deleted:?} on {condition:?}"
        );
        ensure_eq!(on.read("k").await?, None, "on {condition:?}");
    }
    Ok(())
}

async fn a_directory_is_deleted_only_with_all_in_it(on: Subject) -> Checked {
    on.write("dir/file", "x").await?;
    let dir = on.key("dir")?;
    let answer = on.delete(Delete::new(dir.clone())).await;
    refused(answer, ErrorKind::NotAFile, "a full directory")?;
    ensure_eq!(on.text("dir/file").await?.as_deref(), Some("x"), "its file");
    on.remove(&on.key("dir/file")?).await?;
    if on.read("dir").await?.is_some() {
        let answer = on.delete(Delete::new(dir.clone())).await;
        refused(answer, ErrorKind::NotAFile, "an empty directory")?;
        on.delete(Delete::tree(dir)).await?;
    }
    ensure_eq!(on.read("dir").await?, None, "in the end");
    Ok(())
}

async fn a_tree_deletion_takes_the_tree_and_nothing_else(on: Subject) -> Checked {
    for path in ["t/a", "t/b/c", "t/_hidden/d", "t2/a", "t-/a", "file"] {
        on.write(path, path).await?;
    }
    on.delete(Delete::tree(on.key("t")?)).await?;
    for path in ["t", "t/a", "t/b", "t/b/c", "t/_hidden", "t/_hidden/d"] {
        ensure_eq!(on.read(path).await?, None, "{path}");
    }
    for path in ["t2/a", "t-/a"] {
        ensure_eq!(on.text(path).await?.as_deref(), Some(path), "{path}");
    }
    on.delete(Delete::tree(on.key("file")?)).await?;
    ensure_eq!(on.read("file").await?, None, "a tree of one file");
    Ok(())
}

async fn of_racing_deleters_one_wins(on: Subject) -> Checked {
    let node = on.write("k", "x").await?.node;
    let race = (0..16).map(|_| {
        let delete = Delete::new(node.key.clone());
        on.delete(delete.when(Condition::Index(node.modified)))
    });
    let mut winners = 0;
    for answer in join_all(race).await {
        match answer {
            Ok(_) => winners += 1,
            lost => drop(refused(lost, ErrorKind::NotFound, "a loser")?),
        }
    }
    ensure_eq!(winners, 1, "winners");
    Ok(())
}
