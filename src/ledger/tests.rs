use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::error::Error;

mod damage;
mod missing;

const NOTHING: Keep = Keep { rollouts: 0, events: 0 };

struct Place {
    _folder: TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state/ledger.db");
    Place { _folder: folder, path }
}

fn event(model: &str, kind: &str, rollout: Option<&str>) -> NewEvent {
    NewEvent {
        model: model.to_owned(),
        rollout: rollout.map(str::to_owned),
        kind: kind.to_owned(),
        at_ms: 1_700_000_000_000,
        actor: Some("ops".to_owned()),
        body: json!({"note": "größer", "ratio": 0.1, "big": u64::MAX, "nested": [1, null]}),
    }
}

fn live(model: &str, version: &str) -> Live {
    Live {
        model: model.to_owned(),
        version: version.to_owned(),
        digest: format!("digest of {version}"),
        rollout: Some(format!("to-{version}")),
        since_ms: 5,
        previous: None,
    }
}

fn rollout(id: &str, model: &str, started_ms: i64, ended_ms: Option<i64>) -> RolloutRecord {
    RolloutRecord {
        id: id.to_owned(),
        model: model.to_owned(),
        to: "v2".to_owned(),
        phase: if ended_ms.is_some() { "settled" } else { "loading" }.to_owned(),
        started: rfc3339(started_ms),
        started_ms,
        ended_ms,
        phases: vec![PhaseAt { phase: "loading".to_owned(), at: rfc3339(started_ms), ms: 12 }],
        gate: vec![GateCheck {
            check: "golden".to_owned(),
            passed: true,
            measure: json!(0.25),
            limit: json!(1),
            case: Some("seven".to_owned()),
            message: None,
        }],
        figures: json!({"downtime_ms": 0.125}).as_object().unwrap().clone(),
        ..RolloutRecord::default()
    }
}

