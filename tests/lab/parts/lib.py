"""What the parts share that `tests/lab/installed` runs inside an appliance, as root.

A part is a file beside this one. It checks, and goes on when something does not hold:

    from lib import check, cycle, osapi, part, sh
    part("timezone")
    status, answer = osapi("timezone", "get")
    check(status == 0, "the timezone can be read")
    cycle("timezone", "update", "Europe/Berlin")

A line `# lab: …` at the head of a part says what it needs, if anything: `limit=SECONDS` (300), for
each of its phases; `suites=bookworm,trixie` (all); `packages=NAME,…` of Debian beside ours; `fresh`:
a box into which nothing was installed yet, with the packages beside the parts in /root/debs; `vm`: a
virtual machine in place of a box, which all such parts share.

A part that wants to go on after a reboot says `next_boot("after", …)`; it is then started again,
with `phase()` saying "after" and `kept()` what it was given. Nothing else is shared: every part
has a box of its own.
"""

import atexit
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEXT = HERE / ".next"  # what follows after the reboot, for `installed`
REBOOT = 75            # a part ends so when `installed` is to reboot the appliance
STATE = Path("/var/lib/osapi")

_name = Path(sys.argv[0]).stem
_checks, _failed = 0, 0


def part(name):
    """Says which part this is, and has it say at the end what came of it."""
    global _name
    _name = name
    atexit.register(_sum)


def _sum():
    sys.stdout.flush()
    print(f"COUNT {_checks} {_failed}", flush=True)


def phase():
    """Which phase of the part this is; the first is called ""."""
    return sys.argv[1] if len(sys.argv) > 1 else ""


def kept():
    """What the phase before has handed on."""
    return json.loads(sys.argv[2]) if len(sys.argv) > 2 else None


def say(*words):
    print(*words, flush=True)


def check(holds, text, detail=None):
    """Notes whether what `text` says holds; `detail` is shown where it does not."""
    global _checks, _failed
    _checks += 1
    if holds:
        say(f"  ok      {text}")
    else:
        _failed += 1
        say(f"  FAILED  {text}" + ("" if detail is None else f"\n          {str(detail)[:2000]}"))
    return bool(holds)


def figure(name, value):
    """Something measured, for docs/performance.md."""
    say(f"FIGURE {name}: {value}")


def counts():
    """How many checks there were so far, and how many failed."""
    return _checks, _failed


