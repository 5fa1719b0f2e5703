//! What is gone from a ledger, or from under it: rows, a tail, the file, the log beside it.

use super::*;

#[test]
fn a_tail_that_was_cut_off_with_the_chains_own_head_is_seen() {
    for cut in [
        "UPDATE chain SET head_seq = 2, head_hash = (SELECT hash FROM events WHERE seq = 2); DELETE FROM events WHERE seq > 2",
        "UPDATE chain SET head_seq = 0, head_hash = ''; DELETE FROM events",
    ] {
        for with_rollout in [false, true] {
            let place = place();
            let ledger = Ledger::open(&place.path).unwrap();
            for _ in 0..3 {
                ledger.append(&event("a", "phase", None)).unwrap();
            }
            match with_rollout {
                true => ledger.save_rollout_with(&rollout("r", "a", 1, None), &event("a", "phase", None)).unwrap(),
                false => ledger.commit_live(&live("a", "v1"), &event("a", "switched", None)).unwrap(),
            };
            assert!(ledger.verify().unwrap().ok);
            drop(ledger);
            Connection::open(&place.path).unwrap().execute_batch(cut).unwrap();
            let told = reason(Ledger::open(&place.path));
            assert!(told.contains("after event 4"), "{told}");
        }
    }
}

#[test]
fn a_ledger_that_did_not_note_where_the_chain_ended_is_read_and_noted_from_then_on() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    // Before anything happened the head is 0, as in rows of the first version: their digests are the same.
    ledger.save_rollout(&rollout("r", "a", 1, Some(2))).unwrap();
    drop(ledger);
    Connection::open(&place.path)
        .unwrap()
        .execute_batch(
            "ALTER TABLE live DROP COLUMN head_seq; ALTER TABLE rollouts DROP COLUMN head_seq; PRAGMA user_version = 1",
        )
        .unwrap();
    assert!(reason(Ledger::open_read_only(&place.path)).contains("older version"));
    let ledger = Ledger::open(&place.path).unwrap();
    assert_eq!(ledger.rollout("r").unwrap(), Some(rollout("r", "a", 1, Some(2))));
    ledger.commit_live(&live("a", "v1"), &event("a", "switched", None)).unwrap();
    assert!(ledger.verify().unwrap().ok);
    drop(ledger);
    forge(&place.path, "UPDATE live SET head_seq = 0");
    assert!(reason(Ledger::open(&place.path)).contains("the live version of 'a'"));
}

#[test]
fn what_was_folded_is_in_the_file_alone() {
    let (place, elsewhere) = (place(), place());
    let ledger = Ledger::open(&place.path).unwrap();
    for number in 0..20 {
        ledger.append(&event("a", &format!("phase {number}"), None)).unwrap();
    }
    ledger.fold();
    fs::create_dir_all(elsewhere.path.parent().unwrap()).unwrap();
    fs::copy(&place.path, &elsewhere.path).unwrap();
    assert_eq!(Ledger::open(&elsewhere.path).unwrap().last_seq().unwrap(), 20);
}

#[test]
fn a_file_that_is_deleted_or_replaced_takes_no_more_and_is_said_to() {
    let (place, other) = (filled(), filled());
    let ledger = Ledger::open(&place.path).unwrap();
    assert!(ledger.can_be_written());
    let away = place.path.with_extension("away");
    for replaced in [false, true] {
        fs::rename(&place.path, &away).unwrap();
        if replaced {
            fs::copy(&other.path, &place.path).unwrap();
        }
        let refused = ledger.commit_live(&live("digits", "v2"), &event("digits", "switched", None));
        assert!(reason(refused).contains("deleted or replaced"), "replaced: {replaced}");
        assert!(!ledger.can_be_written());
        fs::rename(&away, &place.path).unwrap();
        assert!(ledger.can_be_written());
    }
    ledger.commit_live(&live("digits", "v2"), &event("digits", "switched", None)).unwrap();
}

