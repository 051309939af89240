"""Remove layers from language models, look before you cut, and win the quality back.

Every public name below is importable from ``workbench`` itself. The modules behind them load on first use
(torch, transformers and peft take seconds to import; ``import workbench`` takes milliseconds).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "models": (
        "load_model",
        "describe_model",
        "decoder_layers",
        "number_of_layers",
        "parameter_counts",
        "block_savings",
    ),
    "data": ("load_texts", "load_instructions", "user_message", "fingerprint"),
    "distances": (
        "angular_distances",
        "block_angles",
        "block_influence",
        "removal_similarity",
        "block_damage",
    ),
    "calibration": ("mean_distances", "pick_stability", "calibration_ablation"),
    "blocks": (
        "best_blocks",
        "deepest_blocks",
        "shallowest_blocks",
        "random_layers",
        "greedy_layers",
        "removal_strategies",
        "layers_of",
        "format_layers",
    ),
    "statistics": ("bootstrap_interval", "paired_difference", "rank_agreement", "removal_cost"),
    "pruning": ("without_layers", "prune_", "save_pruned", "kept_layers", "check_prunable"),
    "generation": ("generate_responses", "chat_prompt"),
    "distillation": (
        "self_distill",
        "RewriteTemplate",
        "rewrite_template",
        "rewrite_message",
        "kept_shares",
        "final_answer",
        "same_number",
    ),
    "contamination": ("check_contamination", "contamination_summary", "evaluation_prompts"),
    "healing": ("HealingConfig", "Healed", "heal", "with_adapter", "as_variant", "merge_adapter_"),
    "adapters": ("lora_targets",),
    "losses": ("response_loss",),
    "tuning": ("tune", "read_trials", "SDD_GRID"),
    "launch": ("plan_training", "launch_command", "run_plan"),
    "training_plots": ("LiveLoss", "tuning_figure"),
    "evaluation": (
        "evaluate",
        "perplexity",
        "recovery",
        "headline",
        "read_items",
        "paired_items",
        "compare_items",
        "flips",
        "blimp_groups",
        "score_spread",
    ),
    "variants": ("evaluate_variants", "Evaluated"),
    "ablations": ("shot_ablation", "seed_ablation"),
    "corpora": ("corpus_perplexity",),
    "tasks": ("task_fingerprint",),
    "similarity": ("response_similarity", "similarity_summary", "embed_texts"),
    "shift": (
        "response_changes",
        "change_summary",
        "farthest_responses",
        "embedding_map",
        "loss_against_similarity",
        "shift_agreement",
    ),
    "divergence": ("token_divergence", "divergence_by_response"),
    "tokens": ("token_view",),
    "outcomes": ("scores_by_depth", "at_fractions", "category_scores", "flip_counts"),
    "plots": (
        "distance_heatmap",
        "damage_heatmap",
        "distance_beside_damage",
        "distance_lines",
        "metric_comparison",
        "distance_vs_damage",
        "calibration_comparison",
        "kept_reasons",
        "loss_curve",
        "score_bars",
        "score_vs_fraction",
        "loss_vs_fraction",
        "category_bars",
        "flip_bars",
        "similarity_distribution",
        "similarity_pairs",
        "similarity_map",
        "answer_forms",
        "divergence_distribution",
        "loss_similarity",
        "save_figure",
        "use_template",
    ),
    "tables": (
        "text_table",
        "recovery_table",
        "summary_table",
        "calibration_table",
        "to_latex",
        "to_markdown",
        "to_html",
    ),
    "paper_tables": ("variant_notes", "sdd_table", "iterabre_table", "direct_iterative_table"),
    "widgets": ("BlockPicker",),
    "look": ("looking",),
    "runs": ("open_run", "Run", "Variant"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    value = getattr(import_module(f"workbench.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, so that completion works before they are loaded."""
    return [*globals(), *__all__]
