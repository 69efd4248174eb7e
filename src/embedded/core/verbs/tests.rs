//! Each is a fact about etcd 3.4's v2 store.

use super::*;
use crate::embedded::core::rig::{core, file, index, key, refused, secs, told};

const NOTHING: Expected<'_> = Expected {
    value: None,
    index: None,
};

fn value(value: &str) -> Expected<'_> {
    Expected {
        value: Some(value.as_bytes()),
        index: None,
    }
}

fn keys(nodes: &[Node]) -> Vec<&str> {
    nodes.iter().map(|node| node.key.as_str()).collect()
}

#[test]
fn every_mutation_takes_one_index_and_a_refusal_takes_none() {
    let mut core = core();
    assert_eq!(core.have("/a", "1").index(), index(4));
    assert_eq!(core.have("/x/y/z", "1").index(), index(5));
    core.create(&key("/a"), file("2"), Life::Forever)
        .unwrap_err();
    core.delete(&key("/none"), false, false).unwrap_err();
    assert_eq!(
        core.delete(&key("/x"), false, true).unwrap().index(),
        index(6)
    );
    assert_eq!(core.index(), index(6));
}

#[test]
fn a_set_is_a_new_node_and_update_and_swap_keep_it() {
    let mut core = core();
    core.have("/a", "1");
    let updated = core.update(&key("/a"), file("2"), Life::Forever).unwrap();
    assert_eq!(
        (updated.node.created, updated.index()),
        (index(4), index(5))
    );
    let swapped = core
        .compare_and_swap(&key("/a"), value("2"), file("3"), Life::Forever)
        .unwrap();
    assert_eq!(
        (swapped.node.created, swapped.index()),
        (index(4), index(6))
    );
    let set = core.have("/a", "4");
    assert_eq!((set.node.created, set.index()), (index(7), index(7)));
    assert_eq!(core.peek(&key("/a")).unwrap(), set.node);
}

#[test]
fn an_event_tells_what_was_there_before() {
    let mut core = core();
    let first = core.have("/a", "1");
    assert_eq!(first.previous, None);
    let second = core.have("/a", "2");
    assert_eq!(second.previous.as_ref(), Some(&first.node));
    let gone = core.delete(&key("/a"), false, false).unwrap();
    assert_eq!(gone.previous.as_ref(), Some(&second.node));
    assert_eq!(
        (gone.node.value.as_ref(), gone.node.created),
        (None, index(5))
    );
}

#[test]
fn only_what_was_not_there_counts_as_created() {
    let mut core = core();
    assert!(core.have("/a", "1").is_creation());
    assert!(!core.have("/a", "2").is_creation());
    assert!(
        !core
            .update(&key("/a"), file("3"), Life::Forever)
            .unwrap()
            .is_creation()
    );
    assert!(
        core.create(&key("/b"), file(""), Life::Forever)
            .unwrap()
            .is_creation()
    );
    let ordered = core.create_in_order(&key("/d"), file(""), Life::Forever);
    assert!(ordered.unwrap().is_creation());
}

#[test]
fn a_write_without_a_ttl_makes_a_key_permanent() {
    type Write = fn(&mut Core) -> Outcome<Arc<Event>>;
    let writes: [Write; 3] = [
        |core| core.set(&key("/a"), file("2"), Life::Forever),
        |core| core.update(&key("/a"), file("2"), Life::Forever),
        |core| core.compare_and_swap(&key("/a"), value("1"), file("2"), Life::Forever),
    ];
    for write in writes {
        let mut core = core();
        core.set(&key("/a"), file("1"), secs(5)).unwrap();
        assert_eq!(write(&mut core).unwrap().node.expires, None);
        core.go_to(100.0);
        assert_eq!(core.value("/a").as_deref(), Some("2"));
    }
}

#[test]
fn a_missing_key_is_reported_by_its_first_missing_component() {
    let mut core = core();
    core.have("/a/b", "");
    assert_eq!(refused(core.read(&key("/a/x/y"), false)), "100 /a/x");
    assert_eq!(refused(core.delete(&key("/zz"), false, false)), "100 /zz");
    let update = core.update(&key("/a/x"), file(""), Life::Forever);
    assert_eq!(refused(update), "100 /a/x");
    let swap = core.compare_and_swap(&key("/q/x"), NOTHING, file(""), Life::Forever);
    assert_eq!(refused(swap), "100 /q");
}

