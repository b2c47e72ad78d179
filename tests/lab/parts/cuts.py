# lab: vm cuts limit=400
"""Power cuts: what `installed --vm` has a machine do while it takes its power away, and what it
looks at after the boot. Each change is whole or as before, as its job says; nothing that was
accepted is lost, nothing that was answered is taken back, and no act was done twice.

Nothing in the machine can remember for certain what it was told before its power went. That goes to
its console, which the machine outside keeps:

    OSAPI-LAB {"accepted": ID, "kind": KIND}    a request was answered with its job
    OSAPI-LAB {"begun": ID, "kind": KIND}       its work has begun
    OSAPI-LAB {"ended": ID, "status": STATUS}   the job was seen to have ended so
    OSAPI-LAB {"unflushed": PATH}               a file was written, and nobody had it flushed
"""

import grp
import http.client
import json
import os
import pwd
import random
import shutil
import socket
import spwd
import sys
import threading
import time
from pathlib import Path

from archive import deb, make_archive, publish
from lib import check, osapi, out, part, phase, ready, result, say, sh, until

FILES = Path("/etc/osapi-cut.conf"), Path("/opt/osapi-cut.conf")
KEYS = "vm.swappiness", "kernel.panic"
USERS = "cut-ada", "cut-bob"
PACKAGES = "osapi-cut", "osapi-cut-lib"
LOG = Path("/var/lib/osapi-cut.log")
UNFLUSHED = Path("/var/lib/osapi-cut.unflushed")
STRAYS = "/etc", "/opt", "/home", "/var/lib"