#[test]
fn rows_that_were_deleted_are_missed() {
    for (delete, told) in [
        ("DELETE FROM live", "the live version of 'a' is gone: event 2"),
        ("DELETE FROM manifests", "the manifest of 'a@v1' is gone"),
        ("DROP TABLE live", "restore a copy"),
    ] {
        let place = place();
        let ledger = Ledger::open(&place.path).unwrap();
        ledger.record_manifest("a", "v1", &json!({ "digest": "d" })).unwrap();
        let seen = NewEvent { body: json!({ "version": "v1", "digest": "d" }), ..event("a", "manifest", None) };
        ledger.append(&seen).unwrap();
        ledger.commit_live(&live("a", "v1"), &event("a", "switched", None)).unwrap();
        assert!(ledger.verify().unwrap().ok);
        drop(ledger);
        Connection::open(&place.path).unwrap().execute_batch(delete).unwrap();
        let refused = Ledger::open(&place.path).and_then(|ledger| {
            let report = ledger.verify()?;
            assert!(!report.ok && report.bad_rows.iter().any(|row| row.contains(told)), "{delete}: {report:?}");
            // And nobody is told that there never was one.
            ledger.live("a").and_then(|_| ledger.manifest("a", "v1"))
        });
        assert!(reason(refused).contains(told), "{delete}");
    }
    // A rollout whose record is gone, but for the oldest, which may have gone by rule.
    let begun = |at_ms| NewEvent { at_ms, body: json!({ "phase": "reserving" }), ..event("a", "phase", None) };
    for (delete, told) in [("r1", None), ("r2", Some("r2")), ("r3", Some("r3")), ("%", Some("r1"))] {
        let place = place();
        let ledger = Ledger::open(&place.path).unwrap();
        for (id, at) in [("r1", 10_000), ("r2", 20_000), ("r3", 30_000)] {
            let began = NewEvent { rollout: Some(id.to_owned()), ..begun(at) };
            ledger.save_rollout_with(&rollout(id, "a", at, Some(at + 5)), &began).unwrap();
        }
        drop(ledger);
        let delete = format!("DELETE FROM rollouts WHERE id LIKE '{delete}'");
        Connection::open(&place.path).unwrap().execute_batch(&delete).unwrap();
        let found = Ledger::open_read_only(&place.path).unwrap().verify().unwrap().bad_rows;
        assert_eq!(found.first(), told.map(|id| format!("rollout '{id}' is gone")).as_ref(), "{delete}: {found:?}");
    }
    // A model that was forgotten has no row, and that is right.
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    ledger.commit_live(&live("a", "v1"), &event("a", "seeded", None)).unwrap();
    ledger.forget(&event("a", "forgotten", None)).unwrap();
    assert!(ledger.verify().unwrap().ok && ledger.live("a").unwrap().is_none());
}

/// It goes by rule before what began meanwhile.
#[test]
fn a_rollout_that_drained_for_a_minute_before_it_reserved_is_as_old_as_its_beginning() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    let phase = |phase: &str, at_ms| NewEvent {
        at_ms,
        body: json!({ "phase": phase }),
        rollout: Some("slow".to_owned()),
        ..event("a", "phase", None)
    };
    ledger.save_rollout_with(&rollout("slow", "a", 10_000, Some(80_000)), &phase("draining", 10_000)).unwrap();
    let began = NewEvent {
        at_ms: 40_000,
        body: json!({ "phase": "reserving" }),
        rollout: Some("b1".to_owned()),
        ..event("b", "phase", None)
    };
    ledger.save_rollout_with(&rollout("b1", "b", 40_000, Some(50_000)), &began).unwrap();
    ledger.append(&phase("reserving", 70_000)).unwrap();
    ledger.prune(1, 1_000).unwrap();
    assert!(ledger.rollout("slow").unwrap().is_none());
    assert_eq!(ledger.verify().unwrap().bad_rows, Vec::<String>::new());
}
