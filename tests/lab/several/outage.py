"""The broker is away, and comes back."""

import re
import time

from appliances import HOSTS
from lib import check, figure, until

# After how many seconds without a word a host counts as away.
SILENT = 30


def run(site):
    site.broker.kill()
    words = {}
    for controller in site.controllers:
        who = controller.name
        def noticed(controller=controller):
            return controller.ask("GET", "/node/_all/load")[0] == 503
        until(noticed, f"{who}: a read of hosts is refused with 503")
        word = words[controller] = site.word("away")
        for target in ("_any", "_all", "one"):
            begun = time.monotonic()
            status, answer = site.bump(target, word, by=controller, **{"idempotency-key": f"{word}-{target}"})
            check(status == 503 and answer.get("kind") == "unavailable", f"{who}: a change of {target} is refused with 503", answer)
            check(time.monotonic() - begun < 5, f"{who}: at once", f"{time.monotonic() - begun:.1f} s")
        for method, path in (("GET", "/job/00000000-0000-7000-8000-000000000000"), ("POST", "/agent/one/drain"), ("GET", "/file")):
            status, answer = controller.ask(method, path, {} if method == "POST" else None)
            check(status == 503, f"{who}: {method} {path} is refused with 503", answer)
        status, answer = controller.ask("GET", "/agent")
        check(status == 200 and len(answer["agents"]) == len(HOSTS), f"{who}: what it remembers of hosts it tells", answer)
        status, answer = controller.ask("GET", "/health/status")
        check("broker" in str(answer), f"{who}: the health status names what is wrong", answer)
        status, answer = controller.ask("GET", "/health/ready")
        check(status == 503, f"{who}: it is not ready", answer)
        status, answer = controller.ask("GET", "/health")
        check(status == 200, f"{who}: but it lives", answer)
    for controller in site.controllers:
        who = controller.name
        def is_old(controller=controller):
            code, told = controller.run("osapi agent list 2>&1")
            age = re.search(r"The broker is away: this is what was known (\d+) s ago", told)
            return told if code == 0 and age and int(age[1]) > SILENT else None
        told = until(is_old, f"{who}: it says how old that is", 2 * SILENT) or ""
        check(told.count(" Ready") == len(HOSTS) and "NotReady" not in told, f"{who}: nobody has gone meanwhile", told)
        code, told = controller.run("osapi version 2>&1")
        check(code == 0 and "The broker is away" not in told, f"{who}: what it knows itself is not old", told)
    pids = [controller.run("systemctl show -P MainPID osapi-controller")[1] for controller in site.controllers]
    site.broker.start()
    begun = time.monotonic()
    site.ready()
    figure("work again after the broker was away, with its start", f"{time.monotonic() - begun:.1f} s")
    now = [controller.run("systemctl show -P MainPID osapi-controller")[1] for controller in site.controllers]
    check(pids == now, "nobody was started again", (pids, now))
    for controller, word in words.items():
        status, answer = controller.ask("GET", "/job?limit=100")
        check(status == 200 and word not in str(answer), f"{controller.name}: nothing was half stored", answer)
        check(not any(site.counts(word, "begun").values()), f"{word}: and nothing done", site.counts(word))
        status, answer = site.bump("_all", word, by=controller, **{"idempotency-key": f"{word}-_all"})
        check(status == 202, f"{controller.name}: asked again with its key it is taken on", answer)
        again = [site.bump("_all", word, by=other, **{"idempotency-key": f"{word}-_all"}) for other in site.controllers]
        check(all(got == 202 and other["job_id"] == answer["job_id"] for got, other in again), "once, whoever is asked", again)
        view = site.view(answer["job_id"])
        check(view["status"] == "completed" and site.counts(word) == dict.fromkeys(HOSTS, 1), f"{word}: and done once", view)
    site.verify_audit()
