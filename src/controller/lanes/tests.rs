//! Lanes by themselves.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::*;
use crate::controller::ids::{Ids, STORED};
use crate::job::{Deadline, Job, Options, Outcome};

fn open(ids: &mut Ids, class: Class, hosts: &[&str]) -> Arc<Open> {
    let id = ids.next(1, STORED);
    let job = Job {
        id: id.to_string(),
        op: "node.sysctl.update".to_owned(),
        caller: "somebody".to_owned(),
        target: "_all".to_owned(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        created: 1,
        deadline: Deadline { at: 1, boot: String::new(), uptime: 1 },
        cancelled: None,
        retried: Vec::new(),
        confirmed: None,
        moved: Vec::new(),
        is_settled: false,
        unheard: Vec::new(),
    };
    let (params, options, objects) = (Value::Null, Options::default(), BTreeMap::new());
    let record = Record { job, params, options, objects, sealed: None, once: None };
    Open::new(id, record, class, true)
}

/// The same for any host, which is to be `a`.
fn any(ids: &mut Ids) -> Arc<Open> {
    let open = open(ids, Class::Change, &["a"]);
    let mut record = Record::clone(&open.record);
    "_any".clone_into(&mut record.job.target);
    Open::new(open.id, record, open.class, true)
}

fn admit(lanes: &mut Lanes, open: &Arc<Open>, revision: Revision) {
    lanes.expect(open.clone());
    lanes.admit(open.id, revision);
}

fn report(open: &Open) -> Report {
    let outcome = Outcome::Done { result: json!({}) };
    Report::new(open.id.to_string(), 1, 2, outcome)
}

fn next(lanes: &mut Lanes, host: &str, holds: &[Uuid], classes: &[Class]) -> Vec<Uuid> {
    let mut taken = Vec::new();
    let holds = holds.iter().copied().collect();
    let (classes, which) = (classes.to_vec(), Which::Asked(lanes.asked(host)));
    let question = Question { holds, waits: None, classes, most: 64, which };
    lanes.next(host, &question, 0, |open| {
        taken.push(open.id);
        true
    });
    taken
}

#[test]
fn queued_changes_do_not_stand_in_the_way_of_a_read() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let mut changes = Vec::new();
    for revision in 1..=1_000 {
        let open = open(&mut ids, Class::Change, &["a"]);
        admit(&mut lanes, &open, revision);
        changes.push(open.id);
    }
    let read = open(&mut ids, Class::Look, &["a"]);
    admit(&mut lanes, &read, 1_001);
    let taken = next(&mut lanes, "a", &[], &[Class::Change, Class::Look]);
    assert_eq!(taken[..64], changes[..64]);
    assert_eq!(taken[64..], [read.id]);
    assert_eq!(next(&mut lanes, "a", &taken, &[Class::Change])[..], changes[64..128]);
}

#[test]
fn what_is_looked_for_beyond_its_time_is_overdue() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let stored = open(&mut ids, Class::Change, &["a"]);
    admit(&mut lanes, &stored, 7);
    let record = stored.record.clone();
    let read = Open::new(ids.next(1, 1), record, Class::Look, false);
    admit(&mut lanes, &read, 1);
    let at = |now: u64| move |_: &Open, since: u64| now - since > 20;
    let is_long = at(30);
    assert!(lanes.overdue(is_long).is_empty(), "it waits");
    assert_eq!(next(&mut lanes, "a", &[], &Class::ALL), [read.id, stored.id]);
    assert_eq!(lanes.overdue(is_long), [(read.id, "a".to_owned())]);
    assert!(lanes.overdue(at(20)).is_empty());
    lanes.finish(read.id, "a", report(&read));
    assert!(lanes.overdue(is_long).is_empty());
}

#[test]
fn a_verdict_waits_for_nothing_of_another_class() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    for (revision, class) in (1..).zip([Class::Look, Class::Change, Class::Act]) {
        let open = open(&mut ids, class, &["a"]);
        admit(&mut lanes, &open, revision);
    }
    let verdict = open(&mut ids, Class::Verdict, &["a"]);
    admit(&mut lanes, &verdict, 4);
    assert_eq!(next(&mut lanes, "a", &[], &[Class::Verdict]), [verdict.id]);
}

