//! What the disk, a crash or a hand may do to the file.

use proptest::prelude::*;

use super::*;

#[test]
fn a_full_disk_is_an_error_and_what_was_committed_stays() {
    let place = filled();
    let ledger = Ledger::open(&place.path).unwrap();
    let before = everything(&ledger).unwrap();
    let pages: i64 = ledger.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let limit = |pages: i64| {
        let connection = ledger.connection();
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    };
    limit(pages);
    let large = json!("x".repeat(100_000));
    let too_large = NewEvent { body: large.clone(), ..event("digits", "switched", None) };
    for refused in [
        reason(ledger.append(&too_large)),
        reason(ledger.commit_live(&live("digits", "v2"), &too_large)),
        reason(ledger.record_manifest("digits", "v2", &large)),
    ] {
        assert!(refused.contains("disk is full") && refused.contains("make room"), "{refused}");
    }
    assert!(everything(&ledger).unwrap() == before);
    assert!(ledger.verify().unwrap().ok);
    limit(1_000_000);
    ledger.commit_live(&live("digits", "v2"), &too_large).unwrap();
    assert_eq!(ledger.live("digits").unwrap().unwrap().version, "v2");
    assert!(ledger.verify().unwrap().ok);
}

#[test]
fn a_file_that_is_no_ledger_is_refused_and_left_alone() {
    let cases: [(&[u8], &str); 3] = [
        (b"", "it is damaged: it is empty; restore a copy, or move the file"),
        (b"once upon a time, in a land far away, there was no database", "not a database; restore a copy"),
        (&[0; 8192], "not a database; restore a copy"),
    ];
    for (bytes, expected) in cases {
        let place = place();
        fs::create_dir_all(place.path.parent().unwrap()).unwrap();
        fs::write(&place.path, bytes).unwrap();
        for refused in [reason(Ledger::open(&place.path)), reason(Ledger::open_read_only(&place.path))] {
            assert!(refused.contains(expected) && refused.contains("ledger.db"), "{refused}");
        }
        assert_eq!(fs::read(&place.path).unwrap(), bytes);
    }
    let place = place();
    fs::create_dir_all(&place.path).unwrap();
    assert!(reason(Ledger::open(&place.path)).contains("it is not a file"));
}

#[test]
fn another_programs_database_and_a_newer_ledger_are_refused() {
    let place = filled();
    let change = |name: &str, value: i64| {
        Connection::open(&place.path).unwrap().pragma_update(None, name, value).unwrap();
    };
    change("user_version", 99);
    let refused = reason(Ledger::open(&place.path));
    assert!(refused.contains("its schema is version 99, this program knows versions 1 to 3"), "{refused}");
    change("application_id", 7);
    for refused in [reason(Ledger::open(&place.path)), reason(Ledger::open_read_only(&place.path))] {
        assert!(refused.contains("a database, but not a ledger of cutover"), "{refused}");
    }
}

#[test]
fn a_write_ahead_log_without_its_file_is_not_taken_for_a_new_ledger() {
    let place = filled();
    let ledger = Ledger::open(&place.path).unwrap();
    ledger.append(&event("digits", "x", None)).unwrap();
    let orphan = TempDir::new().unwrap();
    let path = orphan.path().join("ledger.db");
    fs::copy(beside(&place.path, "-wal"), beside(&path, "-wal")).unwrap();
    let refused = reason(Ledger::open(&path));
    assert!(refused.contains("the file is gone, but its write-ahead log is there"), "{refused}");
}

#[test]
fn a_creation_that_was_cut_short_is_begun_again() {
    let place = place();
    fs::create_dir_all(place.path.parent().unwrap()).unwrap();
    fs::write(beside(&place.path, ".new"), b"half of a da").unwrap();
    fs::write(beside(&place.path, ".new-journal"), b"junk").unwrap();
    let ledger = Ledger::open(&place.path).unwrap();
    assert!(ledger.verify().unwrap().ok);
    assert!(!beside(&place.path, ".new").exists() && !beside(&place.path, ".new-journal").exists());
}

