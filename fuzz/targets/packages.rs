//! What dpkg keeps and apt prints: nothing of it is trusted further than its form.

#![allow(unreachable_pub, reason = "fuzz targets and tests both call it")]

use osapi::host::dpkg;

pub fn run(data: &[u8]) {
    let lines = data.split(|byte| *byte == b'\n').count();
    let mut count = 0;
    for stanza in dpkg::stanzas(data) {
        let stanza = stanza.unwrap();
        assert!(!stanza.package.is_empty());
        // At most one of them, and each of them at least something.
        let is = [stanza.is_absent(), stanza.is_broken()];
        assert!(is != [true, true] || stanza.status.contains("reinstreq"));
        for text in [&stanza.package, &stanza.version, &stanza.summary, &stanza.status] {
            // A byte that is no character becomes one of three.
            assert!(text.len() <= 3 * 1024);
        }
        count += 1;
    }
    assert!(count <= lines);
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        if let Some((name, version)) = dpkg::simulated(line) {
            assert!(dpkg::split_name(name).is_some() && !name.starts_with('-'));
            assert!(version.is_none_or(dpkg::is_version));
        }
        if let Some(update) = dpkg::upgradable(line) {
            assert!(dpkg::is_name(&update.name) && dpkg::is_version(&update.new_version));
        }
        if let Some(progress) = dpkg::told(line) {
            assert!(progress.message.chars().count() <= 160);
            assert!(!progress.message.contains(char::is_control));
            assert!(progress.percent.is_none_or(|percent| percent <= 100));
        }
    }
}
