# lab: limit=540 packages=strace
"""What is started, by whom and with what: every execve of the service manager, the controller, the
agent and all that they start, over one operation of every domain at the least. No process that
osapi starts itself, and no transient unit of its own, is a shell but for `command.shell`; and no
secret is in an argument list, an environment, the journal, what is stored or what is exported."""

import base64
import json
import os
import re
import secrets
import subprocess
import time
from pathlib import Path

from lib import STATE, changed, check, http, osapi, out, part, pid, ready, result, say, sh, until

TRACES = Path("/root/traces")
SYSCALLS = "execve,execveat,clone,clone3,fork,vfork"
SHELLS = {"sh", "dash", "bash", "rbash", "ksh", "mksh", "zsh", "fish", "csh", "tcsh", "busybox"}
MARK = "osapi-trace-mark"
UNIT = re.compile(r"osapi-(job|power)-.*\.(service|scope)")
ADDED = Path("/srv/trace")


def follow():
    """Follows the service manager and all that it will start; both services are started anew, so
    that nothing of theirs is missed."""
    TRACES.mkdir()
    tracer = subprocess.Popen(
        ["strace", "-ff", "-q", "-v", "-s", "65536", "-e", f"trace={SYSCALLS}", "-e", "signal=none",
         "-o", TRACES / "t", *[word for task in os.listdir("/proc/1/task") for word in ("-p", task)]],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=Path("/root/strace").open("w"))
    until(lambda: "TracerPid:\t0\n" not in Path("/proc/1/status").read_text(), "the service manager is followed")
    sh("systemctl", "restart", "osapi-controller", "osapi-agent", ok=True)
    ready(120)
    for unit in ("osapi-controller", "osapi-agent"):
        status = Path(f"/proc/{pid(unit)}/status").read_text()
        check(f"TracerPid:\t{tracer.pid}\n" in status, f"{unit} is followed", status)
    return tracer


# --- what there is to do -------------------------------------------------------------------------------


def does(*words, stdin=None, is_change=True):
    status, answer = osapi(*words, stdin=stdin)
    holds = status == 0 and (changed(answer) or not is_change)
    check(holds, f"{' '.join(map(str, words))[:70]}", answer)
    return answer


def reads(*words):
    return does(*words, is_change=False)


def upload(name, text):
    Path("/root/text").write_text(text)
    reads("file", "upload", "/root/text", "--name", name, "--force")


def undone(answer):
    does("job", "undo", answer.get("job_id"))


def files():
    upload("tried", "tried\n")
    for path in ("/etc/osapi-tried", "/opt/osapi-tried"):
        does("file", "deploy", "tried", path)
        reads("file", "status", path)
        does("file", "undeploy", path)


def services():
    upload("mine", "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n")
    does("service", "create", "mine", "mine")
    # Not the list: to show every unit takes a service manager that is followed too long.
    reads("service", "get", "mine")
    for verb in ("enable", "start", "restart", "stop", "disable", "delete"):
        does("service", verb, "mine")


def packages():
    tree = Path("/root/build")
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text("Package: osapi-lab\nVersion: 1\nArchitecture: all\n"
                                         "Maintainer: Lab <lab@localhost>\nDescription: of the lab\n")
    ADDED.mkdir()
    sh("dpkg-deb", "--build", "--root-owner-group", tree, ADDED / "osapi-lab_1_all.deb", ok=True)
    about = out("dpkg-deb", "--field", ADDED / "osapi-lab_1_all.deb")
    size, digest = (ADDED / "osapi-lab_1_all.deb").stat().st_size, out("sha256sum", ADDED / "osapi-lab_1_all.deb").split()[0]
    (ADDED / "Packages").write_text(f"{about}\nFilename: ./osapi-lab_1_all.deb\nSize: {size}\nSHA256: {digest}\n\n")
    sh("mkdir -p /root/sources && mv /etc/apt/sources.list /etc/apt/sources.list.d/* /root/sources/ 2> /dev/null")
    Path("/etc/apt/sources.list.d/lab.list").write_text(f"deb [trusted=yes] file:{ADDED} ./\n")
    reads("package", "update")
    reads("package", "updates")
    reads("package", "get", "dpkg")
    does("package", "install", "osapi-lab")
    does("package", "remove", "osapi-lab")


def users():
    """Accounts, and their passwords: those are the canaries."""
    canaries = [secrets.token_urlsafe(24) for _ in range(3)]
    made = does("user", "create", "ada", "--groups", "users", "--shell", "/bin/bash")
    for canary in canaries[:2]:
        does("user", "password", "ada", "--password", "-", stdin=canary + "\n")
    hashes = [line.split(":")[1] for line in Path("/etc/shadow").read_text().splitlines() if line.startswith("ada:")]
    status, answer = http("POST", "/node/_any/user/ada/password", {"password": canaries[2]})
    check(status == 200 and changed(answer), "a password is set over HTTP", answer)
    undone(answer)
    # Refused in one way and another, which is told and recorded as well.
    status, answer = http("POST", "/node/_any/user/nobody-knows/password", {"password": canaries[0]})
    check(status == 404, "a password of nobody is refused", answer)
    status, answer = http("POST", "/node/_any/user/ada/password", {"password": canaries[1], "more": 1})
    check(status == 400, "a password and more is refused", answer)
    status, answer = http("POST", "/node/_any/user/ada/password", {"password": [canaries[2]]})
    check(status == 400, "a password that is no text is refused", answer)
    does("user", "update", "ada", "--lock")
    does("user", "update", "ada", "--unlock")
    does("user", "update", "ada", "--home", "/srv/ada")
    gone = does("user", "delete", "ada")
    undone(gone)
    reads("user", "list")
    check(made is not None, "an account is made")
    return canaries, hashes


