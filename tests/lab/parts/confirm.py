# lab: limit=180
"""A change that nobody confirms is gone: after its deadline, whoever was killed meanwhile, and
after a reboot, before the network comes up. State and the audit log outlive all of it."""

import json
from pathlib import Path

from lib import boot_id, check, job_of, kept, next_boot, osapi, out, part, phase, pid, ready, result, sh, show, until

FILE = Path("/etc/osapi-tried.conf")


def upload(text):
    Path("/root/text").write_text(text)
    status, answer = osapi("file", "upload", "/root/text", "--name", "tried", "--force")
    check(status == 0, "a file can be uploaded", answer)


def deploy(*flags):
    status, answer = osapi("file", "deploy", "tried", FILE, *flags)
    check(status == 0 and FILE.exists(), f"it is deployed {' '.join(flags)}", answer)
    return job_of(answer)


def taken_back(job):
    """Whether the job itself says that it was taken back."""
    _, answer = osapi("job", "get", job)
    return "reverted" in json.dumps(answer)


def first():
    ready()
    upload("one\n")
    until(lambda: not FILE.exists(), "nothing is there")
    job = deploy("--confirm", "2")
    status, answer = osapi("file", "deploy", "tried", "/etc/osapi-other.conf")
    check(status != 0 and not Path("/etc/osapi-other.conf").exists(), "meanwhile no other change begins", answer)
    until(lambda: not FILE.exists(), "an unconfirmed change is gone")
    until(lambda: taken_back(job), "and its job says so")

    job = deploy("--confirm", "4")
    before = [pid("osapi-controller"), pid("osapi-agent")]
    sh("kill", "-9", *before, ok=True)
    check(FILE.exists(), "it is still there when both processes are killed")
    until(lambda: not FILE.exists(), "and gone after its deadline")
    ready()
    now = [pid("osapi-controller"), pid("osapi-agent")]
    check(0 not in now and not set(now) & set(before), "both were started again", (before, now))
    until(lambda: taken_back(job), "the job says so")

    stays = deploy("--confirm", "60")
    status, answer = osapi("job", "confirm", stays)
    check(status == 0, "a change can be confirmed", answer)
    upload("two\n")
    waits = deploy("--confirm", "600")
    check(FILE.read_text() == "two\n", "another one waits for its confirmation")
    next_boot("booted", {"stays": stays, "waits": waits, "boot": boot_id(),
                         "jobs": len(osapi("job", "list", "--limit", "100")[1]["jobs"])})


def booted():
    before = kept()
    check(boot_id() != before["boot"], "this is another boot")
    check(FILE.read_text() == "one\n", "what was confirmed stands, what was not is gone", FILE.read_text())
    check(show("osapi-settle.service", "Result") == "success", "the boot unit did its work")
    at = lambda unit, what: int(show(unit, what) or 0)
    settled = at("osapi-settle.service", "ExecMainExitTimestampMonotonic")
    network = at("systemd-networkd.service", "ExecMainStartTimestampMonotonic")
    check(0 < settled < network, "before the network came up", (settled, network))
    ready()
    until(lambda: taken_back(before["waits"]), "the job says that it was taken back")
    _, answer = osapi("job", "get", before["stays"])
    check(answer.get("status") == "completed", "that of the other says that it is done", answer)
    jobs = osapi("job", "list", "--limit", "100")[1]["jobs"]
    check(len(jobs) >= before["jobs"], "no job was lost", len(jobs))
    r = sh("osapi", "audit", "verify")
    check(r.returncode == 0, "the audit log is whole", r.stdout + r.stderr)
    status, answer = osapi("job", "undo", before["stays"])
    check(status == 0 and not FILE.exists(), "what was done before the boot can be undone after it", answer)


part("confirm")
{"": first, "booted": booted}[phase()]()
