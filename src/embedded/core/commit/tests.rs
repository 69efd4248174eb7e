use super::*;
use crate::embedded::core::rig::{core, file, index, key, lease, refused, secs, tag, ttl};
use crate::store::{Append, Expiry, Naming, Withdraw};

fn put(path: &str, value: &str) -> Put {
    Put::new(key(path), value.to_owned(), Expiry::Never)
}

#[track_caller]
fn condition_failed(outcome: Result<Vec<Option<Node>>, NotCommitted>) -> Refusal {
    match outcome.unwrap_err() {
        NotCommitted::Condition(refusal) => refusal,
        NotCommitted::Refused(refusal) => panic!("{refusal}"),
    }
}

#[track_caller]
fn not_possible(outcome: Result<Vec<Option<Node>>, NotCommitted>) -> Code {
    match outcome.unwrap_err() {
        NotCommitted::Condition(refusal) => panic!("{refusal}"),
        NotCommitted::Refused(refusal) => refusal.code,
    }
}

#[test]
fn each_condition_compares_what_it_says() {
    let mut core = core();
    core.have("/a", "1");
    core.update(&key("/a"), file("2"), Life::Forever).unwrap();
    let (created, modified) = (index(4), index(5));
    let both = |value: &'static str, index| Condition::Both {
        value: value.into(),
        index,
    };
    for (path, condition, refusal) in [
        ("/a", Condition::Any, None),
        ("/none", Condition::Any, None),
        ("/a", Condition::Absent, Some("105 /a")),
        ("/none", Condition::Absent, None),
        ("/a", Condition::Present, None),
        ("/none", Condition::Present, Some("100 /none")),
        ("/a", Condition::Value("2".into()), None),
        ("/a", Condition::Value("1".into()), Some("101 [1 != 2]")),
        ("/none", Condition::Value("".into()), Some("100 /none")),
        ("/a", Condition::Index(modified), None),
        ("/a", Condition::Index(created), Some("101 [4 != 5]")),
        ("/a", both("2", modified), None),
        ("/a", both("1", created), Some("101 [1 != 2] [4 != 5]")),
        ("/a", Condition::Created(created), None),
        (
            "/a",
            Condition::Created(modified),
            Some("101 [created 5 != 4]"),
        ),
        ("/none", Condition::Created(created), Some("100 /none")),
    ] {
        let outcome = core.check(&key(path), &condition);
        let shown = outcome.is_err().then(|| refused(outcome));
        assert_eq!(shown.as_deref(), refusal, "{path} {condition:?}");
    }
}

#[test]
fn an_empty_value_is_a_condition_like_any_other() {
    let mut core = core();
    core.have("/a", "1");
    let empty = put("/a", "2").when(Condition::Value("".into()));
    assert_eq!(refused(core.put(&empty)), "101 [ != 1]");
}

#[test]
fn a_put_needs_room_for_a_file_and_a_live_lease() {
    let mut core = core();
    core.have("/d/f", "");
    assert_eq!(refused(core.put(&put("/", ""))), "107 /");
    assert_eq!(refused(core.put(&put("/d", ""))), "102 /d");
    assert_eq!(
        refused(core.put(&put("/d", "").when(Condition::Present))),
        "102 /d"
    );
    assert_eq!(
        refused(core.put(&put("/d", "").when(Condition::Absent))),
        "105 /d"
    );
    assert_eq!(refused(core.put(&put("/d/f/x", ""))), "104 /d/f");
    let leased = Put::new(key("/x"), "", Expiry::With(lease(7)));
    assert_eq!(core.put(&leased).unwrap_err().code, Code::LeaseNotFound);
    assert_eq!(core.index(), index(4));
}

#[test]
fn a_put_is_named_by_its_condition() {
    let mut core = core();
    let actions = [
        (Condition::Absent, Action::Create),
        (Condition::Present, Action::Update),
        (Condition::Created(index(4)), Action::CompareAndSwap),
        (Condition::Any, Action::Set),
    ];
    for (condition, action) in actions {
        let event = core.put(&put("/a", "").when(condition)).unwrap();
        assert_eq!(event.action, action);
    }
    let delete = Delete::new(key("/a")).when(Condition::Present);
    assert_eq!(
        core.delete_if(&delete).unwrap().action,
        Action::CompareAndDelete
    );
}