def commands():
    answer = does("command", "shell", "--", f"echo {MARK}")
    check(result(answer).get("stdout") == MARK + "\n", "a shell is run where one is asked for", answer)
    does("command", "exec", "/bin/echo", "$HOME", "%n")


def processes():
    reads("process", "list")
    sleeper = subprocess.Popen(["sleep", "600"])
    does("process", "signal", str(sleeper.pid), "TERM")
    sleeper.wait(30)


def power():
    """A reboot that somebody keeps from happening in the last moment: systemd-shutdown stops every
    process before it ends them, and whoever is followed would wait for a tracer that is stopped."""
    status, answer = http("POST", "/node/_any/power/reboot", {"delay": 20, "message": "for 5$ or $HOME, %n"},
                          headers=["prefer: respond-async"])
    check(status == 202, "a reboot is taken", answer)
    timer = f"osapi-power-{answer['job_id']}.timer"
    until(lambda: sh("systemctl", "is-active", timer).returncode == 0, "it waits for its time")
    busy = subprocess.Popen(["systemd-inhibit", "--what=shutdown", "--who=tried", "--why=busy", "--mode=block", "sleep", "120"])
    until(lambda: osapi("job", "get", answer["job_id"])[1].get("status") == "failed", "it is refused, and its job fails", 90)
    told = json.dumps(osapi("job", "get", answer["job_id"])[1])
    check("refuses to go down" in told, "which says so", told)
    busy.terminate()


DOMAINS = {
    "command": commands,
    "disk": lambda: reads("node", "disk", "get"),
    "drift": lambda: reads("node", "drift", "get"),
    "file": files,
    "hostname": lambda: undone(does("hostname", "update", "traced")),
    "load": lambda: reads("node", "load", "get"),
    "log": lambda: (reads("log", "query"), reads("log", "source"), reads("log", "unit", "osapi-agent")),
    "memory": lambda: reads("node", "memory", "get"),
    "os": lambda: reads("node", "os", "get"),
    "package": packages,
    "power": power,
    "process": processes,
    "service": services,
    "sysctl": lambda: undone(does("sysctl", "create", "net.ipv4.ip_default_ttl", "65")),
    "timezone": lambda: undone(does("timezone", "update", "Asia/Kolkata")),
    "uptime": lambda: reads("node", "uptime", "get"),
    "user": lambda: None,  # by itself, for what it leaves to look for
}


# --- what came of it -----------------------------------------------------------------------------------


