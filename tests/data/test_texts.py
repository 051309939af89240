"""Texts and instruction sets: sampled as promised, in one form, refused in one line when they cannot be."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
from tiny import tiny_tokenizer

from workbench.data.instructions import FIELDS, load_instructions, user_message
from workbench.data.sources import CORPORA
from workbench.data.texts import DEMO_CORPORA, fingerprint, load_texts


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path):
    rows = [{"text": f"text {i} " + "word " * (i % 7)} for i in range(60)]
    rows[5]["text"], rows[6]["text"], rows[7]["text"] = "", "  \n", None
    return write_jsonl(tmp_path / "texts.jsonl", rows)


# --- texts -----------------------------------------------------------------------------------------


def test_a_sample_is_fixed_by_its_seed_and_a_smaller_one_is_its_beginning(file):
    ten = load_texts(file, n=10, seed=3)
    assert ten == load_texts(file, n=10, seed=3)
    assert ten[:4] == load_texts(file, n=4, seed=3)
    assert ten != load_texts(file, n=10, seed=4)
    assert len(set(ten)) == 10


def test_a_sample_is_uniform_over_all_rows(file):
    counts = Counter(text for seed in range(300) for text in load_texts(file, n=19, seed=seed))
    assert len(counts) == 57
    assert 60 < min(counts.values()) < max(counts.values()) < 140  # 100 expected, deviation about 8


def test_empty_documents_are_passed_over_and_counted(file):
    every = load_texts(file, n=None)
    assert len(every) == 57
    assert every[0].startswith("text 0")
    assert every.source["empty"] == 3
    assert every.source["looked_at"] == 60


def test_short_texts_are_passed_over_in_characters_or_in_tokens(file):
    assert min(map(len, load_texts(file, n=None, min_length=20))) >= 20
    tokenizer = tiny_tokenizer()
    long = load_texts(file, n=None, min_length=15, tokenizer=tokenizer)
    assert min(len(tokenizer(text)["input_ids"]) for text in long) >= 15
    assert long.source["too_short"] == 57 - len(long) > 0


def test_every_file_form_gives_the_same_texts(tmp_path):
    texts = ["one", "two words", "a line\u2028separator", "drei"]
    rows = [{"text": text} for text in texts]
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    for ending in ("jsonl", "json", "jsonl.gz", "txt", "parquet"):
        assert load_texts(tmp_path / f"a.{ending}", n=None) == texts
    assert load_texts(str(tmp_path / "a.txt"), n=4, seed=1) == load_texts(tmp_path / "a.jsonl", n=4, seed=1)


def test_a_list_is_taken_as_it_is_and_sampled_when_longer():
    texts = [f"text {i}" for i in range(9)]
    assert load_texts(texts) == texts
    assert set(load_texts(texts, n=4)) < set(texts)


def test_the_demo_corpora_are_there():
    mixed = load_texts("demo", n=None)
    parts = [load_texts(f"demo-{name}", n=None) for name in DEMO_CORPORA]
    assert list(mixed) == [text for part in parts for text in part]
    assert len(load_texts()) == 128


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "c44"}, ["demo-stories", "wikitext2", "did you mean c4?"]),
        ({"name": "demo-story"}, ["did you mean demo-stories"]),
        ({"name": "nowhere/texts.jsonl"}, ["no such file", "texts.jsonl"]),
        ({"name": "demo", "n": 0}, ["n must be", "at least 1", "got 0"]),
        ({"name": "demo", "n": 2.0}, ["n must be", "2.0"]),
        ({"name": "demo-german", "n": 10**6}, ["n must be at most", "got 1000000"]),
        ({"name": ["good", "", "more"]}, ["number 1", "''"]),
        ({"name": ["good", None]}, ["number 1", "None"]),
        ({"name": []}, ["no usable row"]),
        ({"name": "c4", "n": None}, ["n must be a number", "c4"]),
        ({"name": "redpajama", "split": "validation"}, ["split must be 'train'"]),
        ({"name": "c4"}, ["allenai/c4", "location="]),
    ],
)
def test_bad_text_arguments_give_one_clear_line(arguments, words):
    with pytest.raises(ValueError) as error:
        load_texts(**arguments)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_bad_files_give_one_clear_line(tmp_path, file):
    with pytest.raises(ValueError, match=r"column must be one of text.*got 'body'"):
        load_texts(file, column="body")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"line 2 of .*a\.jsonl is not JSON"):
        load_texts(tmp_path / "a.jsonl")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(ValueError, match=r"must end in \.jsonl.*a\.docx"):
        load_texts(tmp_path / "a.docx")


# --- the hub, read from local copies of the same form ----------------------------------------------


def test_c4_is_read_as_a_stream_of_its_repository(tmp_path):
    for shard in range(3):
        rows = [{"text": f"doc {shard}-{i}", "timestamp": "2019", "url": "u"} for i in range(400)]
        data = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        path = tmp_path / "en" / f"c4-train.{shard:05}-of-00003.json.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n"
        "    path: en/c4-train.*.json.gz\n---\n"
    )
    texts = load_texts("c4", n=20, seed=0, location=tmp_path)
    assert len(set(texts)) == 20
    assert all(text.startswith("doc 0-") for text in texts)  # 160 of the first shard, the rest never read
    assert max(int(text.split("-")[1]) for text in texts) < 160
    assert texts == load_texts("c4", n=20, seed=0, location=tmp_path)
    assert texts != load_texts("c4", n=20, seed=1, location=tmp_path)
    # texts that pass rarely are looked for further on
    late = load_texts("c4", n=90, seed=0, min_length=9, location=tmp_path)
    assert len(set(late)) == 90
    with pytest.raises(ValueError, match="at most 1200 for c4"):
        load_texts("c4", n=5000, location=tmp_path)


def test_redpajama_mixes_its_domains_in_proportion(tmp_path):
    for domain, _ in CORPORA["redpajama"].files:
        name = domain.removesuffix("_sample.jsonl")
        # "meta" differs from row to row, as in the real files
        metas = [{"url": "x"}, {"timestamp": 1, "nested": {"a": [1]}}, "{'text': 1}"]
        rows = [{"text": f"{name} {i}", "meta": metas[i % 3]} for i in range(3000)]
        write_jsonl(tmp_path / domain, rows)
    texts = load_texts("redpajama", n=1000, seed=0, location=tmp_path)
    domains = Counter(text.split()[0] for text in texts)
    assert len(set(texts)) == 1000
    crawl = sum(count for name, count in domains.items() if name.startswith("cc_"))
    assert 670 < crawl < 780  # 3921 of 5413 MB
    assert 130 < domains["c4"] < 190


def test_wikitext_and_slimpajama_are_read_from_parquet(tmp_path):
    wiki = tmp_path / "wiki"
    (wiki / "wikitext-2-raw-v1").mkdir(parents=True)
    lines = ["", " = Title = \n", " A paragraph . \n"] * 50
    for split in ("train", "test"):
        path = wiki / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet"
        pd.DataFrame({"text": [line and f"{split}{line}{i}" for i, line in enumerate(lines)]}).to_parquet(
            path
        )
    (wiki / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n  - split: test\n"
        "    path: wikitext-2-raw-v1/test-*\n  - split: train\n    path: wikitext-2-raw-v1/train-*\n---\n"
    )
    every = load_texts("wikitext2", n=None, location=wiki)
    assert len(every) == 100
    assert every.source["empty"] == 50
    assert all(text.startswith("test") for text in load_texts("wikitext2", n=9, split="test", location=wiki))
    slim = tmp_path / "slim"
    (slim / "data").mkdir(parents=True)
    frame = pd.DataFrame(
        {"text": [f"doc {i}" for i in range(99)], "meta": [{"redpajama_set_name": "C4"}] * 99}
    )
    frame.to_parquet(slim / "data" / "train-00000-of-00001-ab2b35705f029d94.parquet")
    assert len(set(load_texts("slimpajama", n=12, location=slim))) == 12


def test_instruction_sets_are_read_from_their_repositories(tmp_path):
    gsm = tmp_path / "gsm"
    (gsm / "main").mkdir(parents=True)
    row = {"question": "How many?", "answer": "She has <<1+1=2>>2.\n#### 2"}
    pd.DataFrame([row] * 5).to_parquet(gsm / "main" / "train-00000-of-00001.parquet")
    (gsm / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n---\n"
    )
    frame = load_instructions("gsm8k", n=3, location=gsm)
    assert frame.loc[0, ["instruction", "context", "answer"]].tolist() == ["How many?", "", "2"]
    assert "<<1+1=2>>" in frame.loc[0, "reference"]
    alpaca = tmp_path / "alpaca"
    alpaca.mkdir()
    rows = [{"output": f"o{i}", "input": "" if i % 2 else "in", "instruction": f"do {i}"} for i in range(6)]
    (alpaca / "alpaca_data_cleaned.json").write_text(json.dumps(rows))
    frame = load_instructions("alpaca-cleaned", location=alpaca)
    assert frame["reference"].tolist() == [f"o{i}" for i in range(6)]
    assert frame["context"].tolist() == ["in", ""] * 3
    omi = {"question": "q", "expected_answer": "29", "generated_solution": r"\boxed{29}", "is_correct": True}
    write_jsonl(tmp_path / "omi" / "correct_solutions" / "train.jsonl", [omi] * 4)
    assert load_instructions("openmathinstruct", n=2, location=tmp_path / "omi")["answer"].tolist() == [
        "29",
        "29",
    ]
    other = load_instructions(
        "someone/set", columns={"instruction": "instruction", "reference": "output"}, location=alpaca
    )
    assert other["id"].tolist()[:2] == ["someone/set-0", "someone/set-1"]
    assert (other["context"] == "").all()


# --- instructions from files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("gsm8k_train", 7473),
        ("gsm8k_test", 1319),
        ("alpaca", 9225),
        ("dolly", 2996),
        ("sdft_alpaca_pairs", 2000),
        ("openmathinstruct1_rows", 1),
    ],
)
def test_real_sets_are_recognised_by_their_columns(shared_data, name, usable):
    frame = load_instructions(shared_data / f"{name}.jsonl")
    assert list(frame.columns) == FIELDS
    assert len(frame) == usable
    assert frame["id"].is_unique
    assert frame.notna().all().all()
    assert (frame["answer"] != "").all() == ("gsm8k" in name or "math" in name)
    if usable > 100:
        sample = load_instructions(shared_data / f"{name}.jsonl", n=100, seed=1)
        assert sample.merge(frame, how="inner").shape == (100, 5)  # ids are those of the whole set
        assert (
            load_instructions(shared_data / f"{name}.jsonl", n=30, seed=1)["id"].tolist()
            == sample["id"][:30].tolist()
        )


def test_real_calibration_texts(shared_data):
    wiki = load_texts(shared_data / "wikitext2_raw_test.jsonl", n=None)
    assert len(wiki) + wiki.source["empty"] == 4358
    assert len(load_texts(shared_data / "c4.jsonl", n=128, min_length=1000)) == 128
    assert len(load_texts(shared_data / "redpajama.jsonl", n=None)) == 318


def test_the_demo_sets_are_in_the_one_form():
    math, facts = load_instructions("demo-math"), load_instructions("demo-open", n=50)
    assert list(math.columns) == FIELDS
    assert (math["answer"] != "").all()
    assert (facts["answer"] == "").all()
    assert (facts["context"] != "").any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "gms8k"}, ["did you mean gsm8k", "alpaca-cleaned"]),
        ({"name": "demo-math", "n": 0}, ["n must be"]),
        ({"name": "demo-math", "n": 10**6}, ["n must be at most"]),
        ({"name": "openmathinstruct"}, ["n must be a number"]),
        ({"name": "a/b", "columns": {"instruction": "x", "reference": "y"}}, ["a/b", "hub"]),
    ],
)
def test_bad_instruction_arguments_give_one_clear_line(arguments, words):
    with pytest.raises(ValueError) as error:
        load_instructions(**arguments)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_other_forms_need_columns(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": f"q{i}", "a": f"a{i}", "key": i} for i in range(4)])
    with pytest.raises(ValueError, match=r"pass columns=.*which are q, a, key"):
        load_instructions(path)
    with pytest.raises(ValueError, match=r"columns must map fields.*which are q, a, key"):
        load_instructions(path, columns={"instruction": "q", "reference": "nothing"})
    with pytest.raises(ValueError, match="columns must map fields"):
        load_instructions(path, columns={"instruction": "q", "reference": "a", "other": "a"})
    frame = load_instructions(path, columns={"instruction": "q", "reference": "a", "id": "key"})
    assert frame["id"].tolist() == ["0", "1", "2", "3"]
    write_jsonl(path, [{"id": "x", "instruction": "i", "reference": "r"}] * 2)
    with pytest.raises(ValueError, match="'x' occurs twice"):
        load_instructions(path)


# --- the rest --------------------------------------------------------------------------------------


def test_a_fingerprint_follows_the_content():
    frame = pd.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]})
    assert fingerprint(frame) == fingerprint(frame.copy())
    assert fingerprint(frame) != fingerprint(frame.assign(b=[1.0, 3.0]))
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])
    assert fingerprint(["ab"]) != fingerprint(["a", "b"])
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1})
    with pytest.raises(ValueError):
        fingerprint(object())


def test_a_message_puts_the_context_above_the_instruction():
    assert user_message("Who?") == "Who?"
    assert user_message("Who?", "A tale.") == "A tale.\nWho?"


def test_data_needs_no_torch():
    code = "import sys, workbench; workbench.load_texts('demo', n=2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