#[test]
fn a_file_cut_short_anywhere_is_refused_or_whole() {
    let place = filled();
    let expected = everything(&Ledger::open(&place.path).unwrap()).unwrap();
    let bytes = fs::read(&place.path).unwrap();
    let mut refused = 0;
    for len in (0..bytes.len()).step_by(997).chain([bytes.len() - 1, bytes.len() - 4096]) {
        fs::write(&place.path, &bytes[..len]).unwrap();
        match Ledger::open(&place.path).and_then(|ledger| everything(&ledger)) {
            Ok(read) => assert!(read == expected, "cut to {len}: something else was read"),
            Err(Error::Ledger { reason }) => {
                assert!(
                    reason.contains("damaged") || reason.contains("malformed") || reason.contains("not a database")
                );
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn a_flipped_byte_anywhere_is_refused_or_without_effect() {
    let place = filled();
    let expected = everything(&Ledger::open(&place.path).unwrap()).unwrap();
    let bytes = fs::read(&place.path).unwrap();
    let mut refused = 0;
    // Of most pages the larger part is unused: positions that hold something.
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    for at in used.iter().step_by(used.len() / 300) {
        let mut damaged = bytes.clone();
        damaged[*at] ^= 0x11;
        fs::write(&place.path, &damaged).unwrap();
        match Ledger::open(&place.path).and_then(|ledger| everything(&ledger)) {
            Ok(read) => assert!(read == expected, "byte {at}: something else was read"),
            Err(Error::Ledger { .. }) => refused += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(refused > 200, "{refused} of 300");
}

#[test]
fn a_changed_row_is_found_and_named() {
    let cases = [
        ("UPDATE events SET body = '{}' WHERE seq = 7", "event 7: it was changed after it was recorded"),
        ("UPDATE events SET actor = NULL WHERE seq = 7", "event 7: it was changed after it was recorded"),
        ("UPDATE events SET rollout = '' WHERE seq = 22", "event 22: it was changed after it was recorded"),
        ("UPDATE events SET at_ms = at_ms + 1 WHERE seq = 1", "event 1: it was changed after it was recorded"),
        ("UPDATE events SET hash = prev_hash WHERE seq = 3", "event 3: it was changed after it was recorded"),
        ("UPDATE events SET prev_hash = hash WHERE seq = 3", "event 3: it does not follow the event before it"),
        ("DELETE FROM events WHERE seq = 7", "event 7: it is missing"),
        ("DELETE FROM events WHERE seq = 1", "event 1: it is missing"),
        ("DELETE FROM events WHERE seq > 20", "event 21: it is missing, with all that followed"),
        ("DELETE FROM events", "event 1: it is missing, with all that followed"),
        ("UPDATE chain SET head_hash = 'x'", "event 22: it is not the last one that was recorded"),
        ("UPDATE chain SET head_seq = 21", "event 22: it is not the last one that was recorded"),
        ("UPDATE chain SET base_seq = 5", "event 1: it was pruned, but is there"),
        ("DELETE FROM chain", "the row that describes its events is gone"),
        ("UPDATE live SET version = 'v9' WHERE model = 'digits'", "the live version of 'digits'"),
        ("UPDATE live SET rollout = NULL", "the live version of 'digits'"),
        ("UPDATE rollouts SET ended_ms = 3 WHERE id = 'r2'", "rollout 'r2'"),
        ("UPDATE rollouts SET record = replace(record, 'settled', 'refused')", "rollout 'r1'"),
        ("UPDATE manifests SET manifest = '{}'", "the manifest of 'digits@v1'"),
    ];
    for (sql, expected) in cases {
        let place = filled();
        forge(&place.path, sql);
        let refused = reason(Ledger::open(&place.path));
        assert!(refused.contains("it is damaged: ") && refused.contains(expected), "{sql}: {refused}");
        // To look at, it still opens; and to look closer says the same.
        let reader = Ledger::open_read_only(&place.path).unwrap();
        match reader.verify() {
            Ok(report) => {
                assert!(!report.ok);
                assert!(report.first_problem().unwrap().contains(expected), "{sql}: {report:?}");
            }
            Err(error) => assert!(error.to_string().contains(expected), "{sql}: {error}"),
        }
    }
}

#[test]
fn a_changed_row_is_not_handed_out() {
    let place = filled();
    for sql in [
        "UPDATE events SET body = '{}' WHERE seq = 7",
        "UPDATE live SET version = 'v9'",
        "UPDATE rollouts SET model = 'x'",
        "UPDATE manifests SET manifest = '{}'",
    ] {
        forge(&place.path, sql);
    }
    let reader = Ledger::open_read_only(&place.path).unwrap();
    for refused in [
        reason(reader.events(0, None, 10)),
        reason(reader.live("digits")),
        reason(reader.all_live()),
        reason(reader.rollout("r1")),
        reason(reader.rollouts(&Filter::default())),
        reason(reader.manifest("digits", "v1")),
    ] {
        assert!(refused.contains("damaged"), "{refused}");
    }
}

#[test]
fn a_transaction_that_panics_or_fails_leaves_nothing() {
    let place = filled();
    let ledger = Ledger::open(&place.path).unwrap();
    let before = everything(&ledger).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        ledger.write("test", |transaction| -> Result<(), Fault> {
            chain::append(transaction, &event("a", "half", None))?;
            panic!("in the middle");
        })
    }));
    assert!(panicked.is_err());
    let failed = ledger.write("test", |transaction| -> Result<(), Fault> {
        chain::append(transaction, &event("a", "half", None))?;
        Err(Fault::Misused("no".to_owned()))
    });
    assert!(failed.is_err());
    assert!(everything(&ledger).unwrap() == before);
    ledger.append(&event("a", "whole", None)).unwrap();
}

/// The files as a process that dies now leaves them, in a folder of their own.
fn crash_image(place: &Place, cut_log_to: Option<usize>) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ledger.db");
    fs::copy(&place.path, &path).unwrap();
    let mut log = fs::read(beside(&place.path, "-wal")).unwrap();
    if let Some(len) = cut_log_to {
        log.truncate(len);
    }
    fs::write(beside(&path, "-wal"), log).unwrap();
    (folder, path)
}

#[test]
fn a_process_that_dies_in_a_transaction_leaves_the_state_before_it() {
    let place = filled();
    let ledger = Ledger::open(&place.path).unwrap();
    ledger.append(&event("a", "committed", None)).unwrap();
    let before = everything(&ledger).unwrap();
    let image = ledger.write("test", |transaction| {
        // Larger than SQLite's page cache, so that some of it is in the log already.
        transaction.pragma_update(None, "cache_size", 5)?;
        chain::append(transaction, &NewEvent { body: json!("x".repeat(2_000_000)), ..event("a", "half", None) })?;
        transaction.execute("UPDATE live SET version = 'never'", [])?;
        Ok(crash_image(&place, None))
    });
    let (_folder, path) = image.unwrap();
    assert!(fs::metadata(beside(&path, "-wal")).unwrap().len() > 1_000_000, "nothing was written before the crash");
    let recovered = Ledger::open(&path).unwrap();
    assert!(everything(&recovered).unwrap() == before);
    assert!(recovered.append(&event("a", "after", None)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_log_that_ends_anywhere_is_the_state_after_some_commit(cut in any::<prop::sample::Index>()) {
        let place = filled();
        let ledger = Ledger::open(&place.path).unwrap();
        for number in 0..5 {
            let version = format!("n{number}");
            ledger.commit_live(&live("digits", &version), &event("digits", &version, None)).unwrap();
        }
        let len = fs::metadata(beside(&place.path, "-wal")).unwrap().len() as usize;
        let (_folder, path) = crash_image(&place, Some(cut.index(len + 1)));
        let recovered = Ledger::open(&path).unwrap();
        let last = recovered.events(0, Some("digits"), usize::MAX).unwrap().pop().unwrap();
        let live = recovered.live("digits").unwrap().unwrap();
        let expected = if last.kind == "switched" { "v1" } else { last.kind.as_str() };
        prop_assert_eq!(live.version, expected);
        prop_assert!(recovered.last_seq().unwrap() >= 22);
    }
}
