"""What ``make search-quickstart`` runs: real digits, a search in four stages, and the winner beside the hand-written recipe."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from quickstart import run

CONFIG = "configs/search/quickstart.yaml"
DIGITS = Path("data/digits")
RUN = Path("runs/search_quickstart")
OWN = "own_values"


def main() -> None:
    run("1/3  real images: scikit-learn's handwritten digits", "tools/prepare_digits.py", "--out", str(DIGITS))
    run("2/3  check the search, without training", "-m", "up", "search", "check", "--config", CONFIG)
    begun = time.perf_counter()
    run("3/3  search (stop it with Ctrl-C and run it again: it continues)", "-m", "up", "search", "--config", CONFIG)
    minutes = (time.perf_counter() - begun) / 60
    found, own = results(RUN / "full_train" / "candidates.csv")
    print(
        f"""
top-1 on the 359 test images, mean of 3 seeds: {found:.2f} % the winner, {own:.2f} % the hand-written recipe ({minutes:.1f} minutes)

{RUN}/report.md, report.html              stages, control rows, importance, cost
{RUN}/<stage>/trials.csv, best.yaml       the trials, and what the stage passes on
{RUN}/full_train/best/                    the winner: an ordinary run folder

try next (after: source .venv/bin/activate)
  python -m up search status --config {CONFIG}
  python -m up to_kestrel --config {RUN}/full_train/best/config.yaml
  python -m up show components algorithm"""
    )


def results(candidates: Path) -> tuple[float, float]:
    """The mean top-1 of the winner and of the file itself."""
    with candidates.open(encoding="utf-8", newline="") as file:
        means = {row["candidate"]: float(row["mean"]) for row in csv.DictReader(file)}
    return max(mean for name, mean in means.items() if name != OWN), means[OWN]


if __name__ == "__main__":
    main()
