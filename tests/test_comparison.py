"""Behind each yes of the page that compares optimizers stands a test that fails without it."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "comparison.md").read_text(encoding="utf-8")
SHOWN_BY = {
    "several rollouts of one example are compared": (
        "worked_example::the_five_attempts_are_shown_to_extract_advantage_the_best_first"
    ),
    "feedback of the metric in words is read": (
        "reflection::the_feedback_of_a_group_is_that_of_its_worst_attempt"
    ),
    "scores other than 0 and 1": (
        "metric::every_kind_of_number_is_a_score_and_feedback_comes_with_it"
    ),
    "works without a metric": "optimizer::without_a_metric_it_warns_learns_and_measures_nothing",
    "feedback on each predictor (five-argument metric)": (
        "programs::a_lesson_lands_at_the_stage_that_a_five_argument_metric_blames"
    ),
    "all calls of an agent's predictor are shown": (
        "sampling::a_rollout_holds_outputs_score_and_every_predictor_call_in_order"
    ),
    "what each step did to the expected score is measured": (
        "credit::the_reflection_lm_reads_after_which_step_the_expected_score_changed"
    ),
    "learns single lines of advice, with ids": (
        "promise_stable_ids::ids_and_order_hold_through_every_update_of_a_run"
    ),
    "demos": "demos::good_rollouts_are_shown_by_the_result_where_they_help",
    "joint search over instructions and demos": (
        "demos::of_several_sets_of_demos_the_result_has_one_that_helps"
    ),
    "several objectives": "objectives::each_program_of_the_front_is_ready_to_use",
    "own prompts and modules for the reflection": (
        "reflection::a_module_may_have_an_adapter_and_a_prompt_of_its_own"
    ),
    "learns from recorded traces, without running them": (
        "promise_resume::traces_are_learned_from_without_running_the_program"
    ),
    "goes on from what was learned before": (
        "promise_stable_ids::a_second_run_takes_up_the_ids_where_the_first_left_them"
    ),
    "result compared with the student on validation examples": (
        "promise_never_worse::"
        "the_program_scores_more_than_the_student_on_what_both_were_measured_or_it_is_the_student"
    ),
    "estimated effect of each experience, with its error": (
        "gate::an_effect_is_what_the_model_says_by_its_definition"
    ),
    "student and result measured on a test set": (
        "final_choice::the_test_set_is_measured_when_all_else_is_done_and_changes_nothing"
    ),
    "advice that copies a training example is refused": (
        "reflection::a_lesson_that_copies_an_example_is_refused_with_the_words_that_it_copies"
    ),
    "a person approves each update": (
        "events::what_is_rejected_is_not_made_and_the_update_says_so"
    ),
    "limit on metric calls": (
        "promise_budgets::the_last_metric_call_of_a_budget_is_made_and_none_after_it"
    ),
    "limits on LM calls, dollars": (
        "promise_budgets::no_budget_is_ever_exceeded_whatever_the_program_does"
    ),
    "limit on minutes": (
        "promise_interrupts::the_clock_ends_the_run_though_a_call_hangs_for_minutes"
    ),
    "stops by a file or a score": (
        "objectives::a_target_score_ends_the_training_once_ten_groups_have_it"
    ),
    '`auto="light"` and others': (
        "schedule_derived::auto_is_a_number_of_lm_calls_that_fits_the_data_where_none_is_given"
    ),
    "plan before the run, with dollars": (
        "promise_budgets::the_estimate_has_dollars_where_prices_are_known_and_counts_the_test_set"
    ),
    "rollouts of the next update run during the reflection": (
        "promise_pipelining::rollouts_of_the_next_update_run_while_that_before_them_is_written"
    ),
    "any executor: processes, dask": (
        "executors::any_executor_gives_what_our_threads_give_down_to_the_records"
    ),
    "time limit for a rollout": (
        "promise_interrupts::a_rollout_that_hangs_costs_itself_only_and_is_not_started_again"
    ),
    "async programs": (
        "programs::a_program_that_has_aforward_only_or_an_async_forward_is_optimized"
    ),
    "async metrics": ("dspy_contract::it_runs_inside_an_event_loop_with_an_async_metric"),
    "images for the reflection LM": (
        "programs::a_reflection_lm_that_takes_images_is_shown_those_of_the_example"
    ),
    "continues after a kill": (
        "promise_kill::"
        "a_run_that_is_killed_again_and_again_repeats_nothing_recorded_and_ends_the_same"
    ),
    "a finished run goes on with a larger budget": (
        "continuing::a_larger_budget_goes_on_from_the_end_of_a_finished_run"
    ),
    "notices changed data, metric or program": (
        "run_identity::offline_names_the_part_in_which_the_recorded_run_differs"
    ),
    "replay without a call": (
        "promise_resume::the_same_compile_again_makes_no_call_and_gives_the_same"
    ),
    "same seed and answers, same result, for any threads": (
        "promise_pipelining::any_threads_and_latencies_give_the_same_bit_for_bit"
    ),
    "one failed rollout or answer costs only itself": (
        "promise_one_fault::a_fault_costs_its_own_rollouts_only_and_is_counted_and_logged_once"
    ),
    "Ctrl-C hands the best program over": (
        "events::ctrl_c_hands_the_best_program_back_on_the_exception"
    ),
    "events for a function of yours": (
        "events::a_listener_is_told_of_changes_updates_and_the_budget_in_order_and_of_the_end"
    ),
    "MLflow": "mlflow::each_update_is_a_step_of_the_metrics",
    "prompts of MLflow's registry": (
        "mlflow_prompts::a_text_prompt_gets_the_advice_that_made_the_function_better"
    ),
    "all rollouts and reflections as tables": (
        "cli::every_rollout_of_the_updates_and_of_the_choice_is_a_row"
    ),
    "report in HTML": "report::the_report_says_what_the_results_say",
    "why each line was learned: rollouts and scores": (
        "events::an_update_records_the_best_and_the_worst_rollout_behind_a_new_experience"
    ),
    "table in a notebook": (
        "results::the_repr_is_one_line_and_the_page_of_a_notebook_escapes_every_text"
    ),
    "result runs without this package": (
        "promise_plain_program::"
        "saved_programs_run_in_an_interpreter_where_this_package_is_not_installed"
    ),
    "library as Markdown, SKILL.md": ("interchange::a_round_trip_keeps_what_the_format_can_hold"),
    "command line": "cli::show_has_the_effects_of_a_run_and_of_a_library_file",
    "step of BetterTogether": "together::it_is_a_step_of_better_together_in_any_order",
}
"""By the name of a capability, the file and the name of a test."""


def claims() -> dict[str, str]:
    """What the page says of this package where it is yes or part, by capability."""
    rows = (line.split("|") for line in PAGE.splitlines() if line.startswith("| "))
    found = {row[1].strip(): row[2].strip() for row in rows}
    return {name: here for name, here in found.items() if re.match(r"\[?(?:yes|part)\b", here)}


def test_each_yes_has_a_test_and_each_test_a_yes() -> None:
    assert sorted(claims()) == sorted(SHOWN_BY)


@pytest.mark.parametrize("name", SHOWN_BY)
def test_the_page_leads_to_the_file_of_a_test_that_is_there(name: str) -> None:
    file, _, test = SHOWN_BY[name].partition("::")
    assert f"(../tests/test_{file}.py)" in claims()[name]
    parsed = ast.parse((TESTS / f"test_{file}.py").read_text(encoding="utf-8"))
    names = [node.name for node in ast.walk(parsed) if isinstance(node, ast.FunctionDef)]
    assert f"test_{test}" in names