fn reason(result: Result<impl Sized>) -> String {
    match result {
        Err(Error::Ledger { reason }) => reason,
        Err(other) => panic!("not a ledger's error: {other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

/// A ledger with something in every table, closed: all of it is in the one file.
fn filled() -> Place {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    for number in 0..20 {
        ledger.append(&event("digits", &format!("phase {number}"), Some("r1"))).unwrap();
    }
    ledger.commit_live(&live("digits", "v1"), &event("digits", "switched", Some("r1"))).unwrap();
    ledger.commit_live(&live("other", "x"), &event("other", "started", None)).unwrap();
    ledger.save_rollout(&rollout("r1", "digits", 1, Some(9))).unwrap();
    ledger.save_rollout(&rollout("r2", "digits", 2, None)).unwrap();
    ledger.record_manifest("digits", "v1", &json!({"digest": "abc"})).unwrap();
    drop(ledger);
    assert!(!beside(&place.path, "-wal").exists(), "closing must leave one file");
    place
}

/// Everything that can be read.
fn everything(ledger: &Ledger) -> Result<impl PartialEq + std::fmt::Debug + use<>> {
    Ok((
        ledger.events(0, None, usize::MAX)?,
        ledger.events(0, Some("digits"), usize::MAX)?,
        (ledger.all_live()?, ledger.live("digits")?, ledger.live("other")?),
        (ledger.rollouts(&Filter::default())?, ledger.rollout("r1")?, ledger.rollout("r2")?),
        ledger.manifest("digits", "v1")?,
        ledger.last_seq()?,
    ))
}

#[test]
fn what_is_appended_is_there_after_a_restart_and_chained() {
    let place = place();
    let first = Ledger::open(&place.path).unwrap().append(&event("a", "started", None)).unwrap();
    let ledger = Ledger::open(&place.path).unwrap();
    let second = ledger.append(&event("b", "started", Some("r"))).unwrap();
    assert_eq!((first.seq, first.prev_hash.as_str(), second.seq), (1, "", 2));
    assert_eq!(second.prev_hash, first.hash);
    assert_eq!(ledger.events(0, None, 10).unwrap(), [first.clone(), second.clone()]);
    assert_eq!(ledger.events(1, None, 10).unwrap(), std::slice::from_ref(&second));
    assert_eq!(ledger.events(0, None, 1).unwrap(), std::slice::from_ref(&first));
    assert_eq!(ledger.events(0, Some("b"), 10).unwrap(), [second]);
    assert_eq!(ledger.events(0, Some("c"), 10).unwrap(), []);
    assert_eq!(first.body, event("a", "", None).body);
    assert_eq!(ledger.last_seq().unwrap(), 2);
    let report = ledger.verify().unwrap();
    let sound = VerifyReport { events: 2, first_bad: None, bad_rows: vec![], pruned_before: 1, ok: true };
    assert_eq!(report, sound);
}

#[test]
fn what_is_live_is_the_last_commit_for_each_model() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    assert_eq!(ledger.live("digits").unwrap(), None);
    ledger.commit_live(&live("digits", "v1"), &event("digits", "started", None)).unwrap();
    ledger.commit_live(&live("other", "v9"), &event("other", "started", None)).unwrap();
    let second = Live { previous: Some("v1".to_owned()), rollout: None, ..live("digits", "v2") };
    let event = ledger.commit_live(&second, &event("digits", "switched", None)).unwrap();
    assert_eq!(event.seq, 3);
    drop(ledger);
    let ledger = Ledger::open(&place.path).unwrap();
    assert_eq!(ledger.live("digits").unwrap(), Some(second.clone()));
    assert_eq!(ledger.all_live().unwrap(), [second, live("other", "v9")]);
}

#[test]
fn an_event_of_another_model_cannot_make_a_version_live() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    let error = ledger.commit_live(&live("digits", "v1"), &event("other", "switched", None)).unwrap_err();
    assert!(matches!(error, Error::Internal { .. }), "{error}");
    assert_eq!((ledger.all_live().unwrap(), ledger.last_seq().unwrap()), (vec![], 0));
}

#[test]
fn whoever_writes_late_of_a_rollout_overwrites_nothing() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    let open = rollout("r1", "a", 10, None);
    ledger.save_rollout(&open).unwrap();
    let mut found = open.clone();
    found.figures.insert("experiment".to_owned(), json!({ "name": "tone" }));
    ledger.refresh_rollout(&found).unwrap();
    assert_eq!(ledger.rollout("r1").unwrap(), Some(found.clone()));
    let closed = rollout("r1", "a", 10, Some(99));
    ledger.save_rollout(&closed).unwrap();
    ledger.refresh_rollout(&found).unwrap();
    ledger.refresh_rollout(&rollout("r2", "a", 10, None)).unwrap();
    assert_eq!((ledger.rollout("r1").unwrap(), ledger.rollout("r2").unwrap()), (Some(closed), None));
    ledger.verify().unwrap();
}

#[test]
fn rollouts_are_replaced_by_id_and_listed_newest_first() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    for (id, model, started) in [("r1", "a", 10), ("r2", "b", 30), ("r3", "a", 20), ("r4", "a", 20)] {
        ledger.save_rollout(&rollout(id, model, started, None)).unwrap();
    }
    let closed = rollout("r3", "a", 20, Some(99));
    ledger.save_rollout(&closed).unwrap();
    let ids = |filter: Filter| {
        let records = ledger.rollouts(&filter).unwrap();
        records.into_iter().map(|record| record.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(Filter::default()), ["r2", "r4", "r3", "r1"]);
    assert_eq!(ids(Filter { limit: 2, ..Filter::default() }), ["r2", "r4"]);
    assert_eq!([None, Some("a"), Some("nothing")].map(|model| ledger.rollouts_kept(model).unwrap()), [4, 3, 0]);
    assert_eq!(ids(Filter { model: Some("a".to_owned()), ..Filter::default() }), ["r4", "r3", "r1"]);
    assert_eq!(ids(Filter { open_only: true, ..Filter::default() }), ["r2", "r4", "r1"]);
    assert_eq!(ledger.rollout("r3").unwrap(), Some(closed));
    assert_eq!(ledger.rollout("r9").unwrap(), None);
    assert_eq!(ledger.figures(Some("a")).unwrap().deployments, 1);
    assert_eq!(ledger.figures(Some("b")).unwrap().deployments, 0);
    assert_eq!(ledger.figures(None).unwrap().downtime_ms, Some(Spread { count: 1, median: 0.125, max: 0.125 }));
}

