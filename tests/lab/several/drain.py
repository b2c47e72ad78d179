"""A drained host ends what it has, gets nothing new, and stays drained; a dead one stays visible."""

from lib import check, until

ANY = 24


def known(site, host):
    return [controller.ask("GET", f"/agent/{host}")[1] for controller in site.controllers]


def spread(site, what, *but):
    """Jobs for any host go to the others."""
    words = [site.word("any") for _ in range(ANY)]
    jobs = [site.bump("_any", word, by=site.controllers[number % 2])[1].get("job_id") for number, word in enumerate(words)]
    views = [site.view(job) for job in jobs]
    where = {name: sum(site.hosts[name].counted().count(word) for word in words) for name in site.hosts}
    check(all(view["status"] == "completed" for view in views) and sum(where.values()) == ANY, f"{what}: any host does", where)
    check(all(where[name] == 0 for name in but) and all(where[name] for name in set(site.hosts) - set(but)),
          f"{what}: which it is not", where)


def run(site):
    word, queued = site.word("drained"), site.word("drained")
    _, running = site.bump("one", word, 6)
    until(lambda: word in site.hosts["one"].counted("begun"), f"{word}: it has begun")
    _, waiting = site.bump("one", queued)
    status, answer = site.left.osapi("agent", "drain", "one")
    check(status == 0, "the host is drained", answer)
    until(lambda: all(agent["state"] in ("Draining", "Cordoned") for agent in known(site, "one")), "both controllers know it")
    for controller in site.controllers:
        status, text = controller.run("systemctl restart osapi-controller", ok=False)
        check(status == 0, f"{controller.name} is restarted", text)
    site.ready(sorted(set(site.hosts) - {"one"}))
    for job, name in ((running, word), (waiting, queued)):
        view = site.view(job["job_id"])
        check(view["status"] == "completed" and site.hosts["one"].counted().count(name) == 1, f"{name}: ends, once", view)
    until(lambda: all(agent["state"] == "Cordoned" for agent in known(site, "one")), "then it is set apart")
    for controller in site.controllers:
        status, answer = site.bump("one", site.word("refused"), by=controller)
        check(status == 409, f"{controller.name} gives it nothing new", answer)
    spread(site, "a drained host", "one")
    status, answer = site.right.osapi("agent", "undrain", "one")
    check(status == 0, "it is given work again", answer)
    until(lambda: all(agent["state"] == "Ready" for agent in known(site, "one")), "both controllers know that")
    dead(site)


def dead(site):
    host = site.hosts["three"]
    host.run("systemctl stop osapi-agent osapi-relay")
    until(lambda: all(agent["status"] == "NotReady" for agent in known(site, "three")), "a host that hung up is away soon", 40)
    listed = site.right.ask("GET", "/agent")[1]["agents"]
    until(lambda: told(site, "host_unreachable"), "both controllers announce that it has gone", 60)
    timelines = [str(agent["timeline"]) for agent in known(site, "three")]
    check(all("unreachable" in timeline for timeline in timelines), "its timeline has it", timelines)
    check(any(agent["hostname"] == "three" and agent.get("last_seen") for agent in listed), "and still listed", listed)
    spread(site, "a host that is away", "three")
    word = site.word("later")
    status, answer = site.bump("three", word)
    check(status == 202, "a job for it is no less taken on", answer)
    host.run("systemctl start osapi-relay osapi-agent")
    site.ready()
    check(site.view(answer["job_id"])["status"] == "completed" and host.counted().count(word) == 1, "and done when it is back")
    spread(site, "when it is back")
    # What was said stands for a minute.
    until(lambda: told(site, "host_back"), "and that it is back", 90)


def told(site, event):
    """Whether the audit log of each controller has it of that host. Links are kept as the text that was hashed."""
    logs = [controller.run("osapi audit export --output /root/log > /dev/null; cat /root/log; rm /root/log")[1]
            for controller in site.controllers]
    note = f'"event":"{event}","host":"{site.hosts["three"].machine_id}"'
    return all(note in log.replace("\\", "") for log in logs)
