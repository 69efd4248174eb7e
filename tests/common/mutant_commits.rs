//! What a mutant does to the commits that it is asked for.

use bytes::Bytes;
use tenure::embedded::Embedded;
use tenure::store::{Commit, Committed, Condition, Naming, Operation};
use tenure::{Error, ErrorKind, Key, LeaseId, Result, Store, Tag};

use crate::Bug;

pub(super) async fn bend_commit(
    store: &Embedded,
    bug: Option<Bug>,
    mut commit: Commit,
) -> Result<Committed> {
    let appends = |it: &Operation| matches!(it, Operation::Append(_));
    match bug {
        Some(Bug::CommitsHalf) => match store.commit(commit.clone()).await {
            Err(error) => {
                drop(one_by_one(store, commit).await);
                Err(error)
            }
            answer => answer,
        },
        Some(Bug::NamesTheWrongCheck) => {
            let last = commit.checks.last().map(|check| check.key.clone());
            let answer = store.commit(commit).await;
            answer.map_err(|error| error.relocate(last.and_then(|key| key.parent())))
        }
        Some(Bug::CommitsOneByOne) => one_by_one(store, commit).await,
        Some(Bug::DeniesAndCommits) => {
            drop(store.commit(commit).await);
            Err(Error::new(ErrorKind::Unsupported, "no commits here"))
        }
        Some(Bug::AppendsOneByOne) if commit.operations.iter().any(appends) => {
            one_by_one(store, commit).await
        }
        Some(Bug::AppendsPastMarks) => {
            for operation in &mut commit.operations {
                if let Operation::Append(append) = operation {
                    let session = LeaseId::new(append.tag.session()).unwrap();
                    append.tag = Tag::new(session, append.tag.nonce() + 1);
                }
            }
            store.commit(commit).await
        }
        Some(Bug::AppendsOnlyTheFirst) => {
            let mut seen = false;
            let mut first = |it: &Operation| !appends(it) || !std::mem::replace(&mut seen, true);
            commit.operations.retain(&mut first);
            store.commit(commit).await
        }
        Some(Bug::ForgetsTheBodies) => {
            for operation in &mut commit.operations {
                if let Operation::Append(append) = operation {
                    append.body = Bytes::new();
                }
            }
            store.commit(commit).await
        }
        Some(Bug::IgnoresEmpty) => {
            commit.checks.retain(|it| it.condition != Condition::Empty);
            store.commit(commit).await
        }
        Some(Bug::EmptyIsMissing) => {
            for check in &mut commit.checks {
                if check.condition == Condition::Empty {
                    check.condition = Condition::Absent;
                }
            }
            store.commit(commit).await
        }
        Some(Bug::NamesTheWrongLine) => {
            let empty = |key: &Key| {
                let checks = commit.checks.iter();
                let mut wanted = checks.filter(|it| it.condition == Condition::Empty);
                wanted.any(|it| it.key == *key)
            };
            let last = commit.checks.last().map(|check| check.key.clone());
            let answer = store.commit(commit.clone()).await;
            answer.map_err(|error| match error.key().is_some_and(empty) {
                true => error.relocate(last),
                false => error,
            })
        }
        Some(Bug::AppendsRawTogether) => {
            for operation in &mut commit.operations {
                if let Operation::Append(append) = operation {
                    append.naming = Naming::Ticket;
                }
            }
            store.commit(commit).await
        }
        _ => store.commit(commit).await,
    }
}

async fn one_by_one(store: &Embedded, commit: Commit) -> Result<Committed> {
    let (mut nodes, mut last) = (Vec::new(), None);
    for operation in commit.operations {
        match operation {
            Operation::Put(put) => nodes.push(Some(store.put(put).await?.node)),
            Operation::Delete(delete) => {
                last = Some(store.delete(delete).await?.index);
                nodes.push(None);
            }
            Operation::Append(append) => nodes.push(Some(store.append(append).await?.node)),
            _ => unreachable!("there are three operations"),
        }
    }
    let written = nodes.iter().flatten().map(|node| node.modified).max();
    Ok(Committed::new(last.max(written).unwrap(), nodes))
}
