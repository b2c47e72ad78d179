"""Accounts and passwords, for real: useradd, usermod, userdel and chpasswd of the distribution."""

import base64
import os
import re
import secrets
import time
from pathlib import Path

from lib import STATE, changed, check, cycle, http, job_of, osapi, out, part, pid, result, sh

part("user")


def lines(table, *names):
    found = Path(table).read_text().splitlines()
    return [line for line in found if line.split(":")[0] in names]


def seen(*names):
    """What the host's own tables and homes say of accounts."""
    def look():
        # In whatever order members are.
        groups = [sorted(re.split("[:,]", line)) for line in Path("/etc/group").read_text().splitlines()]
        homes = {name: Path(f"/home/{name}").exists() for name in names}
        return [lines("/etc/passwd", *names), lines("/etc/shadow", *names), sorted(groups), homes]
    return look


def field(name):
    return lines("/etc/shadow", name)[0].split(":")[1]


def may_log_in(name, password):
    """Asks the library that decides, through a program of the distribution."""
    code = "my ($h, $p) = (<STDIN>, <STDIN>); chomp($h, $p); exit(crypt($p, $h) eq $h ? 0 : 1)"
    return sh("perl", "-e", code, stdin=f"{field(name)}\n{password}\n").returncode == 0


status, answer = osapi("user", "list")
users = result(answer)["users"]
check(status == 0 and len(users) == len(Path("/etc/passwd").read_text().splitlines()), "every account is listed", answer)
root = next(user for user in users if user["name"] == "root")
check(root["uid"] == 0 and root["groups"][0] == "root", "root is told as it is", root)
locked = out("passwd", "--status", "daemon").split()[1] == "L"
check(next(u for u in users if u["name"] == "daemon")["locked"] == locked, "a lock is what passwd(1) says it is")
check(osapi("user", "get", "nobody-knows")[0] == 13, "an unknown account is not found")

# An account from nothing and back.
cycle("user", "create", "ada", "--groups", "users,sudo", "--shell", "/bin/bash", observe=seen("ada"))
status, made = osapi("user", "create", "ada", "--groups", "users,sudo", "--shell", "/bin/bash")
check(status == 0 and out("id", "-Gn", "ada").split()[0] == "ada", "its own group goes first", made)
check("sudo" in out("id", "-Gn", "ada").split(), "it is in its groups", out("id", "ada"))
check(Path("/home/ada/.bashrc").exists(), "its home has what new ones get")

# What others put into it meanwhile is theirs.
status, kept = osapi("user", "create", "lena")
check(any("/home/lena" in left for left in result(kept).get("residue", [])), "what may stay is told with the create", kept)
Path("/home/lena/thesis").write_text("mine")
status, answer = osapi("job", "undo", job_of(kept))
check(status == 0 and not lines("/etc/passwd", "lena") and Path("/home/lena/thesis").read_text() == "mine",
      "an undo leaves a home that is used", answer)
check("the home of lena" in str(answer), "and says so", answer)
sh("rm", "-r", "/home/lena")

# Another administrator, or much of what follows would lock everybody out.
status, answer = osapi("user", "create", "grace", "--groups", "sudo", "--shell", "/bin/bash")
check(status == 0, "another administrator", answer)
osapi("user", "password", "grace", "--password", "-", stdin=secrets.token_urlsafe(18) + "\n")

# Passwords: canaries, given by a pipe.
canary, second = "Kanarie-" + secrets.token_urlsafe(18), "Zweiter-" + secrets.token_urlsafe(18)


def password(secret, *words):
    return osapi("user", "password", "ada", "--password", "-", *words, stdin=secret + "\n")


