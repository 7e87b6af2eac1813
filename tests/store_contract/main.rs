//! What every store promises, once for all of them; then what only the directory store can break:
//! other processes, kills, a loss of power, a full disk.
//!
//! A new store joins by one line in `contract!` and a function in `fixture`.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test program")]

#[path = "../support/azurite.rs"]
mod azurite;
mod clones;
mod damage;
mod distrust;
mod fencing;
mod fixture;
mod full;
mod model;
#[path = "../support/mounts.rs"]
mod mounts;
mod objects;
mod offline;
mod pages;
mod power;
mod processes;

macro_rules! contract {
    ($($store:ident),* : $cases:tt) => { $(contract!(@ $store $cases);)* };
    (@ $store:ident [$($module:ident: $($case:ident),*;)*]) => {
        mod $store {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    if let Some(bench) = crate::fixture::$store().await {
                        crate::$module::$case(bench).await;
                    }
                }
            )*)*
        }
    };
}

contract!(memory, dir, azure, azure_tls: [
    objects: conditions_decide, a_repeated_commit_is_told, a_lost_answer_is_read_back, blocks_join_in_order, ranges_end_where_the_object_ends,
        listings_are_sorted_and_prefixed, kinds_do_not_mix, limits_are_enforced, giving_up_an_object_gives_up_its_blocks, swaps_from_many_tasks_lose_nothing;
    pages: azures_rules_hold, holes_read_as_zeros, ranges_name_all_bytes, snapshots_keep_their_bytes, snapshots_are_listed_by_age, gone_means_gone, readers_of_a_snapshot_see_no_later_write;
    fencing: the_table, a_lease_is_taken_twice_by_its_holder, a_lease_runs_out, numbers_only_rise,
        a_leased_object_changes_under_its_lease_alone, a_lapsed_lease_ends_with_a_foreign_change;
    model: histories_match_a_vector;
]);

/// What follows from being a file system, and from a clock that a test can move. Azure's clock is
/// its own, its versions are not made from content, and its names lie flat.
mod ours {
    contract!(memory, dir: [
        objects: a_name_is_no_path, equal_content_is_the_same_version;
        fencing: a_lease_runs_for_its_seconds, a_clock_set_back_frees_a_lease;
    ]);
}
