//! Whom this agent believes, and how others know that it is this one that speaks.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Shared, lock};
use crate::error::Result;
use crate::job::{Report, Task};
use crate::link::{About, Sealed, Told};
use crate::signing::{Holder, PublicKey, SigningKey};

/// How far ahead the last moment to begin may lie, in milliseconds: a day. What the journal
/// forgets it forgets after two at the soonest, so nothing can be begun again that it has
/// forgotten.
const LONGEST: u64 = 86_400_000;
/// How often it is logged that tasks are refused.
const LOG_EVERY: Duration = Duration::from_mins(1);
/// How long whoever was handed such a task waits before it asks again.
const PAUSE: Duration = Duration::from_secs(1);

/// What root has decided about keys.
#[derive(Clone, Debug, Default)]
pub struct Pki {
    /// Where the agent's own key is kept; None: in its state directory.
    pub dir: Option<PathBuf>,
    /// Whether it signs what it tells.
    pub signs: bool,
    /// Whose tasks it takes. None: those of whoever the kernel lets through.
    pub controllers: Vec<PublicKey>,
}

pub(super) struct Trust {
    key: SigningKey,
    signs: bool,
    controllers: Vec<PublicKey>,
    refused: Mutex<Refused>,
}

#[derive(Default)]
struct Refused {
    count: u64,
    logged: Option<Instant>,
}

impl Trust {
    /// The key is made at the first start.
    pub(super) fn new(pki: &Pki, state: &std::path::Path) -> Result<Self> {
        let key = Holder::Agent.kept_or_made(pki.dir.as_deref().unwrap_or(state))?;
        let Pki { signs, controllers, .. } = pki.clone();
        Ok(Self { key, signs, controllers, refused: Mutex::default() })
    }

    pub(super) fn public(&self) -> PublicKey {
        self.key.public()
    }

    fn demands(&self) -> bool {
        !self.controllers.is_empty()
    }

    /// How many tasks were refused since the start.
    pub(super) fn refused(&self) -> u64 {
        lock(&self.refused).count
    }

    /// Opens a task for `host`, where it is `now` in milliseconds since 1970. An error says why it
    /// is refused; unless signatures are demanded, none is.
    fn open(
        &self,
        sealed: &Sealed,
        host: &str,
        now: u64,
    ) -> std::result::Result<serde_json::Result<Task>, &'static str> {
        if !self.demands() {
            return Ok(sealed.open());
        }
        if !sealed.is_signed(host, &self.controllers) {
            return Err("it is not signed for this host by a controller whose key is known here");
        }
        let mut task = match sealed.open() {
            Ok(task) => task,
            unreadable => return Ok(unreadable),
        };
        if task.host != host {
            return Err("it is for another host");
        }
        let left = task.until.map(|until| until.saturating_sub(now));
        let left = left.ok_or("it does not say until when it may begin")?;
        if left > LONGEST {
            return Err("it may begin more than a day from now, by this host's clock");
        }
        if left == 0 && task.left_ms > 0 {
            // Only the journal may still know it; it is begun no more.
            let job = &task.job;
            tracing::warn!(OSAPI_JOB_ID = job, "a task came too late, by this host's clock");
        }
        task.left_ms = task.left_ms.min(left);
        Ok(Ok(task))
    }

    /// Notes that a task is refused. It is neither held nor answered: whoever can alter tasks
    /// could otherwise end true ones in this host's name.
    fn refuse(&self, why: &str) {
        let mut refused = lock(&self.refused);
        refused.count += 1;
        if refused.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
            refused.logged = Some(Instant::now());
            tracing::warn!(count = refused.count, "a task was refused: {why}");
        }
    }
}

impl<L> Shared<L> {
    /// Opens a task; None, after a while, where it is refused.
    pub(super) fn open(&self, sealed: &Sealed) -> Option<serde_json::Result<Task>> {
        let opened = self.trust.open(sealed, &self.setup.machine_id, self.clock().wall());
        opened.map_err(|why| self.refuse(why)).ok()
    }

    /// Refuses a task, and waits a while: it is handed out again at the next question, and nothing
    /// tells when that is of use. Whoever hands out what is refused is to keep no processor busy.
    pub(super) fn refuse(&self, why: &str) {
        self.trust.refuse(why);
        std::thread::sleep(PAUSE);
    }

    /// A report as it goes out.
    pub(super) fn told(&self, report: &Report) -> Result<Told> {
        let key = Some(&self.trust.key).filter(|_| self.trust.signs);
        Told::new(report, &self.setup.machine_id, key)
    }

    /// What the agent says of itself, as it goes out.
    pub(super) fn introduced(&self, mut about: About) -> Box<About> {
        if self.trust.signs {
            about.prove(&self.trust.key);
        }
        Box::new(about)
    }

