//! The journal as it is written, from a journalctl that shows what a test appends to a file.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};

use super::*;

const FOLLOW: &str = "/api/node/_any/log/follow";

fn host() -> Appliance {
    let appliance = appliance();
    let journal = appliance.dir().join("journal");
    File::create(&journal).unwrap();
    let journal = journal.display();
    let script = format!(
        "#!/bin/sh\nfirst=1\nfor word in \"$@\"; do case \"$word\" in --after-cursor=*)\n\
         line=$(grep -n \"\\\"${{word#--after-cursor=}}\\\"\" {journal} | head -n 1)\n\
         first=$((${{line%%:*}} + 1)) ;; esac; done\nexec tail -n \"+$first\" -f {journal}\n"
    );
    appliance.command("journalctl", &script);
    appliance
}

fn log(site: &Site, message: &str) {
    let mut journal = OpenOptions::new().append(true).open(site.dir().join("journal")).unwrap();
    let entry = json!({
        "__REALTIME_TIMESTAMP": "1735689600000000",
        "__CURSOR": format!("s=1;i={message}"),
        "MESSAGE": message,
    });
    writeln!(journal, "{entry}").unwrap();
}

/// How many read the journal of this host.
fn readers(site: &Site) -> usize {
    let journal = site.dir().join("journal").display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let words = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    words.filter(|words| String::from_utf8_lossy(words).contains(&format!("-f\0{journal}"))).count()
}

struct Events(BufReader<UnixStream>);

#[derive(Debug)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

