"""Recovery as a training: what it learns, what it leaves alone, and adapters that lose layers."""

from dataclasses import replace

import pytest
import torch
from healed import logits, make_examples, same_state, same_weights, state, weights
from tiny import tiny_model, tiny_tokenizer

from workbench.healing.adapters import as_variant, with_adapter
from workbench.healing.config import HealingConfig
from workbench.models.layers import kept_layers
from workbench.pruning.removal import prune_, removal_changes, two_states, without_layers
from workbench.recovery.recover import carry_adapter, recover
from workbench.runs.variant import Variant

TOKENIZER = tiny_tokenizer()
TEXTS = [f"The quick brown fox number {k} jumps over the dog {7 * k} times." for k in range(24)]
QUICK = HealingConfig.preset(
    "iterabre", batch_size=4, micro_batch_size=2, max_length=32, rank=4, learning_rate=1e-2, max_steps=4
)


def run(model, out, *, removed=(3, 5), **options):
    settings = {"config": QUICK, "progress": False, **options}
    return recover(model, TOKENIZER, settings.pop("texts", TEXTS), removed=removed, out=out, **settings)


def test_the_papers_settings_are_a_preset():
    config = HealingConfig.preset("iterabre")
    assert (config.rank, config.learning_rate, config.max_length, config.epochs) == (32, 1e-4, 512, 1)
    assert (config.micro_batch_size, config.batch_size) == (4, 4 * 8)


@pytest.mark.parametrize(
    ("dropped", "layer", "original"), [([3, 4], 10, 12), ([3, 4], 1, 1), ([1, 5, 6], 4, 7), ([1, 5, 6], 1, 2)]
)
def test_the_map_is_that_of_appendix_e_in_its_numbers_from_one(dropped, layer, original):
    model = tiny_model("llama", num_hidden_layers=14)
    with two_states(removal_changes(model, [one - 1 for one in dropped])):
        assert kept_layers(model)[layer - 1] == original - 1
    solutions = [m for m in range(1, 15) if m not in dropped and m == layer + sum(d < m for d in dropped)]
    assert solutions == [original]


def test_it_learns_and_leaves_the_teacher_as_it_was_to_the_bit(tmp_path):
    model = tiny_model("llama")
    before, said = state(model), logits(model)
    healed = run(model, tmp_path / "a")
    log = healed.log
    assert list(log.columns[-3:]) == ["hidden", "attention", "logits"]
    assert log["loss"].to_numpy() == pytest.approx(
        log[["hidden", "attention", "logits"]].sum(axis=1), rel=1e-5
    )
    assert log["loss"].iloc[-1] < 0.7 * log["loss"].iloc[0]
    assert same_state(model, before) and torch.equal(logits(model), said)
    with as_variant(model, Variant("a", "tiny", removed=(3, 5), adapter="a"), run=tmp_path):
        student = logits(model)
    with without_layers(model, [3, 5]):
        pruned = logits(model)
    assert (student - said).square().mean() < (pruned - said).square().mean()


def test_the_size_of_a_micro_batch_changes_nothing_but_rounding(tmp_path):
    model = tiny_model("gemma3")
    texts = [text * (1 + k % 3) for k, text in enumerate(TEXTS)]  # padded batches
    config = QUICK.__class__(
        **{**vars(QUICK), "concatenate": False, "learning_rate": 1e-3, "max_length": 128}
    )
    logs = []
    for micro in (1, 4):
        changed = config.__class__(**{**vars(config), "micro_batch_size": micro})
        logs.append(run(model, tmp_path / str(micro), texts=texts, config=changed).log)
    for name in ("loss", "hidden", "attention", "logits"):
        assert logs[0][name].to_numpy() == pytest.approx(logs[1][name].to_numpy(), rel=1e-3)


