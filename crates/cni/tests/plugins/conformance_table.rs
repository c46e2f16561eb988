//! The table in `tests/README.md` names a test for each case, and each of those tests exists.

use std::collections::BTreeSet;
use std::path::Path;

use crate::rig::walk;

/// Names of the test functions below a folder of this crate or another.
fn tests(folder: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut |path| {
        if !path.ends_with(".rs") {
            return;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if let (true, Some(rest)) = (is_test, line.strip_prefix("fn ")) {
                names.insert(rest.split('(').next().unwrap().to_owned());
            }
            is_test = line == "#[test]" || (is_test && line.starts_with("#["));
            // The golden cases are made by a macro: name, blank, folder.
            if let Some((name, _)) = line
                .split_once(" \"")
                .filter(|(name, _)| name.starts_with("golden_"))
            {
                names.insert(name.to_owned());
            }
        }
    });
    names
}

#[test]
fn table_of_cases_when_read_has_every_case_and_names_tests_that_exist() {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/README.md")).unwrap();
    let mut expected: Vec<String> = Vec::new();
    for (letter, last) in [("T", 23), ("P", 20), ("C", 15)] {
        expected.extend((1..=last).map(|i| format!("{letter}{i}")));
    }
    expected.extend(["C13b".to_owned(), "C13c".to_owned()]);
    let mut known = tests("src");
    known.extend(tests("tests"));
    known.extend(tests("../lab/tests"));
    assert!(known.len() > 100, "{known:?}");
    let mut found: Vec<String> = Vec::new();
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let columns: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [cases, _, tests] = columns[..] else {
            panic!("three columns: {row}");
        };
        if cases == "case" {
            continue;
        }
        found.extend(cases.split(", ").map(str::to_owned));
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test: {row}");
        for name in names {
            assert!(known.contains(name), "{cases}: there is no test {name}");
        }
    }
    let in_table: BTreeSet<&String> = found.iter().collect();
    assert_eq!(in_table.len(), found.len(), "a case twice");
    assert_eq!(in_table, expected.iter().collect::<BTreeSet<_>>());
}