impl Events {
    /// Asks, and returns once there is an answer.
    fn open(site: &Site, path: &str, headers: &str) -> Result<Self, u16> {
        let mut stream = UnixStream::connect(site.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: osapi\r\n{headers}\r\n").unwrap();
        let mut events = Self(BufReader::new(stream));
        let status = events.line().unwrap()[9..12].parse().unwrap();
        let head: Vec<_> = std::iter::from_fn(|| events.line().filter(|l| !l.is_empty())).collect();
        if status != 200 {
            return Err(status);
        }
        assert!(head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
        Ok(events)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.0.read_line(&mut line).unwrap() > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event, whatever chunks it comes in.
    fn next(&mut self) -> Option<Event> {
        let (mut id, mut name) = (String::new(), String::new());
        loop {
            let line = self.line()?;
            if let Some(text) = line.strip_prefix("id: ") {
                text.clone_into(&mut id);
            } else if let Some(text) = line.strip_prefix("event: ") {
                text.clone_into(&mut name);
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(data).unwrap();
                return Some(Event { id, name, data });
            }
        }
    }

    fn message(&mut self) -> String {
        let event = self.next().unwrap();
        assert!(event.name.is_empty(), "{event:?}");
        event.data["message"].as_str().unwrap().to_owned()
    }

    /// Why it ended, once it has.
    fn end(&mut self) -> String {
        let event = self.next().unwrap();
        assert_eq!(event.name, "end", "{event:?}");
        assert!(self.next().is_none());
        event.data["kind"].as_str().unwrap().to_owned()
    }
}

#[test]
fn entries_come_as_they_are_written_until_nobody_listens() {
    let site = host();
    let _daemon = Daemon::start(&site);
    until_ready(&site);
    log(&site, "one");
    let mut events = Events::open(&site, FOLLOW, "").unwrap();
    assert_eq!(events.message(), "one");
    log(&site, "two");
    let two = events.next().unwrap();
    assert_eq!((two.id.as_str(), &two.data["message"]), ("s=1;i=two", &json!("two")));
    assert_eq!(readers(&site), 1);
    drop(events);
    until("journalctl ends", || (readers(&site) == 0).then_some(()));

    log(&site, "three");
    let mut events =
        Events::open(&site, FOLLOW, &format!("last-event-id: {}\r\n", two.id)).unwrap();
    assert_eq!(events.message(), "three");
    let path = format!("{FOLLOW}?after={}", "s%3D1%3Bi%3Done");
    assert_eq!(Events::open(&site, &path, "").unwrap().message(), "two");
    until("it is on record", || {
        let audit = ask(&site, "GET", "/api/audit/export", None).json();
        let items = audit["items"].as_array().unwrap().clone();
        let is_it = |item: &Value| item["operation_id"] == "node.log.follow";
        (items.iter().filter(|item| is_it(item)).count() == 3).then_some(())
    });
}

#[test]
fn what_cannot_begin_is_refused_like_anything_else() {
    let site = host();
    let _daemon = Daemon::start(&site);
    until_ready(&site);
    for wrong in ["after=a%20b", "lines=10001", "unit=a*", "since=soon", "follow=true"] {
        let refused = Events::open(&site, &format!("{FOLLOW}?{wrong}"), "").err();
        assert_eq!(refused, Some(400), "{wrong}");
    }
    site.command("journalctl", "#!/bin/sh\necho 'the journal is broken' >&2\nexit 1\n");
    let answer = ask(&site, "GET", FOLLOW, None);
    assert_eq!(answer.json()["kind"], "host_failed", "{}", answer.json());
}

#[test]
fn one_caller_follows_a_few_at_a_time() {
    let site = host();
    let _daemon = Daemon::start(&site);
    until_ready(&site);
    let mut all: Vec<_> = (0..4).map(|_| Events::open(&site, FOLLOW, "").unwrap()).collect();
    assert_eq!(Events::open(&site, FOLLOW, "").err(), Some(429));
    // Whoever only looks has not to wait for them.
    assert_eq!(ask(&site, "GET", "/api/node/_any", None).status, 200);
    all.pop();
    until("there is room again", || Events::open(&site, FOLLOW, "").ok());
}

#[test]
fn a_stream_ends_with_its_agent_and_with_its_controller() {
    let site = host();
    let mut daemon = Daemon::start(&site);
    until_ready(&site);
    let mut events = Events::open(&site, FOLLOW, "").unwrap();
    kill_process(pid(daemon.agent().unwrap()), Signal::KILL).unwrap();
    assert_eq!(events.end(), "unavailable");
    let mut events = until("it is followed again", || Events::open(&site, FOLLOW, "").ok());
    daemon.signal(Signal::TERM);
    assert_eq!(events.end(), "unavailable");
    assert!(daemon.ended().success());
}

#[test]
fn whoever_reads_too_slowly_is_told_and_can_go_on() {
    let site = host();
    let _daemon = Daemon::start(&site);
    until_ready(&site);
    let mut events = Events::open(&site, FOLLOW, "").unwrap();
    let long = "x".repeat(300);
    for n in 0..4_000 {
        log(&site, &format!("{n}-{long}"));
    }
    // It is given up only after a while, in which it could have been read.
    until("journalctl ends", || (readers(&site) == 0).then_some(()));
    let mut last = String::new();
    let end = loop {
        let event = events.next().unwrap();
        if event.name == "end" {
            break event;
        }
        last = event.id;
    };
    assert_eq!(end.data["kind"], "busy");
    let number = last["s=1;i=".len()..].split('-').next().unwrap().parse::<usize>().unwrap();
    assert!(number < 3_999, "{number}");
    let mut events = Events::open(&site, FOLLOW, &format!("last-event-id: {last}\r\n")).unwrap();
    assert!(events.message().starts_with(&format!("{}-", number + 1)));
}

#[test]
fn the_command_line_goes_on_where_it_was() {
    let mut site = host();
    site.start();
    log(&site, "one");
    let url = format!("unix://{}", site.socket().display());
    let words = ["--json", "client", "--url", &url, "node", "log", "follow"];
    let mut command = osapi(&site, &words);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut message = || {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        line["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(message(), "one");
    site.kill_controller();
    log(&site, "two");
    site.revive();
    assert_eq!(message(), "two");
    site.kill_agent();
    log(&site, "three");
    site.revive();
    assert_eq!(message(), "three");
    kill_process(pid(child.id()), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    until("journalctl ends", || (readers(&site) == 0).then_some(()));
}