#[test]
fn a_deletion_wants_something_to_be_there_and_no_directory_by_accident() {
    let mut core = core();
    core.have("/d/f", "");
    let delete = |path| Delete::new(key(path));
    assert_eq!(refused(core.delete_if(&delete("/none"))), "100 /none");
    assert_eq!(refused(core.delete_if(&delete("/"))), "107 /");
    assert_eq!(refused(core.delete_if(&delete("/d"))), "102 /d");
    assert!(
        core.delete_if(&Delete::tree(key("/d")))
            .unwrap()
            .removes_dir()
    );
}

#[test]
fn a_recursive_deletion_on_a_condition_is_refused_whatever_is_there() {
    let mut core = core();
    core.have("/d/f", "");
    for path in ["/d", "/d/f", "/none", "/"] {
        let odd = Delete::tree(key(path)).when(Condition::Present);
        assert_eq!(core.delete_if(&odd).unwrap_err().code, Code::InvalidField);
    }
    assert_eq!(core.index(), index(4));
}

#[test]
fn a_commit_does_all_in_order_each_under_its_own_index() {
    let mut core = core();
    core.have("/b", "old");
    let watcher = core.follow("/", None).unwrap();
    let commit = Commit::new()
        .check(key("/b"), Condition::Value("old".into()))
        .put(put("/a", "new").when(Condition::Absent))
        .delete(Delete::new(key("/b")))
        .delete(Delete::new(key("/never-was")))
        .put(put("/c/d", "x"));
    let nodes = core.commit(&commit).unwrap();
    let there: Vec<bool> = nodes.iter().map(Option::is_some).collect();
    assert_eq!(there, [true, false, false, true]);
    assert_eq!(
        core.unread(watcher),
        ["5 create /a", "6 delete /b", "7 set /c/d"]
    );
}

#[test]
fn a_commit_that_fails_anywhere_changes_nothing() {
    let mut core = core();
    core.have("/a", "1");
    core.have("/d/f", "");
    let absent = || put("/new", "");
    let failing = [
        Commit::new()
            .put(absent())
            .check(key("/a"), Condition::Absent),
        Commit::new()
            .put(absent())
            .put(put("/a", "").when(Condition::Absent)),
        Commit::new()
            .put(absent())
            .delete(Delete::new(key("/a")).when(Condition::Index(index(9)))),
        Commit::new()
            .put(absent())
            .check(key("/a/x"), Condition::Present),
    ];
    for commit in failing {
        condition_failed(core.commit(&commit));
    }
    let leased = Put::new(key("/b"), "", Expiry::With(lease(7)));
    for (commit, code) in [
        (
            Commit::new().put(absent()).put(put("/d", "")),
            Code::NotAFile,
        ),
        (
            Commit::new().put(absent()).put(put("/a/x", "")),
            Code::NotADirectory,
        ),
        (
            Commit::new().put(absent()).delete(Delete::new(key("/d"))),
            Code::NotAFile,
        ),
        (
            Commit::new().put(absent()).put(put("/", "")),
            Code::InvalidField,
        ),
        (Commit::new().put(absent()).put(leased), Code::LeaseNotFound),
    ] {
        assert_eq!(not_possible(core.commit(&commit)), code);
    }
    assert_eq!((core.index(), core.peek(&key("/new"))), (index(5), None));
}

#[test]
fn the_first_condition_that_fails_is_named() {
    let mut core = core();
    core.have("/a", "1");
    let commit = Commit::new()
        .put(put("/c", "").when(Condition::Present))
        .check(key("/a"), Condition::Present)
        .check(key("/b"), Condition::Present);
    assert_eq!(condition_failed(core.commit(&commit)).key, Some(key("/b")));
}

#[test]
fn operations_of_a_commit_keep_out_of_each_others_way() {
    let mut core = core();
    for (one, other) in [("/a", "/a"), ("/a", "/a/b"), ("/a/b/c", "/a"), ("/", "/a")] {
        let between = put("/a-b", "");
        let commit = Commit::new()
            .put(put(one, ""))
            .put(between)
            .put(put(other, ""));
        assert_eq!(
            not_possible(core.commit(&commit)),
            Code::InvalidField,
            "{one} {other}"
        );
    }
    let siblings = Commit::new()
        .put(put("/a/b", ""))
        .put(put("/a/c", ""))
        .put(put("/a-b", ""));
    assert_eq!(core.commit(&siblings).unwrap().len(), 3);
    assert!(core.commit(&Commit::new()).unwrap().is_empty());
}

