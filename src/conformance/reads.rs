//! Reading: absence, directories, lists, pages, freshness, hidden nodes.

use std::num::NonZeroUsize;

use super::subject::{Checked, Subject, names, refused};
use crate::error::ErrorKind;
use crate::store::{Freshness, Get, Page, StoreExt};

checks![
    absence_is_an_empty_view,
    what_was_written_is_read,
    a_directory_reads_as_one,
    children_are_direct_and_in_key_order,
    a_file_has_no_children,
    a_prefix_is_not_a_parent,
    hidden_children_are_listed_only_by_their_own_parent,
    a_view_covers_every_acknowledged_write,
    a_read_is_never_older_than_asked_for,
    a_read_of_any_age_is_a_state_that_was,
    a_keys_only_read_is_the_same_list,
    pages_add_up_to_the_list,
    a_dropped_call_disturbs_no_other,
    an_about_never_changes,
];

async fn absence_is_an_empty_view(on: Subject) -> Checked {
    on.write("there", "x").await?;
    for get in [
        Get::node(on.key("nothing")?),
        Get::children(on.key("nothing")?),
        Get::tree(on.key("nothing")?),
        Get::tree(on.key("there/below")?),
        Get::node(on.key("nothing/deep/down")?),
        Get::children(on.key("nothing/deep/down")?),
        Get::node(on.key("there/below")?),
        Get::children(on.key("there/below")?),
    ] {
        let view = on.get(get.clone()).await?;
        ensure!(view.nodes.is_empty() && !view.more, "{get:?} gave {view:?}");
    }
    Ok(())
}

async fn what_was_written_is_read(on: Subject) -> Checked {
    let written = on.write("a/b", "value").await?;
    let view = on.get(Get::node(on.key("a/b")?)).await?;
    ensure_eq!(
        view.nodes,
        vec![written.node.clone()],
        "the node as written"
    );
    let node = written.node;
    ensure_eq!(node.text(), Some("value"), "its value");
    ensure!(
        !node.is_dir && node.ttl.is_none() && node.lease.is_none(),
        "{node:?}"
    );
    ensure_eq!(node.created, node.modified, "created by its first write");
    ensure!(!view.more, "one node is all there is");
    Ok(())
}

async fn a_directory_reads_as_one(on: Subject) -> Checked {
    on.write("dir/file", "x").await?;
    let Some(dir) = on.read("dir").await? else {
        ensure!(false, "a directory with a file in it is there");
        return Ok(());
    };
    ensure_eq!(dir.key, on.key("dir")?, "its key");
    ensure!(dir.is_dir && dir.value.is_empty(), "{dir:?}");
    Ok(())
}

async fn children_are_direct_and_in_key_order(on: Subject) -> Checked {
    for path in ["b", "10", "a", "B", "9", "c/d/e", "a-b", "é", "~"] {
        on.write(&format!("l/{path}"), path).await?;
    }
    let nodes = on.children(&on.key("l")?).await?;
    let wanted = ["10", "9", "B", "a", "a-b", "b", "c", "~", "é"];
    ensure_eq!(names(&nodes), wanted, "in the order of their bytes");
    for node in &nodes {
        ensure_eq!(
            node.key.parent(),
            Some(on.key("l")?),
            "only direct children"
        );
        let is_dir = node.key.name() == "c";
        ensure_eq!(node.is_dir, is_dir, "{node:?} is a directory");
        let value = if is_dir { "" } else { node.key.name() };
        ensure_eq!(node.text(), Some(value), "the value of {}", node.key);
    }
    Ok(())
}

async fn a_file_has_no_children(on: Subject) -> Checked {
    let file = on.write("file", "x").await?.node.key;
    match on.get(Get::children(file)).await {
        Ok(view) => ensure!(view.nodes.is_empty() && !view.more, "{view:?}"),
        told => drop(refused(
            told,
            ErrorKind::NotADirectory,
            "a file's children",
        )?),
    }
    Ok(())
}

async fn a_prefix_is_not_a_parent(on: Subject) -> Checked {
    on.write("a/x", "").await?;
    on.write("ab/y", "").await?;
    on.write("a-/z", "").await?;
    ensure_eq!(on.list("a").await?, ["x"], "the children of a");
    Ok(())
}

async fn hidden_children_are_listed_only_by_their_own_parent(on: Subject) -> Checked {
    on.write("h/_hidden", "1").await?;
    on.write("h/_dir/inside", "2").await?;
    on.write("h/shown", "3").await?;
    on.write("h/under_score", "4").await?;
    ensure_eq!(
        on.list("h").await?,
        ["shown", "under_score"],
        "what is listed"
    );
    ensure_eq!(
        on.list("h/_dir").await?,
        ["inside"],
        "below a hidden directory"
    );
    ensure_eq!(
        on.text("h/_hidden").await?.as_deref(),
        Some("1"),
        "read by its key"
    );
    ensure_eq!(
        on.text("h/_dir/inside").await?.as_deref(),
        Some("2"),
        "read by its key"
    );
    Ok(())
}

