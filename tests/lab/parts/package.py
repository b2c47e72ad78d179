# lab: limit=600
"""Packages from a small archive on the host: installed, brought up to date, removed and taken back
by what apt simulates; while somebody else has the lock and changes packages, and while the agent or
its hand is killed."""

import fcntl
import json
import subprocess
import time
from pathlib import Path

from archive import ARCHIVE, deb, make_archive, publish
from lib import changed, check, cycle, job_of, osapi, out, part, pid, ready, result, sh, show, until

COUNT = Path("/var/lib/osapi-slow.count")
BEGUN = Path("/run/osapi-slow.begun")
HANGS = Path("/var/lib/osapi-hang.count")
STATUS = Path("/var/lib/dpkg/status")
LOCK = "/var/lib/dpkg/lock-frontend"


def archive():
    make_archive()
    deb("osapi-lab-lib", "1.0")
    deb("osapi-lab", "1.0", "osapi-lab-lib", conffile="one\n")
    deb("osapi-slow", "1.0", postinst=f"echo x >> {COUNT}\ntouch {BEGUN}\nsleep 8\n")
    deb("osapi-left", "1.0")
    deb("osapi-right", "1.0", conflicts="osapi-left")
    deb("osapi-hang", "1.0", postinst=f"echo x >> {HANGS}\nsleep 900\n")
    deb("osapi-sick", "1.0", postinst="echo 'this will not do' >&2\nexit 1\n")
    publish()


def glance():
    return out("dpkg-query", "--show", "--showformat", "${Package} ${Version} ${db:Status-Abbrev}\\n").replace(" rc", " un") \
        .split("\n"), out("apt-mark", "showauto")


def installed():
    """What is there, but for what was removed and has left its configuration."""
    lines, auto = glance()
    return [line for line in lines if not line.strip().endswith("un")], auto


def version(name):
    r = sh("dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}${Version}", name)
    return r.stdout[3:].strip() if r.stdout.startswith("ii") else None


def kind(answer):
    """What kind of problem the command line has told, as it does on stderr."""
    try:
        return json.loads(answer)["kind"] if isinstance(answer, str) else answer.get("kind")
    except (ValueError, KeyError):
        return None


def reads():
    status, answer = osapi("package", "list")
    names = {package["name"] for package in result(answer).get("packages", [])}
    check(status == 0 and {"dpkg", "apt"} <= names, "packages are listed", answer)
    here = set(out("dpkg-query", "--show", "--showformat", "${Package}\\n").split("\n"))
    check(len(names - here) == 0 and len(here - names) < 5, "as dpkg itself lists them", names ^ here)
    status, answer = osapi("package", "get", "dpkg")
    package = result(answer)["packages"][0] if status == 0 else {}
    check(package.get("version") == version("dpkg"), "one is shown with its version", answer)
    check(package.get("status") == "installed" and package.get("size", 0) > 100_000, "its state and size", answer)
    status, answer = osapi("package", "get", "no-such-package")
    check(status == 13, "one that is not there is not found", (status, answer))
    status, answer = osapi("package", "install", "no-such-package")
    check(status == 13 and "no-such-package" in json.dumps(answer), "nor one that apt does not know", (status, answer))
    for name in ["--purge", "dpkg-", "x=1", "/tmp/x.deb"]:
        status, answer = osapi("package", "install", "--name=" + name)
        check(status == 10, f"{name!r} is no name of a package", (status, answer))


def changes():
    cycle("package", "install", "osapi-lab", observe=installed)
    status, first = osapi("package", "install", "osapi-lab")
    check(status == 0 and version("osapi-lab") == "1.0", "it is installed", first)
    check("osapi-lab-lib" in out("apt-mark", "showauto").split(), "what it needs is marked automatic")
    Path("/etc/osapi-lab.conf").write_text("mine\n")
    deb("osapi-lab", "2.0", "osapi-lab-lib (>= 2.0)", conffile="two\n")
    deb("osapi-lab-lib", "2.0")
    publish(reads=False)
    status, answer = osapi("package", "update")
    check(status == 0 and changed(answer), "the index is read anew", answer)
    status, answer = osapi("package", "updates")
    updates = {u["name"]: (u["current_version"], u["new_version"]) for u in result(answer).get("updates", [])}
    check(updates == {name: ("1.0", "2.0") for name in ["osapi-lab", "osapi-lab-lib"]}, "updates are listed", answer)
    cycle("package", "install", "osapi-lab", "--version", "2.0", observe=installed)
    check(version("osapi-lab") == "1.0", "and the undo has brought back the former version")
    status, answer = osapi("package", "install", "osapi-lab")
    check(version("osapi-lab") == "2.0" and version("osapi-lab-lib") == "2.0", "it is brought up to date", answer)
    check(Path("/etc/osapi-lab.conf").read_text() == "mine\n", "a file of configuration that was changed is kept")
    cycle("package", "remove", "osapi-lab", observe=installed)
    status, answer = osapi("package", "remove", "osapi-lab-lib", "--dry-run")
    touched = [change["cell"]["package"] for change in result(answer).get("changes", [])]
    check(sorted(touched) == ["osapi-lab", "osapi-lab-lib"], "what needs it goes too, and is shown", answer)

    plan = result(answer).get("plan")
    sh("apt-get", "install", "--yes", "--allow-downgrades", "--option=Dpkg::Options::=--force-confold",
       "osapi-lab=1.0", "osapi-lab-lib=1.0", ok=True, env={"PATH": "/usr/sbin:/usr/bin", "DEBIAN_FRONTEND": "noninteractive"})
    status, answer = osapi("package", "remove", "osapi-lab-lib", "--plan", plan)
    check(status == 15 and kind(answer) == "stale", "only what was seen is done", (status, answer))
    (ARCHIVE / "osapi-lab_1.0_all.deb").rename("/root/osapi-lab_1.0_all.deb")
    publish()
    sh("apt-get", "clean")
    status, answer = osapi("package", "install", "osapi-lab", "--dry-run")
    check("osapi-lab 1.0" in json.dumps(result(answer).get("residue")), "a version that is gone is named", answer)
    status, done = osapi("package", "install", "osapi-lab")
    status, answer = osapi("job", "undo", job_of(done), "--dry-run")
    check(status == 15 and "1.0" in json.dumps(answer), "and an undo says beforehand that it cannot be", (status, answer))
    osapi("package", "remove", "osapi-lab-lib")
    check(version("osapi-lab") is None, "both are gone")
    status, answer = osapi("package", "remove", "osapi-lab")
    check(status == 0 and not changed(answer), "what is gone needs no removal", answer)


