"""The host's name: set by hostnamed for every boot and in the kernel, and known to the registry at once."""

from pathlib import Path

from lib import boot_id, check, cycle, kept, next_boot, osapi, out, part, phase, ready, result, sh, until


def names():
    """What everybody says that the host is called."""
    return out("hostname"), out("hostnamectl", "--static"), Path("/etc/hostname").read_text(), Path("/etc/hosts").read_text()


def registered():
    _, answer = osapi("agent", "list")
    return [agent["hostname"] for agent in answer["agents"]]


def first():
    ready()
    before = out("hostname")
    status, answer = osapi("hostname", "get")
    check(status == 0 and result(answer)["hostname"] == before, "the name is that of the kernel", answer)
    sh(f"grep -q '127.0.1.1.*{before}' /etc/hosts || echo '127.0.1.1 {before}.lan {before}' >> /etc/hosts", ok=True)
    cycle("hostname", "update", "renamed-1", observe=names)

    status, answer = osapi("hostname", "update", "renamed-2")
    check(status == 0, "the host gets another name", answer)
    check(result(answer)["hostname"] == "renamed-2", "the answer is given under that name", answer)
    check(registered() == ["renamed-2"], "the registry has it at once", registered())
    check(out("hostname") == "renamed-2", "the kernel has it", out("hostname"))
    check("renamed-2" in out("getent", "hosts", "renamed-2"), "the host finds itself under it")
    sh("hostnamectl", "set-hostname", "by-hand", ok=True)
    until(lambda: registered() == ["by-hand"], "a name that was given by hand is registered")
    status, answer = osapi("drift", "get")
    check("hostname" in str(answer), "and shows as drift", answer)
    osapi("hostname", "update", "renamed-2")

    # A name that only the kernel has, as DHCP gives one.
    sh("hostname", "from-dhcp", ok=True)
    check(out("hostnamectl", "--static") == "renamed-2", "the kernel alone has another name", names())
    before = names()
    cycle("hostname", "update", "renamed-3", observe=names)
    status, answer = osapi("hostname", "update", "--confirm", "3", "renamed-4")
    check(status == 0 and out("hostname") == "renamed-4", "the host gets a name to be confirmed", answer)
    until(lambda: names() == before, "nobody confirms, and each of both names comes back")
    osapi("hostname", "update", "renamed-2")
    for bad in ["-x", "a_b", "a..b", "localhost", "10.0.0.1", "x" * 65]:
        status, answer = osapi("hostname", "update", "--name", bad)
        check(status == 10 and out("hostname") == "renamed-2", f"{bad[:20]!r} is refused", (status, answer))
    next_boot("booted", boot_id())


def booted():
    ready()
    check(boot_id() != kept() and out("hostname") == "renamed-2", "a boot keeps the name", out("hostname"))
    status, answer = osapi("hostname", "update", "--confirm", "600", "unconfirmed")
    check(status == 0 and out("hostname") == "unconfirmed", "the host gets a name to be confirmed", answer)
    next_boot("reverted")


def reverted():
    ready()
    until(lambda: out("hostname") == "renamed-2", "a boot takes back what was not confirmed")
    check(Path("/etc/hostname").read_text().strip() == "renamed-2", "for the next one as well")


part("hostname")
{"": first, "booted": booted, "reverted": reverted}[phase()]()
