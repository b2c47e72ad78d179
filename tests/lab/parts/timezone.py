"""The timezone: the link, Debian's file beside it, and what date(1) and timedated say."""

import os
from pathlib import Path

from lib import check, cycle, osapi, out, part, ready, result


def zone():
    name = Path("/etc/timezone")
    return os.readlink("/etc/localtime"), out("date", "+%z"), out("timedatectl", "show", "-p", "Timezone"), \
        name.read_text() if name.exists() else None


part("timezone")
ready()
cycle("timezone", "update", "Asia/Kolkata", observe=zone)
status, answer = osapi("timezone", "update", "America/New_York")
check(status == 0 and result(answer)["timezone"] == "America/New_York", "a zone is set", answer)
status, answer = osapi("timezone", "get")
offset = out("date", "+%:z")
check(result(answer)["timezone"] == "America/New_York", "it is shown", answer)
check(result(answer)["utc_offset"] == offset, f"with the offset of date(1), {offset}", answer)
before = zone()
for bad in ["Europe", "Europe/Nowhere", "../etc/passwd", "localtime", "zone.tab", "-x"]:
    status, answer = osapi("timezone", "update", "--timezone", bad)
    check(status == 10 and zone() == before, f"{bad} is refused", (status, answer))
