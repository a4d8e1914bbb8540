//! The protocol as it is has no violation in any world that was tried, and each way to break it has one.

#![allow(clippy::print_stdout, reason = "the number of states is part of the proof")]

use crate::{Flaw, Provider, Report, Scenario, Violation, explore};

/// Every order of everything: no violation, nobody waits for ever, and what the world is there for does happen.
fn holds(name: &str, scenario: &Scenario, must_happen: &[&str]) -> Report {
    let report = explore(scenario, None);
    println!(
        "{name}: {} states, {} steps, {} of them with everything kept, {} stopped",
        report.states, report.steps, report.completed, report.stopped
    );
    if let Some(trace) = &report.violation {
        panic!("{name}:\n{trace}");
    }
    assert_eq!(report.stuck, 0, "{name}");
    assert!(report.completed > 0, "{name}");
    for deed in must_happen {
        let happened = report.deeds.keys().any(|(_, done)| done == deed);
        assert!(happened, "{name}: nobody {deed}: {:#?}", report.deeds);
    }
    report
}

/// A stale byte is kept.
fn breaks(scenario: &Scenario, flaw: Flaw) {
    let intact = explore(scenario, None);
    assert!(
        intact.violation.is_none(),
        "{flaw:?}: the scenario is safe without it"
    );
    let report = explore(scenario, Some(flaw));
    let trace = report
        .violation
        .unwrap_or_else(|| panic!("{flaw:?} was not found in {} states", report.states));
    println!("{flaw:?}, after {} states:\n{trace}\n", report.states);
    assert!(matches!(trace.violation, Violation::StaleByte { .. }));
}

const WRITTEN: Scenario = Scenario {
    writes: 2,
    ..Scenario::STILL
};

const SNAPSHOT: Scenario = Scenario {
    provider: Provider::Snapshot,
    ..WRITTEN
};

const MOVED: Scenario = Scenario {
    moves: 2,
    ..Scenario::STILL
};

const REFUSED: &str = "throws away what moved (P3)";
const AGAIN: &str = "learns where it is now (P4)";
const KEPT: &str = "keeps what it read (P3)";
const STOPS: &str = "stops (P5)";

#[test]
fn copy_before_write_is_safe() {
    let scenario = Scenario {
        writes: 3,
        hole: true,
        ..WRITTEN
    };
    holds(
        "cow, three writes",
        &scenario,
        &[REFUSED, AGAIN, KEPT, "writes a dirty page"],
    );
}

#[test]
fn reads_through_the_host_are_safe_beside_writers() {
    let scenario = Scenario {
        through_host: true,
        rounds: 1,
        ..WRITTEN
    };
    holds(
        "cow, through the host",
        &scenario,
        &[REFUSED, KEPT, "keeps what the host read"],
    );
}

#[test]
fn a_snapshot_whose_log_lags_behind_its_status_is_safe() {
    holds("snapshot", &SNAPSHOT, &[REFUSED, AGAIN, KEPT]);
}

#[test]
fn a_volume_that_is_moved_away_and_back_is_safe() {
    holds("mover", &MOVED, &[REFUSED, AGAIN, KEPT]);
}

#[test]
fn writers_and_a_mover_together_are_safe() {
    let scenario = Scenario {
        units: 1,
        batches: &[&[&[0]]],
        moves: 2,
        ..WRITTEN
    };
    holds("cow and mover", &scenario, &[REFUSED, AGAIN, KEPT]);
}

#[test]
fn batches_on_one_connection_are_safe() {
    let scenario = Scenario {
        batches: &[&[&[0], &[1]]],
        ..WRITTEN
    };
    holds(
        "two batches",
        &scenario,
        &[REFUSED, AGAIN, KEPT, "confirms its map (P0)"],
    );
}

#[test]
fn two_connections_are_safe() {
    let scenario = Scenario {
        batches: &[&[&[0]], &[&[1]]],
        writes: 1,
        rounds: 1,
        ..Scenario::STILL
    };
    holds("two connections", &scenario, &[REFUSED, AGAIN, KEPT]);
}

#[test]
fn three_units_are_safe() {
    let scenario = Scenario {
        units: 3,
        batches: &[&[&[0, 1], &[2]]],
        rounds: 1,
        ..WRITTEN
    };
    holds("three units", &scenario, &[REFUSED, AGAIN, KEPT]);
}

#[test]
fn a_second_frozen_image_is_not_taken_for_the_first() {
    let scenario = Scenario {
        freezes: 2,
        ..WRITTEN
    };
    let report = holds("two images", &scenario, &[REFUSED, AGAIN, KEPT, STOPS]);
    assert!(report.stopped > 0);
}

#[test]
fn a_restart_of_the_host_is_safe() {
    for provider in [Provider::Cow, Provider::Snapshot] {
        let scenario = Scenario {
            provider,
            restarts: 1,
            ..WRITTEN
        };
        let again = "connects again, and asks again";
        holds("restart", &scenario, &[REFUSED, AGAIN, KEPT, again]);
    }
}