def guarded():
    before = installed()
    for pattern in ["osapi-la.", "osapi-l.b", "ba.h", "dpk.+", "a.+b"]:
        for verb in ["install", "remove"]:
            status, answer = osapi("package", verb, pattern)
            check(status == (10 if pattern.endswith(".") else 13), f"{verb} {pattern}: a pattern is no package", (status, answer))
    check(installed() == before, "and nothing that it matches is touched")
    for name in ["dpkg", "bash"]:
        status, answer = osapi("package", "remove", name)
        check(status == 15 and kind(answer) == "protected", f"{name} is not removed by accident", (status, answer))
    is_ours = version("osapi") is None
    if is_ours:
        deb("osapi", "0.0")
        sh("dpkg", "--install", ARCHIVE / "osapi_0.0_all.deb", ok=True)
    for flags in [], ["--force"], ["--force", "--confirm", "60"], ["--force", "--dry-run"]:
        status, answer = osapi("package", "remove", *flags, "osapi")
        check(status == 15 and kind(answer) == "protected" and "apt-get remove osapi" in json.dumps(answer),
              f"nor is osapi by itself {flags}, but by apt", (status, answer))
    if is_ours:
        sh("dpkg", "--purge", "osapi", ok=True)


def locked():
    with open(LOCK, "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        begun = time.monotonic()
        job = subprocess.Popen(["osapi", "--json", "package", "install", "osapi-lab"], stdout=subprocess.PIPE, text=True)
        time.sleep(20)
        check(job.poll() is None and version("osapi-lab") is None, "it waits for whoever changes packages")
    answer, _ = job.communicate(timeout=120)
    took = time.monotonic() - begun
    check(job.returncode == 0 and version("osapi-lab") == "2.0", f"and works then ({took:.0f} s)", answer)


def simulates():
    """Whether apt is asked what would come of a wish."""
    return sh("pgrep", "--full", "^apt-get --simulate|/apt-get --simulate").returncode == 0


def overtaken():
    """Between plan and run somebody else has the lock, and uses it, or does not."""
    for others, what in [([], "nothing"), (["osapi-left"], "what it conflicts with"), (["osapi-right"], "the same")]:
        before = installed()
        with open(LOCK, "w") as lock:
            job = subprocess.Popen(["osapi", "--json", "package", "install", "osapi-right"], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            end = time.monotonic() + 30
            while not simulates() and time.monotonic() < end:
                pass
            fcntl.lockf(lock, fcntl.LOCK_EX)
            time.sleep(6)
            check(job.poll() is None, "it waits before the run as well")
            for other in others:
                sh("dpkg", "--install", ARCHIVE / f"{other}_1.0_all.deb", ok=True,
                   env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DPKG_FRONTEND_LOCKED": "1"})
            after = installed()
        answer, _ = job.communicate(timeout=180)
        if others == ["osapi-left"]:
            check(job.returncode == 15 and kind(answer) == "stale" and "osapi-left" in answer,
                  f"who has installed {what} meanwhile has made the plan stale", (job.returncode, answer))
            check(installed() == after and not out("dpkg", "--audit"), "and nothing is changed for it", installed())
            sh("dpkg", "--purge", "osapi-left", ok=True)
        else:
            check(job.returncode == 0 and version("osapi-right") == "1.0", f"who has done {what} is no hindrance", answer)
            osapi("package", "remove", "osapi-right")
        check(installed() == before, "then everything is as before", installed())


def hanging():
    """A script that does not end, and whose hand is killed."""
    job = subprocess.Popen(["osapi", "--json", "package", "install", "osapi-hang"], text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(HANGS.exists, "a script that hangs is at work", 60)
    _, jobs = osapi("job", "list", "--limit", "1")
    name = jobs["jobs"][0]["id"]
    unit = f"osapi-job-{name}.1.service"
    sh("kill", "-9", show(unit, "MainPID"), ok=True)

    def told():
        _, view = osapi("job", "get", name)
        return unit in json.dumps(view.get("agent_states", {}))

    until(told, "its hand was killed: the job says which unit is waited for", 30)
    found = next(c for c in osapi("doctor")[1]["checks"] if c["id"] == "jobs.left")
    check(found["status"] == "warn" and unit in found["evidence"], "and so does the doctor", found)
    check(unit in found.get("fix", ""), "with the remedy", found)
    begun = time.monotonic()
    sh("systemctl", "kill", "--signal=KILL", unit, ok=True)
    answer, _ = job.communicate(timeout=180)
    took = time.monotonic() - begun
    check(job.returncode == 17, f"that ends it ({took:.0f} s)", (job.returncode, answer))
    check(version("osapi-hang") is None and not out("dpkg", "--audit"), "it is taken back", out("dpkg", "--audit"))
    check(HANGS.read_text() == "x\n", "and the script was not begun once more", HANGS.read_text())
    found = next(c for c in osapi("doctor")[1]["checks"] if c["id"] == "jobs.left")
    check(found["status"] == "ok", "the doctor sees nothing left", found)

    sh("dpkg", "--unpack", ARCHIVE / "osapi-hang_1.0_all.deb", ARCHIVE / "osapi-left_1.0_all.deb", ok=True)
    status, answer = osapi("package", "remove", "osapi-hang")
    check(status == 0 and version("osapi-hang") is None, "what is half done is removed", (status, answer))
    check(version("osapi-left") == "1.0" and not out("dpkg", "--audit"), "and what else was half done is finished", installed())
    osapi("package", "remove", "osapi-left")
    check(HANGS.read_text() == "x\n", "without its script", HANGS.read_text())


def killed():
    job = subprocess.Popen(["osapi", "--json", "package", "install", "osapi-slow"], stdout=subprocess.PIPE, text=True)
    until(BEGUN.exists, "a slow script is at work", 60)
    _, jobs = osapi("job", "list", "--limit", "1")
    name = jobs["jobs"][0]["id"]

    def told():
        _, view = osapi("job", "get", name)
        states = view.get("agent_states", {}).values()
        return next((state["progress"] for state in states if state.get("progress")), None)

    until(lambda: "osapi-slow" in (told() or {}).get("message", ""), "how far it is is told meanwhile", 6)
    before = pid("osapi-agent")
    sh("kill", "-9", before, ok=True)
    answer, _ = job.communicate(timeout=120)
    check(job.returncode == 0, "the agent was killed, and the job is done", answer)
    check(pid("osapi-agent") not in (0, before), "by the next agent")
    check(COUNT.read_text() == "x\n", "the script ran once", COUNT.read_text())
    check(version("osapi-slow") == "1.0" and not out("dpkg", "--audit"), "the package is whole")
    _, view = osapi("job", "get", name)
    check(view.get("status") == "completed" and view.get("changed"), "the job says so", view)
    check("progress" not in json.dumps(view), "and how far it was is forgotten")
    status, answer = osapi("job", "undo", name)
    check(status == 0 and version("osapi-slow") is None, "it can be undone", answer)


def broken():
    before = installed()
    status, answer = osapi("package", "install", "osapi-sick")
    check(status == 17 and "osapi-sick" in json.dumps(answer), "a script that fails is a failure", (status, answer))
    check(installed() == before and not out("dpkg", "--audit"), "and leaves nothing half done", installed())

    sh("dpkg", "--unpack", ARCHIVE / "osapi-slow_1.0_all.deb", ok=True)
    status, answer = osapi("package", "remove", "osapi-lab", "--dry-run")
    check("osapi-slow" in json.dumps(result(answer).get("residue")), "what dpkg was at is named beforehand", answer)
    status, answer = osapi("package", "remove", "osapi-lab")
    check(status == 0 and version("osapi-slow") == "1.0", "and finished first", (status, answer))
    osapi("package", "remove", "osapi-slow")

    good = STATUS.read_text()
    torn = good.replace("Package: osapi-lab-lib\nStatus: install ok installed",
                        "Package: osapi-lab-lib\nStatus: install reinstreq half-installed")
    check(torn != good, "a package is made to look torn")
    STATUS.write_text(torn)
    status, answer = osapi("package", "install", "osapi-lab")
    check(status == 17 and "apt-get install --reinstall osapi-lab-lib" in json.dumps(answer),
          "dpkg's broken state is named, with what repairs it", (status, answer))
    STATUS.write_text(good)


part("package")
ready()
archive()
for step in (reads, changes, guarded, locked, overtaken, killed, hanging, broken):
    step()