status, answer = password(canary, "--dry-run")
check(status == 0 and changed(answer) and field("ada") == "!", "a dry run sets no password", answer)
plan = result(answer).get("plan", "")
status, answer = password(canary, "--plan", plan)
check(status == 0 and changed(answer), "a password is set as it was planned", answer)
check(may_log_in("ada", canary) and not may_log_in("ada", second), "it opens the account")
before = field("ada")
status, answer = password(canary)
check(status == 0 and not changed(answer) and field("ada") == before, "the same again changes nothing", answer)
status, answer = password(second)
other = job_of(answer)
check(changed(answer) and may_log_in("ada", second), "another one takes its place", answer)
status, answer = osapi("job", "undo", other)
check(status == 0 and field("ada") == before, "an undo brings back the former hash, byte for byte", answer)
status, answer = osapi("job", "retry", other)
check(status == 15 and "no longer kept" in str(answer), "what lost its secret cannot be repeated", answer)
status, answer = osapi("user", "password", "ada", "--password", canary)
check(status == 2 and canary not in str(answer), "a password on the command line is refused and not repeated", answer)
status, answer = http("POST", "/node/_any/user/ada/password", {"password": canary},
                      headers=["Idempotency-Key: one"])
again = http("POST", "/node/_any/user/ada/password", {"password": canary}, headers=["Idempotency-Key: one"])
check(status == 200 and again[1].get("job_id") == answer.get("job_id"), "the same key and secret are one job", again)
reused = http("POST", "/node/_any/user/ada/password", {"password": second}, headers=["Idempotency-Key: one"])
check(reused[0] == 422, "the same key and another secret are not", reused)

status, answer = password("not @fact.hostname", "--dry-run")
check(status == 0 and changed(answer), "a password may contain what refers to a fact elsewhere", answer)

# Locks keep the password and come off again.
cycle("user", "update", "ada", "--lock", observe=lambda: field("ada"))
osapi("user", "update", "ada", "--lock")
check(field("ada") == "!" + before and out("passwd", "--status", "ada").split()[1] == "L", "the lock is the host's own")
status, answer = password(second)
check(changed(answer) and field("ada").startswith("!$"), "what is locked stays so", field("ada"))
status, answer = osapi("user", "update", "ada", "--unlock")
check(status == 0 and may_log_in("ada", second), "unlocked it opens again", answer)

# The rest of an account.
Path("/home/ada/letter").write_text("dear")
cycle("user", "update", "ada", "--home", "/srv/ada", "--shell", "/bin/sh", "--groups", "users",
      observe=lambda: [seen("ada")(), Path("/srv/ada/letter").exists()])
before = [os.lstat("/bin").st_mode, os.stat("/bin").st_uid, lines("/etc/passwd", "bin", "sync")]
for name in ("bin", "sync", "sys", "root"):
    status, answer = osapi("user", "update", name, "--home", "/srv/moved")
    check(status == 15 and "not moved" in str(answer), f"the home of {name} stays where it is", (status, answer))
check(before == [os.lstat("/bin").st_mode, os.stat("/bin").st_uid, lines("/etc/passwd", "bin", "sync")],
      "nothing of the system was touched")
status, answer = http("PUT", "/node/_any/user/ada", {"groups": []})
check(status == 200 and out("id", "-Gn", "ada") == "ada", "no groups are none", answer)
for words, text in [
    (["create", "ada", "--uid", "0"], "root's number is not given away"),
    (["create", "-ada"], "a name is no option"),
    (["create", "a:b"], "a name is no line"),
    (["update", "ada", "--groups", "nobody-knows"], "an unknown group is refused"),
    (["update", "ada", "--shell", "/bin/none"], "a shell that is not there is refused"),
    (["update", "ada"], "an update that names nothing is refused"),
]:
    status, answer = osapi("user", *words)
    check(status in (2, 10, 15), text, (status, answer))
status, answer = osapi("user", "create", "daemon2", "--system")
made = result(osapi("user", "get", "daemon2")[1])["users"][0]
check(status == 0 and made["uid"] < 1000, "one of the system has a number of the system", made)
osapi("user", "delete", "daemon2")

