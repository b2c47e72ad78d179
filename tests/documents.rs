//! The documents that are derived from the code, and parts of such. `UPDATE=1` rewrites them.
#![expect(clippy::disallowed_methods, reason = "compares files of the tree")]

use std::path::Path;

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "{name} is out of date; `make docs` rewrites it");
}

#[test]
fn the_manual_of_the_configuration_is_that_of_the_code() {
    compare("docs/config.md", &osapi::config::manual());
}

#[test]
fn the_sample_configuration_is_that_of_the_code() {
    compare("packaging/osapi.yaml", &osapi::config::sample());
}

#[test]
fn the_rights_at_the_broker_are_those_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fleet.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (from, to) = ("<!-- derived: rights -->\n", "<!-- end -->");
    let (before, rest) = text.split_once(from).expect("docs/fleet.md has a place for them");
    let (_, after) = rest.split_once(to).expect("that place has an end");
    let table = osapi::broker::permissions::table();
    compare("docs/fleet.md", &format!("{before}{from}{table}{to}{after}"));
}
