"""The journal: what was written to it is told, by unit, since when, and whatever it is made of."""

import json
import queue
import signal
import subprocess
import threading
import time

from lib import check, http, osapi, out, part, ready, result, sh, user

part("log")
ready()
sh("systemd-cat", "-t", "osapi-tried", "-p", "warning", "echo", "a warning", ok=True)
sh(r"printf 'a\033[1m\377 b\n' | systemd-cat -t osapi-tried", ok=True)
sh("systemd-run", "--wait", "--unit=osapi-tried.service", "--", "/bin/echo", "from a unit", ok=True)
sh("journalctl", "--sync")


def messages(answer):
    return [entry["message"] for entry in result(answer)["entries"]]


status, answer = osapi("log", "query", "--lines", "200", "--since", "1h")
check(status == 0 and "a warning" in messages(answer), "the journal is told", answer)
check("a\x1b[1m� b" in messages(answer), "what is not text as well", messages(answer)[-5:])
entries = result(answer)["entries"]
check([e["timestamp"] for e in entries] == sorted(e["timestamp"] for e in entries), "the oldest first")
mine = next(e for e in entries if e["message"] == "a warning")
check(mine["priority"] == "warning" and mine["hostname"] == out("hostname"), "with its fields", mine)
status, answer = osapi("log", "query", "--priority", "warning", "--lines", "10000")
check("a warning" in messages(answer) and "from a unit" not in messages(answer), "by priority")
status, answer = osapi("log", "unit", "osapi-tried")
check(status == 0 and "from a unit" in messages(answer), "by unit", answer)
check(all(e["unit"] == "osapi-tried.service" for e in result(answer)["entries"]), "and by no other", answer)
status, answer = osapi("log", "query", "--since", "@4000000000")
check(status == 0 and messages(answer) == [], "nothing is told of the future", answer)
status, answer = osapi("log", "unit", "no-such-unit")
check(status == 13, "a unit that nobody knows is not found", (status, answer))
status, answer = osapi("log", "source")
check("osapi-tried" in result(answer)["sources"], "who has written is listed", answer)
for words in [("query", "--since", "yesteryear"), ("unit", "--name", "-u"), ("unit", "a*"), ("query", "--lines", "0")]:
    status, answer = osapi("log", *words)
    check(status in (2, 10, 13), f"{' '.join(words)} is refused", (status, answer))
sh("for i in $(seq 250); do head -c 6000 /dev/zero | tr '\\0' x; echo; done | systemd-cat -t osapi-long", ok=True, timeout=60)
sh("journalctl", "--sync")
status, answer = osapi("log", "query", "--lines", "10000")
check(result(answer).get("truncated") is True, "an answer is bounded, and says so", str(answer)[:200])
check(len(json.dumps(answer)) < 1024 * 1024 and messages(answer)[-1], "what is kept is the newest")
followed = subprocess.Popen(["osapi", "--json", "log", "follow", "--unit", "osapi-followed", "--lines", "0"],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
said = queue.Queue()
threading.Thread(target=lambda: [said.put(line) for line in followed.stdout], daemon=True).start()


def hears(words):
    """Has a unit say something until it is heard: the first time nobody may have listened yet."""
    for _ in range(20):
        sh("systemd-run", "--wait", "--unit=osapi-followed.service", "--", "/bin/echo", words, ok=True)
        try:
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                if json.loads(said.get(timeout=5))["message"] == words:
                    return True
        except queue.Empty:
            pass
    return False


def journalctls():
    return sh("pgrep", "-c", "-f", "^(/usr)?/bin/journalctl .*osapi-followed.*--follow").stdout.strip()


check(hears("heard as it is said"), "what is written comes to whoever follows")
check(journalctls() == "1", "by a journalctl of its own", journalctls())
sh("systemctl", "restart", "osapi-controller", ok=True)
check(hears("heard again"), "and goes on when the controller was started again")
followed.send_signal(signal.SIGINT)
check(followed.wait(timeout=30) == 130, "Ctrl-C ends it")
for _ in range(100):
    if journalctls() == "0":
        break
    time.sleep(0.1)
check(journalctls() == "0", "and journalctl with it", journalctls())
user("mallory")
status, _ = http("GET", "/node/_any/log", by="mallory")
check(status == 403, "whoever has no role reads nothing", status)
status, _ = http("GET", "/node/_any/log/follow", by="mallory")
check(status == 403, "nor follows it", status)