class Local(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect("/run/osapi/osapi.sock")


def call(method, path, body=None, **headers):
    """Over the socket, within this process: a machine that is emulated is slow to start others."""
    connection = Local("localhost")
    try:
        data = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, "/api" + path, data, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def upload(name, text):
    form = "".join(f'--x\r\nContent-Disposition: form-data; name="{field}"{more}\r\n\r\n{value}\r\n'
                   for field, more, value in (("name", "", name), ("file", '; filename="text"', text)))
    return call("POST", "/file", form + "--x--\r\n", **{"content-type": "multipart/form-data; boundary=x"})


def parameter(key):
    return Path("/proc/sys") / key.replace(".", "/")


def kept(key):
    return Path(f"/etc/sysctl.d/osapi-{key}.conf")


# ------------------------------------------------------------------- the load

def tell(**what):
    """One line, at once, to the console, and so to whoever takes the power away."""
    with open("/dev/ttyS0", "wb", buffering=0) as console:
        console.write(f"\nOSAPI-LAB {json.dumps(what)}\n".encode())


def file(name, rng):
    """The next change of a kind: how it is asked for."""
    path = rng.choice(FILES)
    if path.exists() and rng.random() < 0.3:
        return "POST", "/node/_any/file/undeploy", {"path": str(path)}
    status, answer = upload(name, f"{name}\n" * 1000)
    if status != 201:
        say(f"FAILED  upload {name}: {status} {answer}")
    body = {"object_name": name, "path": str(path), "content_type": "raw", "mode": rng.choice(["0600", "0644"])}
    return "POST", "/node/_any/file/deploy", body


def sysctl(name, rng):
    key = rng.choice(KEYS)
    if not kept(key).exists():
        return "POST", "/node/_any/sysctl", {"key": key, "value": str(rng.randrange(1, 60))}
    if rng.random() < 0.3:
        return "DELETE", f"/node/_any/sysctl/{key}", None
    return "PUT", f"/node/_any/sysctl/{key}", {"value": str(rng.randrange(1, 60))}


def user(name, rng):
    login = rng.choice(USERS)
    if login in (entry.pw_name for entry in pwd.getpwall()):
        return "DELETE", f"/node/_any/user/{login}", None
    return "POST", "/node/_any/user", {"name": login, "groups": ["users"], "password": f"secret of {name}"}


def package(name, rng):
    if sh("dpkg-query", "--show", PACKAGES[0]).returncode == 0 and is_installed(PACKAGES[0]):
        return "DELETE", f"/node/_any/package/{PACKAGES[1]}", None
    return "POST", "/node/_any/package", {"name": PACKAGES[0]}


def command(name, rng):
    script = f"echo {name} >> {LOG} && sync {LOG} && sleep {rng.random():.1f}"
    return "POST", "/node/_any/command/shell", {"command": script}


LOAD = {"file": file, "sysctl": sysctl, "user": user, "package": package, "command": command}


def keep_at_it(kind, seed):
    """Asks for one change after the other until the power goes."""
    rng = random.Random(f"{seed} {kind}")
    for number in range(1000):
        method, path, body = LOAD[kind](f"{kind}-{seed}-{number}", rng)
        status, answer = call(method, path, body, Prefer="respond-async")
        if status != 202:
            tell(refused=status, kind=kind, answer=answer)
            return
        job, begun = answer["job_id"], False
        tell(accepted=job, kind=kind)
        while True:
            job_is = call("GET", f"/job/{job}")[1]["status"]
            if job_is != "submitted" and not begun:
                begun = True
                tell(begun=job, kind=kind)
            if job_is not in ("submitted", "processing"):
                break
            time.sleep(0.1)
        tell(ended=job, status=job_is)


def leave_unflushed():
    """Writes what the kernel keeps in memory for half a minute, so that a cut which does not take it
    is none."""
    for number in range(1000):
        path = UNFLUSHED / str(number)
        path.write_text("x" * 10_000)
        tell(unflushed=str(path))
        time.sleep(1)


def prepare():
    ready(120)
    make_archive()
    deb(PACKAGES[1], "1.0")
    deb(PACKAGES[0], "1.0", PACKAGES[1], postinst="sleep 1\n")
    publish()
    LOG.touch()
    sh("sync")
    defaults = {key: parameter(key).read_text().strip() for key in KEYS}
    say(json.dumps({"defaults": defaults, "after": max((job["id"] for job in stored()), default="")}))


def load():
    seed = sys.argv[2]
    shutil.rmtree(UNFLUSHED, ignore_errors=True)
    UNFLUSHED.mkdir()
    threading.Thread(target=leave_unflushed).start()
    threads = [threading.Thread(target=keep_at_it, args=(kind, seed)) for kind in LOAD]
    random.Random(seed).shuffle(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ------------------------------------------------------------- after the boot

def is_installed(name):
    return sh("dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}", name).stdout.startswith("ii")


def pages(path):
    """All that a list of the API has."""
    found = []
    while True:
        page = call("GET", f"{path}?limit=100&offset={len(found)}")[1]["items"]
        found += page
        if len(page) < 100:
            return found


def stored():
    """All jobs that are stored, oldest first, as the API shows them."""
    return sorted((job for job in pages("/job") if job["id"].endswith("0000")), key=lambda job: job["id"])


def wanted(job, defaults):
    """Which cells a job was about, and what they hold when it is done."""
    data, operation = job["operation"]["data"], job["operation"]["type"]
    name = operation.removesuffix(".execute").removeprefix("node.")
    if name == "file.deploy":
        return {data["path"]: (f'{data["object_name"]}\n' * 1000, int(data["mode"], 8))}
    if name == "file.undeploy":
        return {data["path"]: None}
    if name in ("sysctl.create", "sysctl.update"):
        return {data["key"]: (data["value"], True)}
    if name == "sysctl.delete":
        return {data["key"]: (defaults[data["key"]], False)}
    if name in ("user.create", "user.delete"):
        return {data["name"]: name == "user.create"}
    if name in ("package.install", "package.remove"):
        return dict.fromkeys(PACKAGES, name == "package.install")
    return {}


def account(name):
    """True for an account that is whole, False where there is nothing of it, else what there is."""
    try:
        entry, shadow = pwd.getpwnam(name), spwd.getspnam(name)
        home = Path(entry.pw_dir).stat()
        parts = [grp.getgrgid(entry.pw_gid).gr_name == name, name in grp.getgrnam("users").gr_mem,
                 home.st_uid == entry.pw_uid, (Path(entry.pw_dir) / ".bashrc").exists(), shadow.sp_pwdp.startswith("$")]
        return True if all(parts) else ("in parts", parts)
    except (KeyError, OSError) as error:
        tables = ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")
        left = [table for table in tables if any(name in line.replace(",", ":").split(":")
                for line in Path("/etc", table).read_text().splitlines())]
        return (left, str(error)) if left or Path("/home", name).exists() else False


def content(path):
    try:
        return path.read_text(), path.stat().st_mode & 0o7777
    except FileNotFoundError:
        return None


def shown():
    """What the host itself shows of all that the load is about."""
    seen = {str(path): content(path) for path in FILES}
    seen |= {key: (parameter(key).read_text().strip(), kept(key).exists()) for key in KEYS}
    seen |= {name: account(name) for name in USERS}
    for name in PACKAGES:
        version = Path("/usr/share", name, "version")
        seen[name] = is_installed(name)
        if seen[name] != (content(version) is not None):
            seen[name] = seen[name], content(version)
    return seen


def acts(jobs):
    """An act was done once, or not at all, or nobody can say and its job says that."""
    lines = LOG.read_text().splitlines()
    wrong = []
    for job in jobs:
        if "command.shell" not in job["operation"]["type"]:
            continue
        times = lines.count(job["operation"]["data"]["command"].split()[1])
        if times > 1 or job["status"] == "completed" and times != 1:
            wrong.append((job["id"], job["status"], times))
    check(not wrong, f"no act was done twice, and what is said to be done was ({len(lines)} lines)", wrong)


def judge():
    before = json.loads(sys.argv[2])
    last = Path(before["unflushed"])
    # Whoever flushes all of the file system in the moment before takes it along.
    kept = last.exists() and last.stat().st_size > 0
    say(f"          what nobody had flushed is {'there all the same' if kept else 'lost, as power cuts have it'}")
    ready(180)
    finished = lambda: all(job["status"] not in ("submitted", "processing") for job in stored())
    until(finished, "every job comes to its end", 240)
    jobs = [job for job in stored() if job["id"] > before["after"]]
    by_id = {job["id"]: job for job in jobs}
    lost = [job for job in before["accepted"] if job not in by_id]
    check(not lost, f"none of {len(before['accepted'])} accepted jobs is lost", lost)
    other = {job: (status, by_id.get(job, {}).get("status")) for job, status in before["ended"].items()
             if status != by_id.get(job, {}).get("status")}
    check(not other, f"all {len(before['ended'])} that had ended have ended as was said", other)

    cells = {str(path): None for path in FILES} | {key: (value, False) for key, value in before["defaults"].items()}
    cells |= dict.fromkeys((*USERS, *PACKAGES), False)
    for job in jobs:
        if job["status"] == "completed":
            cells |= wanted(job, before["defaults"])
    seen = shown()
    for cell, value in cells.items():
        short = lambda value: str(value)[:60]
        check(seen[cell] == value, f"{cell} is as the jobs say", f"{short(seen[cell])} instead of {short(value)}")
    open_before = [by_id[job] for job in before["accepted"] if job in by_id and job not in before["ended"]]
    for job in open_before:
        view = call("GET", f"/job/{job['id']}")[1]
        why = f": {view.get('error')}" if view.get("error") else ""
        say(f"          {job['operation']['type']} was under way: {job['status']}{why}")
    acts(jobs)

    check(not out("dpkg", "--audit"), "no package is half installed")
    left = out("find", *STRAYS, "-xdev", "-name", ".osapi-*")
    check(left == "", "nothing is left beside the files", left)
    opened = os.listdir("/var/lib/osapi/agent/open")
    check(not opened, "nothing is open in the agent's journal", opened)
    r = sh("osapi", "audit", "verify")
    check(r.returncode == 0, "the audit log is whole", r.stdout + r.stderr)
    missing = set(by_id) - {entry.get("job_id") for entry in pages("/audit")}
    check(not missing, f"and has all {len(by_id)} jobs", missing)
    status, answer = osapi("drift", "get")
    check(status == 0 and result(answer).get("drift") == [], "nothing is other than what was set", answer)
    status, answer = osapi("doctor")
    bad = [entry for entry in answer["checks"] if entry["status"] == "fail"]
    check(not bad, "the doctor finds nothing that does not work", bad)
    say("ENDED " + json.dumps({job["id"]: job["status"] for job in open_before}))


if phase() != "load":
    part("cuts")
{"": prepare, "load": load, "judge": judge}[phase()]()