#[test]
fn a_commit_never_sees_what_has_expired() {
    let mut core = core();
    core.set(&key("/a"), file("1"), secs(2)).unwrap();
    core.grant(lease(7), ttl(2));
    core.go_to(2.0);
    let present = Commit::new().check(key("/a"), Condition::Present);
    assert_eq!(
        condition_failed(core.commit(&present)).code,
        Code::KeyNotFound
    );
    let absent = Commit::new().check(key("/a"), Condition::Absent);
    assert!(core.commit(&absent).is_ok());
    let leased = Put::new(key("/b"), "", Expiry::With(lease(7)));
    assert_eq!(
        not_possible(core.commit(&Commit::new().put(leased))),
        Code::LeaseNotFound
    );
}

#[test]
fn appends_of_a_commit_are_named_by_the_index_that_each_gets() {
    let mut core = core();
    core.have("/old", "");
    let ticket = |line: &str, nonce| Append::ticket(key(line), tag(nonce), Expiry::Never);
    let commit = Commit::new()
        .append(ticket("/l", 1))
        .delete(Delete::new(key("/old")))
        .delete(Delete::new(key("/never-was")))
        .append(ticket("/m", 2).body("b"))
        .append(ticket("/l", 3))
        .append(Append::tagged(key("/jobs"), tag(4), "raw", Expiry::Never));
    let nodes = core.commit(&commit).unwrap();
    let named = |node: &Option<Node>| Some(node.as_ref()?.key.to_string());
    let keys: Vec<_> = nodes.iter().map(named).collect();
    assert_eq!(
        keys,
        [
            Some("/l/00000000000000000005".into()),
            None,
            None,
            Some("/m/00000000000000000007".into()),
            Some("/l/00000000000000000008".into()),
            Some(format!("/jobs/{}", tag(4))),
        ]
    );
    let value = |at: usize| nodes[at].clone().unwrap().value.unwrap();
    assert_eq!(value(3), format!("{} b", tag(2)));
    assert_eq!(value(5), "raw");
    for node in nodes.into_iter().flatten() {
        assert_eq!(core.peek(&node.key), Some(node.clone()), "{}", node.key);
    }
}

#[test]
fn an_append_that_cannot_be_done_undoes_the_commit() {
    let mut core = core();
    core.have("/f", "");
    core.have("/l/00000000000000000008", "in the way");
    let ticket = |line: &str, nonce| Append::ticket(key(line), tag(nonce), Expiry::Never);
    core.withdraw(&Withdraw::new(key("/l"), tag(9), Naming::Ticket))
        .unwrap();
    let tagged = Append::tagged(key("/jobs"), tag(4), "", Expiry::Never);
    core.append(&tagged).unwrap();
    let before = core.index();
    let with = |append| Commit::new().put(put("/new", "")).append(append);
    // The first two are conditions, and named by their line.
    let withdrawn = condition_failed(core.commit(&with(ticket("/l", 9))));
    assert_eq!(withdrawn.key, Some(key("/l")));
    let again = condition_failed(core.commit(&with(tagged)));
    assert_eq!(again.key, Some(key("/jobs")));
    for (append, code) in [
        (ticket("/l", 1), Code::AlreadyExists),
        (ticket("/f", 1), Code::NotADirectory),
        (ticket("/new", 1), Code::NotADirectory),
        (
            Append::ticket(key("/m"), tag(1), Expiry::With(lease(7))),
            Code::LeaseNotFound,
        ),
    ] {
        let what = format!("{append:?}");
        let after = with(append.clone());
        // Where the file is put there can be no line.
        let meets = append.dir == key("/new");
        let code = if meets { Code::InvalidField } else { code };
        assert_eq!(not_possible(core.commit(&after)), code, "{what}");
    }
    assert_eq!((core.index(), core.peek(&key("/new"))), (before, None));
}

#[test]
fn a_line_is_empty_without_a_visible_child() {
    let mut core = core();
    core.have("/l/_meta/x", "");
    core.have("/f", "");
    core.have("/m/a", "");
    core.have("/n/x/y", "");
    core.delete(&key("/m/a"), false, false).unwrap();
    for empty in ["/l", "/m", "/never-was", "/f"] {
        assert!(
            core.check(&key(empty), &Condition::Empty).is_ok(),
            "{empty}"
        );
    }
    for full in ["/n", "/n/x", "/"] {
        let refused = core.check(&key(full), &Condition::Empty).unwrap_err();
        assert_eq!(refused.key, Some(key(full)));
    }
    let commit = Commit::new()
        .check(key("/l"), Condition::Empty)
        .check(key("/n"), Condition::Empty)
        .check(key("/"), Condition::Empty)
        .put(put("/new", ""));
    assert_eq!(condition_failed(core.commit(&commit)).key, Some(key("/n")));
    assert_eq!(core.peek(&key("/new")), None);
}
