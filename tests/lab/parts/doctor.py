# lab: limit=280
"""`osapi status` and `osapi doctor`: on a fresh host every warning is one that is known; then things
are broken for real, each is named, and what the doctor says to type mends it."""

import fcntl
import os
import socket
from pathlib import Path

from lib import check, job_of, osapi, part, ready, sh, show, until, user

# What a fresh appliance is warned of, and why that is right.
EXPLAINED = {
    "kernel.cgroup": "where the machine holds controllers in a v1 hierarchy, it shows in its boxes",
    "kernel.landlock": "a machine's kernel may be without",
    "log.persistent": "the image has no /var/log/journal",
    "system.failed": "what a box cannot start",
    "files.temporary": "the image's own /var/tmp is not open to everybody",
    "agent.conditions": "the machine's load, memory and disk show in its boxes",
    "disk.room": "the machine's disk shows in its boxes",
    "disk.inodes": "the machine's disk shows in its boxes",
    "memory.available": "the machine's memory shows in its boxes",
    "memory.swap": "the machine's memory shows in its boxes",
}
STATUSES = {"ok", "warn", "fail", "skipped"}


def doctor(by=None):
    status, answer = osapi("doctor", by=by)
    return status, {entry["id"]: entry for entry in answer["checks"]}


def named(id, expected, mend=None, seconds=30):
    """Waits until the doctor names it; then mends it, with what the doctor says where `mend` says so."""
    found = until(lambda: (f := doctor()) and f[1][id]["status"] == expected and f, f"{id} is named: {expected}", seconds)
    if not found:
        return
    status, checks = found
    entry = checks[id]
    check(status == (2 if any(c["status"] == "fail" for c in checks.values()) else 1), f"{id}: the exit status tells", status)
    check(entry["evidence"] and entry["fix"], f"{id}: {entry['evidence']}", entry)
    if mend == "fix":
        r = sh(entry["fix"])
        check(r.returncode == 0, f"{id}: what it says can be typed: {entry['fix']!r}", r.stderr)
    elif mend:
        mend()
    well = ("ok", "warn") if expected == "fail" and id in EXPLAINED else ("ok",)
    until(lambda: doctor()[1][id]["status"] in well, f"{id}: then it is well again", seconds)


def fresh():
    ready()
    status, answer = osapi("status")
    check(status == 0 and answer["status"] == "ok", "a fresh host is well", answer)
    check(answer["host"]["hostname"] == socket.gethostname() and not answer["not_shown"], "and says what it is", answer)
    r = sh("osapi", "status")
    check(len(r.stdout.splitlines()) < 40 and ("It works, but" if answer["problems"] else "It is well") in r.stdout, "on one screen", r.stdout)
    status, checks = doctor()
    check(len(checks) >= 30 and all(c["status"] in STATUSES for c in checks.values()), f"{len(checks)} checks", checks)
    for entry in checks.values():
        if entry["status"] in ("warn", "fail"):
            known = entry["status"] == "warn" and EXPLAINED.get(entry["id"])
            check(known, f"{entry['id']}: {entry['evidence']} ({known or 'nobody expected that'})", entry)
    check(status in (0, 1), "the doctor finds nothing that does not work", status)
    skipped = {id: c["evidence"] for id, c in checks.items() if c["status"] == "skipped"}
    check(len(skipped) < 12, f"root may see most of it; skipped: {skipped}", skipped)
    r = sh("osapi", "doctor")
    check("checks: 0 failed" in r.stdout and "\x1b" not in r.stdout, "for people as well", r.stdout)


def few_rights():
    user("nobody-much")
    status, answer = osapi("status", by="nobody-much")
    check(status == 0 and len(answer["not_shown"]) == 5, "whoever may see nothing is told so", answer)
    status, checks = doctor(by="nobody-much")
    check(checks["caller.rights"]["status"] == "warn", "also by the doctor", checks["caller.rights"])
    check(checks["state.keys"]["status"] == "skipped", "which skips what only root may see", checks["state.keys"])
    check(checks["controller.answers"]["status"] == "ok", "and sees the rest", checks["controller.answers"])


