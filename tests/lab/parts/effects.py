# lab: limit=400
"""Every kind of effect from inside the agent's unit, compared with what the host itself shows: what
the unit takes away from the agent happens in transient units, each with the rights of its class,
and goes on, once, when the agent is killed."""

import json
import os
import random
import subprocess
import time
from pathlib import Path

from lib import changed, check, cycle, job_of, osapi, out, part, pid, ready, result, say, sh, show, until

JOBS = "osapi-job-*"


def shell(script, *flags):
    """What `osapi command shell` answers."""
    status, answer = osapi("command", "shell", *flags, "--", script)
    return status, result(answer)


def upload(name, text):
    Path("/root/text").write_text(text)
    status, answer = osapi("file", "upload", "/root/text", "--name", name, "--force")
    check(status == 0, f"{name} can be uploaded", answer)


def about(path):
    """Kind, mode and owner of what is at a path, and what is in it."""
    r = sh("stat", "--format", "%F %a %U:%G", path)
    return r.stdout + (Path(path).read_text() if os.path.isfile(path) else "") if r.returncode == 0 else None


def confined():
    agent = pid("osapi-agent")
    status = Path(f"/proc/{agent}/status").read_text()
    check("NoNewPrivs:\t1" in status and "Seccomp:\t2" in status, "the agent runs in its sandbox")
    ns = lambda kind: [os.readlink(f"/proc/{n}/ns/{kind}") for n in (agent, 1)]
    check(ns("mnt")[0] != ns("mnt")[1] and ns("net")[0] == ns("net")[1], "with mounts of its own and the host's network")


def files():
    upload("tried", "tried\n")
    for path in ("/etc/osapi-tried", "/usr/local/bin/osapi-tried", "/var/lib/osapi-tried", "/root/osapi-tried"):
        cycle("file", "deploy", "tried", path, observe=lambda path=path: about(path))
    for path in ("/tmp/osapi-tried", "/opt/osapi-tried", "/srv/osapi-tried", "/usr/lib/osapi-tried", "/osapi-tried"):
        cycle("file", "deploy", "tried", path, "--mode", "0640", observe=lambda path=path: about(path))
    for path in ("/usr/local/bin/osapi-setid", "/opt/osapi-setid"):
        for mode in ("4755", "2755"):
            done = cycle("file", "deploy", "tried", path, "--mode", mode, observe=lambda path=path: about(path), undo=False)
            check(f" {mode} " in str(about(path)), f"{path} has mode {mode}", about(path))
            status, answer = osapi("job", "undo", job_of(done) or "none")
            check(status == 0 and about(path) is None, f"{path}: it is gone when that is undone", answer)
    left = out("find", "/etc", "/opt", "/srv", "/tmp", "/usr/lib", "/usr/local", "-xdev", "-name", ".osapi-*")
    check(left == "", "nothing is left beside the files", left)


def parameters():
    def of(key):
        path = Path("/proc/sys") / key.replace(".", "/")
        kept = Path(f"/etc/sysctl.d/osapi-{key}.conf")
        return lambda: (path.read_text().split(), kept.read_text() if kept.exists() else None)
    cycle("sysctl", "create", "net.ipv4.ip_default_ttl", "65", observe=of("net.ipv4.ip_default_ttl"))
    cycle("sysctl", "create", "net.core.somaxconn", "4097", observe=of("net.core.somaxconn"))
    # The truth about what may be written is PID 1's, not the agent's.
    options = [line.split() for line in Path("/proc/1/mountinfo").read_text().splitlines()]
    sys_mounts = [fields[5].split(",") for fields in options if fields[4] == "/proc/sys"]
    if any("ro" in mount for mount in sys_mounts):
        # As in a box, which shares its kernel; the part for virtual machines sets such ones.
        status, answer = osapi("sysctl", "create", "--dry-run", "vm.swappiness", "61")
        check(not changed(answer) and "read-only" in json.dumps(answer), "a parameter that the host itself cannot set is refused", answer)
    else:
        cycle("sysctl", "create", "vm.swappiness", "61", observe=of("vm.swappiness"))


