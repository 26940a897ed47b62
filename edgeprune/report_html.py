"""The page of a run: one self-contained HTML file that sends no request, from ``report.json`` alone.

Names of models, layers and files come from strangers, so the templates escape everything, and the page's own policy
forbids scripts and requests even if something slipped through.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from edgeprune import report_budget, report_clusters, report_compare, report_shrink, report_time, report_words
from edgeprune import report_sections as sections
from edgeprune.report_view import (
    ROLES,
    Block,
    absences,
    block,
    headline,
    rows,
    table,
    target_title,
)


def html(report: Block) -> str:
    """The page.

    Args:
        report: The record as `edgeprune.report.load` returns it.

    Returns:
        A whole HTML document; the same report gives the same bytes.
    """
    return render("report.html.j2", **_context(report))


def notebook_html(report: Block, height_px: int = 720) -> str:
    """The page as the output of a notebook cell: in a frame of its own, so that neither page styles the other.

    The headline stands above it, for viewers that strip frames.
    """
    return (
        f"<p><strong>{escape(headline(report))}</strong></p>"
        f'<iframe sandbox title="edgeprune report" srcdoc="{escape(html(report))}" loading="lazy" '
        f'style="width:100%;height:{height_px}px;border:1px solid #8886;border-radius:8px"></iframe>'
    )


def compare_html(comparison: Block) -> str:
    """The page of `edgeprune.report_compare.compare`'s result."""
    runs = comparison["runs"]
    return render(
        "compare.html.j2",
        title=" against ".join(run["name"] for run in runs) if len(runs) == 2 else f"{len(runs)} runs side by side",
        runs=runs,
        flags=comparison["flags"],
        lines=report_compare.lines(comparison),
        recipe_lines=report_compare.recipe_lines(comparison),
        missing=report_compare.missing(comparison),
        panels=sections.comparison_panels(comparison),
    )


def render(template: str, **context: Any) -> str:
    """Fill a template of ``edgeprune/templates``; everything is escaped but what is `Markup`."""
    return _environment().get_template(template).render(style=Markup(_source("style.css")), **context)  # noqa: S704


def _source(name: str) -> str:
    return resources.files("edgeprune").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["coded"] = coded
    return made


def coded(words: str) -> Markup:
    """Escaped, with what stands between backticks as code.

    >>> coded("give `--set a<b`")
    Markup('give <code>--set a&lt;b</code>')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(Markup.escape(words))))  # noqa: S704


def _context(report: Block) -> dict[str, Any]:
    """Everything that the template shows, in words."""
    run, shown = block(report, "run"), table(report)
    return {
        "title": f"{run.get('name') or 'edgeprune'}: {headline(report)}",
        "over": sections.join(
            run.get("name"), run.get("recipe_name") and f"recipe {run['recipe_name']}", sections.day(run), sep=" · "
        )
        or "edgeprune report",
        "headline": headline(report),
        "command": str(run.get("command") or ""),
        "budgets": report_words.budgets(report),
        "budget_words": report_budget.words(report),
        "budget_attempts": report_budget.table(report),
        "budget_pictures": report_budget.pictures(report),
        "metric_words": sections.metric_words(report),
        "roles": ROLES,
        "table": shown,
        "absences": absences(shown),
        "panels": sections.panels(shown),
        "shrink": report_shrink.stages(report),
        "clusters": report_clusters.table(report),
        "clusters_words": report_clusters.paragraphs(report),
        **report_time.context(report),
        "advice": report_words.advice(report),
        "layers": [sections.layer(layer) for layer in rows(report, "layers")],
        "left_alone": report_words.left_alone(report),
        "quantization": report_words.quantization_sentence(report),
        "post_training": report_words.post_training(report),
        "rewrites": report_words.rewrites(report),
        "training": [
            sections.training(name, block(block(report, "history"), name)) for name in block(report, "history")
        ],
        **sections.ops(report),
        **sections.signal(report),
        "verify": [*report_words.verify_sentences(report), *report_clusters.proven(report)],
        "verify_metric": sections.verify_metric(report),
        "arm_words": report_words.arm_sentence(report),
        "arm_facts": sections.arm_facts(report),
        "zeros": report_words.zeros_words(report),
        "target": target_title(report),
        "splits": sections.splits(report),
        "data_words": sections.data_words(block(report, "data")),
        "model": sections.model(block(report, "model")),
        "notes": [str(note) for note in report.get("notes") or []],
        "recipe": recipe_text(report),
        "environment": sections.environment(report),
        "stages": sections.stages(report),
        "version": str(report.get("edgeprune") or "of unknown version"),
    }


def recipe_text(report: Block) -> str:
    """The recipe as YAML, in its own order; empty where there is none."""
    import yaml

    recipe = report.get("recipe")
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=88) if recipe else ""