#[test]
fn nothing_lies_below_a_file() {
    let mut core = core();
    core.have("/f", "1");
    let below = key("/f/x/y");
    assert_eq!(refused(core.read(&below, false)), "104 /f");
    assert_eq!(refused(core.set(&below, file(""), Life::Forever)), "104 /f");
    assert_eq!(
        refused(core.create(&below, file(""), Life::Forever)),
        "104 /f"
    );
    let ordered = core.create_in_order(&key("/f"), file(""), Life::Forever);
    assert_eq!(refused(ordered), "104 /f");
    assert_eq!(refused(core.delete(&below, false, true)), "104 /f");
}

#[test]
fn a_directory_is_never_overwritten_but_may_replace_a_file() {
    let mut core = core();
    core.set(&key("/d"), Payload::Dir, Life::Forever).unwrap();
    assert_eq!(
        refused(core.set(&key("/d"), Payload::Dir, Life::Forever)),
        "102 /d"
    );
    assert_eq!(
        refused(core.set(&key("/d"), file(""), Life::Forever)),
        "102 /d"
    );
    assert_eq!(
        refused(core.create(&key("/d"), file(""), Life::Forever)),
        "105 /d"
    );
    let swap = core.compare_and_swap(&key("/d"), NOTHING, file(""), Life::Forever);
    assert_eq!(refused(swap), "102 /d");
    assert_eq!(
        refused(core.compare_and_delete(&key("/d"), NOTHING)),
        "102 /d"
    );

    let before = core.have("/f", "1");
    let event = core.set(&key("/f"), Payload::Dir, Life::Forever).unwrap();
    assert_eq!((event.action, event.node.dir), (Action::Set, true));
    assert_eq!(event.previous.as_ref(), Some(&before.node));
}

#[test]
fn the_root_is_read_only() {
    let mut core = core();
    let root = Key::root();
    assert_eq!(refused(core.set(&root, file(""), Life::Forever)), "107 /");
    assert_eq!(refused(core.set(&root, Payload::Keep, secs(1))), "107 /");
    assert_eq!(
        refused(core.create(&root, Payload::Dir, Life::Forever)),
        "107 /"
    );
    assert_eq!(
        refused(core.update(&root, file(""), Life::Forever)),
        "107 /"
    );
    let swap = core.compare_and_swap(&root, NOTHING, file(""), Life::Forever);
    assert_eq!(refused(swap), "107 /");
    assert_eq!(refused(core.delete(&root, true, true)), "107 /");
    assert_eq!(refused(core.compare_and_delete(&root, NOTHING)), "102 /");
    assert!(core.read(&root, true).unwrap().nodes.is_empty());
    let ordered = core
        .create_in_order(&root, file(""), Life::Forever)
        .unwrap();
    assert_eq!(told(&ordered), "4 create /00000000000000000004");
}

#[test]
fn a_directory_is_deleted_only_when_asked_for_and_as_one_event() {
    let mut core = core();
    core.have("/d/x/y", "");
    let dir = key("/d");
    assert_eq!(refused(core.delete(&dir, false, false)), "102 /d");
    assert_eq!(refused(core.delete(&dir, true, false)), "108 /d");
    let watcher = core.follow("/", None).unwrap();
    let event = core.delete(&dir, false, true).unwrap();
    assert!(event.node.dir && event.previous.as_ref().unwrap().dir);
    assert_eq!(core.unread(watcher), ["5 delete /d"]);

    core.set(&dir, Payload::Dir, Life::Forever).unwrap();
    assert_eq!(
        told(&core.delete(&dir, true, false).unwrap()),
        "7 delete /d"
    );
}

#[test]
fn a_failed_comparison_says_what_was_expected_and_what_was_found() {
    let mut core = core();
    core.have("/a", "cur");
    let (good, bad) = (Some(index(4)), Some(index(9)));
    let (is, is_not) = (Some(&b"cur"[..]), Some(&b"prev"[..]));
    for (value, index, cause) in [
        (is_not, None, "101 [prev != cur]"),
        (is_not, good, "101 [prev != cur]"),
        (None, bad, "101 [9 != 4]"),
        (is, bad, "101 [9 != 4]"),
        (is_not, bad, "101 [prev != cur] [9 != 4]"),
    ] {
        let expected = Expected { value, index };
        let swap = core.compare_and_swap(&key("/a"), expected, file("new"), Life::Forever);
        assert_eq!(refused(swap), cause);
        assert_eq!(
            refused(core.compare_and_delete(&key("/a"), expected)),
            cause
        );
    }
    let both = Expected {
        value: is,
        index: good,
    };
    let event = core.compare_and_delete(&key("/a"), both).unwrap();
    assert_eq!(told(&event), "5 compareAndDelete /a");
}

