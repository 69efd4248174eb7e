//! What a mutant does to the trees that it reads.

use tenure::embedded::Embedded;
use tenure::store::{Get, Node, View};
use tenure::{Index, Result, StoreExt};

use crate::Bug;

pub(crate) async fn bend_tree(
    store: &Embedded,
    bug: Option<Bug>,
    get: &Get,
    view: &mut View,
) -> Result<()> {
    match bug {
        Some(Bug::TreeIsInTreeOrder) => {
            let segments =
                |node: &Node| -> Vec<_> { node.key.segments().map(str::to_owned).collect() };
            view.nodes.sort_by_key(segments);
        }
        Some(Bug::TreeIsOneLevel) => view.nodes = store.children(&get.key).await?,
        Some(Bug::TreeLosesTheTop) => view.nodes.retain(|node| node.key != get.key),
        Some(Bug::TreeShowsHidden) => {
            let hidden = get.key.join("a")?.join("_x")?;
            view.nodes.extend(store.node(&hidden).await?);
        }
        Some(Bug::TreeSaysAnOldIndex) => view.index = Index::new(1).unwrap(),
        Some(Bug::KeysOnlyTreeLosesOne) if get.keys_only => drop(view.nodes.pop()),
        _ => {}
    }
    Ok(())
}