#[test]
fn what_is_not_held_is_handed_out_again_until_it_is_reported() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let open = open(&mut ids, Class::Change, &["a"]);
    admit(&mut lanes, &open, 7);
    assert_eq!(next(&mut lanes, "a", &[], &[Class::Change]), [open.id]);
    assert!(lanes.is_taken("a", open.id));
    assert_eq!(next(&mut lanes, "a", &[], &[Class::Change]), [open.id]);
    assert_eq!((lanes.oldest(), lanes.stored_of("a")), (Some(7), 1));
    lanes.reported(open.id, "a");
    assert!(next(&mut lanes, "a", &[], &[Class::Change]).is_empty());
    lanes.finish(open.id, "a", report(&open));
    assert!(open.so_far.borrow().is_over);
    assert_eq!((lanes.oldest(), lanes.stored_of("a")), (None, 0));
    assert!(lanes.get(open.id).is_none());
}

#[test]
fn calling_off_spares_the_hosts_that_may_have_begun() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let open = open(&mut ids, Class::Change, &["a", "b"]);
    admit(&mut lanes, &open, 7);
    next(&mut lanes, "a", &[], &[Class::Change]);
    let mark = Mark { at: 1, by: "somebody".to_owned(), job: None, asked: Vec::new() };
    lanes.rewritten(open.id, 9, Some(mark));
    assert!(lanes.is_missing(open.id, "a") && !lanes.is_missing(open.id, "b"));
    assert_eq!(lanes.oldest(), Some(9));
    lanes.finish(open.id, "a", report(&open));
    assert!(open.so_far.borrow().is_over);
}

#[test]
fn what_was_lost_on_the_way_may_have_begun_and_is_not_called_off() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let (first, second) =
        (open(&mut ids, Class::Change, &["a"]), open(&mut ids, Class::Change, &["a"]));
    admit(&mut lanes, &first, 7);
    assert_eq!(next(&mut lanes, "a", &[], &[Class::Change]), [first.id]);
    admit(&mut lanes, &second, 8);
    // The next agent holds nothing, and has no room.
    let (holds, which) = (HashSet::new(), Which::Asked(lanes.asked("a")));
    let (waits, classes) = (None, vec![Class::Change]);
    let question = Question { holds, waits, classes, most: 0, which };
    assert_eq!(lanes.next("a", &question, 0, |_| true), [Class::Change], "there is more");
    assert!(lanes.hold_back(first.id).is_empty());
    assert_eq!(lanes.hold_back(second.id), ["a"]);
    assert_eq!(next(&mut lanes, "a", &[], &[Class::Change]), [first.id]);
}

#[test]
fn what_waits_in_a_relay_is_taken_once_the_agent_has_it() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let open = open(&mut ids, Class::Change, &["a"]);
    admit(&mut lanes, &open, 7);
    let (holds, waits, which) = (HashSet::new(), Some(HashSet::new()), Which::New);
    let question = Question { holds, waits, classes: vec![Class::Change], most: 1, which };
    lanes.next("a", &question, 0, |_| true);
    let (held, none) = (HashSet::from([open.id]), HashSet::new());
    assert!(lanes.may_have("a", open.id) && !lanes.is_taken("a", open.id));
    lanes.beat("a", &held, &held, 1);
    assert!(!lanes.is_taken("a", open.id));
    assert_eq!(lanes.may_let_go(open.id, false), ["a"]);
    lanes.beat("a", &held, &none, 2);
    assert!(lanes.is_taken("a", open.id));
    assert!(lanes.may_let_go(open.id, false).is_empty());
    // Handed out again after the agent or the relay have ended, it may have begun.
    lanes.beat("a", &held, &held, 3);
    assert!(lanes.is_taken("a", open.id));
}

#[test]
fn a_change_does_not_overtake_one_that_another_controller_may_have_left_untold() {
    for (class, is_to_be_asked) in [(Class::Change, true), (Class::Act, false)] {
        let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
        let (theirs, own) = (open(&mut ids, class, &["a"]), open(&mut ids, class, &["a"]));
        admit(&mut lanes, &theirs, 7);
        lanes.inherit(theirs.id, |_| true);
        admit(&mut lanes, &own, 8);
        let (holds, waits, which) = (HashSet::new(), Some(HashSet::new()), Which::New);
        let question = Question { holds, waits, classes: vec![class], most: 64, which };
        let mut told = Vec::new();
        let more = lanes.next("a", &question, 0, |open| {
            told.push(open.id);
            true
        });
        assert_eq!((told.is_empty(), !more.is_empty()), (is_to_be_asked, is_to_be_asked));
    }
}

