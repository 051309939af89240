from __future__ import annotations

import json
import math
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from flows import flow_model
from skipping import TEXTS, raw_states
from tiny import CONFIGS, tiny_model, tiny_tokenizer

import workbench as wb
from workbench.data.texts import load_texts
from workbench.distances.angular import angular_distance, angular_distances, block_angles
from workbench.distances.blocks import best_blocks
from workbench.distances.influence import block_influence
from workbench.distances.stability import mean_distances, pick_stability
from workbench.models.hooks import compiling_pays, watch_states
from workbench.models.layers import decoder_layers

GOLDEN = Path(__file__).parents[1] / "golden" / "distances_tiny_llama.json"


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def distances(model, tokenizer, texts=TEXTS, **options):
    return angular_distances(model, tokenizer, texts, progress=False, **options)


def reference(states: list[torch.Tensor], token: int = -1) -> np.ndarray:
    """The definition, for one text without padding: arccos of the cosine over pi, ``[L + 1, L + 1]``."""
    table = np.zeros((len(states), len(states)))
    vectors = [state[0, token].double().numpy() for state in states]
    for i, u in enumerate(vectors):
        for j, v in enumerate(vectors):
            cosine = u @ v / math.sqrt((u @ u) * (v @ v))
            table[i, j] = math.acos(min(1.0, max(-1.0, cosine))) / math.pi
    return table


def as_table(frame: pd.DataFrame, value: str = "distance") -> np.ndarray:
    n_layers = int((frame["start"] + frame["size"]).max())
    table = np.full((n_layers + 1, n_layers + 1), np.nan)
    table[frame["start"], frame["start"] + frame["size"]] = frame[value]
    return table


def assert_same_table(frame: pd.DataFrame, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    table = as_table(frame)
    upper = np.triu_indices(len(expected), k=1)
    assert np.isfinite(table[upper]).all()
    np.testing.assert_allclose(table[upper], expected[upper], atol=tolerance)


class TestAngularDistance:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_equal_vectors_are_exactly_zero_apart(self, dtype):
        x = torch.randn(500, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert angular_distance(x, x).eq(0).all()
        assert angular_distance(x, x).dtype == torch.float64

    def test_landmarks(self):
        x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.5])
        assert angular_distance(x, -x).item() == 1
        assert angular_distance(x, y).item() == pytest.approx(0.5, abs=1e-15)
        assert angular_distance(x, x + torch.tensor([0.0, 3.0])).item() == pytest.approx(0.25, abs=1e-15)

    def test_symmetric_and_free_of_scale(self):
        x, y = torch.randn(2, 50, 37, generator=torch.Generator().manual_seed(1)).double()
        assert angular_distance(x, y).equal(angular_distance(y, x))
        torch.testing.assert_close(
            angular_distance(x * 7.3, y * 1e-3), angular_distance(x, y), atol=1e-15, rtol=0
        )

    def test_triangle_inequality(self):
        x, y, z = torch.randn(3, 200, 5, generator=torch.Generator().manual_seed(2)).double()
        assert (angular_distance(x, z) <= angular_distance(x, y) + angular_distance(y, z) + 1e-12).all()

    @pytest.mark.parametrize("angle", [1e-9, 1e-6, 1e-3, 0.1])
    def test_small_angles_keep_their_digits(self, angle):
        x = torch.tensor([1.0, 0.0], dtype=torch.float64)
        y = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert angular_distance(x, y).item() == pytest.approx(angle / math.pi, rel=1e-6)

    def test_large_half_precision_vectors_do_not_overflow(self):
        x = torch.full((64,), 40000.0, dtype=torch.float16)
        y = x.clone()
        y[:32] = -40000.0
        assert angular_distance(x, y).item() == pytest.approx(0.5)