async fn a_view_covers_every_acknowledged_write(on: Subject) -> Checked {
    for round in 0..20 {
        let written = on.write("k", &round.to_string()).await?;
        for get in [Get::node(on.key("k")?), Get::children(on.dir.clone())] {
            let view = on.get(get).await?;
            let index = view.index;
            ensure!(
                index >= written.index(),
                "{index} for a write at {}",
                written.index()
            );
            ensure_eq!(view.nodes, vec![written.node.clone()], "the last write");
        }
    }
    Ok(())
}

async fn a_read_is_never_older_than_asked_for(on: Subject) -> Checked {
    for round in 0..20 {
        let written = on.write("k", &round.to_string()).await?;
        let at_least = Freshness::AtLeast(written.index());
        let view = on.get(Get::node(on.key("k")?).fresh(at_least)).await?;
        ensure!(
            view.index >= written.index(),
            "{} < {}",
            view.index,
            written.index()
        );
        ensure_eq!(view.nodes, vec![written.node], "the write at that index");
    }
    Ok(())
}

async fn a_read_of_any_age_is_a_state_that_was(on: Subject) -> Checked {
    let first = on.write("k", "1").await?;
    let second = on.write("k", "2").await?;
    let view = on
        .get(Get::node(on.key("k")?).fresh(Freshness::Any))
        .await?;
    let wanted = if view.index < first.index() {
        None
    } else if view.index < second.index() {
        Some(first.node)
    } else {
        Some(second.node)
    };
    ensure_eq!(
        view.nodes,
        Vec::from_iter(wanted),
        "the state at {}",
        view.index
    );
    Ok(())
}

async fn a_keys_only_read_is_the_same_list(on: Subject) -> Checked {
    for name in ["a", "b", "c"] {
        on.write(&format!("l/{name}"), name).await?;
    }
    let whole = on.children(&on.key("l")?).await?;
    let keys = on.get(Get::children(on.key("l")?).keys_only()).await?.nodes;
    ensure_eq!(names(&keys), names(&whole), "the same names");
    for (key, node) in keys.iter().zip(&whole) {
        ensure_eq!(key.modified, node.modified, "of {}", node.key);
        ensure!(key.value.is_empty() || key.value == node.value, "{key:?}");
    }
    Ok(())
}

async fn pages_add_up_to_the_list(on: Subject) -> Checked {
    let dir = on.key("l")?;
    for name in ["f", "b", "d", "a", "e", "c"] {
        on.write(&format!("l/{name}"), name).await?;
    }
    let whole = on.children(&dir).await?;
    for limit in [1, 2, 3, 4, 6, 7] {
        let Some(limit) = NonZeroUsize::new(limit) else {
            continue;
        };
        let first = Get::children(dir.clone()).page(Page::first(limit));
        let mut view = on.get(first).await?;
        let mut nodes = Vec::new();
        loop {
            // A store that cannot page gives all of them at once.
            let paged = view.nodes.len() <= limit.get();
            ensure!(paged || !view.more, "{limit} a page, and {view:?}");
            nodes.append(&mut view.nodes);
            if !view.more {
                break;
            }
            let Some(last) = nodes.last() else {
                ensure!(false, "an empty page with more to come");
                return Ok(());
            };
            ensure!(
                nodes.len() < whole.len(),
                "more to come after all {} came",
                whole.len()
            );
            let next = Page::after(limit, last.key.clone(), view.index);
            view = on.get(Get::children(dir.clone()).page(next)).await?;
            ensure!(!view.nodes.is_empty(), "more was promised and nothing came");
        }
        ensure_eq!(names(&nodes), names(&whole), "pages of {limit}");
    }
    Ok(())
}

async fn a_dropped_call_disturbs_no_other(on: Subject) -> Checked {
    for name in ["a", "b"] {
        on.write(name, name).await?;
    }
    for polls in 0..20 {
        // Dropped after so many turns of the runtime: unsent, half sent, or half answered.
        let turns = async {
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
        };
        let (read, write) = (on.read("a"), on.write("c", "dropped"));
        tokio::select! {
            biased;
            () = turns => {}
            _ = async { futures_util::join!(read, write) } => {}
        }
        let read = on.text("b").await?;
        ensure_eq!(read.as_deref(), Some("b"), "a read after a dropped one");
        let written = on.write("d", &polls.to_string()).await?;
        ensure_eq!(
            written.node.text(),
            Some(&*polls.to_string()),
            "a write after a dropped one"
        );
        ensure_eq!(on.read("d").await?, Some(written.node), "and it is read");
    }
    let dropped = on.text("c").await?;
    ensure!(
        dropped.is_none_or(|text| text == "dropped"),
        "a dropped write wrote something else"
    );
    Ok(())
}

async fn an_about_never_changes(on: Subject) -> Checked {
    let about = on.about();
    on.write("k", "v").await?;
    ensure_eq!(on.about(), about, "after a write");
    ensure!(!about.name.is_empty(), "a store has a name");
    Ok(())
}