def strings(text):
    """The texts of a list as strace writes it."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    return [word.encode().decode("unicode_escape", "replace") for word in found]


def starts():
    """Every program that was started: (what the process was before, the program, argv, environment)."""
    found, done = [], set()

    def walk(task, image):
        file = TRACES / f"t.{task}"
        if task in done or not file.exists():
            return
        done.add(task)
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith(("execve(", "execveat(")) and line.endswith("= 0"):
                lists = re.search(r"\[(.*)\], \[(.*)\](, \w+)?\) = 0$", line)
                program = strings(line.split("[", 1)[0])[0]
                argv, env = (strings(lists[1]), strings(lists[2])) if lists else ([], [])
                if program.startswith("/proc/self/fd/"):
                    # So does the service manager, and says in the list what it is.
                    program = argv[0]
                found.append((image, program, argv, env))
                image = program
            else:
                child = re.match(r"(?:clone3?|v?fork)\(.*= (\d+)$", line)
                if child:
                    walk(child[1], image)

    walk("1", "systemd")
    # Whoever was there before is followed from nowhere.
    for task in sorted((file.name.split(".")[1] for file in TRACES.glob("t.*")), key=int):
        walk(task, "?")
    return found


def is_shell(program):
    """Whether a program is one, or a script for one."""
    path = os.path.realpath(program)
    if os.path.basename(program) in SHELLS or os.path.basename(path) in SHELLS:
        return True
    try:
        with open(path, "rb") as file:
            head = file.readline(256)
    except OSError:
        return False
    words = head[2:].decode(errors="replace").split()
    return head.startswith(b"#!") and any(os.path.basename(word) in SHELLS for word in words[:2])


def units():
    """Which unit an invocation belongs to, as the service manager told the journal."""
    names = {}
    for line in out("journalctl", "--no-pager", "-o", "json", "_PID=1", timeout=120).splitlines():
        entry = json.loads(line)
        if entry.get("UNIT") and entry.get("INVOCATION_ID"):
            names[entry["INVOCATION_ID"]] = entry["UNIT"]
    return names


def is_osapi(image):
    return os.path.basename(image) == "osapi"


def is_manager(image):
    return os.path.basename(image) in ("systemd", "systemd-executor")


def programs(verbs):
    found, names = starts(), units()
    unit = lambda env: next((names.get(word[14:], "") for word in env if word.startswith("INVOCATION_ID=")), "")
    own = [(program, argv) for image, program, argv, _ in found if is_osapi(image)]
    managed = [(unit(env), program, argv) for image, program, argv, env in found
               if is_manager(image) and not is_manager(program) and UNIT.fullmatch(unit(env))]
    say(f"  {len(found)} programs were started, {len(own)} of them by osapi:",
        " ".join(sorted({os.path.basename(program) for program, _ in own})))
    say(f"  {len(managed)} by transient units:", " ".join(sorted({os.path.basename(p) for _, p, _ in managed})))
    seen = {os.path.basename(program) for program, _ in own}
    check(verbs <= seen, "osapi is seen to start what it needs", verbs - seen)
    check(managed and all(is_osapi(program) or os.path.basename(program) == "systemctl" for _, program, _ in managed),
          "its transient units are osapi itself, and what takes the host down", managed)
    check(all(os.path.isabs(program) for program, _ in own), "every program is named by its path", own)
    shells = [(program, argv) for program, argv in own if is_shell(program)]
    asked = [argv for _, argv in shells if any(MARK in word for word in argv)]
    check(len(asked) == 1, "the shell that was asked for is seen", shells)
    check(len(shells) == len(asked), "and osapi starts no other", shells)
    check(not any(is_shell(program) for _, program, _ in managed), "no transient unit is a shell", managed)
    return own, managed


def forms(secret):
    """A secret, raw, in base64 wherever it begins in a group of three, and in hexadecimal."""
    raw = secret.encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # What neighbours have a part in is left out at both ends.
            yield encode(b"x" * before + raw)[4 if before else 0:].decode().rstrip("=")[:-2]
    yield from (secret, raw.hex(), raw.hex().upper())


def searched(needles, places):
    Path("/root/needles").write_text("\n".join(sorted(set(needles))) + "\n")
    # The needles must be found where they are.
    Path("/root/sample").write_text("\0before" + needles[0] + "after\n")
    command = ["grep", "--recursive", "--text", "--files-with-matches", "--fixed-strings", "--file", "/root/needles", "--"]
    check(sh(*command, "/root/sample").returncode == 0, "what is looked for would be found")
    there = [str(place) for place in places if Path(place).exists()]
    return sh(*command, *there, timeout=240).stdout.split()


def kept_secret(canaries, hashes):
    needles = [form for canary in canaries for form in forms(canary)]
    sh("rm", "-rf", "/root/export", "/root/journal", "/root/jobs")
    # What is recorded is written after the answer is given.
    time.sleep(1.5)
    status, answer = osapi("audit", "export", "/root/export")
    check(status == 0 and Path("/root/export").exists(), "the audit log can be exported", answer)
    _, listed = osapi("job", "list", "--limit", "100")
    with open("/root/jobs", "w") as jobs:
        for job in listed["jobs"]:
            jobs.write(json.dumps(osapi("job", "get", job["id"])[1], ensure_ascii=False) + "\n")
    sh("journalctl --sync; journalctl --no-pager --all --output=export > /root/journal", ok=True, timeout=120)
    lines = sum(len(file.read_text(errors="replace").splitlines()) for file in TRACES.glob("t.*"))
    check(lines > 100, "the trace has argument lists and environments", lines)
    found = searched(needles, [TRACES, STATE, "/run/osapi", "/run/systemd/transient", "/var/log", "/root/export", "/root/journal", "/root/jobs"])
    check(not found, "no secret is in an argument list, an environment, the journal, stored or exported", found)
    found = searched(hashes, [TRACES, "/root/export", "/root/journal", "/root/jobs"])
    check(not found, "nor is a password's hash, but for what an undo needs", found)


def run():
    ready()
    _, described = http("GET", "/openapi.json")
    domains = {path.split("/")[4] for path in described["paths"] if path.startswith("/api/node/{hostname}/")}
    check(domains <= set(DOMAINS), "every domain is tried", domains - set(DOMAINS))
    tracer = follow()
    reads("node", "status")
    for domain in sorted(DOMAINS):
        DOMAINS[domain]()
    canaries, hashes = users()
    check(tracer.poll() is None, "to the end", tracer.poll())
    tracer.terminate()
    tracer.wait(60)
    _, managed = programs({"systemctl", "systemd-run", "useradd", "usermod", "userdel", "chpasswd", "busctl",
                             "apt-get", "journalctl", "wall", "sh", "echo"})
    kept_secret(canaries, hashes)
    check(any(unit.startswith("osapi-power-") for unit, _, _ in managed), "what takes the host down was followed", managed)


part("trace")
run()
