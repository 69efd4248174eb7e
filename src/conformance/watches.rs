//! Watching: everything in scope, in order, once; and nothing else.
//!
//! That something is *not* told shows by what is told next: a write that follows it.

use futures_util::future::try_join_all;

use super::subject::{Checked, Following, Subject};
use crate::key::Key;
use crate::store::{Change, Delete, Expiry, StoreExt, Watch};

checks![
    a_watch_opens_at_what_is_known,
    a_node_watch_tells_its_node_and_no_other,
    a_tree_watch_tells_all_below_and_itself,
    a_watch_from_an_index_begins_there_and_goes_on,
    a_watch_from_an_index_to_come_waits_for_it,
    a_deletes_only_watch_tells_no_writes,
    a_deletion_is_told_as_no_expiry,
    a_tree_deletion_is_told_at_one_index,
    a_deletion_above_is_told_to_those_below,
    hidden_nodes_are_told_only_below_the_hidden_segment,
    a_neighbour_is_never_told,
    refused_writes_are_never_told,
    two_hundred_racing_writes_are_told_once_and_in_order,
    a_dropped_watch_leaves_the_others_alone,
];

async fn a_watch_opens_at_what_is_known(on: Subject) -> Checked {
    let written = on.write("k", "1").await?;
    let mut watch = on.follow(Watch::node(on.key("k")?)).await?;
    let opened = watch.opened;
    ensure!(
        opened >= written.index(),
        "open at {opened} after {written:?}"
    );
    let next = on.write("k", "2").await?;
    ensure!(next.index() > opened, "open at {opened}, and then {next:?}");
    watch.sees_put(&next.node).await
}

async fn a_node_watch_tells_its_node_and_no_other(on: Subject) -> Checked {
    let mut watch = on.follow(Watch::node(on.key("d")?)).await?;
    on.write("d2", "x").await?;
    let file = on.write("d", "x").await?;
    watch.sees_put(&file.node).await?;
    let deleted = on.delete(Delete::new(on.key("d")?)).await?;
    ensure_eq!(
        watch.sees_delete(&on.key("d")?).await?.0,
        deleted.index,
        "its index"
    );
    on.write("d/below", "x").await?;
    on.remove(&on.key("d/below")?).await?;
    if !on.about().directories {
        let file = on.write("d", "y").await?;
        return watch.sees_put(&file.node).await;
    }
    on.delete(Delete::tree(on.key("d")?)).await?;
    watch.sees_delete(&on.key("d")?).await?;
    Ok(())
}

async fn a_tree_watch_tells_all_below_and_itself(on: Subject) -> Checked {
    let mut watch = on.follow(Watch::tree(on.key("t")?)).await?;
    for path in ["t/a", "t/b/c/d", "t/a", "t/z"] {
        let written = on.write(path, path).await?;
        watch.sees_put(&written.node).await?;
    }
    let appended = on.ticket("t/line", on.tag()).await?;
    watch.sees_put(&appended.node).await?;
    let replaced = on.write("t/a", "new").await?.index();
    watch.event().await?;
    let replaced = on
        .replace(&on.key("t/a")?, "newer".into(), replaced, Expiry::Never)
        .await?;
    watch.sees_put(&replaced.node).await?;
    on.remove(&on.key("t/b/c/d")?).await?;
    watch.sees_delete(&on.key("t/b/c/d")?).await?;
    on.delete(Delete::tree(on.key("t")?)).await?;
    let files = [on.key("t/a")?, on.key("t/z")?, appended.node.key];
    watch.sees_tree_deleted(&on, &on.key("t")?, &files).await?;
    let file = on.write("t", "now a file").await?;
    watch.sees_put(&file.node).await
}

async fn a_watch_from_an_index_begins_there_and_goes_on(on: Subject) -> Checked {
    let mut nodes = Vec::new();
    for round in 0..5 {
        nodes.push(on.write("d/k", &round.to_string()).await?.node);
    }
    for skip in [0, 1, 4] {
        let Some(first) = nodes.get(skip).map(|node| node.modified) else {
            continue;
        };
        for watch in [Watch::tree(on.key("d")?), Watch::node(on.key("d/k")?)] {
            let mut watch = on.follow(watch.from(first)).await?;
            for node in nodes.iter().skip(skip) {
                watch.sees_put(node).await?;
            }
            nodes.push(on.write("d/k", "live").await?.node);
            if let Some(last) = nodes.last() {
                watch.sees_put(last).await?;
            }
        }
    }
    Ok(())
}

