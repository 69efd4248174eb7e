//! What the design page says about the tests is so.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// The names of the functions in all Rust files below.
fn functions(dir: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let found = text
                .split("fn ")
                .skip(1)
                .filter_map(|it| it.split_once('('));
            names.extend(found.map(|(name, _)| name.to_owned()));
        }
    }
}

/// `…` stands for what is left out.
fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('…') {
        Some((head, tail)) => name.starts_with(head) && name.ends_with(tail),
        None => name == pattern,
    }
}

#[test]
fn each_test_that_the_design_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = Vec::new();
    functions(&root.join("tests"), &mut names);
    functions(&root.join("src"), &mut names);
    let design = fs::read_to_string(root.join("design.md")).unwrap();
    let (_, shown) = design.split_once("## 22. What the tests show").unwrap();
    let table = fs::read_to_string(root.join("tests/README.md")).unwrap();
    let (_, table) = table.split_once("## Pitfalls").unwrap();
    let shown = [shown, table].concat();
    let quoted = shown.split('`').skip(1).step_by(2);
    let is_name = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || "_…".contains(it);
    let mut checked = 0;
    for quote in quoted {
        if quote.starts_with("tests/") || quote.starts_with("src/") {
            let there = quote.contains('*') || root.join(quote).exists();
            assert!(there, "{quote} is not there");
        } else if quote.matches('_').count() > 2 && quote.chars().all(is_name) {
            let there = names.iter().any(|it| fits(it, quote));
            assert!(there, "no test is called {quote}");
            checked += 1;
        }
    }
    assert!(checked > 100, "only {checked} names were found");
}
