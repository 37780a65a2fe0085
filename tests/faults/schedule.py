"""
What happens in a run and when: drawn from a seed alone, before anything starts.

Pure. Must never look at a clock, a process or the load: the same name, seed and system always give the same schedule.
"""
import random
from dataclasses import dataclass, field

import database_faults  # noqa: F401 it fills the table, as the next one
import directed_spool  # noqa: F401
import poison  # noqa: F401
import spool_faults  # noqa: F401
from directed import DIRECTED
from faults import FAULTS, between

MIXED = "mixed"
# The load is steady before the first fault.
FIRST_AT = 0.5
# µs that the database takes longer for each commit: more is in flight then, and more can go wrong.
COMMIT_DELAYS = (0, 5_000, 25_000, 100_000)


@dataclass
class Entry:
    at: float
    kind: object
    parameters: dict = field(default_factory=dict)

    def __str__(self):
        listed = ", ".join(f"{k}={v}" for k, v in self.parameters.items())
        return f"{self.kind.name}({listed})"


@dataclass
class Schedule:
    name: str
    seed: int
    entries: list
    commit_delay: int = 0
    # The system's, beside the usual ones. A directed schedule has its own, and makes its load itself.
    options: dict = field(default_factory=dict)
    # See SmallDisk; None where nobody fills it.
    disk: str = None
    is_steady: bool = True
    patience: float = None

    def __str__(self):
        options = "".join(f", {name} {value}" for name, value in self.options.items())
        lines = [f"{self.name}, seed {self.seed}, commit_delay {self.commit_delay} µs{options}"]
        lines += [f"  {entry.at:6.3f} s  {entry}" for entry in self.entries]
        return "\n".join(lines)

    def in_short(self):
        return ", ".join(entry.kind.name for entry in self.entries)


def seed_of(seed, number):
    """The seed of run `number`: far from those of its neighbours, and of run 0 the seed itself."""
    return (seed + number * 0x9E3779B1) % (1 << 32)


def possible(system_class):
    """The names of the faults that make sense for this system."""
    return [name for name, kind in FAULTS.items() if kind.needs <= system_class.can]


def _draw_options(dice, system_class, delay, is_mixed):
    """Of a run in which the spool is to be used within seconds."""
    if "spool" not in system_class.can:
        return {}
    options = {"spool_after": f"{int(1000 * between(0.05, 2)(dice))}ms"}
    # A long way out of the spool, where the commits leave enough over for the load.
    if (batch := dice.choice([None, None, 50])) and delay <= COMMIT_DELAYS[1]:
        options["batch_size"] = batch
    if is_mixed and (limit := dice.choice([None, None, None, None, None, "1MiB", "0"])):
        options["spool_limit"] = limit
    return options


def _disk(entries):
    return next((entry.parameters["disk"] for entry in entries if "disk" in entry.parameters), None)


def draw(name, seed, system_class):
    """name: mixed, a fault, or a directed schedule. None where that makes no sense for the system."""
    dice = random.Random(f"{name} {seed}")
    if name in DIRECTED:
        directed = DIRECTED[name]
        if not directed.needs <= system_class.can:
            return None
        return Schedule(name, seed, [Entry(0.0, directed)], 0, directed.options, directed.disk, False,
                        directed.patience)
    names = possible(system_class)
    delay = dice.choice(COMMIT_DELAYS)
    if name != MIXED:
        if name not in names:
            return None
        kind = FAULTS[name]
        at = round(FIRST_AT + dice.random() * 0.7, 3)
        entries = [Entry(at, kind, kind.draw(dice))]
        options = _draw_options(dice, system_class, delay, False) if kind.spools else {}
        return Schedule(name, seed, entries, delay, options, _disk(entries))
    entries, at, names = [], FIRST_AT, [name for name in names if FAULTS[name].mixed]
    for _ in range(dice.randint(3, 6)):
        kind = FAULTS[dice.choice(names)]
        entries.append(Entry(round(at, 3), kind, kind.draw(dice)))
        # Half of them follow at once: into what the one before has led to, or while it lasts.
        at += dice.choice([dice.uniform(0.0, 0.2), dice.uniform(0.2, 1.5)])
    return Schedule(MIXED, seed, entries, delay, _draw_options(dice, system_class, delay, True), _disk(entries))