def broken():
    sh("systemctl", "stop", "osapi-agent.service", ok=True)
    until(lambda: doctor()[1]["agent.ready"]["status"] == "fail", "agent.ready names a stopped agent", 60)
    status, answer = osapi("status")
    check(status == 19 and answer["status"] == "degraded", "the status says so too", answer)
    named("unit.agent", "fail", "fix")
    ready()

    sh("systemctl", "stop", "osapi.socket", "osapi-controller.service", ok=True)
    status, answer = osapi("status")
    check(status == 19 and answer["status"] == "unreachable", "a controller that is away is said", answer)
    named("controller.answers", "fail", "fix")
    sh("systemctl", "start", "osapi-agent.service", ok=True)
    ready()

    small = Path("/mnt/small")
    small.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small, ok=True)
    try:
        (small / "all").write_bytes(bytes(2 << 20))
    except OSError:
        pass
    named("disk.room", "fail", lambda: sh("umount", small, ok=True))

    os.chmod("/var/lib/osapi/agent/key", 0o644)
    named("state.keys", "fail", "fix")

    Path("/root/text").write_text("ours\n")
    osapi("file", "upload", "/root/text", "--name", "tried")
    target = Path("/etc/osapi-tried.conf")
    status, answer = osapi("file", "deploy", "tried", target)
    job = job_of(answer)
    check(status == 0 and job, "a file is deployed", answer)
    status, answer = osapi("status")
    latest = answer["changes"][0]
    check(latest["id"] == job and latest["by"] == "root", "the status says what changed, and who did it", latest)
    target.write_text("others\n")
    named("drift", "warn", lambda: target.write_text("ours\n"))

    status, answer = osapi("file", "deploy", "tried", "/etc/osapi-waits.conf", "--confirm", "300")
    check(status == 0, "a change waits", answer)
    check(osapi("status")[1]["waiting"], "the status says that it waits")
    named("jobs.unconfirmed", "warn", "fix")

    sh("systemd-run", "--unit=osapi-tried-to-fail", "--quiet", "false")
    until(lambda: show("osapi-tried-to-fail.service", "ActiveState") == "failed", "a unit fails")
    until(lambda: (c := doctor()[1]["system.failed"])["status"] == "warn" and "osapi-tried-to-fail" in c["evidence"],
          "system.failed names it")
    # A busy host may be late with its services, which the status says.
    until(lambda: "osapi-tried-to-fail.service" in (osapi("status")[1]["failed_services"] or []), "so does the status")
    sh("systemctl", "reset-failed", "osapi-tried-to-fail.service")

    box = Path("/root/half")
    (box / "DEBIAN").mkdir(parents=True)
    (box / "DEBIAN/control").write_text(
        "Package: half-done\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: tried\n")
    (box / "DEBIAN/postinst").write_text("#!/bin/sh\nexit 0\n")
    os.chmod(box / "DEBIAN/postinst", 0o755)
    sh("dpkg-deb", "--build", box, "/root/half.deb", ok=True)
    sh("dpkg", "--unpack", "/root/half.deb", ok=True)
    named("packages.whole", "fail", lambda: sh("dpkg", "--configure", "--pending", ok=True))
    sh("dpkg", "--purge", "half-done")

    lock = open("/var/lib/dpkg/lock-frontend", "w")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    named("packages.free", "warn", lock.close)

    name = Path("/etc/hostname").read_text()
    Path("/etc/hostname").write_text("another\n")
    named("host.name", "warn", lambda: Path("/etc/hostname").write_text(name))

    wrong = Path("/etc/osapi/osapi.yaml.d/wrong.yaml")
    wrong.parent.mkdir(parents=True, exist_ok=True)
    wrong.write_text("no_such_key: 1\n")
    named("config.valid", "fail", wrong.unlink)


part("doctor")
fresh()
few_rights()
broken()
