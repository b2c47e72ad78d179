"""A host is cut off in the middle of a broadcast and comes back, in time and too late."""

import subprocess
import time

from appliances import HOSTS, OPEN
from boxes import lab
from lib import check, figure, until

OTHERS = [name for name in HOSTS if name != "four"]
ONCE = {name: 1 for name in HOSTS}
# Beyond the deadline of a change and the hour in which a host may still tell of it, in seconds.
LATER = 7400
DROP_IN = "/run/systemd/system/osapi-controller.service.d/later.conf"


def state(site, job, host="four"):
    status, answer = site.right.try_ask("GET", f"/job/{job}")
    return answer["agent_states"].get(host, {}).get("status") if status == 200 else None


def run(site):
    while_it_runs(site)
    before_it_begins(site)
    too_late(site)


def submitted(site, word, *more):
    status, answer = site.bump("_all", word, *more)
    check(status == 202, f"{word}: a job for all is taken on", answer)
    return answer.get("job_id") if isinstance(answer, dict) else None


def others_end(site, job):
    until(lambda: all(state(site, job, name) == "completed" for name in OTHERS), "the other three have done it")


def ended(site, job, word, expected):
    view = site.view(job)
    states = {name: response["status"] for name, response in view.get("responses", {}).items()}
    check(states == expected, f"{word}: every host is accounted for", states)


def while_it_runs(site):
    word = site.word("cut")
    job = submitted(site, word, 2)
    until(lambda: word in site.hosts["four"].counted("begun"), f"{word}: the host has begun")
    lab("cut", "four", "--silent")
    others_end(site, job)
    until(lambda: word in site.hosts["four"].counted(), f"{word}: cut off, the host ends what it has begun")
    check(state(site, job) in OPEN, "nobody knows about it yet", state(site, job))
    lab("heal", "four")
    ended(site, job, word, dict.fromkeys(HOSTS, "completed"))
    check(site.counts(word) == ONCE, f"{word}: it ran once on each", site.counts(word))


def before_it_begins(site):
    lab("cut", "four", "--silent")
    word = site.word("cut")
    job = submitted(site, word)
    others_end(site, job)
    check(state(site, job) in OPEN, "the host that is cut off has until the deadline", state(site, job))
    lab("heal", "four")
    healed = time.monotonic()
    ended(site, job, word, dict.fromkeys(HOSTS, "completed"))
    figure("a broadcast goes on at a host that was cut off, after", f"{time.monotonic() - healed:.1f} s")
    check(site.counts(word) == ONCE, f"{word}: it ran once on each", site.counts(word))


def too_late(site):
    """The deadline of a change is an hour, and it may have been handed out before the controllers were started
    again, so that another is waited for: their clock of the boot goes on by more."""
    lab("cut", "four", "--silent")
    words = [site.word("late"), site.word("late")]
    jobs = [submitted(site, word) for word in words]
    for job in jobs:
        others_end(site, job)
    status, answer = site.left.ask("PUT", "/node/_all/timezone", {"timezone": "Asia/Tokyo"}, {"prefer": "respond-async"})
    check(status == 202, "and one that changes something", answer)
    jobs.append(answer.get("job_id"))
    others_end(site, jobs[-1])
    away(site)
    for controller in site.controllers:
        an_hour_later(controller)
    for job in jobs:
        view = site.view(job)
        four = view.get("responses", {}).get("four", {})
        check(four.get("kind") == "expired", "for the host that is cut off it has expired", four)
        check(sorted(view.get("responses", {})) == sorted(HOSTS) and view["status"] == "partial_failure", "and nobody is left out", view)
    lab("heal", "four")
    site.ready(["four"])
    word = site.word("after")
    status, answer = site.bump("four", word)
    check(site.view(answer["job_id"])["status"] == "completed", "the host has new work", answer)
    for late in words:
        check(site.counts(late) == dict.fromkeys(HOSTS, 1) | {"four": 0}, f"{late}: nothing of it begins any more", site.counts(late))
    zone = site.hosts["four"].run("readlink -f /etc/localtime")[1]
    check("Tokyo" not in zone, "and nothing is changed", zone)
    for controller in site.controllers:
        controller.run(f"rm {DROP_IN}; systemctl daemon-reload; systemctl restart osapi-controller")
    site.ready()
    site.left.ask("PUT", "/node/_all/timezone", {"timezone": "Etc/UTC"})


def an_hour_later(controller):
    """Starts a controller again for which the clock of the boot has gone on: in a namespace of time that is
    made here, as the box may make none."""
    keeper = f"/run/later{LATER}.pid"
    subprocess.Popen(["unshare", "--time", "--boottime", str(LATER), "--", "nsenter", "--target", controller.root.parent.name,
                      "--mount", "--pid", "--root", "--", "sh", "-c", f"echo $$ > {keeper}; exec sleep 300"],
                     stdin=subprocess.DEVNULL)
    until(lambda: (controller.root / keeper[1:]).exists(), f"{controller.name} has another time")
    controller.run(f"mkdir -p {DROP_IN.rpartition('/')[0]}")
    controller.put(DROP_IN, "[Service]\nExecStart=\nExecStart=+/bin/sh -c 'exec nsenter --time=/proc/$(cat %s)/ns/time -- "
                   "setpriv --reuid osapi --regid osapi --clear-groups --bounding-set=-all --no-new-privs "
                   "/usr/bin/osapi controller start'\n" % keeper)
    status, text = controller.run("systemctl daemon-reload; systemctl restart osapi-controller", ok=False)
    check(status == 0, f"{controller.name} starts when the hour is over", text)


def away(site):
    """A host that is not heard of stays visible."""
    begun = time.monotonic()
    for controller in site.controllers:
        def gone(controller=controller):
            _, answer = controller.ask("GET", "/agent/four")
            return answer.get("status") == "NotReady" and answer.get("last_seen")
        until(gone, f"{controller.name} still lists the host that is cut off, as not there", 60)
        status, answer = controller.osapi("status")
        check("four" in str(answer), "osapi status names it", answer)
    figure("a host that is cut off counts as away after", f"{time.monotonic() - begun:.0f} s")