def test_terms_are_left_out_and_weighted_and_a_frame_is_read_by_its_column(tmp_path):
    model = tiny_model("llama")
    examples, longer = make_examples(8), HealingConfig(**{**vars(QUICK), "max_length": 128})
    logs = {
        column: run(
            model,
            tmp_path / column,
            texts=examples,
            response=column,
            loss={"kl": 2, "lm": 0.5},
            config=longer,
        ).log
        for column in ("reference", "response")
    }
    assert logs["reference"]["lm"].iloc[0] != logs["response"]["lm"].iloc[0]
    for log in logs.values():
        assert list(log.columns[-2:]) == ["kl", "lm"]
        assert log["loss"].to_numpy() == pytest.approx(2 * log["kl"] + 0.5 * log["lm"], rel=1e-5)


def test_an_architecture_without_matrices_recovers_without_them(tmp_path):
    model = tiny_model("bloom")
    with pytest.raises(ValueError, match="leave it out, loss="):
        run(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    log = run(model, tmp_path / "a", loss={"hidden": 1, "logits": 1}).log
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_carried_over_is_the_same_on_the_layers_that_stay(tmp_path, family):
    model = tiny_model(family)
    run(model, tmp_path / "a", removed=[3])
    carry_adapter(model, tmp_path / "a", [3, 5], tmp_path / "b")
    with without_layers(model, [3]), with_adapter(model, tmp_path / "a"), without_layers(model, [5]):
        wanted = logits(model)
    with without_layers(model, [3, 5]), with_adapter(model, tmp_path / "b"):
        assert torch.equal(logits(model), wanted)
    # and the training begins exactly there: with no step the loss is the carried adapter's
    first = run(model, tmp_path / "c", removed=[3, 5], start=tmp_path / "b").log.iloc[0]
    fresh = run(model, tmp_path / "d", removed=[3, 5]).log.iloc[0]
    assert first["loss"] < fresh["loss"]
    assert not same_weights(tmp_path / "c", tmp_path / "b")
    assert weights(tmp_path / "c").keys() == weights(tmp_path / "b").keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"texts": TEXTS[:1]}, "at least batch_size=4 sequences, got 2"),
        ({"loss": {"attentions": 1}}, "loss must be one of"),
        ({"removed": [9]}, "layers must be among"),
        ({"config": HealingConfig(packing=True, batch_size=4)}, "packing must be False"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(tmp_path, options, words):
    model = tiny_model("llama")
    before = state(model)
    with pytest.raises(ValueError, match=words) as error:
        run(model, tmp_path / "a", **options)
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())
    assert same_state(model, before)


def test_a_teacher_that_is_pruned_is_refused(tmp_path):
    model = prune_(tiny_model("llama"), [2])
    with pytest.raises(ValueError, match=r"must be whole, as the teacher; it is pruned already"):
        run(model, tmp_path / "a")


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf")])
def test_a_temperature_that_divides_nothing_is_refused(tmp_path, temperature):
    with pytest.raises(ValueError, match="temperature must be a number above 0"):
        run(tiny_model("llama"), tmp_path / "a", temperature=temperature)


def test_removed_layers_are_those_merged_away_and_weights_are_numbers(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"layers that merges take away, \[3\], got \[2\]"):
        run(model, tmp_path / "a", removed=[2], merges=[(2, 1)])
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer 3 must give finite numbers"):
        run(model, tmp_path / "a")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_of_the_model_is_no_loss(tmp_path, checkpointing):
    """GPT-2 drops a tenth while it trains; a student that lacks nothing has nothing to learn all the same."""
    model = tiny_model("gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    config = replace(QUICK, gradient_checkpointing=checkpointing, max_steps=2)
    log = run(model, tmp_path / "a", removed=(), config=config).log
    assert log["loss"].tolist() == [0, 0]
    assert not model.training
    one, two = (run(model, tmp_path / name, config=config).log for name in ("b", "c"))
    still = tiny_model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    wanted = run(still, tmp_path / "d", config=config).log["loss"].tolist()
    assert one["loss"].tolist() == two["loss"].tolist() == pytest.approx(wanted, rel=1e-5)
