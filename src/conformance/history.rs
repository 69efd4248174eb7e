//! What happens when more is written than a server remembers: etcd v2 keeps 1,000 events.
//!
//! These checks write that much, so they run by themselves.

use futures_util::{StreamExt, stream};

use super::subject::{Checked, Subject, refused};
use crate::error::ErrorKind;
use crate::store::{Change, Update, Watch};

checks![
    an_index_too_old_is_history_lost_or_all_is_told,
    an_idle_watch_outlives_what_others_write,
];

const MANY: usize = 1_100;

/// Writes more to other keys than etcd v2 remembers.
async fn flood(on: &Subject) -> Checked {
    let write = async |number: usize| {
        let path = format!("other/{}", number % 10);
        on.write(&path, &number.to_string()).await
    };
    let mut writes = stream::iter(0..MANY).map(write).buffer_unordered(16);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

async fn an_index_too_old_is_history_lost_or_all_is_told(on: Subject) -> Checked {
    let first = on.write("k", "1").await?.node;
    let second = on.write("k", "2").await?.node;
    flood(&on).await?;
    let mut updates = on.watch(Watch::node(on.key("k")?).from(first.modified));
    let mut wanted = [first, second].into_iter();
    while let Some(item) = updates.next().await {
        match item {
            Ok(Update::Open(_) | Update::Progress(_)) => {}
            Ok(Update::Event(event)) => {
                let node = wanted.next();
                ensure_eq!(
                    Some(event.change),
                    node.map(Change::Put),
                    "the whole history"
                );
                if wanted.len() == 0 {
                    return Ok(());
                }
            }
            lost => {
                refused(lost, ErrorKind::HistoryLost, "the watch's end")?;
                ensure!(wanted.len() == 2, "some history was told, and then none");
                let after = updates.next().await;
                ensure!(
                    after.is_none(),
                    "an error ends the stream, and then came {after:?}"
                );
                return Ok(());
            }
        }
    }
    ensure!(false, "the watch ended without an error");
    Ok(())
}

async fn an_idle_watch_outlives_what_others_write(on: Subject) -> Checked {
    let mut node = on.follow(Watch::node(on.key("t/k")?)).await?;
    let mut tree = on.follow(Watch::tree(on.key("t")?)).await?;
    for round in 0..2 {
        // They are read all the while: a watch that is not may lose what nobody takes.
        let write = async {
            flood(&on).await?;
            on.write("t/k", &round.to_string()).await
        };
        let (written, by_node, by_tree) =
            futures_util::try_join!(write, node.event(), tree.event())?;
        let wanted = (written.index(), Change::Put(written.node));
        for event in [by_node, by_tree] {
            let told = (event.index, event.change);
            ensure_eq!(told, wanted, "the write after the flood");
        }
    }
    Ok(())
}
