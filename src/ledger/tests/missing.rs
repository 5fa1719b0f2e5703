//! What is gone from a ledger, or from under it: rows, a tail, the file, the log beside it.

use super::*;

/// How a rollout's first event looks.
fn began(id: &str, at_ms: i64) -> NewEvent {
    NewEvent { at_ms, body: json!({ "phase": "reserving" }), ..event("a", "phase", Some(id)) }
}

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
            "DROP TABLE pruned; DROP INDEX events_by_rollout;
            ALTER TABLE live DROP COLUMN head_seq; ALTER TABLE rollouts DROP COLUMN head_seq; PRAGMA user_version = 1",
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
    // A rollout whose record is gone, the oldest as well.
    for (delete, told) in [("r1", "r1"), ("r2", "r2"), ("r3", "r3"), ("%", "r1")] {
        let place = place();
        let ledger = Ledger::open(&place.path).unwrap();
        for (id, at) in [("r1", 10_000), ("r2", 20_000), ("r3", 30_000)] {
            ledger.save_rollout_with(&rollout(id, "a", at, Some(at + 5)), &began(id, at)).unwrap();
        }
        drop(ledger);
        let delete = format!("DELETE FROM rollouts WHERE id LIKE '{delete}'");
        Connection::open(&place.path).unwrap().execute_batch(&delete).unwrap();
        let found = Ledger::open_read_only(&place.path).unwrap().verify().unwrap().bad_rows;
        assert_eq!(found.first(), Some(&format!("rollout '{told}' is gone")), "{delete}: {found:?}");
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
    ledger.prune(Keep { rollouts: 1, events: 1_000 }).unwrap();
    assert!(ledger.rollout("slow").unwrap().is_none());
    assert_eq!(ledger.verify().unwrap().bad_rows, Vec::<String>::new());
}

/// Which rollouts go by rule depends on what is live and what is open then, and both change.
#[test]
fn what_went_by_rule_is_not_missed_once_the_rule_would_spare_it() {
    let goes_live = |ledger: &Ledger, id: &str, version: &str, at: i64| {
        ledger.save_rollout_with(&rollout(id, "a", at, None), &began(id, at)).unwrap();
        let live = Live { rollout: Some(id.to_owned()), ..live("a", version) };
        ledger.commit_live(&live, &event("a", "switched", Some(id))).unwrap();
        ledger.save_rollout(&rollout(id, "a", at, Some(at + 5))).unwrap();
    };
    let another = |ledger: &Ledger| goes_live(ledger, "r4", "v1", 40_000);
    let forgotten = |ledger: &Ledger| drop(ledger.forget(&event("a", "forgotten", None)).unwrap());
    let cut_off = |ledger: &Ledger| ledger.save_rollout(&rollout("long", "b", 5_000, Some(50_000))).unwrap();
    for change in [&another as &dyn Fn(&Ledger), &forgotten, &cut_off] {
        let place = place();
        let ledger = Ledger::open(&place.path).unwrap();
        ledger.save_rollout_with(&rollout("long", "b", 5_000, None), &began("long", 5_000)).unwrap();
        goes_live(&ledger, "r1", "v2", 10_000);
        for (id, at) in [("r2", 20_000), ("r3", 30_000)] {
            ledger.save_rollout_with(&rollout(id, "a", at, Some(at + 5)), &began(id, at)).unwrap();
        }
        let keep = Keep { rollouts: 1, events: 1_000 };
        assert_eq!(ledger.prune(keep).unwrap(), Pruned { rollouts: 1, events: 0 });
        assert!(ledger.rollout("r2").unwrap().is_none() && ledger.rollout("r1").unwrap().is_some());
        change(&ledger);
        assert_eq!(ledger.verify().unwrap().bad_rows, Vec::<String>::new());
        drop(ledger);
        Ledger::open(&place.path).unwrap().prune(keep).unwrap();
        drop(Ledger::open(&place.path).unwrap());
        forge(&place.path, "DELETE FROM rollouts WHERE id = (SELECT max(id) FROM rollouts)");
        assert!(reason(Ledger::open(&place.path)).contains("is gone"));
    }
}

#[test]
fn what_went_by_rule_is_noted_for_as_long_as_events_tell_of_it() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    for (id, at) in [("r1", 10_000), ("r2", 20_000), ("r3", 30_000)] {
        ledger.save_rollout_with(&rollout(id, "a", at, Some(at + 5)), &began(id, at)).unwrap();
    }
    let noted = |ledger: &Ledger| -> Vec<String> {
        let connection = ledger.connection();
        let mut statement = connection.prepare("SELECT rollout FROM pruned ORDER BY 1").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    };
    for (events, names) in [(100, ["r1", "r2"].as_slice()), (2, &["r2"]), (1, &[])] {
        ledger.prune(Keep { rollouts: 1, events }).unwrap();
        assert_eq!(noted(&ledger), names, "{events} events");
        assert_eq!(ledger.verify().unwrap().bad_rows, Vec::<String>::new());
    }
}

#[test]
fn what_an_older_ledger_lacks_is_taken_once_for_what_went_by_rule() {
    let without_heads = "ALTER TABLE live DROP COLUMN head_seq; ALTER TABLE rollouts DROP COLUMN head_seq;";
    for (version, back) in [(2, ""), (1, without_heads)] {
        let place = place();
        let ledger = Ledger::open(&place.path).unwrap();
        for (id, at) in [("r1", 10_000), ("r2", 20_000), ("r3", 30_000)] {
            ledger.save_rollout(&rollout(id, "a", at, Some(at + 5))).unwrap();
        }
        for (id, at) in [("r1", 10_000), ("r2", 20_000), ("r3", 30_000)] {
            ledger.append(&began(id, at)).unwrap();
        }
        drop(ledger);
        let change = |sql: &str| Connection::open(&place.path).unwrap().execute_batch(sql).unwrap();
        change(&format!(
            "DROP TABLE pruned; DROP INDEX events_by_rollout; {back} PRAGMA user_version = {version};
            DELETE FROM rollouts WHERE id = 'r2'"
        ));
        assert!(reason(Ledger::open_read_only(&place.path)).contains("start the server once"));
        let ledger = Ledger::open(&place.path).unwrap();
        assert!(ledger.verify().unwrap().ok, "version {version}");
        drop(ledger);
        change("DELETE FROM rollouts WHERE id = 'r1'");
        let told = reason(Ledger::open(&place.path));
        assert!(told.contains("rollout 'r1' is gone"), "version {version}: {told}");
    }
}
