"""
What a run of the harness prints: a line for each run, a table at the end, and how a failure is repeated.

Pure text. Must never leave a failure without the command that repeats it.
"""
from faults import FAULTS
from ledger import COLUMNS
from schedule import MIXED

HEAD = ("run", "seed", "system", "published", "stored", *COLUMNS, "seconds")


def head():
    return "{:>4} {:>10} {:8}{:>10}{:>10}".format(*HEAD[:5]) + "".join(f"{c:>11}" for c in COLUMNS) + \
        f"{'seconds':>9}          faults"


def line(number, outcome):
    v = outcome.verdict
    counts = "".join(f"{getattr(v, c):>11,}" for c in COLUMNS)
    return (f"{number:>4} {outcome.seed:>10} {outcome.system:8}{v.published:>10,}{v.stored:>10,}{counts}"
            f"{outcome.seconds:>9.1f}  {'ok    ' if outcome.ok else 'FAILED'}  {outcome.faults}")


def command(outcome, rate, build):
    build = f"BUILD={build} " if build != "build" else ""
    return f"make faults {build}RUNS=1 SEED={outcome.seed} RATE={rate} SYSTEM={outcome.system} FAULT={outcome.name}"


def failure(outcome, rate, build):
    lines = [f"     {text}" for text in outcome.verdict.words().splitlines()]
    lines += ["     " + complaint.replace("\n", "\n     ") for complaint in outcome.complaints]
    if outcome.kept:
        lines.append(f"     logs, schedule and verdict: {outcome.kept}")
    lines.append(f"     again: {command(outcome, rate, build)}")
    return "\n".join(lines)


def _sums(outcomes):
    return {column: sum(getattr(o.verdict, column) for o in outcomes)
            for column in ("published", "acknowledged", "stored", *COLUMNS)}


def totals(outcomes, systems):
    """For mixed faults: a row a system."""
    lines = [f"{'':10}{'runs':>6}{'failed':>8}{'published':>12}{'stored':>12}" + "".join(f"{c:>12}" for c in COLUMNS)]
    for system in systems:
        own = [o for o in outcomes if o.system == system]
        sums = _sums(own)
        lines.append(f"{system:10}{len(own):>6}{sum(not o.ok for o in own):>8}" +
                     "".join(f"{sums[c]:>12,}" for c in ("published", "stored", *COLUMNS)))
    return "\n".join(lines)


def by_fault(outcomes, systems, names):
    """For faults alone: a row a fault, the systems side by side, as Markdown for the README."""
    columns = ("published", "lost", "duplicated", "reordered")
    lines = ["| fault | " + " | ".join(f"{s}: published | lost | duplicated | reordered" for s in systems) + " |",
             "| --- |" + " ---: |" * len(columns) * len(systems)]
    for name in names:
        cells = [FAULTS[name].words if name in FAULTS else name]
        for system in systems:
            own = [o for o in outcomes if o.system == system and o.name == name]
            sums = _sums(own)
            cells += [f"{sums[c]:,}" for c in columns] if own else ["–"] * len(columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(outcomes, systems, names):
    if names == [MIXED]:
        return totals(outcomes, systems)
    return by_fault(outcomes, systems, names) + "\n\n" + totals(outcomes, systems)