#[test]
fn a_parked_job_does_not_hold_the_floor_down() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let (old, new) = (open(&mut ids, Class::Change, &["a"]), open(&mut ids, Class::Change, &["a"]));
    admit(&mut lanes, &old, 7);
    admit(&mut lanes, &new, 8);
    lanes.parked(old.id);
    assert_eq!(lanes.oldest(), Some(8));
    assert!(lanes.is_last_of_parked(old.id, "a") && !lanes.is_last_of_parked(new.id, "a"));
}

#[test]
fn what_is_in_memory_only_leaves_the_floor_where_it_is() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let stored = open(&mut ids, Class::Change, &["a"]);
    admit(&mut lanes, &stored, 1);
    let read = Open::new(ids.next(1, 1), stored.record.clone(), Class::Look, false);
    admit(&mut lanes, &read, 1);
    lanes.remove(read.id);
    assert_eq!((lanes.oldest(), lanes.volatile()), (Some(1), 0));
}

#[test]
fn only_what_was_never_handed_out_expires_at_once() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let open = open(&mut ids, Class::Change, &["a", "b"]);
    admit(&mut lanes, &open, 7);
    next(&mut lanes, "a", &[], &[Class::Change]);
    lanes.expire(|_| true, |_| false);
    assert!(lanes.is_missing(open.id, "a") && !lanes.is_missing(open.id, "b"));
    lanes.expire(|_| true, |_| true);
    assert!(lanes.is_missing(open.id, "a"), "it is put on record first that it had it");
    let unheard = lanes.unheard(|_| true, |_| false, 9);
    assert_eq!(unheard, [(open.id, vec!["a".to_owned()])]);
    lanes.give_up(open.id, vec!["a".to_owned()]);
    assert!(open.so_far.borrow().is_over);
}

#[test]
fn of_two_questions_that_wait_only_one_is_answered_with_a_task() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let asked = [(); 2].map(|()| lanes.asked("a"));
    let read = open(&mut ids, Class::Look, &["a"]);
    admit(&mut lanes, &read, 1);
    let mut taken = Vec::new();
    for asked in asked {
        let (holds, classes) = (HashSet::new(), vec![Class::Look]);
        let which = Which::Asked(asked);
        lanes.next("a", &Question { holds, waits: None, classes, most: 1, which }, 0, |open| {
            taken.push(open.id);
            true
        });
    }
    assert_eq!(taken, [read.id]);
    // Whoever asks after that without holding it has never got it.
    assert_eq!(next(&mut lanes, "a", &[], &[Class::Look]), [read.id]);
}

#[test]
fn what_may_be_called_off_and_was_handed_out_elsewhere_is_asked_for() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let open = open(&mut ids, Class::Change, &["a"]);
    admit(&mut lanes, &open, 7);
    assert_eq!(lanes.hold_back(open.id), ["a"]);
    assert_eq!(lanes.hold_back(open.id), ["a"], "it is not known yet what became of that");
    // Another controller is heard by it as well.
    lanes.beat("a", &HashSet::new(), &HashSet::new(), 1);
    assert!(lanes.hold_back(open.id).is_empty());
    assert_eq!(lanes.may_let_go(open.id, false), ["a"]);
    let asked = vec!["a".to_owned()];
    lanes.rewritten(open.id, 8, Some(Mark { at: 1, by: "ada".to_owned(), job: None, asked }));
    assert_eq!(lanes.called_off("a"), [open.id]);
    assert!(lanes.is_missing(open.id, "a"), "it answers for that");
}

#[test]
fn what_comes_round_of_where_a_job_went_before_moves_it_no_more() {
    let (mut lanes, mut ids) = (Lanes::default(), Ids::default());
    let open = any(&mut ids);
    admit(&mut lanes, &open, 7);
    let to = |host: &str| Job { hosts: vec![host.to_owned()], ..open.record.job.clone() };
    lanes.readdressed(open.id, 8, &to("b"));
    lanes.readdressed(open.id, 9, &to("c"));
    for (revision, host) in [(7, "a"), (8, "b"), (9, "c")] {
        lanes.read(open.id, revision, &to(host));
        assert!(next(&mut lanes, host, &[], &[Class::Change]).is_empty() == (host != "c"));
    }
    assert_eq!(lanes.oldest(), Some(9));
    lanes.read(open.id, 10, &to("a"));
    assert_eq!(next(&mut lanes, "a", &[], &[Class::Change]), [open.id], "others may move it again");
}
