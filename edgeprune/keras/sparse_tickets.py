"""What a winning ticket is compared with: chance in its masks, or in its weights, trained as it was.

Frankle & Carbin, "The lottery ticket hypothesis: finding sparse, trainable neural networks" (2019): a ticket is worth its name
if the same masks with other weights, and other masks of the same sparsity with the same weights, train to less.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune import files, sparsifying
from edgeprune.keras import graph, intake
from edgeprune.keras.sparse_rounds import MASKS, MODEL, Done, Round, Rounds
from edgeprune.keras.sparse_scores import Scores
from edgeprune.keras.sparse_training import Mask, Sparse, redrawn


def compared(rounds: Rounds, done: Done) -> dict[str, float]:
    """The metric of the ticket and of what it is compared with, on what is watched; empty without controls.

    Args:
        rounds: of the stage, with ``controls``.
        done: what they came to.
    """
    if not rounds.options.controls or not done.rounds:
        return {}
    found = {"ticket": float(done.records[done.rounds - 1]["metric"])}
    for kind in rounds.options.controls:
        folder = rounds.state.workspace / f"control-{kind}"
        folder.mkdir(exist_ok=True)
        files.sweep(folder)
        one = Round(done.rounds, folder, done.cut / MODEL, done.cut / MASKS)
        found[kind] = float(rounds.tuned(one, _control(rounds, one, kind), [])[1]["metric"])
    return found


def _control(rounds: Rounds, one: Round, kind: str) -> Path:
    """The folder of what is trained in the ticket's place."""
    made = one.folder / "cut"
    if made.exists():
        return made
    ticket = rounds.sparse(one.model, one.masks)
    if kind == "random":
        sparse = rounds.sparse(rounds.state.path("early"), None)
        sparse.put(_shuffled(rounds, sparse, ticket.masks()))
    else:
        plain = redrawn(graph.flatten(intake.load_own(one.model)), rounds.seed(kind))
        sparse = Sparse(plain, rounds.plans, found=ticket.masks())
    return rounds.write(made, sparse, {})


def _shuffled(rounds: Rounds, sparse: Sparse, masks: dict[str, Mask]) -> dict[str, Mask]:
    """Masks by chance, with as many weights in every kernel; the zeros of earlier stages are among theirs."""
    shares = {name: 1.0 - float(mask.mean()) for name, mask in masks.items()}
    scores = Scores(sparse, "random", None)(seed=rounds.seed("random"))
    rule = rounds.rule()._replace(criterion="random", scope="layer")
    return sparsifying.decided(scores, shares, rule, rounds.allowed(sparse))