#[test]
fn an_updated_directory_changes_only_its_life_and_never_its_index() {
    let mut core = core();
    core.have("/d/x", "");
    let dir = key("/d");
    assert_eq!(
        refused(core.update(&dir, file("v"), Life::Forever)),
        "102 /d"
    );
    let event = core.update(&dir, file(""), secs(5)).unwrap();
    assert_eq!((event.index(), event.node.created), (index(5), index(4)));
    let read = core.peek(&dir).unwrap();
    assert_eq!((read.dir, read.modified), (true, index(4)));
    assert_eq!(core.value("/d/x").as_deref(), Some(""));
    core.go_to(5.0);
    assert_eq!(core.peek(&dir), None);
}

#[test]
fn a_file_updated_as_a_directory_is_emptied() {
    let mut core = core();
    core.have("/a", "1");
    core.update(&key("/a"), Payload::Dir, Life::Forever)
        .unwrap();
    assert_eq!(core.value("/a").as_deref(), Some(""));
}

#[test]
fn a_refresh_keeps_the_value_and_wakes_nobody_but_takes_an_index() {
    let mut core = core();
    let a = key("/a");
    core.set(&a, file("v"), secs(2)).unwrap();
    let watcher = core.follow("/", Some(4)).unwrap();
    assert_eq!(core.unread(watcher), ["4 set /a"]);

    let event = core.update(&a, Payload::Keep, secs(10)).unwrap();
    assert!(event.refresh);
    assert_eq!((event.index(), event.node.created), (index(5), index(4)));
    let swapped = core.compare_and_swap(&a, value("v"), Payload::Keep, secs(10));
    assert_eq!(swapped.unwrap().action, Action::CompareAndSwap);
    let set = core.set(&a, Payload::Keep, secs(10)).unwrap();
    assert_eq!((set.index(), set.node.created), (index(7), index(7)));

    core.go_to(9.0);
    assert_eq!(core.value("/a").as_deref(), Some("v"));
    core.have("/b", "");
    assert_eq!(core.unread(watcher), ["8 set /b"]);
    let replayed = core.follow("/", Some(5)).unwrap();
    assert_eq!(core.unread(replayed), ["8 set /b"]);
}

#[test]
fn a_refresh_wants_a_ttl_and_something_to_refresh() {
    let mut core = core();
    core.have("/d/a", "v");
    let (dir, a, none) = (key("/d"), key("/d/a"), key("/none"));
    for outcome in [
        core.set(&a, Payload::Keep, Life::Forever),
        core.update(&a, Payload::Keep, Life::Forever),
    ] {
        assert_eq!(refused(outcome), "212 ");
    }
    assert_eq!(
        refused(core.set(&none, Payload::Keep, secs(1))),
        "100 /none"
    );
    assert_eq!(
        refused(core.update(&none, Payload::Keep, secs(1))),
        "100 /none"
    );
    assert_eq!(refused(core.set(&dir, Payload::Keep, secs(1))), "102 /d");
    assert!(core.update(&dir, Payload::Keep, secs(1)).unwrap().node.dir);
    core.create(&none, Payload::Keep, secs(1)).unwrap();
    assert_eq!(core.value("/none").as_deref(), Some(""));
}

#[test]
fn a_node_created_in_order_is_named_by_its_index_in_20_digits() {
    let mut core = core();
    core.have("/elsewhere", "");
    let event = core
        .create_in_order(&key("/q/jobs"), file("v"), secs(5))
        .unwrap();
    assert_eq!(told(&event), "5 create /q/jobs/00000000000000000005");
    assert_eq!(event.node.expires, Some(std::time::Duration::from_secs(5)));
    let dir = core.create_in_order(&key("/q/jobs"), Payload::Dir, Life::Forever);
    assert!(dir.unwrap().node.dir);
    let long = Key::new(format!("/{}", "x".repeat(2040))).unwrap();
    let refusal = core
        .create_in_order(&long, file(""), Life::Forever)
        .unwrap_err();
    assert_eq!(refusal.code, Code::InvalidField);
}