async fn a_watch_from_an_index_to_come_waits_for_it(on: Subject) -> Checked {
    let index = on.write("k", "before").await?.index();
    let mut watch = on
        .follow(Watch::node(on.key("k")?).from(index.next()))
        .await?;
    let next = on.write("k", "after").await?;
    watch.sees_put(&next.node).await
}

async fn a_deletes_only_watch_tells_no_writes(on: Subject) -> Checked {
    let first = on.write("t/a", "x").await?.index();
    let tree = Watch::tree(on.key("t")?).deletes_only();
    let mut live = on.follow(tree.clone()).await?;
    let mut past = on.follow(tree.from(first)).await?;
    for path in ["t/a", "t/b"] {
        on.write(path, "y").await?;
        on.ticket("t/line", on.tag()).await?;
        let deleted = on.delete(Delete::new(on.key(path)?)).await?;
        for watch in [&mut live, &mut past] {
            let (index, _) = watch.sees_delete(&on.key(path)?).await?;
            ensure_eq!(index, deleted.index, "the index of the deletion");
        }
    }
    Ok(())
}

async fn a_deletion_is_told_as_no_expiry(on: Subject) -> Checked {
    let node = on.write("k", "x").await?.node;
    let mut watch = on.follow(Watch::node(node.key.clone())).await?;
    on.remove(&node.key).await?;
    let (_, expired) = watch.sees_delete(&node.key).await?;
    ensure!(!expired, "a deletion on purpose is no expiry");
    Ok(())
}

async fn a_tree_deletion_is_told_at_one_index(on: Subject) -> Checked {
    for path in ["t/sub/a", "t/sub/b/c", "t/sub/d", "t/other"] {
        on.write(path, "x").await?;
    }
    let mut watch = on.follow(Watch::tree(on.key("t")?)).await?;
    let deleted = on.delete(Delete::tree(on.key("t/sub")?)).await?;
    let files = [on.key("t/sub/a")?, on.key("t/sub/b/c")?, on.key("t/sub/d")?];
    let told = watch
        .sees_tree_deleted(&on, &on.key("t/sub")?, &files)
        .await?;
    ensure_eq!(told, deleted.index, "the index of the deletion");
    let next = on.write("t/other", "y").await?;
    watch.sees_put(&next.node).await
}

async fn a_deletion_above_is_told_to_those_below(on: Subject) -> Checked {
    let first = on.write("top/mid/dir/file", "x").await?.index();
    let watches = [
        Watch::tree(on.key("top/mid/dir")?),
        Watch::node(on.key("top/mid/dir/file")?),
        Watch::tree(on.key("top/mid")?).deletes_only(),
        Watch::tree(on.key("top/mid/dir")?).from(first.next()),
    ];
    let mut open = Vec::new();
    for watch in watches {
        open.push((watch.key.clone(), on.follow(watch).await?));
    }
    let deleted = on.delete(Delete::tree(on.key("top")?)).await?;
    for (key, watch) in &mut open {
        let event = watch.event().await?;
        // Where there are no directories what was in them is deleted, and that is told.
        let inside = !on.about().directories && event.removes(&on.key("top/mid/dir/file")?);
        ensure!(
            event.removes(key) || inside,
            "{key} is gone, and its watch says {event:?}"
        );
        ensure_eq!(event.index, deleted.index, "the index of the deletion");
    }
    let again = on.write("top/mid/dir/file", "y").await?;
    for (_, watch) in open.iter_mut().take(2) {
        watch.sees_put(&again.node).await?;
    }
    Ok(())
}

