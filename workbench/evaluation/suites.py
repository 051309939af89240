"""Which benchmarks the papers report, as data: suites, categories, groups, and public sets saved as jsonl."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """A paper's tasks and groups with their n_shot (None: the task's own), its source, its context length."""

    tasks: tuple[tuple[str, int | None], ...]
    source: str
    max_length: int | None = None


_ITERABRE = (
    *("arc_challenge", "arc_easy", "hellaswag", "copa", "piqa", "blimp", "race", "winogrande", "boolq"),
    *("mmlu", "wikitext"),
)

#: The papers' suites. ``evaluate(model, tokenizer, "sdd")`` runs one.
SUITES: dict[str, Suite] = {
    "sdd": Suite((("arc_challenge", 25), ("gsm8k", 5), ("mmlu", 5)), "SDD table 8"),
    "openllm-v1": Suite(
        (
            *(("arc_challenge", 25), ("hellaswag", 10), ("mmlu", 5)),
            *(("truthfulqa_mc2", 0), ("winogrande", 5), ("gsm8k", 5)),
        ),
        "SDD 4, OpenLLM Leaderboard v1",
    ),
    "gro": Suite((("mmlu", 0), ("mmlu", 5), ("boolq", 0)), "GRO figures 2 and 7"),
    # GRO C.5 states no number of examples for HellaSwag and GSM8K: 0, and the harness's own 5 and 4
    "gro-c5": Suite(
        (
            *(("hellaswag", 0), ("boolq", 0), ("gsm8k", None)),
            *(("scrolls_qmsum", 0), ("mmlu_flan_cot_fewshot", None)),
        ),
        "GRO C.5, figures 6 and 12",
    ),
    "iterabre": Suite(tuple((name, 0) for name in _ITERABRE), "ITR table 1", max_length=1024),
    "iterabre-multilingual": Suite(
        (("xwinograd", 0), ("xstorycloze", 0), ("xnli", 0)), "ITR table 3", max_length=1024
    ),
}


#: What a task asks for, as ITR groups its benchmarks; a task file may say it itself (``metadata: category``).
CATEGORIES = {
    **dict.fromkeys(("arc_challenge", "arc_easy", "hellaswag", "copa", "piqa", "gsm8k"), "reasoning"),
    **dict.fromkeys(("blimp", "race", "winogrande", "wikitext"), "language"),
    **dict.fromkeys(("scrolls_qmsum", "c4"), "language"),
    **dict.fromkeys(("boolq", "mmlu", "truthfulqa_mc2"), "knowledge"),
    **dict.fromkeys(("mmlu_flan_cot_zeroshot", "mmlu_flan_cot_fewshot"), "knowledge"),
    **dict.fromkeys(("xwinograd", "xstorycloze", "xnli"), "multilingual"),
}


@dataclass(frozen=True)
class LocalSet:
    """A public set saved as jsonl, and the packaged tasks that read it, prompt and filters unchanged.

    Attributes:
        packaged: task file in the harness, or folder of task files that share the set (with their groups).
        files: jsonl file of each split. The last split is scored (``needed``); files of the others, which
            hold few-shot examples, may be missing.
        columns: what every row must have, by name.
        part: column that says which task of the folder a row belongs to; "" for a set of one task.
        form: how rows come to the form that the packaged task reads (``offline.FORMS``); "" as they are.
    """

    packaged: str
    files: dict[str, str]
    columns: str
    part: str = ""
    form: str = ""

    @property
    def needed(self) -> str:
        """The split that is scored."""
        return list(self.files)[-1]


def _splits(name: str, *splits: str) -> dict[str, str]:
    return {split: f"{name}_{split}.jsonl" for split in splits}


_ARC = "question choices answerKey"
_MMLU = "question subject choices answer"
_STORY = "language sentence_quiz1 sentence_quiz2 answer_right_ending "
_STORY += "input_sentence_1 input_sentence_2 input_sentence_3 input_sentence_4"

#: Packaged tasks and groups that also run on jsonl files in the folder ``data``, without a network.
LOCAL_SETS: dict[str, LocalSet] = {
    "gsm8k": LocalSet("gsm8k/gsm8k.yaml", _splits("gsm8k", "train", "test"), "question answer"),
    "arc_easy": LocalSet("arc/arc_easy.yaml", _splits("arc_easy", "train", "validation", "test"), _ARC),
    "arc_challenge": LocalSet(
        "arc/arc_challenge.yaml", _splits("arc_challenge", "train", "validation", "test"), _ARC
    ),
    "mmlu": LocalSet("mmlu/default", _splits("mmlu", "dev", "test"), _MMLU, part="subject"),
    # the harness asks the zero-shot form on the validation split and the few-shot form on the test split
    "mmlu_flan_cot_zeroshot": LocalSet(
        "mmlu/flan_cot_zeroshot", _splits("mmlu", "dev", "validation"), _MMLU, part="subject"
    ),
    "mmlu_flan_cot_fewshot": LocalSet(
        "mmlu/flan_cot_fewshot", _splits("mmlu", "validation", "test"), _MMLU, part="subject"
    ),
    "boolq": LocalSet(
        "super_glue/boolq/default.yaml",
        _splits("boolq", "train", "validation"),
        "question passage",
        form="boolq",
    ),
    "hellaswag": LocalSet(
        "hellaswag/hellaswag.yaml",
        {"train": "hellaswag_train.jsonl", "validation": "hellaswag.jsonl"},
        "activity_label ctx_a ctx_b endings label",
    ),
    "piqa": LocalSet("piqa/piqa.yaml", _splits("piqa", "train", "validation"), "goal sol1 sol2 label"),
    "copa": LocalSet(
        "super_glue/copa/default.yaml",
        _splits("copa", "train", "validation"),
        "premise choice1 choice2 question label",
    ),
    "winogrande": LocalSet(
        "winogrande/default.yaml",
        _splits("winogrande_xl", "train", "validation"),
        "sentence option1 option2 answer",
    ),
    # a pair of equal sentences is a tie, which goes to the first choice, the good one: it counts as right
    "blimp": LocalSet("blimp", {"train": "blimp.jsonl"}, "sentence_good sentence_bad UID", part="UID"),
    # the packaged task takes the "high" articles, and answers all questions of one but the last in its prompt
    "race": LocalSet(
        "race/race.yaml", {"test": "race.jsonl"}, "example_id article question options answer", form="race"
    ),
    "xwinograd": LocalSet(
        "xwinograd", {"test": "xwinograd.jsonl"}, "language sentence option1 option2 answer", part="language"
    ),
    # the harness asks 15 languages; rows in another one, such as Burmese, belong to no task and are not read
    "xnli": LocalSet(
        "xnli", _splits("xnli", "train", "validation"), "language premise hypothesis label", part="language"
    ),
    "xstorycloze": LocalSet("xstorycloze", _splits("xstorycloze", "train", "eval"), _STORY, part="language"),
    "truthfulqa_mc2": LocalSet(
        "truthfulqa/truthfulqa_mc2.yaml",
        _splits("truthfulqa", "validation"),
        "question mc1_targets mc2_targets",
    ),
    "wikitext": LocalSet(
        "wikitext/wikitext.yaml", {"test": "wikitext2_raw_test.jsonl"}, "text", form="wikitext"
    ),
    "scrolls_qmsum": LocalSet(
        "scrolls/scrolls_qmsum.yaml", _splits("qmsum", "validation"), "id input output", form="qmsum"
    ),
}

#: ITR appendix C (tables 4 to 7): 65 of the 67 BLiMP paradigms in 13 groups, without the prefix ``blimp_``.
BLIMP_GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(names.split())
    for group, names in {
        "agreement": """
            regular_plural_subject_verb_agreement_1 regular_plural_subject_verb_agreement_2
            irregular_plural_subject_verb_agreement_1 irregular_plural_subject_verb_agreement_2
            determiner_noun_agreement_1 determiner_noun_agreement_2 determiner_noun_agreement_irregular_1
            determiner_noun_agreement_irregular_2 determiner_noun_agreement_with_adj_2
            determiner_noun_agreement_with_adj_irregular_1 determiner_noun_agreement_with_adj_irregular_2
            determiner_noun_agreement_with_adjective_1 anaphor_gender_agreement anaphor_number_agreement
        """,
        "distractor_agreement": "distractor_agreement_relational_noun distractor_agreement_relative_clause",
        "island_constraints": """
            wh_island complex_NP_island adjunct_island sentential_subject_island
            left_branch_island_echo_question left_branch_island_simple_question
        """,
        "movement_extraction": """
            wh_questions_object_gap wh_questions_subject_gap wh_questions_subject_gap_long_distance
            coordinate_structure_constraint_object_extraction existential_there_subject_raising
            existential_there_object_raising expletive_it_object_raising
        """,
        "wh_that": """
            wh_vs_that_no_gap wh_vs_that_no_gap_long_distance wh_vs_that_with_gap
            wh_vs_that_with_gap_long_distance
        """,
        "passive_causative": "passive_1 passive_2 animate_subject_passive causative",
        "transitivity": "transitive intransitive inchoative animate_subject_trans",
        "irregular_forms": "irregular_past_participle_adjectives irregular_past_participle_verbs",
        "negation_npi": """
            npi_present_1 npi_present_2 only_npi_licensor_present only_npi_scope
            sentential_negation_npi_licensor_present sentential_negation_npi_scope
            matrix_question_npi_licensor_present
        """,
        "quantifiers": """
            superlative_quantifiers_1 superlative_quantifiers_2 existential_there_quantifiers_1
            existential_there_quantifiers_2
        """,
        "binding_theory": """
            principle_A_c_command principle_A_case_1 principle_A_case_2 principle_A_domain_1
            principle_A_domain_2 principle_A_domain_3 principle_A_reconstruction
        """,
        "ellipsis_argument": "ellipsis_n_bar_1 ellipsis_n_bar_2 drop_argument",
        "coordinate_structures": "coordinate_structure_constraint_complex_left_branch",
    }.items()
}
