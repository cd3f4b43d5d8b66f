"""What a bench leaves behind: CSV, Markdown and SVG files, each complete or not at all."""

from __future__ import annotations

import contextlib
import csv
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LOST = 1 / 1.02
"""A speedup below this is a loss, one above its inverse a gain; between them the two are called even."""

RESULTS = Path(__file__).resolve().parent / "results"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which takes the file's place when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        temporary.replace(path)


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV; the columns are those of all rows, in the order they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a table: the first column is text, the others are aligned as numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def source(row: Mapping[str, Any]) -> str:
    """Say in a line where a row comes from: the machine, the versions, the commit, the date, the load."""
    return (
        f"{row['cpu']}, {row['cores']} cores, {row['system']}; torch {row['torch']}, Python {row['python']}, "
        f"fastvae {row['fastvae']} ({row['commit']}); {row['date']}, load {row['load']} at the start."
    )


def verdict(speedup: float) -> str:
    """Say in a word whether a ratio is a gain; a loss is said as loudly."""
    if speedup < LOST:
        return "slower"
    return "faster" if speedup > 1 / LOST else "even"


def spread(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """The 20th percentile, the median and the 80th percentile of a row's speedup."""
    return row["speedup_p20"], row["speedup"], row["speedup_p80"]


def count(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --------------------------------------------------------------------------------------------------- pictures


def speed_bars(axis: Any, ticks: Sequence[str], bars: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw speedups as bars from the line of 1, gains above it and losses below.

    Parameters
    ----------
    axis : matplotlib.axes.Axes
    ticks : sequence of str
        What is compared, from left to right.
    bars : mapping
        For each candidate (a colour), and each tick that it has: the 20th percentile, the median and the 80th
        percentile of its speedup.
    """
    width = 0.8 / max(1, len(bars))
    for place, (name, own) in enumerate(bars.items()):
        shift = (place - (len(bars) - 1) / 2) * (width + 0.02)
        axis.bar(
            [ticks.index(tick) + shift for tick in own],
            [middle - 1 for _, middle, _ in own.values()],
            bottom=1,
            width=width,
            yerr=[
                [middle - low for low, middle, _ in own.values()],
                [high - middle for _, middle, high in own.values()],
            ],
            error_kw={"elinewidth": 0.8},
            color=f"C{place}",
            label=name,
        )
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axis.set_xticks(range(len(ticks)), ticks, fontsize="small")
    if len(ticks) == 1:
        axis.set_xlim(-1.5, 1.5)


def new_figure(width: float, height: float) -> Any:
    """Make a Matplotlib figure that needs no window; only who draws imports Matplotlib."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=(width, height), layout="constrained")


def write_svg(path: Path, figure: Any) -> None:
    """Write a figure with fixed identifiers and no date: the file differs only where the measurement does."""
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context({"svg.hashsalt": "fastvae", "svg.fonttype": "none"}), replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
