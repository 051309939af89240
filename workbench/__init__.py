"""Remove layers from language models, look before you cut, and win the quality back.

Every public name below is importable from ``workbench`` itself. The modules behind them load on first use
(torch, transformers and peft take seconds to import; ``import workbench`` takes milliseconds).
"""

from __future__ import annotations

from importlib import import_module
from inspect import isfunction
from typing import Any

__version__ = "0.2.0"

#: the public names, by the file that defines them
_PUBLIC = {
    "defaults": "fitting work_ahead story_model preset_parameters",
    "models.chat": "render_chat",
    "models.costs": "parameter_counts block_savings",
    "models.identity": "describe_model",
    "models.layers": "decoder_layers number_of_layers kept_layers",
    "models.loading": "load_model",
    "data.answers": "final_answer",
    "data.export": "export_chat",
    "data.labels": "named_sets",
    "data.quantities": "same_number",
    "data.instructions": "load_instructions user_message conversation",
    "data.texts": "load_texts fingerprint",
    "distances.angular": "angular_distances block_angles",
    "distances.blocks": "best_blocks layers_of format_layers",
    "distances.strategies": "deepest_blocks shallowest_blocks random_layers greedy_layers removal_strategies",
    "distances.damage": "block_damage least_harmful",
    "distances.influence": "block_influence removal_similarity last_states",
    "distances.stability": "mean_distances pick_stability calibration_ablation",
    "pruning.removal": "without_layers prune_ check_prunable",
    "pruning.collapse": "collapsed_layers collapse_",
    "pruning.saving": "save_pruned",
    "generation.prompts": "chat_prompt response_room",
    "generation.responses": "generate_responses respond",
    "healing.adapters": "with_adapter as_variant merge_adapter_ lora_targets",
    "healing.config": "HealingConfig",
    "healing.distillation": "self_distill RewriteTemplate rewrite_template rewrite_message kept_shares",
    "healing.heal": "Healed heal",
    "healing.launch": "plan_training launch_command run_plan",
    "healing.losses": "response_loss",
    "healing.search": "tune read_trials SDD_GRID",
    "evaluation.contamination": "check_contamination contamination_summary evaluation_prompts",
    "evaluation.depth": "scores_by_depth at_fractions",
    "evaluation.evaluate": "evaluate",
    "evaluation.items": "read_items paired_items compare_items flips flip_counts flip_examples",
    "evaluation.perplexity": "perplexity corpus_perplexity",
    "evaluation.recovery": "average_recovery",
    "evaluation.scores": "headline blimp_groups score_spread category_scores task_categories",
    "evaluation.tasks": "task_fingerprint",
    "evaluation.variants": "evaluate_variants Evaluated shot_ablation seed_ablation",
    "recovery.recover": "recover carry_adapter",
    "recovery.iterate": "iterate read_iterations recovery_log iteration_variants removal_order",
    "recovery.phases": "phase_scores phase_change",
    "recovery.states": "state_scores",
    "recovery.baselines": "choose_layers shortgpt_layers laco laco_for Collapse",
    "forgetting.changes": ("response_changes change_summary farthest_responses embedding_map"),
    "forgetting.shift": "loss_against_similarity shift_agreement",
    "forgetting.divergence": "token_divergence divergence_by_response",
    "forgetting.similarity": "response_similarity similarity_summary embed_texts",
    "merging.slerp": "slerp",
    "merging.variants": "merge_variants",
    "merging.gain": "merge_gain",
    "speculation.acceptance": "draft_rounds acceptance acceptance_by_position",
    "speculation.compare": "compare_drafts",
    "speculation.rule": "tokens_per_call theory_speed_up",
    "speculation.speed": "draft_speed speed_ups",
    "speculation.views": "draft_view early_exit",
    "statistics": "bootstrap_interval paired_difference holm",
    "agreement": "rank_agreement removal_cost",
    "plots.blocks": "distance_lines metric_comparison distance_vs_damage calibration_comparison",
    "plots.drafts": "acceptance_by_length acceptance_by_place speed_against_theory",
    "plots.merging": "merging_path",
    "plots.forgetting": (
        "similarity_distribution similarity_pairs similarity_map answer_forms divergence_distribution "
        "loss_similarity"
    ),
    "plots.healing": "tuning_figure kept_reasons loss_curve",
    "plots.heatmaps": "distance_heatmap damage_heatmap distance_beside_damage",
    "plots.portfolio": "paper_figures",
    "plots.scores": "score_bars score_vs_fraction loss_vs_fraction category_bars flip_bars",
    "plots.recovery": "stack_over_iterations loss_terms recovery_progress phase_lines phase_changes",
    "plots.style": "use_template",
    "plots.tokens": "token_view",
    "tables.layouts": "summary_table training_table",
    "tables.sdd": "recovery_table calibration_table variant_notes sdd_table",
    "tables.iterabre": "iterabre_table direct_iterative_table multilingual_table",
    "tables.recovery": "iteration_reading recovery_gain_reading methods_reading",
    "tables.readings": (
        "about block_reading end_token_reading end_point_reading stability_reading agreement_reading "
        "damage_reading choice_reading look_reading looks_reading distillation_reading tuning_reading"
    ),
    "tables.findings": ("summary_reading recovery_reading comparison_reading flips_reading depth_reading"),
    "tables.claims": "claims_table claims_reading claim_frames",
    "tables.shifts": "similarity_reading closest_reading divergence_reading shift_reading",
    "tables.drafts": "merging_reading drafts_reading speed_reading",
    "tables.sentences": "say",
    "tables.markup": "text_table to_latex to_markdown to_html",
    "widgets.live": "LiveLoss",
    "widgets.look": "looking",
    "widgets.recovery": "LiveRecovery",
    "widgets.picker": "BlockPicker",
    "runs.figures": "save_figure",
    "runs.run": "open_run Run",
    "runs.variant": "Variant",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    value = getattr(import_module(f"workbench.{_MODULE_OF[name]}"), name)
    if isfunction(value):
        value = import_module("workbench.arguments").looked_at(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, so that completion works before they are loaded."""
    return [*globals(), *__all__]
