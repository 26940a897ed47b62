"""Add a number to what the stage before left, in a file; says that it was called."""

from __future__ import annotations

from edgeprune.validation import Strict

CALLS = []


class Options(Strict):
    amount: int = 1


def run(state, options):
    CALLS.append(state.label)
    before = int(state.path("number").read_text()) if "number" in state.files else 0
    made = state.workspace / "number.txt"
    made.write_text(str(before + options.amount))
    return state.add(
        files={"number": made},
        labels=[state.label],
        amounts={state.label: options.amount},
        total=before + options.amount,
        notes=[f"{state.label} was here"],
        summaries={state.label: f"{before + options.amount}"},
    )