#[test]
fn an_intruder_ends_the_backup() {
    let scenario = Scenario {
        intrusions: 1,
        writes: 1,
        through_host: true,
        ..Scenario::STILL
    };
    let report = holds("intruder", &scenario, &[KEPT, STOPS]);
    assert!(report.stopped > 0);
}

/// Beside the new place, the old generation costs a second read and nothing else: H4 asks for no more than that the generation
/// is no newer than the map.
#[test]
fn a_generation_that_rises_after_the_place_switched_is_safe() {
    let scenario = Scenario {
        switch_in_two: true,
        ..WRITTEN
    };
    holds("switch, then raise", &scenario, &[REFUSED, AGAIN, KEPT]);
}

#[test]
fn h1_the_copy_has_completed_before_the_place_switches() {
    breaks(&WRITTEN, Flaw::SwitchBeforeCopy);
}

#[test]
fn h1_the_map_is_taken_after_the_flush() {
    breaks(&WRITTEN, Flaw::MapBeforeFlush);
    // A block that was never allocated is a zero in such a map.
    let hole = Scenario {
        units: 1,
        hole: true,
        writes: 1,
        batches: &[&[&[0]]],
        ..Scenario::STILL
    };
    breaks(&hole, Flaw::MapBeforeFlush);
}

#[test]
fn h2_the_generation_rises_before_the_write() {
    breaks(&WRITTEN, Flaw::RaiseAfterWrite);
    breaks(&WRITTEN, Flaw::SwitchAfterWrite);
}

#[test]
fn h2_a_second_writer_waits_for_the_copy() {
    breaks(&WRITTEN, Flaw::SecondWriterOvertakes);
}

#[test]
fn h2_a_table_that_is_the_old_one_again_is_no_witness() {
    breaks(&MOVED, Flaw::TableAlone);
}

#[test]
fn h3_a_restart_does_not_use_generations_again() {
    for base in [WRITTEN, SNAPSHOT] {
        let scenario = Scenario { restarts: 1, ..base };
        breaks(&scenario, Flaw::GenerationsReused);
    }
}

#[test]
fn h4_the_generation_is_no_newer_than_the_map() {
    breaks(&WRITTEN, Flaw::RaiseBeforeSwitch);
    breaks(&WRITTEN, Flaw::PlacesThenGenerations);
    breaks(&SNAPSHOT, Flaw::StatusForLog);
}

#[test]
fn h4_a_sample_is_not_shared_with_an_earlier_request() {
    let scenario = Scenario {
        batches: &[&[&[0]], &[&[1]]],
        writes: 1,
        rounds: 1,
        ..Scenario::STILL
    };
    breaks(&scenario, Flaw::SharedSample);
}

#[test]
fn h5_a_read_is_checked_after_the_copy() {
    let scenario = Scenario {
        through_host: true,
        ..WRITTEN
    };
    breaks(&scenario, Flaw::CheckBeforeCopy);
    breaks(&scenario, Flaw::ByReference);
}

#[test]
fn h6_lost_content_is_not_answered() {
    let scenario = Scenario {
        intrusions: 1,
        ..Scenario::STILL
    };
    breaks(&scenario, Flaw::AnswersThoughLost);
}

/// What P0 saves is reads of places that the host has said to be somebody else's. Bytes are safe without it, by P3.
#[test]
fn p0_a_map_older_than_the_last_confirmation_is_not_read_by() {
    let scenario = Scenario {
        batches: &[&[&[0], &[1]]],
        ..WRITTEN
    };
    let report = explore(&scenario, Some(Flaw::OldMapUnconfirmed));
    let trace = report.violation.expect("it is found");
    println!("OldMapUnconfirmed, after {} states:\n{trace}\n", report.states);
    assert!(matches!(trace.violation, Violation::OutdatedMap { .. }));
    let bytes_alone = Scenario {
        minds_outdated: false,
        ..scenario
    };
    assert!(
        explore(&bytes_alone, Some(Flaw::OldMapUnconfirmed))
            .violation
            .is_none()
    );
}

#[test]
fn p1_places_and_generations_are_of_one_reply() {
    breaks(&WRITTEN, Flaw::MapsMixed);
}

#[test]
fn p2_a_read_has_ended_before_the_check_is_asked_for() {
    breaks(&WRITTEN, Flaw::AskBeforeReadEnds);
}

#[test]
fn p3_what_was_read_is_checked() {
    breaks(&WRITTEN, Flaw::NoCheck);
}

#[test]
fn p4_what_was_read_again_is_checked_again() {
    breaks(&MOVED, Flaw::NoSecondCheck);
}

#[test]
fn p5_another_frozen_image_is_not_gone_on_with() {
    let scenario = Scenario {
        freezes: 2,
        ..WRITTEN
    };
    breaks(&scenario, Flaw::AnotherImage);
}

/// A writer, a mover, an intruder and a restart, all in one world.
#[test]
fn everything_at_once_is_safe() {
    let scenario = Scenario {
        writes: 1,
        moves: 1,
        restarts: 1,
        intrusions: 1,
        rounds: 1,
        ..Scenario::STILL
    };
    holds("everything", &scenario, &[REFUSED, AGAIN, KEPT, STOPS]);
}