#[test]
fn a_rollout_has_the_names_that_tools_rely_on() {
    let value = serde_json::to_value(rollout("r1", "a", 0, None)).unwrap();
    for key in ["id", "model", "from", "to", "phase", "reason", "kind", "actor", "started", "phases", "gate", "figures"]
    {
        assert!(value.get(key).is_some(), "{key}");
    }
    assert_eq!(value["phases"], json!([{"phase": "loading", "at": "1970-01-01T00:00:00.000Z", "ms": 12}]));
    let gate = json!([{"check": "golden", "passed": true, "measure": 0.25, "limit": 1, "case": "seven"}]);
    assert_eq!(value["gate"], gate);
}

#[test]
fn a_manifest_is_recorded_at_first_sight_only() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    assert_eq!(ledger.manifest("m", "v").unwrap(), None);
    ledger.record_manifest("m", "v", &json!({"digest": "first", "n": 1.5e-7})).unwrap();
    ledger.record_manifest("m", "v", &json!({"digest": "second"})).unwrap();
    assert_eq!(ledger.manifest("m", "v").unwrap(), Some(json!({"digest": "first", "n": 1.5e-7})));
    assert_eq!(ledger.manifest("m", "w").unwrap(), None);
}

#[test]
fn two_servers_cannot_share_a_ledger_but_others_may_read_it() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    ledger.append(&event("a", "started", None)).unwrap();
    let reason = reason(Ledger::open(&place.path));
    let expected = format!("another server is using it (process {})", std::process::id());
    assert!(reason.contains(&expected) && reason.contains("--state"), "{reason}");
    let reader = Ledger::open_read_only(&place.path).unwrap();
    assert_eq!(reader.events(0, None, 10).unwrap().len(), 1);
    ledger.append(&event("a", "stopped", None)).unwrap();
    assert_eq!(reader.events(0, None, 10).unwrap().len(), 2);
    drop(ledger);
    Ledger::open(&place.path).unwrap();
}

#[test]
fn who_opened_it_to_read_cannot_write() {
    let place = filled();
    let before = everything(&Ledger::open(&place.path).unwrap()).unwrap();
    let reader = Ledger::open_read_only(&place.path).unwrap();
    for refused in [
        reason(reader.append(&event("a", "x", None))),
        reason(reader.commit_live(&live("a", "v"), &event("a", "x", None))),
        reason(reader.save_rollout(&rollout("r1", "a", 1, None))),
        reason(reader.record_manifest("a", "v", &json!({}))),
        reason(reader.prune(NOTHING)),
    ] {
        assert!(refused.contains("opened to be read"), "{refused}");
    }
    assert!(everything(&reader).unwrap() == before);
}

#[test]
fn a_ledger_that_is_not_there_is_not_made_by_looking() {
    let place = place();
    assert!(reason(Ledger::open_read_only(&place.path)).contains("No such file"));
    assert!(!place.path.exists());
}

/// What a patient forger without the program would do.
fn forge(path: &std::path::Path, sql: &str) {
    assert!(Connection::open(path).unwrap().execute(sql, []).unwrap() > 0, "{sql} changed nothing");
}