class TestAngularDistances:
    def test_agrees_with_the_definition_text_by_text(self, model, tokenizer):
        single = [reference(raw_states(model, tokenizer(t, return_tensors="pt").input_ids)) for t in TEXTS]
        assert_same_table(distances(model, tokenizer), np.mean(single, axis=0))

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_agrees_with_a_padded_batch_on_either_side(self, model, tokenizer, side):
        batch = tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        lengths = batch.attention_mask.sum(dim=1)
        last = lengths - 1 if side == "right" else torch.full_like(lengths, batch.input_ids.shape[1] - 1)
        with torch.no_grad(), watch_states(model, lambda i, h: states.append(h)):
            states: list[torch.Tensor] = []
            model(batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions)
        rows = [[h[row : row + 1, last[row] : last[row] + 1] for h in states] for row in range(len(TEXTS))]
        expected = np.mean([reference(row) for row in rows], axis=0)
        tokenizer.padding_side = side
        assert_same_table(distances(model, tokenizer, batch_size=8), expected, 2e-6)
        tokenizer.padding_side = "left"

    @pytest.mark.parametrize("architecture", list(CONFIGS))
    def test_every_architecture(self, architecture, tokenizer):
        model = tiny_model(architecture)
        texts = TEXTS[:3]
        single = [reference(raw_states(model, tokenizer(t, return_tensors="pt").input_ids)) for t in texts]
        assert_same_table(distances(model, tokenizer, texts), np.mean(single, axis=0), 5e-6)

    def test_shape_of_the_frame(self, model, tokenizer):
        frame = distances(model, tokenizer)
        assert list(frame) == ["start", "size", "distance", "std", "ci_low", "ci_high", "n_texts"]
        assert list(zip(frame["size"], frame["start"], strict=True)) == [
            (size, start) for size in range(1, 8) for start in range(7 - size + 1)
        ]
        assert (frame["n_texts"] == len(TEXTS)).all()
        assert frame["distance"].between(0, 1).all()
        assert (frame["ci_low"] <= frame["distance"]).all()
        assert (frame["distance"] <= frame["ci_high"]).all()
        assert frame.attrs["model"]["kept_layers"] == list(range(7))
        json.dumps(frame.attrs)

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 100])
    def test_no_batch_size_changes_a_number(self, model, tokenizer, batch_size):
        expected, found = (distances(model, tokenizer, batch_size=size) for size in (1, batch_size))
        np.testing.assert_allclose(found["distance"], expected["distance"], atol=1e-7)
        # the spread over a few texts magnifies the rounding of float32, on some processors more
        pd.testing.assert_frame_equal(found, expected, atol=1e-6, rtol=1e-6)

    def test_order_of_texts_does_not_matter_and_single_texts_keep_their_place(self, model, tokenizer):
        forward, backward = distances(model, tokenizer), distances(model, tokenizer, TEXTS[::-1])
        np.testing.assert_allclose(forward["distance"], backward["distance"], atol=1e-8)
        angles = block_angles(model, tokenizer, TEXTS, progress=False, batch_size=2)
        for number, text in enumerate(TEXTS):
            alone = distances(model, tokenizer, [text])
            mine = angles[angles["text"] == number].sort_values(["size", "start"])["angle"]
            np.testing.assert_allclose(mine, alone["distance"], atol=1e-7)

    def test_spread_is_over_texts(self, model, tokenizer):
        angles = block_angles(model, tokenizer, TEXTS, progress=False)
        by_hand = angles.groupby(["size", "start"])["angle"].std(ddof=1).to_numpy()
        np.testing.assert_allclose(distances(model, tokenizer)["std"], by_hand)
        alone = distances(model, tokenizer, TEXTS[:1])
        assert alone[["std", "ci_low", "ci_high"]].isna().all(axis=None)

    def test_token_ids_are_the_same_as_text(self, model, tokenizer):
        ids = [tokenizer(text).input_ids for text in TEXTS]
        pd.testing.assert_frame_equal(distances(model, None, ids), distances(model, tokenizer))

    def test_needs_no_pad_token(self, model, tokenizer):
        bare = tiny_tokenizer()
        bare.pad_token = None
        pd.testing.assert_frame_equal(distances(model, bare), distances(model, tokenizer))

    @pytest.mark.parametrize("position", [0, 2, -1, -3])
    def test_position_of_one_token(self, model, tokenizer, position):
        texts = [text for text in TEXTS if text != "x"]
        single = [
            reference(raw_states(model, tokenizer(text, return_tensors="pt").input_ids), position)
            for text in texts
        ]
        assert_same_table(distances(model, tokenizer, texts, position=position), np.mean(single, axis=0))

    def test_position_mean_is_the_mean_state_of_real_tokens(self, model, tokenizer):
        states = [raw_states(model, tokenizer(text, return_tensors="pt").input_ids) for text in TEXTS]
        single = [reference([h.mean(dim=1, keepdim=True) for h in text]) for text in states]
        assert_same_table(distances(model, tokenizer, position="mean"), np.mean(single, axis=0))

    def test_bfloat16_is_computed_in_full_precision(self, tokenizer):
        model = tiny_model("llama").bfloat16()
        single = [reference(raw_states(model, tokenizer(t, return_tensors="pt").input_ids)) for t in TEXTS]
        # one text a batch: the states are then the very same, so only our arithmetic could differ
        assert_same_table(distances(model, tokenizer, batch_size=1), np.mean(single, axis=0), 1e-7)

    def test_identical_states_are_zero_apart_in_bfloat16(self, tokenizer):
        model = tiny_model("llama")
        with torch.no_grad():
            for name in ("o_proj", "down_proj"):
                for module in (m for n, m in model.named_modules() if n.endswith(name)):
                    module.weight.zero_()
                    module.bias.zero_()
        frame = distances(model.bfloat16(), tokenizer)
        assert (frame["distance"] == 0).all()

    def test_a_state_that_is_not_finite_is_an_error_not_a_number(self, tokenizer):
        model = tiny_model("llama")
        with torch.no_grad():
            decoder_layers(model)[2].mlp.down_proj.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match="residual states must be finite"):
            distances(model, tokenizer)

    def test_dropout_and_the_mode_of_the_model(self, tokenizer):
        model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5)
        expected = distances(model, tokenizer)
        model.train()
        decoder_layers(model)[1].eval()
        pd.testing.assert_frame_equal(distances(model, tokenizer), expected)
        modes = [layer.training for layer in decoder_layers(model)]
        assert modes == [True, False, True, True, True, True, True]
        assert model.training

    def test_whole_states_are_not_kept(self, model, tokenizer):
        alive: list[weakref.ref] = []
        most = []

        def watch(number: int, state: torch.Tensor) -> None:
            alive.append(weakref.ref(state))
            most.append(sum(ref() is not None for ref in alive))

        with watch_states(model, watch):
            distances(model, tokenizer)
        assert (
            max(most) <= 3
        )  # what enters and what leaves a layer, and the embedding, which the model itself keeps

    def test_leaves_no_hook_behind(self, model, tokenizer):
        def hooks() -> list[int]:
            return [
                len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in decoder_layers(model)
            ]

        before = hooks()
        distances(model, tokenizer)
        assert hooks() == before
        with pytest.raises(RuntimeError), watch_states(model, lambda i, state: state.view(3, 1, 4)):
            model(torch.tensor([[5, 6, 7]]))
        assert hooks() == before

    def test_golden(self, model, tokenizer):
        golden = json.loads(GOLDEN.read_text())
        frame = distances(model, tokenizer)
        np.testing.assert_allclose(frame["distance"], golden["distance"], atol=2e-5)
        np.testing.assert_allclose(frame["ci_high"], golden["ci_high"], atol=2e-5)


