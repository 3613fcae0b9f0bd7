"""The plot of the kernel benchmarks: percent of copy bandwidth over the batch size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernel_aims import by_shape

STYLES = {
    "tigerfg": ("tab:orange", "-", "o"),
    "absorbed compiled": ("tab:blue", "-", "s"),
    "absorbed eager": ("tab:blue", ":", "s"),
    "tigerfg + projections": ("tab:red", "--", "o"),
    "usual compiled": ("tab:gray", "-", "^"),
    "usual sdpa": ("tab:gray", "--", "^"),
    "usual eager": ("tab:gray", ":", "^"),
}


def plot(rows: Sequence[dict[str, Any]], runs: dict[str, Any], file: Path) -> str:
    """Draw grounding's rows, a panel for each (N, Q) and dtype; says what it wrote, or why not."""
    try:
        import matplotlib
    except ImportError:
        return "no plot: matplotlib is not installed"
    table = by_shape(rows)
    if not table:
        return "no plot: grounding was not measured"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    dtypes = sorted({shape.dtype for shape in table}, reverse=True)
    kinds = sorted({(shape.queries, shape.patches) for shape in table})
    figure, axes = pyplot.subplots(
        len(dtypes),
        len(kinds),
        figsize=(3.2 * len(kinds) + 0.8, 3.2 * len(dtypes) + 1.2),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for line, dtype in zip(axes, dtypes, strict=True):
        line[0].set_ylabel(f"{dtype}\npercent of copy bandwidth")
        for panel, (queries, patches) in zip(line, kinds, strict=True):
            shapes = [
                s for s in table if (s.dtype, s.queries, s.patches) == (dtype, queries, patches)
            ]
            for contender, (color, style, marker) in STYLES.items():
                points = sorted(
                    (shape.batch, table[shape][contender]["copy_percent"])
                    for shape in shapes
                    if contender in table[shape]
                )
                if points:
                    panel.plot(
                        *zip(*points, strict=True), style, color=color, marker=marker, ms=4,
                        label=contender,
                    )  # fmt: skip
            panel.axhline(100, color="black", lw=0.7)
            panel.set(xscale="log", yscale="log", title=f"N={patches}, Q={queries}")
            panel.set_xticks([1, 8, 64, 256, 1024], ["1", "8", "64", "256", "1024"], minor=False)
            panel.yaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("batch")
    handles = {
        label: handle
        for panel in axes.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(STYLES))
    machine = list(runs.values())[-1]
    figure.suptitle(
        f"Text-guided grounding, D=768, cold L2: bytes counted once over time, {machine['gpu']}, "
        f"100 % = {machine['copy_gb_s']:.0f} GB/s"
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file.name