#[test]
fn pruning_keeps_a_chain_that_verifies_and_goes_on() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    for number in 0..10 {
        let id = format!("r{number}");
        ledger.append(&event("a", "phase", Some(&id))).unwrap();
        ledger.save_rollout(&rollout(&id, "a", number, Some(number))).unwrap();
    }
    ledger
        .commit_live(&Live { rollout: Some("r0".to_owned()), ..live("a", "v1") }, &event("a", "switched", None))
        .unwrap();
    assert_eq!(ledger.prune(Keep { rollouts: 100, events: 100 }).unwrap(), Pruned::default());
    // The rollout that made the live version so is kept beside the newest three.
    let keep = Keep { rollouts: 3, events: 4 };
    assert!(ledger.has_more_than(keep).unwrap() && !ledger.has_more_than(Keep::ALL).unwrap());
    assert_eq!(ledger.prune(keep).unwrap(), Pruned { rollouts: 6, events: 7 });
    let ids: Vec<_> = ledger.rollouts(&Filter::default()).unwrap().into_iter().map(|record| record.id).collect();
    assert_eq!(ids, ["r9", "r8", "r7", "r0"]);
    let report = ledger.verify().unwrap();
    assert_eq!((report.ok, report.events, report.pruned_before), (true, 4, 8));
    assert_eq!(ledger.append(&event("a", "phase", None)).unwrap().seq, 12);
    assert_eq!(ledger.prune(NOTHING).unwrap(), Pruned { rollouts: 2, events: 5 });
    assert_eq!(ledger.append(&event("a", "phase", None)).unwrap().seq, 13);
    drop(ledger);
    let ledger = Ledger::open(&place.path).unwrap();
    assert_eq!(ledger.live("a").unwrap().unwrap().version, "v1");
    assert_eq!(ledger.verify().unwrap().pruned_before, 13);
    drop(ledger);
    forge(&place.path, "UPDATE events SET kind = 'x' WHERE seq = 13");
    assert!(reason(Ledger::open(&place.path)).contains("event 13"));
}

#[test]
fn an_open_rollout_and_its_events_are_never_pruned() {
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    ledger.append(&event("a", "phase", Some("old"))).unwrap();
    ledger.save_rollout(&rollout("old", "a", 1, Some(2))).unwrap();
    let first = ledger.append(&event("a", "phase", Some("open"))).unwrap();
    ledger.save_rollout(&rollout("open", "a", 2, None)).unwrap();
    ledger.append(&event("b", "alert", None)).unwrap();
    // Nor is the newest that has ended.
    assert_eq!(ledger.prune(NOTHING).unwrap(), Pruned { rollouts: 0, events: 1 });
    assert_eq!(ledger.events(0, None, 10).unwrap()[0], first);
    assert!(ledger.rollout("open").unwrap().is_some());
    assert!(ledger.verify().unwrap().ok);
}

#[test]
fn whoever_reads_for_long_keeps_no_switch_from_being_written() {
    let place = filled();
    let ledger = Ledger::open(&place.path).unwrap();
    let count = |transaction: &Transaction<'_>| {
        transaction.query_row("SELECT count(*) FROM events", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    std::thread::scope(|scope| {
        ledger
            .read("look", |transaction| {
                let before = count(transaction);
                let (done, written) = std::sync::mpsc::channel();
                let ledger = &ledger;
                scope.spawn(move || {
                    done.send(ledger.commit_live(&live("digits", "v2"), &event("digits", "switched", None))).unwrap();
                });
                written.recv_timeout(Duration::from_secs(60)).expect("it waits for whoever reads").unwrap();
                assert_eq!(count(transaction), before, "what is read does not change meanwhile");
                Ok(())
            })
            .unwrap();
    });
    // Nor does who reads next miss it.
    assert_eq!(ledger.live("digits").unwrap().unwrap().version, "v2");
}

#[test]
fn readers_see_only_whole_states_while_a_writer_goes_on() {
    const WRITES: i64 = 150;
    let place = place();
    let ledger = Ledger::open(&place.path).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let reader = Ledger::open_read_only(&place.path).unwrap();
                    let mut last = 0;
                    let mut looks = 0;
                    while !done.load(std::sync::atomic::Ordering::SeqCst) {
                        let report = reader.verify().unwrap();
                        assert!(report.ok, "{report:?}");
                        assert!(report.events >= last, "history went backwards");
                        last = report.events;
                        if let Some(live) = reader.live("a").unwrap() {
                            assert_eq!(live.previous.as_deref(), Some(live.version.as_str()));
                        }
                        looks += 1;
                    }
                    looks
                })
            })
            .collect();
        for number in 0..WRITES {
            let version = number.to_string();
            let row = Live { previous: Some(version.clone()), ..live("a", &version) };
            ledger.commit_live(&row, &event("a", "switched", None)).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert_eq!(ledger.verify().unwrap().events, WRITES as u64);
}
