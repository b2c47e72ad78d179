# lab: limit=240
"""Reboot and shutdown: the job ends when another boot reports in; who keeps the host up is heeded."""

import json
import os
import subprocess
import time
from pathlib import Path

from lib import boot_id, check, http, kept, next_boot, osapi, out, part, phase, ready, sh, show, until, user, wait_for_the_end


def job(answer):
    _, about = osapi("job", "get", answer)
    return about


def ask(action, **body):
    """Asks, and does not wait for the job."""
    return http("POST", f"/node/_any/power/{action}", body, headers=["prefer: respond-async"])


def first():
    ready()
    apt = subprocess.Popen(["systemd-inhibit", "--what=shutdown", "--who=tried", "--why=busy", "--mode=block", "sleep", "60"])
    until(lambda: "tried" in out("systemd-inhibit", "--list"), "somebody keeps the host up")
    status, answer = osapi("power", "reboot")
    check(status == 15 and "tried" in str(answer), "a reboot is refused with their name", (status, answer))
    apt.terminate()
    until(lambda: "tried" not in out("systemd-inhibit", "--list"), "they let go")

    status, answer = osapi("timezone", "update", "--confirm", "600", "Asia/Kolkata")
    waiting = answer["job_id"]
    status, answer = osapi("power", "reboot")
    check(status == 15 and waiting in str(answer), "so it is while a change waits to be confirmed", (status, answer))
    osapi("job", "revert", waiting)

    status, answer = ask("shutdown", delay=3000)
    check(status == 202, "a delayed shutdown is taken", (status, answer))
    timer = f"osapi-power-{answer['job_id']}.timer"
    until(lambda: show(timer, "ActiveState") == "active", "its timer runs")
    status, other = osapi("power", "reboot")
    check(status == 15 and answer["job_id"] in str(other), "no other is taken meanwhile", (status, other))
    sh("systemctl", "restart", "osapi-agent", ok=True)
    ready()
    check(job(answer["job_id"])["status"] in ("processing", "submitted"), "another agent waits on", job(answer["job_id"]))
    check(show(timer, "ActiveState") == "active", "for the same timer")
    sh("systemctl", "stop", timer, ok=True)
    until(lambda: "cancelled" in json.dumps(job(answer["job_id"])), "stopped by hand, the job says so", 60)
    call_off()

    status, answer = ask("reboot", delay=4, message="for 5$ or $HOME, %n")
    check(status == 202, "a reboot is taken", (status, answer))
    next_boot("booted", {"job": answer["job_id"], "boot": boot_id()}, by_itself=True)
    time.sleep(2)
    check(out("systemctl", "show", "--property=SystemState", "--value") != "stopping", "it is not done at once")
    wait_for_the_end()


def call_off():
    """A week is long enough to think better of it."""
    def later():
        status, answer = ask("reboot", delay=604800)
        timer = f"osapi-power-{answer['job_id']}.timer"
        until(lambda: show(timer, "ActiveState") == "active", "a reboot in a week is scheduled")
        return answer["job_id"], timer

    def is_off(about, timer, text):
        until(lambda: job(about)["status"] == "failed" and "cancelled" in json.dumps(job(about)), f"{text}: its job ends as cancelled")
        check(show(timer, "ActiveState") == "inactive", f"{text}: its timer is stopped", show(timer, "ActiveState"))
        check("osapi-power" not in out("systemctl", "list-units", "--all", "--plain", "--no-legend"), f"{text}: nothing of it is left")

    user("holds-jobs")
    about, timer = later()
    status, answer = osapi("job", "cancel", about, by="holds-jobs")
    check(status != 0, "who may not reboot may not call a reboot off", (status, answer))
    check(show(timer, "ActiveState") == "active", "and the timer goes on")
    jobs = [http("POST", "/node/_any/command/exec", {"command": "sleep", "args": ["20"]}, headers=["prefer: respond-async"])[1]["job_id"]
            for _ in range(4)]
    until(lambda: [job(one)["status"] for one in jobs] == ["processing"] * 4, "four other acts run beside it")
    status, answer = osapi("job", "cancel", about)
    check(status == 0 and answer.get("asked"), "a scheduled reboot is called off", (status, answer))
    is_off(about, timer, "called off beside four acts")
    status, answer = osapi("job", "cancel", about)
    check(status != 0, "what is over cannot be called off again", (status, answer))

    about, timer = later()
    sh("systemctl", "stop", "osapi-agent", ok=True)
    sh("systemctl", "restart", "osapi-controller", ok=True)
    status, answer = osapi("job", "cancel", about)
    check(status == 0 and answer.get("asked"), "a controller that knows nothing of it asks the host", (status, answer))
    check(job(about)["status"] == "processing", "whose answer is waited for", job(about))
    sh("systemctl", "start", "osapi-agent", ok=True)
    ready()
    is_off(about, timer, "after a restart of the controller without an agent")

    about, timer = later()
    sh("systemctl", "kill", "--signal=STOP", "osapi-agent", ok=True)
    status, answer = osapi("job", "cancel", about)
    check(status == 0, "so it is while the agent hangs", (status, answer))
    sh("systemctl", "kill", "--signal=KILL", "osapi-agent", "osapi-controller", ok=True)
    ready()
    is_off(about, timer, "after a crash of agent and controller")
    status, answer = osapi("audit", "verify")
    check(status == 0, "the audit log is whole", answer)


def booted():
    ready()
    check(boot_id() != kept()["boot"], "this is another boot")
    about = kept()["job"]
    until(lambda: job(about)["status"] == "completed", "the job ends with it")
    told = json.dumps(job(about))
    check('"action": "reboot"' in told and '"delay": 4' in told, "and tells what was done", told)
    check("interrupted" not in told, "never as interrupted", told)
    journal = out("journalctl", "--boot=-1", "--no-pager", "-o", "cat", timeout=60) if sh("journalctl", "--boot=-1", "-n1").returncode == 0 else None
    if journal is not None:
        check("for 5$ or $HOME, %n" in journal, "the message is the caller's to the letter")
    status, answer = osapi("audit", "verify")
    check(status == 0, "the audit log is whole", answer)
    next_boot("again", {"newest": newest(), "boot": boot_id()}, by_itself=True)
    with open("/root/said", "w") as said:
        cli = subprocess.Popen(["osapi", "power", "reboot"], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    status = cli.wait()
    with open("/root/said", "a") as said:
        said.write(f"\nexit {status}\n")
        said.flush()
        os.fsync(said.fileno())
    wait_for_the_end()


def newest():
    return osapi("job", "list", "--limit", "1")[1]["jobs"][0]["id"]


def again():
    ready()
    check(boot_id() != kept()["boot"], "a reboot at once is done")
    asked = newest()
    check(asked != kept()["newest"], "its job is there")
    until(lambda: job(asked)["status"] == "completed", "and ends as well")
    said = Path("/root/said").read_text()
    check("host goes down" in said and f"osapi job get {asked}" in said,
          "who waited was told that the host goes down, and how to see the job", said)
    check("exit" not in said or "exit 0" in said, "and has not failed", said)


part("power")
{"": first, "booted": booted, "again": again}[phase()]()