class TestErrors:
    """Each comes as one clear line before the model runs."""

    @pytest.fixture
    def silent(self, model):
        ran = []
        handle = model.register_forward_pre_hook(lambda *_: ran.append(1))
        inner = decoder_layers(model)[0].register_forward_pre_hook(lambda *_: ran.append(1))
        yield model
        handle.remove()
        inner.remove()
        assert not ran, "the model ran before the error"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"texts": []}, "texts must be a list of at least one text"),
            ({"texts": ["a", ""]}, "text 1 is empty"),
            ({"max_length": 0}, "max_length must be a whole number >= 1, got 0"),
            ({"max_length": -3}, "max_length must be a whole number >= 1, got -3"),
            (
                {"texts": ["long " * 300], "max_length": 4096},
                "between 1 and 256, the model's positions",
            ),
            ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
            ({"position": 1}, r"token between -1 and 0 \(the shortest text's\), got 1"),
            ({"position": -2}, "got -2"),
            ({"position": "first"}, "position must be 'last', 'mean', 'random' or a token between -1 and 0"),
            ({"position": True}, "got True"),
            ({"position": 0.5}, "got 0.5"),
        ],
    )
    def test_message(self, silent, tokenizer, options, message):
        with pytest.raises(ValueError, match=message):
            distances(silent, tokenizer, **({"texts": TEXTS} | options))