#[test]
fn a_listing_is_sorted_and_leaves_out_what_is_hidden_at_every_depth() {
    let mut core = core();
    for path in ["/d/b", "/d/a", "/d/s/z", "/d/s/_h", "/d/_h/x", "/_top"] {
        core.have(path, "");
    }
    let shallow = core.read(&key("/d"), false).unwrap();
    assert_eq!(keys(&shallow.nodes), ["/d/a", "/d/b", "/d/s"]);
    assert!(shallow.nodes[2].nodes.is_empty());
    let deep = core.read(&key("/d"), true).unwrap();
    assert_eq!(keys(&deep.nodes[2].nodes), ["/d/s/z"]);
    let hidden = core.read(&key("/d/_h"), true).unwrap();
    assert_eq!(keys(&hidden.nodes), ["/d/_h/x"]);
    assert_eq!(keys(&core.read(&Key::root(), false).unwrap().nodes), ["/d"]);
}

#[test]
fn directories_above_are_made_for_ever_and_without_an_event() {
    let mut core = core();
    let watcher = core.follow("/", None).unwrap();
    core.set(&key("/a/b/c"), file(""), secs(1)).unwrap();
    assert_eq!(core.peek(&key("/a/b")).unwrap().created, index(4));
    core.go_to(2.0);
    assert_eq!(core.unread(watcher), ["4 set /a/b/c", "5 expire /a/b/c"]);
    let left = core.peek(&key("/a/b")).unwrap();
    assert_eq!(
        (left.dir, left.expires, left.modified),
        (true, None, index(4))
    );
}

#[test]
fn keys_expire_in_order_each_with_its_own_index_and_never_early() {
    let mut core = core();
    let watcher = core.follow("/", None).unwrap();
    core.set(&key("/late"), file(""), secs(3)).unwrap();
    core.set(&key("/b"), file(""), secs(2)).unwrap();
    core.set(&key("/a"), file(""), secs(2)).unwrap();
    core.unread(watcher);
    core.go_to(1.999);
    assert!(core.unread(watcher).is_empty());
    core.go_to(10.0);
    assert_eq!(
        core.unread(watcher),
        ["7 expire /a", "8 expire /b", "9 expire /late"]
    );
}

#[test]
fn an_expiring_directory_is_one_event_and_takes_all_with_it() {
    let mut core = core();
    core.set(&key("/d"), Payload::Dir, secs(2)).unwrap();
    core.set(&key("/d/x"), file(""), secs(5)).unwrap();
    let watcher = core.follow("/d/x", None).unwrap();
    core.go_to(9.0);
    assert_eq!(core.unread(watcher), ["6 expire /d"]);
    assert_eq!(core.index(), index(6));
}

#[test]
fn a_life_of_no_length_ends_before_anybody_can_look() {
    let mut core = core();
    let event = core.set(&key("/a"), file(""), secs(0)).unwrap();
    assert_eq!(event.node.expires, Some(core.age()));
    core.go_to(0.0);
    assert_eq!(core.peek(&key("/a")), None);
    core.set(&key("/b"), file(""), Life::For(std::time::Duration::MAX))
        .unwrap();
    core.go_to(1e9);
    assert!(core.peek(&key("/b")).is_some());
}

#[test]
fn a_clock_that_goes_back_changes_nothing() {
    let mut core = core();
    core.set(&key("/a"), file(""), secs(2)).unwrap();
    core.go_to(1.5);
    core.go_to(0.5);
    core.go_to(1.9);
    assert!(core.peek(&key("/a")).is_some());
    core.go_to(2.0);
    assert_eq!(core.peek(&key("/a")), None);
}

#[test]
fn a_page_of_children_says_whether_there_are_more() {
    let mut core = core();
    for path in ["/d/a", "/d/_h", "/d/b", "/d/c"] {
        core.have(path, "");
    }
    let (first, more) = core.children(&key("/d"), Bound::Unbounded, 2);
    assert_eq!((keys(&first), more), (vec!["/d/a", "/d/b"], true));
    let (last, more) = core.children(&key("/d"), Bound::Excluded("b"), 2);
    assert_eq!((keys(&last), more), (vec!["/d/c"], false));
    let none = core.children(&key("/none"), Bound::Unbounded, 2);
    assert_eq!(none, (vec![], false));
}
