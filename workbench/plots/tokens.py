"""Before and after, token by token: where a variant's distribution leaves the base's, shaded. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked, one_of, some_of
from workbench.runs.files import template
from workbench.tables.markup import latex_text

_ORANGE, _BLUE = (213, 94, 0), (0, 114, 178)
#: never opaque: the reader's own ink, dark on white or light on black, stays readable on it
_DARKEST = 0.75
_PAGE = template(Path(__file__).with_name("tokens.html.j2"))
_CHANGE = "change of log-probability, nats"
#: unit, and what the darkest shade stands for
_SHADES = {"kl": ("KL from the base, nats", 2.0), "logprob": (_CHANGE, 4.0)}


@dataclass(frozen=True)
class TokenView:
    """One response, shaded. A notebook shows it; ``to_html`` and ``to_latex`` give it as text.

    Attributes:
        prompt: what was asked; empty where not given.
        parts: a tuple for each variant: its name, the tokens as ``(text, share, hint)`` with the share of the
            darkest shade (-1 to 1), a line about them, and the variant's own response ("" where not given).
        unit: what the shade measures.
        most: what the darkest shade stands for.
    """

    prompt: str
    parts: tuple[tuple[str, tuple[tuple[str, float, str], ...], str, str], ...]
    unit: str
    most: float

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Return the view as HTML without scripts; every text in it is escaped."""
        # a divergence is never negative; of a change, the share is positive (orange) where it falls
        change = self.unit == _CHANGE
        shares = np.linspace(1 if change else 0, -1 if change else 1, 5)
        scale = [((-share if change else share) * self.most, share) for share in shares]
        colours = {"orange": _ORANGE, "blue": _BLUE, "darkest": _DARKEST}
        return _PAGE.render(view=self, scale=scale, **colours)

    def to_latex(self) -> str:
        r"""Return the view as LaTeX paragraphs for ``\usepackage{xcolor}``; every text in it is escaped."""
        lines = [rf"\textbf{{prompt}}\quad {latex_text(self.prompt)}\par"] if self.prompt else []
        for name, tokens, about, own in self.parts:
            shaded = "\\allowbreak{}".join(_latex_token(text, share) for text, share, _ in tokens)
            lines.append(rf"\textbf{{{latex_text(name)}}}\quad {latex_text(about)}\par")
            lines.append(rf"{{\setlength{{\fboxsep}}{{1pt}}\raggedright {shaded}\par}}")
            if own:
                lines.append(rf"\emph{{what it says itself:}} {latex_text(own)}\par")
        return "\n".join([*lines, f"% darkest shade: {self.most:g}; {self.unit}"]) + "\n"


def token_view(
    tokens: pd.DataFrame,
    id: Any,
    *,
    shade: str = "kl",
    most: float | None = None,
    variants: Iterable[str] | None = None,
    prompt: str = "",
    responses: Mapping[str, str] | None = None,
) -> TokenView:
    """Show the base's response to one prompt, shaded where each variant would go on otherwise.

    Args:
        tokens: frame of ``token_divergence``.
        id: of the response.
        shade: "kl" (nats, 0 = the same distribution), or "logprob": what the variant changes in the
            log-probability of the token that is there (orange = less likely, blue = more).
        most: what the darkest shade stands for; None takes 2 nats of KL, 4 of log-probability. The scale does
            not follow the data, so that two views compare.
        variants: which to show; None shows all.
        prompt: to print above.
        responses: variant -> its own response to this prompt, to print below.

    Returns:
        A static view: HTML in a notebook, readable on light and dark, with the numbers of each token as a
        hint under the pointer; ``to_latex`` for paper.

    Raises:
        ValueError: for missing columns, an id or a variant that is not there, another ``shade``, or a
            ``most`` that is not above 0.
    """
    needed = ["variant", "id", "position", "token", "kl", "base_logprob", "logprob"]
    frame = checked(tokens, needed, "tokens")
    unit, usual = _SHADES[one_of(shade, _SHADES, "shade")]
    most = usual if most is None else most
    if not most > 0:
        raise ValueError(f"most must be above 0 nats, got {most!r}")
    frame = frame[frame["id"] == id].sort_values("position", kind="stable")
    if frame.empty:
        raise ValueError(f"id must be one of the {tokens['id'].nunique()} in tokens, got {id!r}")
    there = list(frame["variant"].unique())
    wanted = there if variants is None else some_of(variants, there, "variants")
    own, groups = responses or {}, frame.groupby("variant")
    parts = [(str(name), *_shaded(groups.get_group(name), shade, most), own.get(name, "")) for name in wanted]
    return TokenView(prompt, tuple(parts), unit, float(most))


def _shaded(rows: pd.DataFrame, shade: str, most: float) -> tuple[tuple[tuple[str, float, str], ...], str]:
    """Return the tokens with their shares of the darkest shade, and a line about them."""
    values = rows["kl"] if shade == "kl" else rows["logprob"] - rows["base_logprob"]
    # orange is the worse end of either scale
    shares = np.clip(values / most if shade == "kl" else -values / most, -1, 1)
    tokens, waiting = [], 0.0
    for row, share in zip(rows.itertuples(), shares, strict=True):
        waiting = share if abs(share) > abs(waiting) else waiting
        if row.token:  # a part of a character has no place of its own: the next token carries its shade
            tokens.append((row.token, float(waiting), _hint(row)))
            waiting = 0.0
    largest = rows.loc[rows["kl"].idxmax()]
    mean, place = rows["kl"].mean(), largest["position"] + 1
    about = f"mean KL {mean:.3f} nats over {len(rows)} tokens, largest {largest['kl']:.2f} at token {place}"
    return tuple(tokens), about


def _hint(row: Any) -> str:
    logprobs = f"{row.base_logprob:.2f} in the base, {row.logprob:.2f} in the variant"
    return f"{row.token!r}: KL {row.kl:.3f} nats, log-probability {logprobs}"


def _latex_token(text: str, share: float) -> str:
    colour = _ORANGE if share > 0 else _BLUE
    red, green, blue = (1 - _DARKEST * abs(share) * (1 - part / 255) for part in colour)
    box = rf"\colorbox[rgb]{{{red:.3f},{green:.3f},{blue:.3f}}}"
    lines = [latex_text(line).replace(" ", r"\ ") for line in text.split("\n")]
    return "\\newline{}".join(rf"{box}{{\strut {line}}}" for line in lines)