# A group of its own, with a number of its own.
sh("groupadd", "--gid", "4711", "carol", ok=True)
sh("useradd", "--uid", "1555", "--gid", "carol", "--create-home", "carol", ok=True)
cycle("user", "delete", "carol", observe=seen("carol"))
check(os.stat("/home/carol").st_gid == 4711, "files have the number that the group has", os.stat("/home/carol"))
sh("usermod", "--append", "--groups", "carol", "grace", ok=True)
cycle("user", "delete", "carol", observe=seen("carol"))
check(lines("/etc/group", "carol") == ["carol:x:4711:grace"], "who else is in the group stays in it", lines("/etc/group", "carol"))
osapi("user", "delete", "carol")
check(lines("/etc/group", "carol") == ["carol:x:4711:grace"], "also while the account is gone", lines("/etc/group", "carol"))
sh("groupdel", "carol", ok=True)
status, answer = osapi("user", "create", "dora", "--uid", "4712")
check(status == 0 and lines("/etc/group", "dora") == ["dora:x:4712:"], "a new one has the number of its account", answer)
sh("usermod", "--append", "--groups", "dora", "grace", ok=True)
status, answer = osapi("job", "undo", job_of(answer) or "none")
check(status == 0 and lines("/etc/passwd", "dora") == [] and lines("/etc/group", "dora") == ["dora:x:4712:grace"],
      "an undo leaves a group that somebody has joined", (answer, lines("/etc/group", "dora")))
sh("groupdel", "dora", ok=True)

# Whom the host cannot do without.
osapi("user", "update", "ada", "--groups", "sudo")
status, answer = osapi("user", "delete", "grace")
check(status == 0, "one of two administrators may be removed", answer)
for words, text in [
    (["delete", "root"], "root is not removed"),
    (["delete", "osapi"], "the controller's account is not removed"),
    (["update", "osapi", "--shell", "/bin/sh"], "it is not changed either"),
    (["update", "osapi", "--home", "/srv/osapi"], "nor is its home moved"),
    (["delete", "ada"], "the last administrator is not removed"),
    (["update", "ada", "--lock"], "the last administrator is not locked"),
]:
    status, answer = osapi("user", *words)
    check(status == 15 and "force" in str(answer), text, (status, answer))
sh("passwd", "--lock", "ada")
status, answer = osapi("user", "delete", "ada")
check(status == 15 and "force" in str(answer), "with a locked password it is the last one all the same", (status, answer))
sh("passwd", "--unlock", "ada")
status, answer = osapi("user", "delete", "ada", "--force", "--dry-run")
check(status == 0 and any("/home/ada" in left for left in result(answer).get("residue", [])),
      "what an undo could not bring back is told before", answer)
shadow = lines("/etc/shadow", "ada")
status, gone = osapi("user", "delete", "ada", "--force")
check(status == 0 and not lines("/etc/passwd", "ada") and not Path("/home/ada").exists(), "it can be forced", gone)
check(not changed(osapi("user", "delete", "ada")[1]), "what was removed is removed")
status, answer = osapi("job", "undo", job_of(gone) or "none")
check(status == 0 and lines("/etc/shadow", "ada") == shadow and Path("/home/ada").exists(),
      "the account comes back with its password", (answer, lines("/etc/shadow", "ada")))
check("sudo" in out("id", "-Gn", "ada").split(), "and with its groups")

# No canary anywhere.
needles = [form for secret in (canary, second) for form in (
    secret, base64.b64encode(secret.encode()).decode().rstrip("="), secret.encode().hex())]
Path("/root/needles").write_text("\n".join(needles) + "\n")
time.sleep(1.5)
osapi("audit", "export", "/root/export")
for job in {other, job_of(gone)}:
    Path(f"/root/job-{job}").write_text(str(osapi("job", "get", job)))
sh("journalctl --no-pager --output=export > /root/journal-export", ok=True)
places = [str(STATE), "/run/osapi", "/var/log", "/root/export", "/root/journal-export", *map(str, Path("/root").glob("job-*"))]
for unit in ("osapi-controller.service", "osapi-agent.service"):
    for name in ("cmdline", "environ"):
        copy = Path(f"/root/{unit}.{name}")
        try:
            copy.write_bytes(Path(f"/proc/{pid(unit)}/{name}").read_bytes())
            places.append(str(copy))
        except OSError:
            pass
found = sh("grep", "--recursive", "--text", "--files-with-matches", "--fixed-strings", "--file", "/root/needles",
           *[place for place in places if Path(place).exists()])
check(not found.stdout.strip(), "no secret is stored, logged or exported", found.stdout)
osapi("user", "delete", "ada", "--force")