    /// Whether tasks come from whoever may have kept copies of them: then what was answered stays
    /// answered, also where it was never begun.
    pub(super) fn answers_once(&self) -> bool {
        self.trust.demands()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::signing::Purpose;

    const NOW: u64 = 1_800_000_000_000;
    const HOUR: u64 = 3_600_000;

    fn trust(controllers: &[&SigningKey]) -> Trust {
        let controllers = controllers.iter().map(|key| key.public()).collect();
        let (key, refused) = (SigningKey::of_test(9), Mutex::default());
        Trust { key, signs: true, controllers, refused }
    }

    fn body(host: &str, until: Option<u64>, value: &str) -> String {
        let params = json!({ "key": "vm.swappiness", "value": value });
        let mut task = json!({
            "job": "0190d7a8-7d4b-7c8e-9a41-5d6f3c2b1a00", "host": host,
            "op": "node.sysctl.update", "params": params, "left_ms": HOUR,
        });
        if let Some(until) = until {
            task["until"] = until.into();
        }
        task.to_string()
    }

    fn left(trust: &Trust, sealed: &Sealed, now: u64) -> Option<u64> {
        trust.open(sealed, "h", now).ok().map(|task| task.unwrap().left_ms)
    }

    #[test]
    fn a_task_is_taken_from_those_whose_key_is_known_and_until_it_says() {
        let (key, next) = (SigningKey::of_test(1), SigningKey::of_test(2));
        let trust = trust(&[&key, &next]);
        for key in [&key, &next] {
            let good = Sealed::new(body("h", Some(NOW + HOUR), "1"), "h", Some(key));
            assert_eq!(left(&trust, &good, NOW), Some(HOUR));
            // However long it was on its way, by the clock of the wall.
            assert_eq!(left(&trust, &good, NOW + HOUR / 2), Some(HOUR / 2));
            assert_eq!(left(&trust, &good, NOW + HOUR), Some(0), "only the journal knows it");
            assert_eq!(left(&trust, &good, NOW + 100 * HOUR), Some(0));
        }
        // None is demanded of anybody where no key is known.
        let unsigned = Sealed::new(body("h", None, "1"), "h", None);
        assert_eq!(left(&self::trust(&[]), &unsigned, NOW), Some(HOUR));
    }

    /// Strips, alters, re-encodes, re-addresses, borrows and stretches: none of it is opened.
    #[test]
    fn a_task_that_was_tampered_with_is_refused_a_thousand_times() {
        let (key, stranger) = (SigningKey::of_test(1), SigningKey::of_test(3));
        let trust = trust(&[&key]);
        let text = body("h", Some(NOW + HOUR), "1");
        let good = Sealed::new(text.clone(), "h", Some(&key));
        let mut seed = 11_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(seed >> 33).unwrap() % below
        };
        let mut tried = 0;
        while tried < 1000 {
            let mut bad = good.clone();
            match tried % 11 {
                0 => bad.signature = None,
                1 => {
                    let (at, to) = (random(text.len()), b" azAZ019{}:,"[random(12)]);
                    bad.body.replace_range(at..=at, &char::from(to).to_string());
                }
                2 => bad.body.insert(random(text.len() + 1), ' '),
                3 => {
                    // The same value, as somebody else would write it.
                    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                    bad.body = format!("{value:#}");
                }
                4 => bad = Sealed::new(body("i", Some(NOW + HOUR), "1"), "i", Some(&key)),
                5 => bad = Sealed::new(body("i", Some(NOW + HOUR), "1"), "h", Some(&key)),
                6 => bad = Sealed::new(text.clone(), "h", Some(&stranger)),
                7 => {
                    let other = Sealed::new(body("h", Some(NOW + HOUR), "2"), "h", Some(&key));
                    bad.signature = other.signature;
                }
                8 => {
                    let purpose = [Purpose::Outcome, Purpose::Identity][random(2)];
                    bad.signature = Some(key.sign(purpose, "h", &[&text]));
                }
                9 => {
                    let until = (random(2) == 0).then_some(NOW + 25 * HOUR);
                    bad = Sealed::new(body("h", until, "1"), "h", Some(&key));
                }
                _ => {
                    let mut signature = bad.signature.unwrap();
                    signature.truncate(random(88));
                    bad.signature = Some(signature);
                }
            }
            if bad == good {
                continue;
            }
            tried += 1;
            assert!(trust.open(&bad, "h", NOW).is_err(), "{tried}: {bad:?}");
            trust.refuse("a test");
        }
        assert_eq!(trust.refused(), 1000, "each is told");
        assert_eq!(left(&trust, &good, NOW), Some(HOUR));
    }

    #[test]
    fn what_an_agent_says_of_itself_is_proven_as_a_whole() {
        let key = SigningKey::of_test(9);
        let mut about = About {
            machine_id: "h".to_owned(),
            hostname: "web".to_owned(),
            key: "sealing".to_owned(),
            signing_key: key.public().encode(),
            ..About::default()
        };
        about.labels.insert("group".to_owned(), "web".to_owned());
        assert!(!about.is_proven());
        about.prove(&key);
        assert!(about.is_proven());
        let spoilt: [fn(&mut About); 6] = [
            |about| about.machine_id = "i".to_owned(),
            |about| about.hostname = "websealing".to_owned(),
            |about| about.key.clear(),
            |about| about.labels.clear(),
            |about| about.signing_key.clear(),
            |about| about.proof.clear(),
        ];
        for spoil in spoilt {
            let mut about = about.clone();
            spoil(&mut about);
            assert!(!about.is_proven());
        }
    }
}
