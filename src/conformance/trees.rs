//! Reading whole trees: what is in them, in which order, at which index.

use std::num::NonZeroUsize;

use super::subject::{Checked, Subject};
use crate::key::Key;
use crate::store::{Freshness, Get, Node, Page, StoreExt};

checks![
    a_tree_is_the_node_and_all_below_in_key_order,
    a_tree_of_a_file_is_the_file,
    hidden_nodes_are_in_a_tree_only_below_the_hidden_segment,
    a_tree_is_read_at_one_index,
    a_keys_only_tree_is_the_same_tree,
    pages_add_up_to_the_tree,
];

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
        if on.about().directories {
            ensure_eq!(nodes, whole, "pages of {limit}");
        } else {
            // What is only shown as a directory need not be on any page.
            ensure_eq!(files(&nodes), files(&whole), "pages of {limit}");
        }
    }
    Ok(())
}