def commands():
    status, answer = shell("echo seen > /usr/lib/osapi-seen && id -u && echo '$PATH ${PATH} %n %%'")
    check(status == 0 and answer.get("stdout") == "0\n$PATH ${PATH} %n %%\n", "a command is root's, and its words are not expanded", answer)
    check(about("/usr/lib/osapi-seen") is not None, "and writes anywhere")
    os.unlink("/usr/lib/osapi-seen")
    status, answer = shell("echo x > /tmp/osapi-a && chmod 4755 /tmp/osapi-a && mount -t tmpfs none /mnt && touch /mnt/here")
    check(status == 0 and " 4755 " in str(about("/tmp/osapi-a")), "it sees the host's /tmp and sets ids", answer)
    check(sh("mountpoint", "--quiet", "/mnt").returncode == 0 and Path("/mnt/here").exists(), "its mounts are the host's")
    sh("umount", "/mnt")
    status, answer = shell("readlink /proc/self/ns/net /proc/self/ns/mnt; cat /proc/self/cgroup; grep -c . /proc/net/dev")
    own = [os.readlink(f"/proc/1/ns/{kind}") for kind in ("net", "mnt")]
    check(str(answer.get("stdout", "")).split("\n")[:2] == own, "it is in the host's namespaces", answer)
    check("/osapi.slice/osapi-job-" in str(answer.get("stdout")), "in a unit named after its job, in OSAPI's slice", answer)
    status, answer = shell("head -c 3000000 /dev/zero | tr '\\0' x; echo said >&2; exit 3")
    check(len(answer.get("stdout", "")) == 256 * 1024 and answer.get("truncated"), "large output is cut at 256 KiB")
    check(answer.get("stderr") == "said\n" and answer.get("exit_code") == 3, "both streams and the exit status are told", answer.get("exit_code"))
    begun = time.monotonic()
    status, answer = shell("sleep 600 & sleep 600", "--timeout", "1")
    check(status != 0 and "was killed" in json.dumps(answer), "what takes too long is killed with all it started", answer)
    check(time.monotonic() - begun < 20 and sh("pgrep", "-f", "^sleep 600$").returncode != 0, "and nothing of it is left")
    status, answer = shell("sleep 301 > /dev/null 2>&1 & echo started")
    check(status == 0 and sh("pgrep", "-f", "^sleep 301$").returncode == 0, "what it leaves running on purpose goes on", answer)
    sh("pkill", "-f", "^sleep 301$")
    status, answer = shell("sleep 302 & kill -9 $PPID; sleep 302")
    check(status != 0 and "interrupted" in json.dumps(answer), "whose unit was killed says that it was interrupted", answer)
    check(sh("pgrep", "-f", "^sleep 302$").returncode != 0, "and what it had started is ended")
    secret = "c4nary-7f3a9b"
    shell(f"true {secret}")
    seen = out("journalctl", "--no-pager", "-o", "json", "--all")
    check(secret not in seen, "the system's journal says nothing of what was run")


def agent_gone(begin, after, what):
    """Kills the agent `after` so many seconds of `begin`, which is a command line. Its answer."""
    waiting = subprocess.Popen(["osapi", "--json", *begin], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(after)
    sh("kill", "-9", pid("osapi-agent"))
    text = waiting.communicate(timeout=120)[0]
    try:
        return waiting.returncode, result(json.loads(text))
    except ValueError:
        check(False, f"{what}: the answer is JSON", text)
        return waiting.returncode, {}


def killed():
    log = Path("/var/tmp/osapi-ran")
    script = f"echo begun $$ >> {log}; sleep 30; echo ended >> {log}; echo told"
    status, answer = agent_gone(["command", "shell", "--timeout", "60", "--", script], 3, "a command")
    check(status == 0 and answer.get("stdout") == "told\n", "a command of 30 s outlives its agent, which is killed", answer)
    text = log.read_text().split("\n")
    check(len(text) == 3 and text[1] == "ended", "it ran once, to its end", text)
    ready()
    log.unlink()

    script = f"echo begun >> {log}; sleep 8; echo ended >> {log}; echo told"
    waiting = subprocess.Popen(["osapi", "--json", "command", "shell", "--timeout", "60", "--", script],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(log.exists, "another one begins")
    begun = time.monotonic()
    sh("systemctl", "restart", "osapi-agent", ok=True)
    check(time.monotonic() - begun < 6, "the agent does not wait for it when it is restarted", time.monotonic() - begun)
    text = waiting.communicate(timeout=60)[0]
    check('"told' in text and log.read_text() == "begun\nended\n", "and the next one answers for it", text)
    ready()

    key, path = "net.ipv4.ip_default_ttl", Path("/proc/sys/net/ipv4/ip_default_ttl")
    kept = Path(f"/etc/sysctl.d/osapi-{key}.conf")
    rounds, before = [], path.read_text()
    for n in range(10):
        after = random.uniform(0, 0.3)
        status, answer = agent_gone(["sysctl", "create", key, "77"], after, "a kernel parameter")
        ready()
        whole = path.read_text() == "77\n" and kept.exists()
        none = path.read_text() == before and not kept.exists()
        rounds.append((round(after, 3), status, whole, none))
        check(whole if status == 0 else none, f"killed after {after:.3f} s: it is whole or undone, as the job says", (answer, path.read_text(), kept.exists()))
        if whole:
            status, answer = osapi("sysctl", "delete", key)
            check(status == 0 and path.read_text() == before, "then it can be taken away", answer)
    say(f"  rounds {rounds}")
    until(lambda: out("systemctl", "list-units", "--all", "--plain", "--no-legend", JOBS) == "", "no unit is left")


part("effects")
ready()
confined()
files()
parameters()
commands()
killed()
