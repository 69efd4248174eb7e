//! Odd keys and odd values are neither changed, nor confused, nor lost.

use bytes::Bytes;

use super::subject::{Checked, Subject, refused};
use crate::error::ErrorKind;
use crate::key::Key;
use crate::store::{Delete, Expiry, Put, StoreExt, Watch};

checks![
    odd_keys_are_kept_apart_and_as_they_are,
    an_odd_key_is_told_by_a_watch_as_it_is,
    an_odd_directory_holds_appends,
    a_long_key_works,
    values_are_kept_as_they_are,
    bytes_that_are_no_text_are_kept_or_refused,
];

/// Each has a meaning somewhere: in URLs, forms, JSON, shells or paths.
const ODD: &[&str] = &[
    "a b",
    " ",
    "a?b",
    "a#b",
    "a%b",
    "%2F",
    "%41",
    "%",
    "a+b",
    "a&b",
    "a=b",
    "a;b",
    "a:b",
    "a@b",
    "a\"b",
    "a\\b",
    "a'b",
    "a<b>",
    "{}",
    "[0]",
    "*",
    "...",
    "..a",
    "~",
    "$x",
    "ä",
    "日本",
    "😀",
    "\u{2028}",
    "wait=true",
    "key\u{a0}",
    "A",
    "a",
];

async fn odd_keys_are_kept_apart_and_as_they_are(on: Subject) -> Checked {
    for name in ODD {
        let written = on.write(&format!("odd/{name}"), name).await?;
        ensure_eq!(written.node.key.name(), *name, "the key in the answer");
    }
    let mut wanted = ODD.to_vec();
    wanted.sort_unstable();
    ensure_eq!(on.list("odd").await?, wanted, "the list");
    for name in ODD {
        let text = on.text(&format!("odd/{name}")).await?;
        ensure_eq!(text.as_deref(), Some(*name), "the value of {name:?}");
    }
    for (at, name) in ODD.iter().enumerate() {
        on.delete(Delete::new(on.key(&format!("odd/{name}"))?))
            .await?;
        let left = on.list("odd").await?.len();
        ensure_eq!(left, ODD.len() - at - 1, "left after deleting {name:?}");
    }
    Ok(())
}

async fn an_odd_key_is_told_by_a_watch_as_it_is(on: Subject) -> Checked {
    let mut all = on.follow(Watch::tree(on.key("odd")?)).await?;
    for name in ODD {
        let path = format!("odd/{name}/x");
        let mut one = on.follow(Watch::node(on.key(&path)?)).await?;
        let written = on.write(&path, name).await?;
        one.sees_put(&written.node).await?;
        all.sees_put(&written.node).await?;
    }
    Ok(())
}

async fn an_odd_directory_holds_appends(on: Subject) -> Checked {
    for name in ODD {
        let path = format!("odd/{name}");
        let appended = on.ticket(&path, on.tag()).await?;
        let parent = appended.node.key.parent();
        ensure_eq!(
            parent,
            Some(on.key(&path)?),
            "the directory of the new node"
        );
        let nodes = on.children(&on.key(&path)?).await?;
        ensure_eq!(nodes.len(), 1, "children of {name:?}");
    }
    Ok(())
}

async fn a_long_key_works(on: Subject) -> Checked {
    // As much as leaves room for a prefix in front.
    let room = (Key::MAX_LEN * 3 / 4).saturating_sub(on.dir.as_str().len() + 1);
    for path in ["x".repeat(room), "y/".repeat(room / 2 - 1) + "y"] {
        let written = on.write(&path, "long").await?;
        ensure_eq!(written.node.key, on.key(&path)?, "the key in the answer");
        ensure_eq!(on.text(&path).await?.as_deref(), Some("long"), "its value");
    }
    Ok(())
}

async fn values_are_kept_as_they_are(on: Subject) -> Checked {
    let long = "0123456789abcdef".repeat(6 * 1024 + 256);
    let values = [
        "",
        " ",
        "a=b&c=d;e+f %41 %",
        "line\nline\r\n\ttab",
        "nul\u{0}nul",
        "<&>\u{2028}\"\\/",
        "äß 日本 😀",
        "true",
        &long,
    ];
    for (at, value) in values.iter().enumerate() {
        let path = format!("v{at}");
        let short: String = value.chars().take(20).collect();
        let written = on.write(&path, value).await?;
        ensure!(
            written.node.value == value,
            "the answer to writing {short:?}"
        );
        let read = on.text(&path).await?;
        ensure!(
            read.as_deref() == Some(value),
            "{short:?} is not read back as written"
        );
        let appended = on
            .append(crate::store::Append::tagged(
                on.key("jobs")?,
                on.tag(),
                Bytes::copy_from_slice(value.as_bytes()),
                Expiry::Never,
            ))
            .await?;
        let node = on.node(&appended.node.key).await?;
        ensure!(
            node.is_some_and(|node| node.value == value),
            "{short:?} is not read back as appended"
        );
    }
    Ok(())
}

async fn bytes_that_are_no_text_are_kept_or_refused(on: Subject) -> Checked {
    let bytes = Bytes::from_static(&[0, 0x80, 0xff, 0xc0, b'a']);
    let put = Put::new(on.key("v")?, bytes.clone(), Expiry::Never);
    match on.put(put).await {
        Ok(_) => {
            let node = on.read("v").await?;
            ensure_eq!(node.map(|node| node.value), Some(bytes), "the bytes");
        }
        refusal => {
            refused(refusal, ErrorKind::InvalidValue, "bytes that are no text")?;
            ensure_eq!(on.read("v").await?, None, "after the refusal");
        }
    }
    Ok(())
}
