"""A host gets another name while it works, and two hosts have one name."""

from lib import check, until


def called(site, machine_id, name):
    def known():
        answers = [controller.try_ask("GET", f"/agent/{machine_id}") for controller in site.controllers]
        return all(status == 200 and answer["hostname"] == name for status, answer in answers)
    until(known, f"both controllers know the host as {name}", 90)


def run(site):
    one, two = site.hosts["one"], site.hosts["two"]
    word = site.word("renamed")
    _, answer = site.bump("one", word, 4)
    until(lambda: word in one.counted("begun"), f"{word}: it has begun")
    status, done = site.right.ask("PUT", "/node/one/hostname", {"hostname": "uno"}, {"prefer": "respond-async"})
    check(status == 202, "the host is renamed meanwhile", done)
    check(site.view(done["job_id"])["status"] == "completed", "which is done", done)
    keeps(site, word, answer["job_id"], one, "uno")
    back(site, one, "one")

    word = site.word("renamed")
    _, answer = site.bump(two.machine_id, word, 4)
    until(lambda: word in two.counted("begun"), f"{word}: it has begun")
    two.run("hostnamectl set-hostname one")
    keeps(site, word, answer["job_id"], two, "one")
    doubles(site, one, two)
    two.run("hostnamectl set-hostname two")
    called(site, two.machine_id, "two")


def keeps(site, word, job, host, name):
    called(site, host.machine_id, name)
    view = site.view(job)
    check(view["status"] == "completed" and list(view["responses"]) == [name], f"{word}: the job keeps its outcome", view)
    check(host.counted().count(word) == 1, f"{word}: it ran once", host.counted()[-3:])
    _, other = site.right.ask("GET", f"/job/{job}")
    check(other == site.left.ask("GET", f"/job/{job}")[1], f"{word}: and both controllers tell it alike", other)


def back(site, host, name):
    _, answer = site.left.ask("PUT", f"/node/{host.machine_id}/hostname", {"hostname": name})
    check(answer.get("results", [{}])[0].get("changed"), "it gets its name back", answer)
    called(site, host.machine_id, name)


def doubles(site, one, two):
    ids = sorted([one.machine_id, two.machine_id])
    for controller in site.controllers:
        word = site.word("double")
        status, answer = site.bump("one", word, by=controller)
        check(status == 409 and all(machine in answer["detail"] for machine in ids),
              f"{controller.name}: a name that two hosts have is refused, with their machine ids", answer)
        check(sum(site.counts(word).values()) == 0, f"{word}: nothing is done", site.counts(word))
        for host in one, two:
            word = site.word("double")
            status, answer = site.bump(host.machine_id, word, by=controller)
            view = site.view(answer.get("job_id"))
            check(view["status"] == "completed" and host.counted().count(word) == 1 == sum(site.counts(word).values()),
                  f"{controller.name}: the machine id says which of them is meant", (view, site.counts(word)))
        status, answer = controller.ask("GET", "/node/_all/hostname")
        rows = [row for row in answer["results"] if row["hostname"] == "one"]
        check(len(answer["results"]) == 4 and sorted(row.get("machine_id", "") for row in rows) == ids,
              f"{controller.name}: rows of hosts that share a name say which is which", answer)
    word = site.word("double")
    status, answer = site.bump("_all", word)
    view = site.view(answer.get("job_id"))
    check(len(view["responses"]) == 4 and view["status"] == "completed", f"{word}: each has an outcome of its own", view)
    check(site.counts(word) == dict.fromkeys(site.hosts, 1), f"{word}: and ran once", site.counts(word))
