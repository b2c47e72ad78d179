"""A thousand jobs for any host: each ran once, and every host got some."""

import concurrent.futures
import time

from appliances import HOSTS, OPEN
from lib import check, figure

PLACE = "/var/lib/counted/any"


def run(site):
    total = site.args.jobs
    for host in site.hosts.values():
        host.run(f"mkdir -p {PLACE}")
    site.left.put("/root/word", "a word\n")
    status, answer = site.left.osapi("file", "upload", "--name", "word", "/root/word")
    check(status == 0, "a file is stored", answer)
    words = [site.word("any") for _ in range(total)]

    def submit(number):
        controller, word = site.controllers[number // 2 % 2], words[number]
        if number % 2:
            return site.bump("_any", word, by=controller)
        body = {"object_name": "word", "path": f"{PLACE}/{word}", "content_type": "raw"}
        return controller.ask("POST", "/node/_any/file/deploy", body, {"prefer": "respond-async", "idempotency-key": word})

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(submit, range(total)))
    taken = time.monotonic() - begun
    jobs = [answer.get("job_id") for status, answer in answers if status == 202]
    check(len(jobs) == total, f"{total} jobs for any host are taken on", [a for a in answers if a[0] != 202][:3])
    end = time.monotonic() + 600

    def still_open():
        _, answer = site.right.ask("GET", "/job?limit=1")
        return sum(answer["status_counts"].get(status, 0) for status in OPEN)
    while still_open() and time.monotonic() < end:
        time.sleep(0.2)
    seconds = time.monotonic() - begun
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        views = list(pool.map(lambda number: site.controllers[number % 2].ask("GET", f"/job/{jobs[number]}")[1],
                              range(len(jobs))))
    bad = [view for view in views if view["status"] != "completed" or len(view["responses"]) != 1]
    check(not bad, "each is done by one host", bad[:2])
    said = {}
    for word, view in zip(words, views):
        said[word] = [response["hostname"] for response in view["responses"].values()]
    counted = site.everywhere()
    for name, host in site.hosts.items():
        for path in (host.root / PLACE.lstrip("/")).iterdir():
            counted.setdefault(path.name, []).append(name)
    wrong = {word: (said[word], counted.get(word)) for word in words if said[word] != counted.get(word)}
    check(not wrong, f"each of {total} ran once, where its job says", dict(list(wrong.items())[:5]))
    share = {name: sum(where == [name] for where in said.values()) for name in HOSTS}
    check(min(share.values()) * 2 * len(HOSTS) >= total, "every host has got its share, or half of it at least", share)
    figure("jobs for any host", f"{total} in {seconds:.1f} s, accepted in {taken:.1f} s, each once: {share}")
