# lab: vm limit=400
"""What only a machine of its own shows: kernel parameters beyond net.*, limits of cgroups that the
kernel holds, and a clock that is set by a year while work is under way."""

import json
import subprocess
import time
from pathlib import Path

from lib import changed, check, cycle, http, job_of, osapi, out, part, pid, ready, result, sh, show, until

YEAR = 366 * 24 * 3600
SLICE = Path("/sys/fs/cgroup/osapi.slice")
FILE = Path("/etc/osapi-tried.conf")
UNITS = ("osapi-controller.service", "osapi-agent.service")


def parameter(key):
    path = Path("/proc/sys") / key.replace(".", "/")
    kept = Path(f"/etc/sysctl.d/osapi-{key}.conf")
    return lambda: (path.read_text(), kept.read_text() if kept.exists() else None)


def parameters():
    for key, value in {"vm.swappiness": "61", "kernel.panic": "7", "fs.inotify.max_user_watches": "70001"}.items():
        done = cycle("sysctl", "create", key, value, observe=parameter(key))
        check(f'"{key}"' in json.dumps(done), f"{key} is named in the answer", done)
    seen = parameter("vm.swappiness")
    before = seen()
    status, answer = osapi("sysctl", "create", "vm.swappiness", "100000")
    check(status != 0 and seen() == before, "what the kernel refuses is refused, and nothing is left of it", (answer, seen()))


def limits():
    for unit in UNITS:
        most = show(unit, "TasksMax")
        check((SLICE / unit / "pids.max").read_text().strip() == most, f"{unit}: the kernel holds its tasks to {most}")
    before = [pid(unit) for unit in UNITS]
    sh("systemctl", "set-property", "--runtime", "osapi.slice", "MemoryMax=256M", "TasksMax=150", ok=True)
    status, answer = osapi("command", "shell", "--timeout", "100", "--", "head -c 600000000 /dev/zero | tail -c 500000000 > /dev/null; echo ended $?")
    check(status == 0 and result(answer).get("stdout") == "ended 137\n", "a command that takes too much memory is killed, and says so", answer)
    kills = dict(line.split() for line in (SLICE / "memory.events").read_text().splitlines())
    check(kills["oom_kill"] != "0", "by the limit of OSAPI's slice", kills)
    # The shell ends with the first one that it cannot start.
    status, answer = osapi("command", "shell", "--timeout", "100", "--", "for i in $(seq 400); do sleep 60 & done; echo all")
    check(result(answer).get("stdout") != "all\n" and "fork" in json.dumps(answer), "one that starts too much is held", answer)
    held = out("journalctl", "--dmesg", "--boot", "--no-pager")
    check("fork rejected by pids controller in /osapi.slice/osapi-job-" in held, "by the limit of OSAPI's slice", held[-2000:])
    sh("pkill", "-x", "sleep")
    sh("systemctl", "set-property", "--runtime", "osapi.slice", "MemoryMax=", "TasksMax=", ok=True)
    check([pid(unit) for unit in UNITS] == before, "both processes have lived through it")
    ready()


def jobs():
    """Those that are stored; what only looks is forgotten with the controller that it asked."""
    return {job["id"] for job in osapi("job", "list", "--limit", "100")[1]["jobs"] if job["id"].endswith("0000")}


def deploy(key, **more):
    """Over HTTP, with a key that makes it the same job however often it is asked for."""
    return http("POST", "/node/_any/file/deploy?confirm=900", {"object_name": "tried", "path": str(FILE), "content_type": "raw"},
                headers=[f"Idempotency-Key: {key}"])[1].get("job_id")


def exported():
    osapi("audit", "export", "/root/audit")
    return Path("/root/audit").read_text()


def set_clock(seconds):
    """Sets the wall clock, by this much."""
    sh("date", "--set", f"@{int(time.time()) + seconds}", ok=True)


def clock():
    for unit in ("chrony", "systemd-timesyncd"):
        sh("systemctl", "stop", unit)
    Path("/root/text").write_text("tried\n")
    osapi("file", "upload", "/root/text", "--name", "tried", "--force")
    # What is set back at the end is what went by meanwhile, within seconds.
    for number, (name, by, rest) in enumerate((("forwards", YEAR, 0), ("backwards", -2 * YEAR, YEAR))):
        waits = deploy(f"key-{number}")
        check(waits and FILE.exists(), f"a change waits to be confirmed before the clock goes {name}", waits)
        before = jobs()
        # Acts run beside a change that waits.
        begun = Path(f"/run/osapi-begun-{number}")
        script = f"touch {begun}; sleep 8; echo told"
        work = subprocess.Popen(["osapi", "--json", "command", "shell", "--", script], stdout=subprocess.PIPE, text=True)
        until(begun.exists, "a command is at work")
        set_clock(by)
        text = work.communicate(timeout=100)[0]
        check(work.returncode == 0 and '"told' in text, "it comes to its end", text)
        check(FILE.exists() and deploy(f"key-{number}") == waits, "the change still waits, and its key is still known")
        sh("systemctl", "kill", "--signal", "KILL", *UNITS, ok=True)
        ready()
        check(before and before <= jobs(), "no job is lost, also after a restart", before - jobs())
        status, answer = osapi("file", "status", FILE)
        check(status == 0 and FILE.exists(), "the change still waits", answer)
        status, answer = osapi("timezone", "get")
        check(result(answer).get("utc_offset") == out("date", "+%:z"), "the zone is told as date(1) does", answer)
        status, answer = osapi("job", "confirm", waits)
        check(status == 0 and '"completed"' in json.dumps(osapi("job", "get", waits)[1]), "it can be confirmed in time", answer)
        zone = lambda: out("date", "+%Z")
        cycle("timezone", "update", "Asia/Kolkata", observe=zone)
        status, answer = osapi("job", "undo", waits)
        check(status == 0 and not FILE.exists(), "and taken back", answer)
        if rest:
            set_clock(rest)
    r = sh("osapi", "audit", "verify")
    check(r.returncode == 0, "the audit log is whole", r.stdout + r.stderr)
    until(lambda: exported().count("by_ms") >= 3, "and says each time that the clock was set")
    status, answer = osapi("doctor")
    failed = [entry for entry in answer["checks"] if entry["status"] == "fail"]
    check(not failed, "the doctor finds nothing that does not work", failed)


part("machine")
ready()
parameters()
limits()
clock()