def test_average_of_angles_is_the_frame_of_distances(model, tokenizer):
    angles = block_angles(model, tokenizer, TEXTS, progress=False)
    assert list(angles) == ["text", "start", "size", "angle"]
    pd.testing.assert_frame_equal(mean_distances(angles), distances(model, tokenizer))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_on_a_gpu(tokenizer):
    model = tiny_model("llama").cuda()
    eager = distances(model, tokenizer, compiled=False)
    fast = distances(model, tokenizer, compiled=True)
    np.testing.assert_allclose(fast["distance"], eager["distance"], atol=1e-4)
    assert not compiling_pays(model, 1000)


class TestEndPoints:
    """Which tokens stand for the texts, said and drawn."""

    def test_random_points_are_the_states_of_the_text_cut_there(self, model, tokenizer):
        texts = [text for text in TEXTS if len(text) > 1]
        options = {"position": "random", "points_per_text": 3, "seed": 4, "progress": False}
        angles = block_angles(model, tokenizer, texts, **options, batch_size=2)
        assert list(angles) == ["text", "point", "start", "size", "angle"]
        assert angles.groupby("text")["point"].nunique().tolist() == [3] * len(texts)
        assert angles["point"].min() > 0
        for (text, point), rows in angles.groupby(["text", "point"]):
            cut = tokenizer(texts[text])["input_ids"][: point + 1]
            alone = distances(model, None, [cut])
            mine = rows.sort_values(["size", "start"])["angle"]
            np.testing.assert_allclose(mine, alone["distance"], atol=1e-6)
        pd.testing.assert_frame_equal(angles, block_angles(model, tokenizer, texts, **options), atol=1e-6)
        other = block_angles(model, tokenizer, texts, **options | {"seed": 5})
        assert other["point"].tolist() != angles["point"].tolist()

    def test_a_text_counts_once_whatever_its_points(self, model, tokenizer):
        options = {"position": "random", "points_per_text": 30, "progress": False}
        angles = block_angles(model, tokenizer, TEXTS, **options)
        lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
        expected = [min(30, max(1, n - 1)) for n in lengths]
        assert angles.groupby("text")["point"].nunique().tolist() == expected
        frame = angular_distances(model, tokenizer, TEXTS, **options)
        by_hand = angles.groupby(["size", "start", "text"])["angle"].mean().groupby(["size", "start"])
        np.testing.assert_allclose(frame["distance"], by_hand.mean())
        np.testing.assert_allclose(frame["std"], by_hand.std())
        assert (frame["n_texts"] == len(TEXTS)).all()

    def test_the_share_of_texts_that_end_alike_is_said(self, model, tokenizer):
        texts = ["Anna has 5 apples.", "The lazy dog.", "Ein Hund.", "no stop"]
        attrs = distances(model, tokenizer, texts).attrs
        assert attrs["end_token"] == {"id": tokenizer(".")["input_ids"][0], "text": ".", "share": 0.75}
        cut = distances(model, tokenizer, texts, max_length=2).attrs["end_token"]
        assert cut["share"] < 0.75
        ids = [tokenizer(text)["input_ids"] for text in texts]
        assert distances(model, None, ids).attrs["end_token"]["text"] is None
        first = distances(model, tokenizer, ["a b c", "a d e f"], position=0).attrs["end_token"]
        assert (first["text"], first["share"]) == ("a", 1)
        assert "end_token" not in distances(model, tokenizer, texts, position="mean").attrs
        json.dumps(attrs)

    def test_a_tokenizer_that_appends_a_mark_measures_at_that_mark(self, model):
        from tokenizers.processors import TemplateProcessing

        marking = tiny_tokenizer()
        marking.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <|end|>", special_tokens=[("<|end|>", 1)]
        )
        end = distances(model, marking, TEXTS).attrs["end_token"]
        assert end == {"id": 1, "text": "<|end|>", "share": 1.0}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"points_per_text": 4}, "points_per_text must be 1 unless position is 'random', got 4"),
            ({"position": "random", "points_per_text": 0}, "points_per_text must be a whole number >= 1"),
            ({"position": "random", "points_per_text": 2.5}, "points_per_text must be a whole number >= 1"),
            ({"position": "random", "seed": -1}, "seed must be a whole number >= 0, got -1"),
        ],
    )
    def test_errors(self, model, tokenizer, options, message):
        with pytest.raises(ValueError, match=message):
            wb.block_angles(model, tokenizer, TEXTS, progress=False, **options)

    def test_cut_elsewhere_the_demo_chooses_other_blocks(self, demo_model):
        """At full stops alone the pick looks certain; at other tokens it is another one."""
        texts, sizes = list(load_texts("demo-stories", n=128))[:32], [1, 2, 4, 6]
        options = {"max_length": 96, "progress": False}
        stops = block_angles(*demo_model, texts, **options | {"max_length": 512})
        assert stops.attrs["end_token"]["text"] == "."
        assert stops.attrs["end_token"]["share"] == 1
        picked = best_blocks(mean_distances(stops), sizes)
        sure = pick_stability(stops, sizes).set_index("size")["stability"]
        points = block_angles(*demo_model, texts, position="random", points_per_text=8, **options)
        assert points.attrs["end_token"]["share"] < 0.3
        elsewhere = best_blocks(mean_distances(points), sizes)
        assert picked["removed"].tolist()[2:] == ["3-6", "3-8"]
        assert elsewhere["removed"].tolist() == ["7", "6-7", "6-9", "4-9"]
        assert sure[[4, 6]].min() > 0.99
        cut = pick_stability(points, sizes, over="endpoints", picks=picked).set_index("size")
        assert cut.loc[[1, 4, 6], "stability"].max() < 0.2
        assert cut["removed"].tolist() == picked["removed"].tolist()


class TestPaddingThatReachesStates:
    @pytest.mark.parametrize("name", ["gemma3-bidirectional", "paligemma", "phi3-longrope", "openai-gpt"])
    @pytest.mark.parametrize("value", ["distance", "influence"])
    def test_a_batch_changes_no_number(self, name, value):
        model = flow_model(name)
        texts = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], list(range(20, 43)), [30, 31, 32, 33]]
        measure = {"distance": angular_distances, "influence": block_influence}[value]
        found = measure(model, None, texts, batch_size=4, progress=False)[value]
        singly = [measure(model, None, [ids], progress=False)[value] for ids in texts]
        weights = [1] * 4 if value == "distance" else [len(ids) for ids in texts]
        np.testing.assert_allclose(found, np.average(singly, axis=0, weights=weights), atol=1e-6)

    @pytest.mark.parametrize("name", ["gemma3n", "deepseek-v4"])
    @pytest.mark.parametrize("measure", [angular_distances, block_influence])
    def test_several_streams_are_refused_by_name(self, name, measure):
        model = flow_model(name)
        with pytest.raises(ValueError, match=f"{type(model).__name__} passes on several streams"):
            measure(model, None, [[5, 6, 7], [8, 9]], progress=False)
