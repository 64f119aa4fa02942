"""The held-out error of a training, drawn with letters."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 64, 10


def curve(points: Sequence[Sequence[float]]) -> list[str]:
    """Lines of a drawing; none where there are fewer than two points.

    Parameters
    ----------
    points : sequence of (step, error)

    Examples
    --------
    >>> print("\\n".join(line.rstrip() for line in curve([(0, 2.0), (50, 1.0), (100, 1.0)])[::9]))
    2.00000 |*
    1.00000 |                               *                               *
    """
    if len(points) < 2:
        return []
    steps, errors = [p[0] for p in points], [p[1] for p in points]
    low, high = min(errors), max(errors)
    canvas = [[" "] * WIDTH for _ in range(HEIGHT)]
    for step, error in zip(steps, errors, strict=True):
        column = int((WIDTH - 1) * (step - steps[0]) / max(1, steps[-1] - steps[0]))
        row = 0 if high == low else round((HEIGHT - 1) * (high - error) / (high - low))
        canvas[row][column] = "*"
    names = [f"{high:.5f}", *[""] * (HEIGHT - 2), f"{low:.5f}"]
    width = max(map(len, names))
    lines = [f"{name:>{width}} |{''.join(row)}" for name, row in zip(names, canvas, strict=True)]
    first, last = f"{steps[0]:g}", f"{steps[-1]:g}"
    return [*lines, f"{'':{width}}  {first}{last:>{WIDTH - len(first)}}  step"]