def sh(*argv, stdin=None, timeout=120, ok=False, env=None):
    """Runs a program, or a line of shell where there is one string only.

    The result has returncode, stdout and stderr, as text. With `ok` it must succeed."""
    argv = ["/bin/sh", "-c", argv[0]] if len(argv) == 1 and isinstance(argv[0], str) else [str(a) for a in argv]
    r = subprocess.run(argv, input=stdin, stdin=subprocess.DEVNULL if stdin is None else None, timeout=timeout,
                       text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    if ok and r.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {r.returncode}: {r.stderr or r.stdout}")
    return r


def out(*argv, **kw):
    """What a program that must succeed prints, without the newline at the end."""
    return sh(*argv, ok=True, **kw).stdout.rstrip("\n")


def user(name, *groups):
    """Makes an account without rights, a member of `groups`, which are made too."""
    for group in groups:
        sh("groupadd", "--force", group, ok=True)
    if sh("id", name).returncode:
        sh("useradd", "--create-home", "--shell", "/bin/bash", name, ok=True)
    for group in groups:
        sh("usermod", "--append", "--groups", group, name, ok=True)


def osapi(*words, by=None, timeout=180, stdin=None):
    """`osapi WORDS --json`, as root or as the account `by`: its exit status, and what it prints as
    JSON; text where it prints none. `--json` comes first: some commands take all that follows."""
    argv = ["osapi", "--json", *map(str, words)]
    if by:
        argv = ["runuser", "-u", by, "--", *argv]
    r = sh(*argv, timeout=timeout, stdin=stdin)
    try:
        return r.returncode, json.loads(r.stdout)
    except ValueError:
        return r.returncode, (r.stdout + r.stderr).strip()


def http(method, path, body=None, by=None, headers=(), timeout=120):
    """A request over the socket, as root or as the account `by`: status, and the answer as JSON."""
    argv = ["curl", "--silent", "--show-error", "--unix-socket", "/run/osapi/osapi.sock", "--request", method,
            "--max-time", str(timeout), "--write-out", "\n%{http_code}"]
    for header in headers:
        argv += ["--header", header]
    if body is not None:
        argv += ["--header", "content-type: application/json", "--data-binary", json.dumps(body)]
    argv.append("http://localhost/api" + path)
    if by:
        argv = ["runuser", "-u", by, "--", *argv]
    r = sh(*argv, timeout=timeout + 10)
    text, _, status = r.stdout.rpartition("\n")
    try:
        return int(status or 0), json.loads(text)
    except ValueError:
        return int(status or 0), text or r.stderr


def result(answer):
    """The row of the one host, of an answer that has rows; else the answer itself."""
    rows = answer.get("results") if isinstance(answer, dict) else None
    return rows[0] if rows else answer


def changed(answer):
    """Whether an answer says that something was, or would be, changed."""
    return isinstance(answer, dict) and result(answer).get("changed") is True


def job_of(answer):
    return answer.get("job_id") if isinstance(answer, dict) else None


def cycle(*words, observe=None, undo=True):
    """A write, all the way: dry run, run, run again, undo; `observe()` shows what the host itself
    says, and must be as before after dry run and undo. Gives the answer of the run."""
    name = " ".join(map(str, words))
    observe = observe or (lambda: None)
    before = observe()
    status, answer = osapi(*_with("--dry-run", words))
    check(status == 0 and changed(answer), f"{name}: a dry run says that it would change something", answer)
    check(observe() == before, f"{name}: a dry run changes nothing", observe())
    status, done = osapi(*words)
    check(status == 0 and changed(done), f"{name}: it is done", done)
    after = observe()
    check(before is None or after != before, f"{name}: the host shows it", after)
    status, answer = osapi(*words)
    check(status == 0 and not changed(answer), f"{name}: a second run has nothing to do", answer)
    check(observe() == after, f"{name}: a second run changes nothing", observe())
    if undo:
        status, answer = osapi("job", "undo", job_of(done) or "none")
        check(status == 0 and changed(answer), f"{name}: it can be undone", answer)
        check(observe() == before, f"{name}: then everything is as before", observe())
    return done


def _with(flag, words):
    """Flags go first, below the words of the command, where nothing swallows them."""
    words = list(words)
    at = next((i for i, word in enumerate(words) if str(word).startswith("-")), len(words))
    return words[:at] + [flag] + words[at:]


def until(holds, what, seconds=30):
    """Waits until `holds()` is true, which is checked."""
    end = time.monotonic() + seconds
    while True:
        got = holds()
        if got or time.monotonic() > end:
            check(got, f"{what} (within {seconds} s)")
            return got
        time.sleep(0.05)


def ready(seconds=30):
    """Waits until the agent is there to work with."""
    return until(lambda: sh("osapi", "health", "ready").returncode == 0, "an agent is ready", seconds)


def show(unit, name):
    """A property of a unit."""
    return out("systemctl", "show", "--property", name, "--value", unit)


def pid(unit):
    return int(show(unit, "MainPID") or 0)


def boot_id():
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def next_boot(then, keep=None, by_itself=False):
    """Goes on with the phase `then` after the next boot. `installed` reboots the appliance, unless
    what the part does next reboots it: with `by_itself` this returns, and the part says
    `wait_for_the_end()` once it is under way."""
    NEXT.write_text(json.dumps({"phase": then, "keep": keep, "boot": boot_id()}))
    if not by_itself:
        sys.exit(REBOOT)


def wait_for_the_end():
    """Waits for the appliance to go down."""
    _sum()
    atexit.unregister(_sum)
    time.sleep(120)
    say("FAILED: the appliance did not go down")
    os._exit(1)
