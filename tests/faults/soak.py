"""One dataset built again and again while what it stands on is killed: it must end with the bytes of a quiet build.

    python tests/faults/soak.py --seed 1 --minutes 60 --with ray,prefect,postgres,lake,s3

A campaign is one build: from a fresh home or from one that holds a smaller snapshot, some kills, then the same command
until it ends well. Then everything is compared with a build that nobody disturbed: the bytes of shards, the manifests
but for their seconds, what the catalog answers, now and when it is rebuilt; and the home must verify, with no draft of
the dead in it. All choices (home, victims, moments as shares of the quiet build's time) come from the seed; what they
hit depends on the machine. `--seed S --first N --minutes 0` repeats campaign N.

What runs is said by --with; everything comes from installed packages and is started here, on loopback:

    ray       units run on a local Ray cluster; its workers and its raylet are killed   (else: inline)
    prefect   `medloom build` under a Prefect server, which is killed too               (else: tests/faults/driver.py)
    postgres  a Postgres that is killed: the Prefect server's database
    lake      the catalog is a DuckLake in that Postgres                                (else: a DuckDB file)
    s3        the home lies in a bucket, behind a server that is killed; now and then the command goes on from another
              machine, without the working copy

One line a campaign, a summary as JSON in the end; exit code 1 if anything was lost, changed or hung.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standing import Standing, end, victims

PARTS = ("ray", "prefect", "postgres", "lake", "s3")
HUNG_S = 300.0
"""A command that runs longer is hung: that is a finding, not a reason to wait."""
TRIES = 12
"""How often the same command is given at the most in one campaign."""
MOST_KILLS = 4


@dataclass(frozen=True)
class Kill:
    """One kill that is planned."""

    target: str
    at_s: float
    """seconds after the command was given"""
    pause_s: float
    """until a server is started again"""
    which: float
    """of several processes, as a share"""


@dataclass
class Campaign:
    """One build under kills, and what came of it."""

    number: int
    start: str
    kills: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    """last lines of commands that ended in a traceback: bytes are safe, but nobody is told what to do"""

    @property
    def line(self) -> str:
        killed = ", ".join(f"{n} {name}" for name, n in sorted(self.kills.items())) or "nothing"
        verdict = "bytes equal" if not self.wrong else f"WRONG: {'; '.join(self.wrong)}"
        return (
            f"campaign {self.number} from {self.start}: killed {killed}; {self.commands} commands, "
            f"{self.seconds:.0f} s; {verdict}"
        )


class Soak:
    """The quiet builds and the campaigns."""

    def __init__(self, on: Standing, seed: int) -> None:
        self.on, self.seed = on, seed
        self.quiet_s: dict[str, float] = {}
        """start -> seconds of its quiet build"""
        self.quiet: dict[str, Any] = {}
        self.kinds = ["driver", *(("worker", "raylet") if "ray" in on.parts else ()), *sorted(on.servers)]

    def begin(self, recipe: str, home: str) -> subprocess.Popen[bytes]:
        """Give the command; what it says goes to a file."""
        runner, file = "ray" if "ray" in self.on.parts else "inline", str(self.on.recipes[recipe])
        command = [sys.executable, str(Path(__file__).with_name("driver.py")), file, self.on.address(home), runner]
        if "prefect" in self.on.parts:
            code = "from flows.cli import main; main()"
            command = [sys.executable, "-c", code, "build", file, "--home", self.on.address(home), "--runner", runner]
        environment = self.on.environment(home)
        with open(self.log(home), "ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def log(self, home: str) -> Path:
        return self.on.folder / f"{home}.log"

    def finish(self, recipe: str, home: str) -> float:
        """Give the command until it ends well; returns the seconds of the last time.

        More than once since Ray gives up starting on a machine that is busy with other things.
        """
        for _ in range(3):
            began = time.monotonic()
            process = self.begin(recipe, home)
            try:
                ended = process.wait(4 * HUNG_S)
            finally:
                end(process)
            if ended == 0:
                return time.monotonic() - began
        raise RuntimeError(self.log(home).read_text()[-4000:])

    def undisturbed(self) -> None:
        """The builds to compare with, and how long one takes."""
        self.finish("small", "quiet-grown")
        self.on.copy("quiet-grown", "quiet-small")
        for start in ("grown", "fresh"):
            self.quiet_s[start] = self.finish("whole", f"quiet-{start}")
            self.quiet[start] = self.on.state(f"quiet-{start}")
            if wrong := self.quiet[start]["wrong"]:
                raise RuntimeError(f"the quiet build is wrong by itself: {wrong[:3]}")
            self.on.remove(f"quiet-{start}")

    def campaign(self, number: int) -> Campaign:
        draw = random.Random(f"{self.seed}/{number}")
        done = Campaign(number, draw.choice(("fresh", "grown")))
        home, began = f"campaign{number}", time.monotonic()
        plan = [
            Kill(draw.choice(self.kinds), draw.uniform(0.02, 0.9) * self.quiet_s[done.start], draw.uniform(0, 4),
                 draw.random())
            for _ in range(draw.randint(1, MOST_KILLS))
        ]
        if done.start == "grown":
            self.on.copy("quiet-small", home)
        while not done.wrong:
            if draw.random() < 0.3:
                self.on.forget()
            done.commands += 1
            said = self.log(home).stat().st_size if self.log(home).exists() else 0
            code = self._disturbed(home, plan, done)
            text = self.log(home).read_bytes()[said:].decode(errors="replace")
            if code > 0 and "Traceback" in text:
                done.raw.append(text.strip().splitlines()[-1][:200])
            if code == 0 and not plan:
                break
            if code == 0:
                plan.clear()  # it was done before the next kill was due
            if done.commands == TRIES:
                done.wrong.append(f"not done after {TRIES} commands, the last said {text[-300:]!r}")
        if not done.wrong:
            done.wrong += self.compare(home, self.quiet[done.start])
        done.seconds = time.monotonic() - began
        if not done.wrong:
            self.on.remove(home)
        return done

    def _disturbed(self, home: str, plan: list[Kill], done: Campaign) -> int:
        """Give the command and kill what is planned while it runs; its exit code."""
        process, began = self.begin("whole", home), time.monotonic()
        back: tuple[float, str] | None = None
        try:
            while process.poll() is None:
                now = time.monotonic() - began
                if now > HUNG_S:
                    done.wrong.append(f"hung for {HUNG_S:.0f} s; see {self.log(home)}")
                    break
                if back and now >= back[0]:
                    self.on.servers[back[1]].start()
                    back = None
                if plan and now >= plan[0].at_s and back is None and self._killed(process.pid, plan[0]):
                    kill = plan.pop(0)
                    done.kills[kill.target] += 1
                    back = (now + kill.pause_s, kill.target) if kill.target in self.on.servers else None
                time.sleep(0.02)
        finally:
            end(process)
        if back:
            self.on.servers[back[1]].start()
        return process.returncode

    def _killed(self, driver: int, kill: Kill) -> bool:
        """Kill it; False where there is none such yet."""
        if kill.target in self.on.servers:
            self.on.servers[kill.target].kill()
            return True
        found = victims(driver, kill.target)
        with suppress(ProcessLookupError):
            if found:
                os.kill(found[int(kill.which * len(found))], signal.SIGKILL)
        return bool(found)

    def compare(self, home: str, quiet: Mapping[str, Any]) -> list[str]:
        """How a home differs from the undisturbed one, in words."""
        here = self.on.state(home)
        wrong = list(here["wrong"][:3])
        for kind in ("shards", "manifests", "answers"):
            lost = sorted(set(quiet[kind]) - set(here[kind]))
            more = sorted(set(here[kind]) - set(quiet[kind]))
            other = sorted(n for n in set(here[kind]) & set(quiet[kind]) if here[kind][n] != quiet[kind][n])
            for word, names in (("lacking", lost), ("beyond", more), ("other", other)):
                if names:
                    wrong.append(f"{len(names)} {kind} {word}, such as {names[0]}")
        return wrong


def soak(
    folder: Path, seed: int, minutes: float, parts: Sequence[str], pictures: int = 20, first: int = 1,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Run campaigns until the time is over (at least one); returns the summary."""
    began, done = time.monotonic(), list[Campaign]()
    with Standing(folder, parts, pictures) as on:
        running = Soak(on, seed)
        running.undisturbed()
        quiet_s = running.quiet_s["fresh"]
        say(f"seed {seed}, with {', '.join(parts) or 'nothing'}: an undisturbed build takes {quiet_s:.1f} s")
        until = time.monotonic() + 60 * minutes
        while not done or time.monotonic() < until:
            done.append(running.campaign(first + len(done)))
            say(done[-1].line)
    kills = sum((campaign.kills for campaign in done), Counter[str]())
    return {
        "seed": seed, "with": list(parts), "quiet_build_s": round(quiet_s, 1), "campaigns": len(done),
        "kills": dict(sorted(kills.items())), "commands": sum(c.commands for c in done),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "tracebacks": dict(Counter(line for c in done for line in c.raw)),
        "wrong": {c.number: c.wrong for c in done if c.wrong},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--with", dest="parts", default="ray", help=f"comma-separated: {', '.join(PARTS)}")
    parser.add_argument("--pictures", type=int, default=20, help="size of the dataset")
    parser.add_argument("--first", type=int, default=1, help="number of the first campaign, to repeat one that failed")
    parser.add_argument("--folder", type=Path, help="a fresh folder; homes that came out wrong stay in it")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started here ends
    parts = tuple(part for part in given.parts.split(",") if part)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--with {', '.join(sorted(unknown))}: not known; choose from {', '.join(PARTS)}")
    if "lake" in parts and "postgres" not in parts:
        parser.error("--with lake: it stands on postgres, name that too")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        print(line, flush=True)

    summary = soak(folder.resolve(), given.seed, given.minutes, parts, given.pictures, given.first, say)
    print(json.dumps(summary), flush=True)
    if not summary["wrong"] and not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if summary["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
