"""Sensitivity of the demo model, trained as the recipes train it: the figures in docs/sensitivity.md.

    python benchmarks/sensitivity.py

Trains the demo (about a minute), then measures every group of channels at every ratio, in any count of channels, and what the
ratios within 0.02 cost together. Writes benchmarks/results/sensitivity.json.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from edgeprune import api, progress, sensitivity_run

RESULT = Path(__file__).parent / "results" / "sensitivity.json"
RECIPE = {"name": "float", "stages": {"train": {"epochs": 30, "learning_rate": 0.003}}}
MAX_DROP = 0.02


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "demo"
        api.build(recipe=RECIPE, out=run)
        began = time.monotonic()
        out = Path(folder) / "out"
        shown = progress.choose()
        _, found = sensitivity_run.run(str(run), multiple=1, max_drop=MAX_DROP, out=out, progress=shown)
        shown.close()
        found["model"] = run.name
        found["seconds"] = round(time.monotonic() - began, 1)
    RESULT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
