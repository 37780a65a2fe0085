"""What was measured, as tables and as a picture."""

import statistics
import subprocess

import sizing
from bench import YARDSTICK
from service import MIB

GNUPLOT = """
set terminal svg size 900,{height} font "sans,12" background "white"
set output "{file}"
set title "rows/s of psql's \\\\copy in the same run" noenhanced
set style fill solid
set boxwidth 0.6
set yrange [{top}:-0.5]
set xrange [0:*]
set grid xtics
unset key
set ytics noenhanced
plot "-" using ($2/2):0:($2/2):(0.3):ytic(1) with boxxyerrorbars lc rgb "#3366aa"
{data}
e
"""


class Report:
    def __init__(self, bench):
        self.results = bench.results
        self.bench = bench

    def _median(self, name, value):
        return statistics.median(value(r) for r in self.results[name])

    def ratio(self, name, yardstick=YARDSTICK):
        """Each round's own ratio to its own COPY, and the median of these."""
        return statistics.median(r.rows / r.seconds / (y.rows / y.seconds)
                                 for r, y in zip(self.results[name], self.results[yardstick]))

    def _line(self, name, yardstick=YARDSTICK):
        results = self.results[name]
        line = (f"{name:33}{results[0].rows:>9,}{self._median(name, lambda r: r.rows / r.seconds):>10,.0f}"
                f"{self.ratio(name, yardstick):>9.2f}")
        if results[0].cpu_seconds is not None:
            line += (f"{self._median(name, lambda r: r.cpu_seconds / r.rows * 1e6):>10.1f}"
                     f"{max(r.peak_resident for r in results) / MIB:>11.1f}"
                     f"{max(r.peak_pss for r in results) / MIB:>11.1f}")
        print(line)

    def table(self, names, what=""):
        print(f"\n{what:33}{'':>9}{'':>10}{'':>9}{'CPU µs':>10}{'peak MiB':>11}{'peak MiB':>11}")
        print(f"{'':33}{'rows':>9}{'rows/s':>10}{'of COPY':>9}{'per row':>10}{'resident':>11}{'proport.':>11}")
        for name, yardstick in names:
            self._line(name, yardstick)

    def comparison(self):
        """The rows that come of Bench.round()."""
        own = {name for name, _, _ in sizing.rows()}
        return [(name, YARDSTICK) for name in self.results if name not in own and
                (name == YARDSTICK or not name.startswith(YARDSTICK))]

    def sizing(self):
        return [(name, self.bench.yardstick(sizing.workload_of(what, value)))
                for name, what, value in sizing.rows() if name in self.results]

    def plot(self, file):
        rows = [(name, self.ratio(name, y)) for name, y in [*self.comparison(), *self.sizing()]]
        data = "\n".join('"{}" {:.4f}'.format(name.replace("\\", "\\\\"), value) for name, value in rows)
        script = GNUPLOT.format(height=120 + 24 * len(rows), file=file, top=len(rows) - 0.5, data=data)
        subprocess.run(["gnuplot"], input=script, text=True, check=True)


def print_endurance(found):
    print(f"\nOne process, {found.connections} connections, {found.writers} writers; every row counted once.")
    print(f"{'messages':>12}{'MiB resident':>14}{'proportional':>14}")
    for passed, resident, proportional in found.blocks:
        print(f"{passed:>12,}{resident:>14.1f}{proportional:>14.1f}")
    print(f"{'after':>12}{'rows/s':>14}{'of COPY':>14}{'CPU µs':>14}")
    for passed, rate, ratio, cpu in found.marks:
        print(f"{passed:>12,}{rate:>14,.0f}{ratio:>14.2f}{cpu:>14.2f}")
