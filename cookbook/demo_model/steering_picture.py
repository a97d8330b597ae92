"""Draws what steering_table.py measured: one small chart for each dial, both languages in it. Needs matplotlib.

python cookbook/demo_model/steering_table.py --quantization nf4 --json steering.json
python cookbook/demo_model/steering_picture.py steering.json steering.svg
"""

from __future__ import annotations

import argparse
import json
import pathlib

import matplotlib as mpl
from answers import DIALS
from facts import LANGUAGES
from matplotlib import pyplot as plt

UNITS = {
    "helpfulness": "extras",
    "correctness": "minus log10 of the error",
    "coherence": "4 minus stray fragments",
    "complexity": "technical terms",
    "verbosity": "characters",
    "quality": "4 minus surface flaws",
    "toxicity": "rude remarks",
    "humor": "laughs",
    "creativity": "images",
}
COLOURS = {"en": "#5b7c99", "ja": "#b5332e"}
OFFSET = {"en": -0.05, "ja": 0.05}  # two lines that lie on each other would look like one


def draw(report: dict, target: pathlib.Path) -> None:
    """One chart a dial: the mean of what was measured at each of its five values."""
    mpl.rcParams.update(
        {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "steering"}
    )
    figure, places = plt.subplots(3, 3, figsize=(8.4, 6.6), layout="constrained")
    for place, name in zip(places.flat, DIALS, strict=True):
        for lang in LANGUAGES:
            row = report["steering"][lang]["dials"][name]
            xs = [value + OFFSET[lang] for value in range(5)]
            place.plot(xs, row["means"], "o-", color=COLOURS[lang], markersize=4, label=f"{lang}, rho {row['rho']:.2f}")
        place.set_title(name, fontsize=10)
        place.set_ylabel(UNITS[name], fontsize=8)
        place.set_xticks(range(5))
        place.legend(frameon=False, fontsize=8)
        place.spines[["top", "right"]].set_visible(False)
        place.grid(axis="y", color="#dddddd", linewidth=0.6)
    asked = report["steering"][LANGUAGES[0]]
    figure.suptitle(
        f"Asked for (0 to 4) and measured: means over {asked['questions']} held-out questions per language, "
        f"{report['quantization']}, other dials at random",
        fontsize=9,
    )
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def main() -> None:
    """Parses the command line and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path, help="an .svg or .png file")
    args = parser.parse_args()
    draw(json.loads(args.report.read_text(encoding="utf-8")), args.target)


if __name__ == "__main__":
    main()
