//! The file: what comes back, and what is not taken.

use super::*;

fn prefix() -> Key {
    Key::new("/t").unwrap()
}

fn kept() -> Kept {
    let mut entries = Map::new_sync();
    let values: [(&str, &[u8]); 4] = [
        ("/t/text", "grün \"quoted\"\n".as_bytes()),
        ("/t/empty", b""),
        ("/t/bytes", &[0xff, 0x00, 0x80]),
        ("/t/d/x", b"1"),
    ];
    for (key, value) in values {
        let value = Bytes::copy_from_slice(value);
        let created = Index::new(7);
        let stored = Stored { created, value };
        entries.insert_mut(Key::new(key).unwrap(), Arc::new(stored));
    }
    Kept {
        entries,
        index: Index::new(42),
        confirmed: Duration::from_secs(1_800_000_000),
    }
}

fn values(kept: &Kept) -> Vec<(&str, &[u8])> {
    let entries = kept.entries.iter();
    entries
        .map(|(key, stored)| (key.as_str(), &*stored.value))
        .collect()
}

fn written() -> Vec<u8> {
    serde_json::to_vec(&Page::new(&prefix(), &kept())).unwrap()
}

#[test]
fn what_is_written_comes_back_and_without_indexes_of_creation() {
    let back = parse(&written(), &prefix()).unwrap();
    assert_eq!(values(&back), values(&kept()));
    assert_eq!(
        (back.index, back.confirmed),
        (kept().index, kept().confirmed)
    );
    assert!(back.entries.values().all(|stored| stored.created.is_none()));
}

#[test]
fn no_part_of_a_damaged_file_is_taken() {
    let good = written();
    for end in 0..good.len() {
        assert!(parse(&good[..end], &prefix()).is_err(), "cut at {end}");
    }
    let mut refused = 0;
    for at in 0..good.len() {
        for flip in [1_u8, 4, 32] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            match parse(&bad, &prefix()) {
                Err(_) => refused += 1,
                // JSON says some things in two ways: `F` and `f` in hex.
                Ok(same) => assert_eq!(values(&same), values(&kept()), "{flip} at {at}"),
            }
        }
    }
    assert!(refused > good.len() * 2, "{refused}");
}

#[test]
fn a_foreign_file_and_one_of_a_later_version_are_named() {
    let good = String::from_utf8(written()).unwrap();
    let kind = |text: &str, prefix: &str| {
        let error = parse(text.as_bytes(), &Key::new(prefix).unwrap());
        let error = error.unwrap_err();
        println!("{error}");
        error.kind()
    };
    assert_eq!(kind(&good, "/other"), ErrorKind::InvalidOptions);
    assert_eq!(kind("{}", "/t"), ErrorKind::InvalidValue);
    assert_eq!(kind("", "/t"), ErrorKind::InvalidValue);
    // Whatever else a later version may say.
    let later = r#"{"format":"tenure cache","version":2,"pages":[]}"#;
    assert_eq!(kind(later, "/t"), ErrorKind::Unsupported);
    let other = r#"{"format":"somebody's","version":1}"#;
    assert_eq!(kind(other, "/t"), ErrorKind::InvalidValue);
}

#[test]
fn a_file_is_replaced_whole_for_its_owner_only_and_leaves_nothing_beside_it() {
    let dir = std::env::temp_dir().join(format!("tenure-disk-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let (path, entropy) = (dir.join("cache.json"), Entropy::seeded(1));
    assert!(load(&path, &prefix()).unwrap().is_none());
    save(&path, &prefix(), &kept(), &entropy).unwrap();
    let mut next = kept();
    next.entries.remove_mut("/t/text");
    save(&path, &prefix(), &next, &entropy).unwrap();
    let back = load(&path, &prefix()).unwrap().unwrap();
    assert_eq!(values(&back), values(&next));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
    // A directory in its place: the write fails, and what is there stays.
    let taken = dir.join("taken");
    fs::create_dir_all(taken.join("x")).unwrap();
    let error = save(&taken, &prefix(), &kept(), &entropy).unwrap_err();
    assert!(error.to_string().contains("taken"), "{error}");
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["cache.json", "taken"]);
    fs::remove_dir_all(&dir).unwrap();
}
