"""How far `watch` is behind a microscope that writes 25 frames of 512 x 512 per second.

A process writes frames as a camera does, into one file (MRC) or into folders of hours, minutes and seconds with a file
for each (Gatan). It notes when each is whole. What a page is told is compared with that, by one clock: the delay of a
frame when it comes, and the age of what the page shows just before the next one replaces it.

    python benchmarks/watch.py [--seconds 40] [--rate 25] [--size 512] [--save] [--quick]
"""

from __future__ import annotations

import http.client
import json
import re
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import parser, save, scratch

KINDS = {"mrc": "a.mrc", "gatan": "capture"}
WRITER = Path(__file__).resolve().parents[1] / "tests/writers.py"


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seconds", type=float, default=40.0)
    options.add_argument("--rate", type=float, default=25.0)
    options.add_argument("--size", type=int, default=512)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.seconds, chosen.size = 5.0, 64
    results = {}
    for kind in KINDS:
        with scratch(chosen.folder) as folder:
            results[kind] = found = measure(folder, kind, chosen.seconds, chosen.rate, chosen.size)
        print(
            f"{kind}, {chosen.rate:g} frames/s of {chosen.size} x {chosen.size}: {found['shown']} shown, every "
            f"{found['every_median']:g}th; delay {found['delay_median_s']} s, at most {found['delay_most_s']} s; what "
            f"is shown is at most {found['age_most_s']} s old; the page says {found['told_median_s']} s"
        )
    if chosen.save:
        save("watch", {"rate": chosen.rate, "size": chosen.size, "seconds": chosen.seconds, **results})


def measure(folder: Path, kind: str, seconds: float, rate: float, size: int) -> dict[str, Any]:
    """Delays of one recording."""
    camera = folder / "camera"
    camera.mkdir()
    words = [
        sys.executable,
        "-m",
        "tdenoise_pipeline.cli",
        "watch",
        str(camera),
        "-o",
        str(folder / "session"),
    ]
    watching = subprocess.Popen([*words, "--no-browser"], stdout=subprocess.PIPE, text=True)
    try:
        assert watching.stdout is not None
        address = re.search(r"127.0.0.1:(\d+)/#(\S+)", watching.stdout.readline())
        assert address is not None
        command = [WRITER, kind, camera / KINDS[kind], "--frames", round(seconds * rate), "--rate", rate]
        command += ["--size", size, size]
        writer = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True)
        seen = listen(int(address[1]), address[2], round(seconds * rate) - 1)
        written = [float(line.split()[1]) for line in writer.communicate()[0].splitlines()]
    finally:
        watching.terminate()
        watching.wait(60)
    return figures(seen, written)


def listen(port: int, token: str, last: int) -> list[tuple[float, int, float, int]]:
    """When each frame came, its number, and what the page is told of its delay and of frames that were left out."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/events", headers={"X-Token": token})
    answer = connection.getresponse()
    seen: list[tuple[float, int, float, int]] = []
    while not seen or seen[-1][1] < last:
        line = answer.readline()
        if not line:
            raise RuntimeError("watch has ended")
        look = json.loads(line[6:])["look"] if line.startswith(b"data: ") else None
        if look is not None and (not seen or look["frame"] > seen[-1][1]):
            seen.append((time.monotonic(), look["frame"], look["delay_s"], look["every"]))
    connection.close()
    return seen


def figures(seen: list[tuple[float, int, float, int]], written: list[float]) -> dict[str, Any]:
    """What a user waits for; the first look, which measures everything, counts as well."""
    delays = [at - written[frame] for at, frame, _, _ in seen]
    ages = [later[0] - written[before[1]] for before, later in pairwise(seen)]
    return {
        "written": len(written),
        "shown": len(seen),
        "every_median": statistics.median(every for *_, every in seen),
        "every_most": max(every for *_, every in seen),
        "delay_median_s": round(statistics.median(delays), 2),
        "delay_most_s": round(max(delays), 2),
        "delay_last_tenth_s": round(statistics.median(delays[-max(1, len(delays) // 10) :]), 2),
        "age_most_s": round(max(ages), 2),
        "told_median_s": round(statistics.median(told for _, _, told, _ in seen), 2),
    }


if __name__ == "__main__":
    main()