async fn hidden_nodes_are_told_only_below_the_hidden_segment(on: Subject) -> Checked {
    let first = on.write("t/begin", "x").await?.index();
    let above = Watch::tree(on.key("t")?);
    let mut live = on.follow(above.clone()).await?;
    let mut below = on.follow(Watch::tree(on.key("t/_h")?)).await?;
    let mut itself = on.follow(Watch::node(on.key("t/_h/k")?)).await?;
    let hidden = on.write("t/_h/k", "hidden").await?;
    on.write("t/a/_deep/k", "hidden").await?;
    let shown = on.write("t/shown_", "x").await?;
    live.sees_put(&shown.node).await?;
    below.sees_put(&hidden.node).await?;
    itself.sees_put(&hidden.node).await?;
    // The same from the past.
    let mut past = on.follow(above.from(first.next())).await?;
    past.sees_put(&shown.node).await?;
    let mut below = on.follow(Watch::tree(on.key("t/_h")?).from(first)).await?;
    below.sees_put(&hidden.node).await
}

async fn a_neighbour_is_never_told(on: Subject) -> Checked {
    let first = on.write("delta/x", "x").await?;
    let paths = ["de/x", "del/x", "delta2/x", "delta-/x"];
    for path in paths {
        on.write(path, "x").await?;
    }
    let tree = Watch::tree(on.key("delta")?);
    let mut live = on.follow(tree.clone()).await?;
    for path in paths {
        on.write(path, "y").await?;
        on.remove(&on.key(path)?).await?;
        if on.about().directories {
            let top = on.key(path)?.parent().unwrap_or_else(Key::root);
            on.delete(Delete::tree(top)).await?;
        }
    }
    let mut past = on.follow(tree.from(first.index())).await?;
    past.sees_put(&first.node).await?;
    let next = on.write("delta/x", "z").await?;
    live.sees_put(&next.node).await?;
    past.sees_put(&next.node).await
}

async fn refused_writes_are_never_told(on: Subject) -> Checked {
    let first = on.write("k", "x").await?;
    let mut watch = on.follow(Watch::tree(on.dir.clone())).await?;
    let refused = on.create(&on.key("k")?, "y".into(), Expiry::Never).await;
    ensure!(
        refused.is_err(),
        "a creation where something is: {refused:?}"
    );
    let refused = on.remove(&on.key("nothing")?).await?;
    ensure_eq!(refused, None, "a deletion of nothing");
    let next = on.write("k", "z").await?;
    ensure!(next.index() > first.index(), "{next:?} after {first:?}");
    watch.sees_put(&next.node).await
}

async fn two_hundred_racing_writes_are_told_once_and_in_order(on: Subject) -> Checked {
    let mut watch = on.follow(Watch::tree(on.key("t")?)).await?;
    let write = async |writer: u32| {
        let mut nodes = Vec::new();
        for round in 0..25 {
            let path = format!("t/{}", (writer + round) % 10);
            let value = format!("{writer} {round}");
            nodes.push(on.write(&path, &value).await?.node);
        }
        Checked::Ok(nodes)
    };
    let read = async {
        let mut told = Vec::new();
        while told.len() < 200 {
            told.push(watch.event().await?);
        }
        Checked::Ok(told)
    };
    let (written, told) = futures_util::try_join!(try_join_all((0..8).map(write)), read)?;
    let mut written: Vec<_> = written.into_iter().flatten().collect();
    written.sort_unstable_by_key(|node| node.modified);
    for (node, event) in written.iter().zip(&told) {
        ensure_eq!(
            (&event.key, event.index),
            (&node.key, node.modified),
            "in order"
        );
        let value = match &event.change {
            Change::Put(node) => node.text(),
            Change::Delete { .. } => None,
        };
        ensure_eq!(value, node.text(), "the value of {}", event.index);
    }
    let next = on.write("t/next", "x").await?;
    watch.sees_put(&next.node).await
}

async fn a_dropped_watch_leaves_the_others_alone(on: Subject) -> Checked {
    let open = || async { on.follow(Watch::tree(on.key("t")?)).await };
    let (dropped, mut kept): (Following, Following) = (open().await?, open().await?);
    let first = on.write("t/k", "1").await?;
    drop(dropped);
    let second = on.write("t/k", "2").await?;
    kept.sees_put(&first.node).await?;
    kept.sees_put(&second.node).await?;
    // A watch that goes on where another stopped misses nothing.
    let mut next = on
        .follow(Watch::tree(on.key("t")?).from(second.index()))
        .await?;
    next.sees_put(&second.node).await?;
    let third = on.write("t/k", "3").await?;
    next.sees_put(&third.node).await
}
