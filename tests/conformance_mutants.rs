//! The suite can fail: stores that break one promise each are caught, by the check of that name.
//!
//! A [`Mutant`] is the embedded store, which conforms, with one [`Bug`] put in.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "common/keyed.rs"]
mod keyed;
#[path = "common/mutant.rs"]
mod mutant;

use std::collections::BTreeSet;
use std::sync::Arc;

use keyed::Keyed;
use mutant::Mutant;
use tenure::store::Layout;
use tenure::{Key, Store, conformance};

/// What is wrong with a store, and the check that must see it.
macro_rules! bugs {
    ($kind:ident, $all:ident: $($bug:ident => $check:literal,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum $kind { $($bug),+ }
        const $all: &[($kind, &str)] = &[$(($kind::$bug, $check)),+];
    };
}

// In any store.
bugs! { Bug, BUGS:
    // Reads.
    AbsenceIsAnError => "absence_is_an_empty_view",
    ListsHidden => "hidden_children_are_listed_only_by_their_own_parent",
    ListsInReverse => "children_are_direct_and_in_key_order",
    ListsNeighbours => "a_prefix_is_not_a_parent",
    SaysAnOldIndex => "a_view_covers_every_acknowledged_write",
    ReadsTheStateBefore => "a_read_is_never_older_than_asked_for",
    LosesMore => "pages_add_up_to_the_list",
    RepeatsThePage => "pages_add_up_to_the_list",
    KeysOnlyLosesOne => "a_keys_only_read_is_the_same_list",
    TreeIsInTreeOrder => "a_tree_is_the_node_and_all_below_in_key_order",
    TreeIsOneLevel => "a_tree_is_the_node_and_all_below_in_key_order",
    TreeLosesTheTop => "a_tree_of_a_file_is_the_file",
    TreeShowsHidden => "hidden_nodes_are_in_a_tree_only_below_the_hidden_segment",
    TreeSaysAnOldIndex => "a_tree_is_read_at_one_index",
    KeysOnlyTreeLosesOne => "a_keys_only_tree_is_the_same_tree",
    TreeRepeatsThePage => "pages_add_up_to_the_tree",
    // Keys and values.
    PlusIsSpace => "odd_keys_are_kept_apart_and_as_they_are",
    CutsLongValues => "values_are_kept_as_they_are",
    MangleBytes => "bytes_that_are_no_text_are_kept_or_refused",
    // Writes.
    IgnoresAbsent => "a_write_where_something_is_obeys_its_condition",
    IgnoresValues => "a_write_where_something_is_obeys_its_condition",
    AnyIndexWillDo => "a_write_where_something_is_obeys_its_condition",
    PresentCreates => "a_write_where_nothing_is_obeys_its_condition",
    EmptyValueIsNoCondition => "an_empty_value_is_a_value_to_conditions",
    ResetsCreated => "a_conditional_update_keeps_the_created_index",
    TellsAWrongPrevious => "the_previous_node_is_told_rightly_or_not_at_all",
    SameValueIsNoWrite => "every_mutation_has_an_index_of_its_own",
    NamesNoKey => "a_refusal_names_the_operation_and_the_key",
    WritesOverDirectories => "a_write_never_lands_on_a_directory_or_below_a_file",
    // Time.
    ReadsExpired => "a_key_lives_as_long_as_it_was_given",
    ExpiresEarly => "a_key_lives_as_long_as_it_was_given",
    NeverExpires => "an_append_expires",
    KeepsTheOldExpiry => "a_write_that_never_expires_makes_permanent",
    TellsNoExpiry => "an_expiry_is_told_once_and_as_one",
    // Appends.
    OverwritesByTag => "an_append_named_by_its_tag_happens_once",
    CountsItselfBefore => "those_before_are_told_rightly_or_not_at_all",
    LosesTheBody => "a_ticket_is_read_back_as_it_was_given",
    RawIsATicket => "a_raw_append_is_stored_as_it_is_and_in_order",
    WithdrawsRaw => "a_raw_append_is_not_withdrawn",
    LateAppendLands => "a_withdrawn_append_comes_never_where_the_store_says_so",
    WithdrawsOnlyWithHelp => "a_withdrawal_finds_its_node_with_or_without_help",
    WithdrawsByKey => "a_withdrawal_spares_what_took_the_nodes_place",
    WithdrawsOnce => "a_withdrawal_again_finds_nothing_and_succeeds",
    WithdrawsALaterOne => "a_tag_can_be_used_again_where_it_is_the_name",
    MarksWhatIsKnown => "a_tag_can_be_used_again_where_it_is_the_name",
    // Deletions.
    DeletesUnconditionally => "a_deletion_obeys_its_condition",
    DeletesNothingGladly => "a_deletion_of_nothing_is_not_found",
    DeletesNeighbours => "a_tree_deletion_takes_the_tree_and_nothing_else",
    DeletesFullDirectories => "a_directory_is_deleted_only_with_all_in_it",
    // Watches.
    DropsDeletions => "a_node_watch_tells_its_node_and_no_other",
    TellsTwice => "a_tree_watch_tells_all_below_and_itself",
    TellsHidden => "hidden_nodes_are_told_only_below_the_hidden_segment",
    TellsNeighbours => "a_neighbour_is_never_told",
    TellsChildrenDeleted => "a_tree_deletion_is_told_at_one_index",
    SilentAboutTheTop => "a_deletion_above_is_told_to_those_below",
    IgnoresFrom => "a_watch_from_an_index_begins_there_and_goes_on",
    FromIsExclusive => "a_watch_from_an_index_begins_there_and_goes_on",
    TellsWritesToo => "a_deletes_only_watch_tells_no_writes",
    LosesHistorySilently => "an_index_too_old_is_history_lost_or_all_is_told",
    GoesOnAfterAnError => "an_index_too_old_is_history_lost_or_all_is_told",
    SkipsTheHundredth => "two_hundred_racing_writes_are_told_once_and_in_order",
    NeverOpens => "a_watch_opens_at_what_is_known",
    ClaimsTooMuchProgress => "a_tree_watch_tells_all_below_and_itself",
    // Leases.
    GrantsOnlyOnce => "a_grant_can_be_repeated",
    ForgetsLeases => "a_lease_that_is_not_renewed_takes_its_keys_along",
    RenewsNothing => "a_renewed_lease_keeps_its_keys",
    RenewsTheUnknown => "a_renewal_of_no_lease_is_not_found",
    HangsOnNothing => "nothing_hangs_on_a_lease_that_is_gone",
    RevokesNothing => "a_revocation_takes_the_keys_of_this_lease_only",
    RevokesOnce => "a_revocation_can_be_repeated",
    RenewsTheDeleted => "a_key_deleted_by_hand_is_gone_to_a_renewal",
    // Commits.
    CommitsHalf => "a_commit_whose_check_fails_does_nothing_and_names_it",
    NamesTheWrongCheck => "a_commit_whose_check_fails_does_nothing_and_names_it",
    CommitsOneByOne => "a_commit_whose_operation_fails_does_nothing",
    DeniesAndCommits => "a_store_without_commits_says_so_and_changes_nothing",
    AppendsOneByOne => "appends_of_a_commit_are_all_or_none",
    AppendsPastMarks => "appends_of_a_commit_are_all_or_none",
    AppendsOnlyTheFirst => "a_commit_appends_as_an_append_does",
    ForgetsTheBodies => "a_commit_appends_as_an_append_does",
    IgnoresEmpty => "a_commit_into_empty_lines_finds_them_empty",
    EmptyIsMissing => "a_commit_into_empty_lines_finds_them_empty",
    NamesTheWrongLine => "a_commit_into_empty_lines_finds_them_empty",
    AppendsRawTogether => "what_a_commit_cannot_do_is_refused_by_its_kind",
}

// In a store that renews key by key.
bugs! { Flaw, FLAWS:
    RenewsTheUnlisted => "a_key_that_is_not_listed_is_renewed_only_with_the_whole_lease",
    BelievesAllLive => "a_key_deleted_by_hand_is_gone_to_a_renewal",
    TakesOver => "a_key_taken_over_is_gone_to_a_renewal",
    ForgetsAnAnswer => "a_renewed_lease_keeps_its_keys",
    CountsFromTheFuture => "a_renewed_lease_keeps_its_keys",
    KeepsWhatMoved => "a_key_written_with_another_lease_outlives_the_first",
    RevokesBlindly => "a_revocation_spares_what_took_a_keys_place",
}

#[tokio::test(start_paused = true)]
async fn every_mutant_is_caught_by_the_check_that_is_named() {
    let mut missed = Vec::new();
    for &(bug, name) in BUGS {
        if !caught(Arc::new(Mutant::new(bug)), name).await {
            missed.push((format!("{bug:?}"), name));
        }
    }
    for &(flaw, name) in FLAWS {
        if !caught(Arc::new(Keyed::new(Some(flaw))), name).await {
            missed.push((format!("{flaw:?}"), name));
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}

async fn caught(store: Arc<dyn Store>, name: &str) -> bool {
    let check = conformance::all().find(|check| check.name() == name);
    let check = check.unwrap_or_else(|| panic!("no check is called {name}"));
    let dir = Key::new("/_conformance/mutant").unwrap();
    let outcome = check.run(store, dir).await;
    println!("{name}: {outcome:?}");
    outcome.is_err()
}

#[tokio::test(start_paused = true)]
async fn without_its_bug_a_mutant_passes() {
    let names: BTreeSet<_> = BUGS.iter().map(|(_, name)| *name).collect();
    for check in conformance::all().filter(|check| names.contains(check.name())) {
        for layout in [Layout::Numbered, Layout::Leased] {
            let dir = Key::new("/_conformance/sane").unwrap();
            let outcome = check.run(Arc::new(Mutant::sane(layout)), dir).await;
            assert!(outcome.is_ok(), "{}: {outcome:?}", check.name());
        }
    }
}

/// What a store may be unable to do, or do in another way: it conforms as long as it says so.
#[tokio::test(start_paused = true)]
async fn a_modest_store_conforms_and_one_that_renews_key_by_key() {
    let stores: [Arc<dyn Store>; 2] = [Arc::new(Mutant::modest()), Arc::new(Keyed::new(None))];
    for store in stores {
        let report = conformance::run(store, &Key::root()).await;
        assert_eq!(report.failures().count(), 0, "{report}");
    }
}
