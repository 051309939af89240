"""The page of findings and README's table say what the committed record says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def page(root: Path) -> ModuleType:
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        import findings_page
    finally:
        sys.path.remove(str(root / "benchmarks"))
    return findings_page


@pytest.fixture(scope="module")
def record(page):
    return page.read(*page.newest())


def test_the_page_is_made_of_the_committed_record(page, record, root):
    frames, about = record
    pictures = {path.stem: f"findings/{path.name}" for path in (root / "docs" / "findings").glob("*.png")}
    assert page.page(frames, pictures, about) == (root / "docs" / "findings.md").read_text(encoding="utf-8")


def test_readme_and_the_record_show_the_claims_that_it_makes(page, record, root, tmp_path):
    frames, about = record
    text = (root / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    page.into_readme(page.readme(frames, about), tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text
    page.claims(frames).to_csv(tmp_path / "claims.csv", index=False)
    assert (tmp_path / "claims.csv").read_text() == (page.newest()[0] / "claims.csv").read_text()


def test_a_record_of_blocks_alone_says_what_was_not_measured(page, record):
    frames, about = record
    there = ("strategies", "strategy_items", "strategy_scores", "blind", "agreement")
    few = {name: frames[name] for name in there}
    table = page.claims(few).set_index("claim")
    assert table.index.tolist() == ["C1", "C2", "C6", "C7", "C8", "C9", "C10"]
    assert set(table.loc[["C6", "C7", "C8", "C9"], "verdict"]) == {"not measured"}
    assert "What healing wins back" not in page.page(few, {}, about)


@pytest.mark.parametrize(("sign", "wanted"), [(1, "confirmed"), (-1, "refuted")])
def test_a_verdict_is_the_side_of_nothing_that_the_interval_lies_on(page, record, sign, wanted):
    pairs = record[0]["drafts_comparison"]
    ends = {"difference": 0.1 * sign, "ci_low": 0.1 * sign - 0.05, "ci_high": 0.1 * sign + 0.05}
    said = page.claims({"drafts_comparison": pairs.assign(**ends)}).set_index("claim").loc["C8", "verdict"]
    assert wanted in said and "undecided" not in said


def test_a_second_seed_with_the_same_rows_changes_no_share_and_no_mean(page, record):
    frames, _ = record
    one = {name: frame[frame["seed"] == 0] if "seed" in frame else frame for name, frame in frames.items()}
    names = ("kept", "premise", "why", "divergence", "divergence_gap")
    again = {name: one[name].assign(seed=1) for name in names}
    two = one | {name: page.pd.concat([one[name], again[name]]) for name in names}
    for write in (page.kept_text, page.premise, page.lengths):
        assert write(two) == write(one)
    assert page.divergence_text(two) != page.divergence_text(one)  # the number of seeds
    assert page.divergence_text(two).replace(" | 2 |", " | 1 |") == page.divergence_text(one)


@pytest.mark.parametrize(
    ("shift", "wanted"), [(0, "confirmed at 26, 22 and 20"), (20, "refuted at 26, confirmed at 22 and 20")]
)
def test_iterating_is_judged_seed_by_seed(page, record, shift, wanted):
    scores = record[0]["iterate_scores"].copy()
    scores.loc[scores["method"] == "iterate", "value"] += shift
    first, other = (
        page.claims({"iterate_scores": some}).set_index("claim").loc["C9"]
        for some in (
            scores,
            scores[(scores["seed"] == 0) | (scores["layers"] != 22)],
        )
    )
    assert first["verdict"].startswith(f"{wanted} layers left with the same updates a recovery; ")
    assert "undecided (one seed) at 22" in other["verdict"] and "(one seed)" not in first["verdict"]


def test_more_rows_are_compared_within_a_set_and_a_seed(page, record):
    table = record[0]["recovery"]
    own = table.query("variant == 'self-distilled'").set_index(["data", "seed", "rows"])["recovery"]
    pairs = [(data, seed, rows) for data, rows in (("alpaca", 8000), ("gsm8k", 7373)) for seed in range(3)]
    gains = [own[data, seed, rows] - own[data, seed, 2000] for data, seed, rows in pairs]
    said = page.claims(record[0]).set_index("claim").loc["C6"]
    assert said["number"].startswith(f"recovery of self-distilled {sum(gains) / len(pairs):+.3f} [")
    assert all(f"{gain:+.3f}" in said["number"] for gain in gains)
    few = table[table["rows"] == 2000]
    assert (
        page.claims({**record[0], "recovery": few}).set_index("claim").loc["C6", "verdict"] == "not measured"
    )


def test_one_state_in_three_seeds_is_a_mean_between_its_ends(page, record):
    scores = record[0]["iterate_scores"]
    state = "method == 'direct' and phase == 'P+R' and layers == 22 and metric == 'word_perplexity'"
    values = scores.query(state)["value"].tolist()
    by_state = sys.modules[page.methods_table.__module__].by_state
    row = by_state(scores).query("method == 'direct' and phase == 'P+R' and layers == 22").iloc[0]
    assert len(values) == row["seeds"] == 3
    assert row["mean"] == pytest.approx(sum(values) / 3)
    assert (row["min"], row["max"]) == (min(values), max(values))
