//! Reading: absence, directories, lists, pages, freshness, hidden nodes.

use std::num::NonZeroUsize;

use super::subject::{Checked, Subject, names, refused};
use crate::error::ErrorKind;
use crate::key::Key;
use crate::store::{Freshness, Get, Node, Page, StoreExt};

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
    a_tree_is_the_node_and_all_below_in_key_order,
    a_tree_of_a_file_is_the_file,
    hidden_nodes_are_in_a_tree_only_below_the_hidden_segment,
    a_tree_is_read_at_one_index,
    a_keys_only_tree_is_the_same_tree,
    pages_add_up_to_the_tree,
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

/// The files among them: not every store has directories.
fn files(nodes: &[Node]) -> Vec<&Node> {
    nodes.iter().filter(|node| !node.is_dir).collect()
}

/// The keys of the files among them, from `top` on.
fn file_names<'a>(nodes: &'a [Node], top: &Key) -> Vec<&'a str> {
    let files = files(nodes).into_iter();
    files.filter_map(|node| node.key.below(top)).collect()
}

async fn a_tree_is_the_node_and_all_below_in_key_order(on: Subject) -> Checked {
    let top = on.key("t")?;
    for path in ["b/c/d", "a-b", "a/z", "a/x/1", "c", "10", "9"] {
        on.write(&format!("t/{path}"), path).await?;
    }
    on.write("tt/x", "a neighbour").await?;
    on.write("t-", "a neighbour").await?;
    let view = on.get(Get::tree(top.clone())).await?;
    let wanted = ["10", "9", "a-b", "a/x/1", "a/z", "b/c/d", "c"];
    ensure_eq!(file_names(&view.nodes, &top), wanted, "the files");
    ensure!(!view.more, "that is all");
    ensure!(
        view.nodes.is_sorted_by(|a, b| a.key < b.key),
        "in the order of the keys, each once"
    );
    for node in &view.nodes {
        ensure!(node.key.is_within(&top), "{node:?} is not in the tree");
        ensure_eq!(
            on.node(&node.key).await?.as_ref(),
            Some(node),
            "as it is read by itself"
        );
    }
    let dir = on.read("t/b/c").await?;
    let listed = view
        .nodes
        .iter()
        .find(|node| node.key.name() == "c" && node.is_dir);
    ensure_eq!(listed, dir.as_ref(), "a directory, where there are any");
    Ok(())
}

async fn a_tree_of_a_file_is_the_file(on: Subject) -> Checked {
    let written = on.write("f", "x").await?;
    on.write("fg", "y").await?;
    let nodes = on.tree(&on.key("f")?).await?;
    ensure_eq!(nodes, vec![written.node], "the tree of a file");
    Ok(())
}

async fn hidden_nodes_are_in_a_tree_only_below_the_hidden_segment(on: Subject) -> Checked {
    for path in ["h/a/_x", "h/_d/in/side", "h/_f", "h/shown", "h/a/b"] {
        on.write(path, "").await?;
    }
    let (top, hidden) = (on.key("h")?, on.key("h/_d")?);
    let nodes = on.tree(&top).await?;
    ensure_eq!(file_names(&nodes, &top), ["a/b", "shown"], "what is shown");
    let shown = nodes.iter().all(|node| !node.key.is_hidden_below(&top));
    ensure!(shown, "a hidden directory is shown: {nodes:?}");
    let nodes = on.tree(&hidden).await?;
    ensure_eq!(file_names(&nodes, &hidden), ["in/side"], "below it");
    Ok(())
}

async fn a_tree_is_read_at_one_index(on: Subject) -> Checked {
    for round in 0..20 {
        let written = on
            .write(&format!("o/{}/k", round % 3), &round.to_string())
            .await?;
        for freshness in [Freshness::Linearizable, Freshness::AtLeast(written.index())] {
            let view = on.get(Get::tree(on.key("o")?).fresh(freshness)).await?;
            let (index, newest) = (
                view.index,
                view.nodes.iter().map(|node| node.modified).max(),
            );
            ensure!(
                index >= written.index(),
                "{index} for a write at {}",
                written.index()
            );
            ensure!(newest <= Some(index), "{newest:?} in a view at {index}");
            ensure!(
                view.nodes.contains(&written.node),
                "{:?} is not in it",
                written.node
            );
        }
    }
    Ok(())
}

async fn a_keys_only_tree_is_the_same_tree(on: Subject) -> Checked {
    for path in ["a", "b/c", "b/d/e"] {
        on.write(&format!("t/{path}"), path).await?;
    }
    let whole = on.tree(&on.key("t")?).await?;
    let keys = on.get(Get::tree(on.key("t")?).keys_only()).await?.nodes;
    let stripped = |nodes: Vec<Node>| -> Vec<_> {
        let nodes = nodes.into_iter();
        nodes
            .map(|node| (node.key, node.is_dir, node.modified))
            .collect()
    };
    ensure_eq!(stripped(keys), stripped(whole), "the same nodes");
    Ok(())
}

async fn pages_add_up_to_the_tree(on: Subject) -> Checked {
    let top = on.key("t")?;
    for path in ["b", "a/x", "a-b", "c/d/e", "c/f"] {
        on.write(&format!("t/{path}"), path).await?;
    }
    let whole = on.tree(&top).await?;
    for limit in [1, 2, 5, 20] {
        let Some(limit) = NonZeroUsize::new(limit) else {
            continue;
        };
        let mut page = Page::first(limit);
        let mut nodes: Vec<Node> = Vec::new();
        loop {
            let mut view = on.get(Get::tree(top.clone()).page(page)).await?;
            // A store that cannot page gives all of them at once.
            let paged = view.nodes.len() <= limit.get();
            ensure!(paged || !view.more, "{limit} a page, and {view:?}");
            nodes.append(&mut view.nodes);
            ensure!(nodes.len() <= whole.len(), "more than all of them");
            let Some(last) = nodes.last().filter(|_| view.more) else {
                break;
            };
            page = Page::after(limit, last.key.clone(), view.index);
        }
        ensure_eq!(nodes, whole, "pages of {limit}");
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
