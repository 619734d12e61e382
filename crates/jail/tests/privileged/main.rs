//! Containers made for real. Needs root and a C compiler; says so and passes where one is missing.
//!
//! Has a main of its own because the launcher re-executes the running binary.

// Tests may: clippy's own exception covers only functions marked as tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod adopted;
mod bench;
mod containers;
mod limits;
mod mapped;
mod mounts;
mod rig;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(berth_jail::LAUNCHER_ARG) {
        return berth_jail::launcher_main();
    }
    if std::env::args().nth(1).as_deref() == Some(adopted::DAEMON_ARG) {
        return adopted::daemon();
    }
    let tests: [(&str, fn()); 52] = [
        ("merges_layers_and_hides_what_was_deleted", containers::merges_layers),
        ("is_pid_1_with_the_defaults", containers::is_pid_1_with_the_defaults),
        ("leaves_the_hosts_mounts_alone", containers::leaves_the_hosts_mounts_alone),
        ("hides_and_protects_kernel_files", containers::hides_and_protects_kernel_files),
        ("opens_no_device_but_its_own", containers::opens_no_device_but_its_own),
        ("has_a_dev_that_programs_expect", containers::has_a_dev),
        ("binds_files_and_directories", containers::binds_files_and_directories),
        ("links_of_an_image_do_not_lead_to_the_host", containers::links_stay_inside),
        ("a_linked_proc_is_refused", containers::a_linked_proc_is_refused),
        ("tells_what_it_made_in_an_empty_image", containers::tells_stubs),
        ("filters_system_calls_or_does_not_start", containers::filters_system_calls),
        ("mounts_150_layers", containers::mounts_many_layers),
        ("mounts_300_layers_one_by_one", containers::mounts_layers_one_by_one),
        ("names_the_layer_that_is_missing", containers::names_the_bad_layer),
        ("has_its_own_network_or_the_given_one", containers::networks),
        ("survives_the_launchers_death_and_ends_when_dropped", containers::lifecycle),
        ("tells_the_guest_its_limits", containers::tells_the_guest),
        ("mapped_root_is_the_first_id_of_its_range", mapped::is_root_of_its_range),
        ("mapped_files_are_stored_with_neutral_ids", mapped::stores_neutral_ids),
        ("mapped_overlays_still_hide_what_was_deleted", mapped::deletes),
        ("mapped_images_may_have_no_layers", mapped::has_no_layers),
        ("mapped_root_has_no_power_over_mounts_or_kernel", mapped::has_no_power),
        ("mapped_roots_need_a_file_system_that_maps", mapped::needs_a_file_system_that_maps),
        ("doctor_tries_user_namespaces", mapped::doctor_tells),
        ("mapped_root_administers_its_network", mapped::administers_its_network),
        ("mapped_programs_gain_privileges_as_on_a_host", mapped::gains_privileges),
        ("mapped_binds_have_the_owners_that_they_have", mapped::binds),
        ("mapped_dev_and_terminals_belong_inside", mapped::owns_its_dev),
        ("mapped_layers_go_one_by_one_too", mapped::mounts_many_layers),
        ("mapped_users_have_limits_of_their_own", mapped::has_limits_of_its_own),
        ("namespaces_are_asked_for_and_given_together", mapped::agreement),
        ("namespaces_are_made_without_a_process_left", mapped::leaves_no_process),
        ("kills_what_takes_too_much_memory_and_counts_it", limits::memory),
        ("keeps_to_its_number_of_processes_and_dies_whole", limits::pids),
        ("version_2_kills_at_once", limits::version_2),
        ("is_given_the_groups_to_work_with_and_none_of_the_limits", limits::given),
        ("the_guest_has_a_spool_with_nothing_above_it", adopted::has_a_spool),
        ("the_guest_is_given_a_socket_to_listen_on", adopted::is_given_a_socket),
        ("outlives_its_daemon_and_is_taken_over_as_no_other_process_is", adopted::survives),
        ("all_but_the_kept_sandboxes_of_an_instance_go", adopted::others_are_removed),
        ("mounts_directories_and_files_of_layers", mounts::layers),
        ("what_is_written_to_mounted_layers_stays_beside_the_root", mounts::writes_aside),
        ("links_of_mounted_layers_lead_nowhere_else", mounts::links_stay_inside),
        ("mounts_without_layers_with_one_and_with_many", mounts::numbers_of_layers),
        ("mounts_of_other_owners_are_as_inside", mounts::neutral_owners),
        ("mounts_memory_and_files_in_memory", mounts::memory),
        ("mounts_are_made_in_order_and_one_may_lie_in_another", mounts::order),
        ("mount_points_that_were_made_are_told", mounts::stubs),
        ("mounts_never_stand_in_for_the_kernels_files", mounts::refused_targets),
        ("mounts_leave_nothing_on_the_host", mounts::leaves_nothing),
        ("launches_side_by_side", bench::side_by_side),
        ("mapped_launches_are_measured", bench::mapped),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            match rig::missing() {
                Some(reason) => println!("SKIP: {reason}"),
                None => test(),
            }
            Ok(())
        })
    });
    let mut arguments = Arguments::from_args();
    // Some of them count this process's children; nextest gives each a process of its own anyway.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
