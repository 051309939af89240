"""Similarity of responses: the published encoder, one-at-a-time values, nothing paired wrongly."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.forgetting import similarity as module
from workbench.forgetting.similarity import embed_texts, load_encoder, response_similarity, similarity_summary
from workbench.runs.keys import stage_key

SENTENCES = [
    "Anna has 12 - 5 = 7 apples left. The answer is 7.",
    "12-5=7 #### 7",
    "The king that the weavers know sleeps proudly.",
    "Das stille Mädchen weint gern am Fluss.",
    "",
    "x" * 40 + " and " + "the boats near the letter are very cold " * 60,
    "Anna has 12 - 5 = 7 apples left.  The answer is 7.",
]


@pytest.fixture(scope="session")
def encoder():
    return load_encoder()


def frame(texts: list[str], **columns: list) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"q{n}" for n in range(len(texts))], "response": texts} | columns)


def one_at_a_time(encoder, first: str, second: str) -> float:
    u, v = (encoder.encode(text, show_progress_bar=False).astype(float) for text in (first, second))
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


def test_equal_to_encoding_one_string_at_a_time(encoder):
    others = SENTENCES[1:] + SENTENCES[:1]
    result = response_similarity(frame(SENTENCES), frame(others))
    expected = [one_at_a_time(encoder, *pair) for pair in zip(SENTENCES, others, strict=True)]
    assert np.abs(result["similarity"] - expected).max() < 1e-6
    assert list(result["id"]) == [f"q{n}" for n in range(len(SENTENCES))]
    assert result["similarity"].between(-1, 1).all()


def test_laws():
    same = response_similarity(frame(SENTENCES), frame(SENTENCES))
    assert np.abs(same["similarity"] - 1).max() < 1e-12
    forth = response_similarity(frame(SENTENCES), frame(SENTENCES[::-1]))
    back = response_similarity(frame(SENTENCES[::-1]), frame(SENTENCES))
    assert np.abs(forth["similarity"] - back["similarity"]).max() < 1e-6


def test_a_known_ranking():
    base = frame([SENTENCES[0]] * 3)
    values = response_similarity(base, frame([SENTENCES[6], SENTENCES[1], SENTENCES[2]]))["similarity"]
    assert values[0] > 0.95 > values[1] > 0.3 > values[2]


def test_responses_are_paired_by_id_in_the_order_of_the_base():
    base, other = frame(SENTENCES), frame(SENTENCES[1:] + SENTENCES[:1])
    shuffled = other.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(
        response_similarity(base, other), response_similarity(base, shuffled), atol=1e-6, rtol=0
    )


def test_several_variants_at_once_equal_one_by_one_and_encode_each_string_once(encoder, monkeypatch):
    base = frame(SENTENCES)
    others = {"pruned": frame(SENTENCES[1:] + SENTENCES[:1]), "healed": frame(SENTENCES)}
    encoded: list[str] = []
    original = encoder.encode
    monkeypatch.setattr(
        encoder, "encode", lambda texts, **options: encoded.extend(texts) or original(texts, **options)
    )
    together = response_similarity(base, others)
    assert sorted(encoded) == sorted(set(SENTENCES))
    assert list(together.columns) == [
        *("variant", "id", "similarity", "truncated", "cut_off", "empty", "unseen")
    ]
    for name, other in others.items():
        alone = response_similarity(base, other)
        part = together[together["variant"] == name].drop(columns="variant").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone, atol=1e-6, rtol=0)


def test_truncated_and_empty_responses_are_marked(encoder):
    window = encoder.max_seq_length
    fitting, too_long = "word " * (window - 2), "word " * (window - 1)
    base = frame([fitting, too_long, " \n", "fine"])
    result = response_similarity(base, frame([fitting, "short", "fine", "fine"]))
    assert list(result["truncated"]) == [False, True, False, False]
    assert list(result["empty"]) == [False, False, True, False]
    summary = similarity_summary(result).iloc[0]
    assert (summary["truncated"], summary["empty"], summary["n"]) == (1, 1, 4)
    assert summary["identical"] == 0.5


def test_responses_that_were_cut_off_are_counted_where_that_is_known():
    base = frame(["a", "b", "c"], finished=[True, False, True])
    other = frame(["a", "b", "c"], finished=[True, True, False])
    result = response_similarity(base, other)
    assert list(result["cut_off"]) == [False, True, True]
    assert similarity_summary(result)["cut_off"].item() == 2
    assert not response_similarity(frame(["a"]), frame(["b"]))["cut_off"].any()


def test_summary_is_the_mean_with_an_interval_by_variant():
    values = np.random.default_rng(0).uniform(0, 1, 50)
    rows = pd.DataFrame(
        {"variant": ["a"] * 30 + ["b"] * 20, "similarity": values, "truncated": False, "empty": False}
    )
    summary = similarity_summary(rows).set_index("variant")
    assert summary.loc["a", "mean"] == pytest.approx(values[:30].mean())
    assert (summary["ci_low"] < summary["mean"]).all()
    assert (summary["mean"] < summary["ci_high"]).all()


@pytest.mark.parametrize(
    ("base", "other", "message"),
    [
        (frame(["a", "b"]), frame(["a"]), "ids such as 'q1' are in one of them only"),
        (frame(["a"]), frame(["a"]).assign(id=["p0"]), "ids such as 'p0'"),
        (frame(["a"], prompt=["one"]), frame(["a"], prompt=["two"]), "the prompt differs"),
        (frame(["a"], instruction=["one"]), frame(["a"], instruction=["two"]), "the instruction differs"),
        (frame(["a"], context=["one"]), frame(["a"], context=["two"]), "the context differs"),
        (frame(["a", "b"]).assign(id="q0"), frame(["a", "b"]), "each id once"),
        (frame(["a"]), frame([None]), "a text for every id, 'q0' has none"),
        (frame(["a"]), frame([float("nan")]), "a text for every id, 'q0' has none"),
        (frame(["a"]).drop(columns="response"), frame(["a"]), r"missing \['response'\]"),
        (frame([]), frame([]), "at least one row"),
        (
            frame(["a"]),
            {},
            "other must be a pandas DataFrame or a mapping of names to pandas DataFrames, got {}",
        ),
    ],
)
def test_wrong_pairs_are_refused_before_anything_is_encoded(base, other, message, monkeypatch):
    monkeypatch.setattr(module, "load_encoder", None)
    with pytest.raises(ValueError, match=message) as error:
        wb.response_similarity(base, other)
    assert "\n" not in str(error.value)


def test_an_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"encoder must be .*nowhere' is no folder here"):
        load_encoder(tmp_path / "nowhere")


def test_weights_that_are_not_the_published_ones_are_refused(monkeypatch):
    monkeypatch.setattr(module, "_MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the published ones"):
        module._minilm()


def test_code_in_the_folder_of_an_encoder_does_not_run(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "payload.py").write_text(f"open({str(ran)!r}, 'w')\nclass Module: pass\n")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "payload.Module"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "config.json").write_text(
        '{"model_type": "bert", "auto_map": {"AutoModel": "payload.Module"}}'
    )
    with pytest.raises(ValueError, match="encoder must be"):
        load_encoder(tmp_path)
    assert not ran.exists()


def test_another_encoder_by_folder(encoder, tmp_path):
    encoder.save(str(tmp_path / "copy"))
    ours = embed_texts(SENTENCES[:2], encoder=tmp_path / "copy")
    assert np.abs(ours - embed_texts(SENTENCES[:2])).max() < 1e-6
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-12


def test_an_encoder_whose_weights_were_replaced_is_read_again(encoder, tmp_path, monkeypatch, run):
    folder, texts = tmp_path / "enc", frame(SENTENCES[:2])
    encoder.save(str(folder))
    monkeypatch.chdir(tmp_path)
    asked = {"encoder": "enc"}  # a word, but a folder lies there
    before = run.frame("s.csv", wb.response_similarity, texts, frame(SENTENCES[1:3]), **asked)
    assert load_encoder("enc") is load_encoder("enc")
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 0.1 for name, value in weights.items()}, folder / "model.safetensors")
    after = run.frame("s.csv", wb.response_similarity, texts, frame(SENTENCES[1:3]), **asked)
    assert np.abs(after["similarity"] - before["similarity"]).max() > 1e-3
    module._load.cache_clear()
    fresh = wb.response_similarity(texts, frame(SENTENCES[1:3]), encoder=folder)
    assert np.abs(after["similarity"] - fresh["similarity"]).max() < 1e-6


def test_a_folder_called_as_the_shipped_encoder_is_neither_read_nor_counted(tmp_path, monkeypatch):
    key = stage_key(wb.embed_texts, (["a"],), {})
    (tmp_path / module.MINILM).mkdir()
    monkeypatch.chdir(tmp_path)
    assert stage_key(wb.embed_texts, (["a"],), {}).inputs == key.inputs
    assert stage_key(wb.embed_texts, (["a"],), {"encoder": "org/other"}).inputs != key.inputs
    assert embed_texts(["a"]).shape == (1, 384)


def test_real_rewrites_are_closer_to_their_reference_than_to_another(shared_data):
    with (shared_data / "sdft_alpaca_pairs.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(40), strict=False)]
    base = frame([row["output"] for row in rows])
    rewritten = [row["distilled_output"] for row in rows]
    result = response_similarity(
        base, {"own": frame(rewritten), "shifted": frame(rewritten[1:] + rewritten[:1])}
    )
    means = similarity_summary(result).set_index("variant")["mean"]
    assert means["own"] > means["shifted"] + 0.3


UNSEEN = [
    ("ሰማዩ ዛሬ ሰማያዊ ነው", "ድመቴ ዓሣ መብላት ትወዳለች"),
    ("วันนี้ท้องฟ้าเป็นสีฟ้า", "แมวของฉันชอบกินปลา"),
    ("មេឃថ្ងៃនេះពណ៌ខៀវ", "ឆ្មាខ្ញុំចូលចិត្តស៊ីត្រី"),
    ("ცა დღეს ლურჯია", "ჩემს კატას თევზი უყვარს"),
    ("今天天空是蓝色的", "我的猫喜欢吃鱼"),
    ("😀", "💀"),
    ("The answer is 😀", "The answer is 💀"),
    ("The sky is blue. " + "วันนี้ท้องฟ้าเป็นสีฟ้า", "The sky is blue. It is a fine day."),
]
SEEN = [
    ("The answer is 7.", "The cat likes to eat fish."),
    ("Das stille Mädchen weint gern am Fluss.", "Der König grüßt die Bäume."),
    ("Сегодня небо голубое", "Моя кошка любит рыбу"),
    ("a  b", "a b"),
    ("", "The answer is 7."),
    (
        "She walked along the river and sang a song all day 😀",
        "He stayed at home and read his books all day.",
    ),
]


@pytest.mark.parametrize("pair", UNSEEN)
def test_texts_that_the_encoder_has_no_pieces_for_are_marked(pair):
    with pytest.warns(UserWarning, match="100% of the pairs .*encoder='paraphrase-multilingual"):
        found = response_similarity(frame([pair[0]]), frame([pair[1]]))
    assert found["unseen"].tolist() == [True]


@pytest.mark.parametrize("pair", SEEN)
def test_texts_that_the_encoder_reads_are_not_marked(pair, recwarn):
    found = response_similarity(frame([pair[0]]), frame([pair[1]]))
    assert found["unseen"].tolist() == [False]
    assert not recwarn.list


def test_one_pair_of_many_is_told_by_its_column_alone(recwarn):
    texts = [f"The answer is {number}." for number in range(5)]
    rows = response_similarity(frame([UNSEEN[0][0], *texts]), frame([UNSEEN[0][1], *texts]))
    assert rows["unseen"].tolist() == [True] + [False] * 5 and not recwarn.list


def test_the_mean_is_over_what_the_encoder_can_read():
    from workbench.tables.layouts import summary_table

    base = frame([UNSEEN[0][0], "The answer is 7.", "The town of Ern."])
    with pytest.warns(UserWarning, match="33% of the pairs"):
        rows = response_similarity(base, {"v": frame([UNSEEN[0][1], "The cat likes fish.", "A boat."])})
    summary = similarity_summary(rows).iloc[0]
    assert summary["mean"] == pytest.approx(rows["similarity"][1:].mean()) and summary["mean"] < 0.9
    assert (summary["n"], summary["unseen"], summary["identical"]) == (2, 1, 0)
    scores = pd.DataFrame({"variant": ["v"], "task": "t", "metric": "acc", "value": 0.5})
    table = summary_table(scores, {"g": ["t"]}, similarities=rows)
    assert table["similarity"].item() == pytest.approx(summary["mean"])
    none = similarity_summary(rows.head(1))
    assert none[["mean", "ci_low", "ci_high", "identical"]].isna().all(axis=None) and none["n"].item() == 0


def test_an_encoder_that_reads_bytes_sees_every_script(tmp_path, recwarn):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tiny import tiny_tokenizer
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    parts = [Transformer(str(tmp_path), max_seq_length=64), Pooling(16)]
    found = response_similarity(
        frame([one for one, _ in UNSEEN]),
        frame([two for _, two in UNSEEN]),
        encoder=SentenceTransformer(modules=parts),
    )
    assert not found["unseen"].any() and not [w for w in recwarn if "word pieces" in str(w.message)]
    assert (found["similarity"] < 1 - 1e-6).all()


def test_variants_that_the_prompts_do_not_tell_apart_are_all_the_closest():
    rng = np.random.default_rng(0)
    near = rng.uniform(0.8, 1, 50)
    values = {"near": near, "twin": near.copy(), "about": near + rng.normal(0, 0.01, 50), "far": near - 0.3}
    rows = pd.concat(
        [pd.DataFrame({"variant": n, "id": range(50), "similarity": v}) for n, v in values.items()]
    )
    assert similarity_summary(rows)["closest"].tolist() == [True, True, True, False]
    assert "closest" not in similarity_summary(rows.drop(columns="id"))


def test_equal_responses_are_ties_whatever_the_rounding():
    words = ["apple", "river", "house", "cloud", "stone", "bread", "light", "music", "paper", "green"]
    texts = [" ".join(words[k % 10 :] + words[: k % 7]) for k in range(60)]
    frame = pd.DataFrame({"id": range(60), "response": texts})
    assert set(response_similarity(frame, frame)["similarity"]) == {1.0}
