//! The laws of the store port. Each is listed once, in [`laws!`], and runs on every engine; an engine joins by an
//! [`Engine`] and one line. The laws' files have the names of the aggregates.

#![expect(clippy::unwrap_used, reason = "a law that does not hold panics")]

mod accounts;
mod archive;
mod cassandra;
mod devices;
mod forms;
mod keys;
mod order;
mod rooms;
mod shut_outs;

use std::sync::Arc;

use cassandra::Cassandra;
use prometheus::Registry;
use store::Store;
use store::memory::MemoryStore;
use store::sqlite::{Config, SqliteStore};
use tempfile::TempDir;

/// An engine under test.
trait Engine: Sized {
    /// An empty store.
    fn start() -> Self;
    /// The store as its users get it.
    fn store(&self) -> Arc<dyn Store>;
    /// The same store as another process gets it, where several can have it.
    fn other(&self) -> Arc<dyn Store> {
        self.store()
    }
    /// Ends the store and starts it again on what it has left. All that `store` gave away must be dropped before.
    fn restart(self) -> Self;
}

struct Memory(Arc<MemoryStore>);

impl Engine for Memory {
    fn start() -> Self {
        Self(Arc::new(MemoryStore::new()))
    }

    fn store(&self) -> Arc<dyn Store> {
        self.0.clone()
    }

    // What is in memory can't outlive its process: only its users start again.
    fn restart(self) -> Self {
        self
    }
}

struct Sqlite {
    dir: TempDir,
    store: Arc<SqliteStore>,
}

impl Engine for Sqlite {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Arc::new(SqliteStore::open(dir.path(), &Config::default(), &Registry::new()).unwrap());
        Self { dir, store }
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn restart(self) -> Self {
        let Self { dir, store } = self;
        assert!(Arc::into_inner(store).is_some(), "a law restarts what it still holds");
        let store = Arc::new(SqliteStore::open(dir.path(), &Config::default(), &Registry::new()).unwrap());
        Self { dir, store }
    }
}

macro_rules! laws {
    ($($engine:ident as $name:ident),*) => {$(
        mod $name {
            use super::*;
            laws! { run $engine:
                accounts::an_account_is_found_by_each_of_its_names_in_any_case,
                accounts::the_same_creation_again_changes_nothing,
                accounts::a_name_has_one_owner,
                accounts::a_renamed_account_frees_its_name_and_takes_no_others,
                accounts::of_many_who_claim_a_username_at_once_one_wins,
                accounts::of_many_who_claim_an_address_at_once_one_wins,
                accounts::last_seen_never_goes_back,
                accounts::a_new_password_hash_replaces_the_old_one,
                accounts::accounts_are_found_by_how_their_names_begin,
                devices::a_person_sees_their_live_devices_newest_first,
                devices::the_same_sign_in_again_changes_nothing,
                devices::a_rotated_token_is_spent_and_its_successor_live,
                devices::of_many_rotations_of_one_token_one_wins,
                devices::a_token_past_its_time_or_of_a_revoked_device_is_dead,
                devices::a_revocation_is_entered_once_and_in_order,
                devices::nobody_revokes_the_device_of_another,
                devices::a_foreign_device_can_be_revoked_again_later,
                devices::ended_tokens_go_a_few_at_a_time_and_devices_with_their_last,
                devices::a_spent_token_is_known_until_its_own_end,
                devices::old_revocations_go_and_their_numbers_are_not_given_again,
                keys::of_many_first_keys_one_stays,
                keys::keys_come_oldest_first_and_once_each,
                keys::of_many_next_keys_one_stays,
                keys::a_key_is_retired_at_the_earliest_time_that_anybody_said,
                keys::keys_are_removed_once_they_have_been_retired_for_long_but_for_the_newest,
                rooms::a_room_row_is_replaced_by_newer_ones_only,
                rooms::a_standing_is_replaced_by_newer_ones_only,
                rooms::members_come_in_pages_without_those_who_went,
                rooms::a_list_of_rooms_follows_the_newest_version,
                rooms::a_way_out_that_was_not_delivered_is_told,
                rooms::the_directory_shows_public_living_rooms_in_each_order,
                rooms::the_directory_takes_text_as_it_is,
                rooms::a_deleted_room_is_still_read_by_id_alone,
                rooms::of_many_who_claim_a_handle_at_once_one_wins,
                rooms::a_claim_ends_at_its_time_unless_its_room_appeared,
                rooms::a_handle_given_up_is_free_at_once,
                rooms::a_claim_on_its_way_outlives_other_events_of_its_room,
                rooms::all_rooms_come_once_each_whatever_is_kept_of_them,
                shut_outs::a_subject_has_its_last_shut_out_alone_whatever_the_order,
                shut_outs::a_poll_sees_what_has_changed_since_the_last_one,
                shut_outs::what_is_lifted_does_not_come_back_by_itself,
                shut_outs::ended_shut_outs_go_and_their_numbers_are_not_given_again,
                archive::events_are_read_from_either_end_of_a_range,
                archive::an_archived_event_never_changes,
                archive::a_command_is_known_by_its_first_event,
                archive::the_largest_command_of_a_room_is_kept,
                archive::a_messages_receipt_has_the_time_of_the_first_step_that_reached_it,
                archive::watermarks_are_maxima,
                archive::receipts_come_in_pages_of_those_who_have_one,
                archive::progress_never_goes_back,
                archive::a_batch_that_begins_above_the_progress_is_refused,
                archive::what_was_written_is_there_after_a_restart,
            }

            #[test]
            fn any_order_repetition_and_splitting_of_batches_ends_in_the_same_rows() {
                order::any_order_repetition_and_splitting_of_batches_ends_in_the_same_rows::<$engine>();
            }
        }
    )*};
    (run $engine:ident: $($file:ident::$law:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $law() {
            $file::$law(<$engine as Engine>::start()).await;
        }
    )*};
}

laws!(Memory as memory, Sqlite as sqlite, Cassandra as on_cassandra);
