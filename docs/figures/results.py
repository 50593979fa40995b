"""Draws the plots of docs/method.md from the scores in docs/results: `python docs/figures/results.py`."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import numpy as np
from matplotlib import pyplot

DOCS = Path(__file__).parents[1]
GREY, BLUE, ORANGE = "#8a8a8a", "#4c8dd6", "#e08a2e"


def read(name: str) -> dict:
    """A file of scores."""
    return json.loads((DOCS / "results" / name).read_text())


def mean(found: dict, set_name: str, candidate: str, metric: str) -> float:
    """Mean over the images of a set."""
    column = found["metrics"].index(metric)
    return float(np.mean([scores[column] for scores in found["scores"][set_name][candidate].values()]))


def draw_mix() -> None:
    """psnr_y against LPIPS between the GT-only and the distilled student, bicubic and teacher beside."""
    found = read("2026-11-28-mix.json")
    names = list(found["shares"])
    points = [[mean(found, "RealSR100", name, metric) for metric in ("psnr_y", "lpips_squeeze")] for name in names]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(*zip(*points, strict=True), "o-", color=BLUE)
    for (psnr, lpips), name in zip(points, names, strict=True):
        axes.annotate(f"S = {found['shares'][name]:g}", (psnr, lpips), (-4, 8), textcoords="offset points", fontsize=8)
    for name, (psnr, lpips), colour in (
        ("bicubic", [mean(found, "RealSR100", "bicubic", metric) for metric in ("psnr_y", "lpips_squeeze")], GREY),
        ("teacher", found["teacher"], ORANGE),
    ):
        axes.plot([psnr], [lpips], "s", color=colour)
        axes.annotate(name, (psnr, lpips), (6, -3), textcoords="offset points", fontsize=8)
    axes.set(xlabel="psnr_y, dB (higher is better)", ylabel="LPIPS, SqueezeNet (lower is better)")
    axes.set_title("dtkd mix tiny-x4-gt tiny-x4 OUT --share S: RealSR100", fontsize=9)
    save(figure, "mix.svg")


def draw_ceilings() -> None:
    """Detail energy of trained students in every band against what the audit predicts for a deterministic one."""
    found = read("2026-11-26-ceilings.json")
    teacher, places = np.array(found["teacher"]), np.arange(len(found["bands"]))
    figure, axes = pyplot.subplots(figsize=(7.5, 4), layout="constrained")
    axes.bar(places, np.array(found["ceiling"]) / teacher, color="#d9d9d9", label="predicted ceiling")
    axes.plot(places, np.array(found["bicubic"]) / teacher, "_", color="black", markersize=26, label="bicubic")
    for (name, energy), marker in zip(found["students"].items(), "osD^v", strict=True):
        axes.plot(places, np.array(energy) / teacher, marker, label=name)
    axes.set_xticks(places, found["bands"])
    axes.set(ylabel="RMS of the band, of the teacher's", ylim=(0.3, 1.02))
    axes.legend(fontsize=8, ncols=2)
    save(figure, "ceilings.svg")


def save(figure: pyplot.Figure, name: str) -> None:
    """Write a plot, the same bytes every time."""
    figure.savefig(DOCS / name, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def main() -> None:
    """All of them."""
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "dtkd"}
    with pyplot.rc_context(style):
        draw_mix()
        draw_ceilings()


if __name__ == "__main__":
    main()
