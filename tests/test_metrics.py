"""The ready metrics: which answers are the same, what the feedback says, and hostile input."""

import inspect
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.errors import MetricError, SettingsError
from tfgrpo_dspy.metrics import (
    exact_match,
    is_equivalent,
    math_equivalent,
    normalize_text,
    normalized_match,
)
from tfgrpo_dspy.metrics.mathematics import compare

EQUAL = [
    # numbers
    ("7", "7.0"),
    ("0.5", ".5"),
    ("1,234", "1234"),
    ("1,234,567.50", "1234567.5"),
    ("10{,}000", "10000"),
    (r"10\,000", "10000"),
    (r"11,\! 111,\! 111", "11111111"),
    ("007", "7"),
    ("-3", "\N{MINUS SIGN}3"),
    ("+3", "3"),
    ("1e3", "1000"),
    ("1.5E-2", "0.015"),
    ("\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT TWO}", "12"),
    ("3 million", "3,000,000"),
    (r"0.\overline{3}", "1/3"),
    (r"0.1\overline{6}", "1/6"),
    # fractions
    ("0.5", "1/2"),
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac{3}{4}", r"\tfrac34"),
    (r"\frac12", "1/2"),
    (r"\frac1{72}", "1/72"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    ("½", "0.5"),
    ("2/4", "1/2"),
    ("1 1/2", "1.5"),
    (r"1\frac{1}{2}", "3/2"),
    (r"-1\frac12", "-1.5"),
    ("1½", "3/2"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"\frac{1,234}{2}", "617"),
    # a decimal for a value that no decimal can state
    ("0.333", "1/3"),
    ("0.667", "2/3"),
    ("0.6667", "2/3"),
    ("3.14", r"\pi"),
    ("1.414", r"\sqrt{2}"),
    ("-1.41", r"-\sqrt2"),
    ("33.3%", "1/3"),
    # percent, degrees, units, currency
    ("50%", "0.5"),
    (r"50\%", "1/2"),
    ("50%", "50"),
    ("50 percent", "50%"),
    ("90°", "90"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90 degrees"),
    (r"180^\circ", r"\pi"),
    (r"\sin(30^\circ)", "1/2"),
    ("5 cm", "5"),
    ("5cm", "5 centimeters"),
    (r"5\text{ cm}", "5"),
    (r"5\,\mathrm{m}^2", "5"),
    ("12 apples", "12"),
    ("5 men", "5"),
    ("5 sec", "5 seconds"),
    ("25°C", "25"),
    ("5 dozen", "60"),
    ("60 km/h", "60"),
    ("$12", "12"),
    (r"\$12", "12 dollars"),
    ("$1,234.50", "1234.5"),
    ("-$5", "-5"),
    ("$3 million", "3000000"),
    # wrapping
    ("$12$", "12"),
    (r"\(x+1\)", "x+1"),
    ("12.", "12"),
    ("**12**", "12"),
    ("The answer is 12.", "12"),
    ("Answer: 12", "12"),
    ("= 12", "12"),
    ("6 + 6 = 12\n#### 12", "12"),
    (r"\boxed{12}", "12"),
    (r"\boxed{12", "12"),
    ("$x$ = $12$", "12"),
    (r"So it is \boxed{\frac{1}{2}}.", "0.5"),
    (r"\boxed{1} or rather \boxed{\sqrt{4}}", "2"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{\{1,2\}}", r"\{2,1\}"),
    (r"\text{5 cm}", "5"),
    # roots, powers, constants, functions
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\sqrt{2}", "2^{1/2}"),
    (r"\sqrt[3]{8}", "2"),
    (r"\sqrt[3]{-8}", "-2"),
    ("√16", "4"),
    ("sqrt(2)/2", r"\frac{1}{\sqrt2}"),
    (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
    ("2**10", "1024"),
    ("2^{10}", "1024"),
    ("x²", "x^2"),
    ("8^{2/3}", "4"),
    ("2^{-3}", "1/8"),
    ("2^3^2", "512"),
    ("-2^2", "-4"),
    ("2π", r"2\pi"),
    (r"3 \cdot 4", "12"),
    (r"3 \times 4", "3*4"),
    ("3\N{MULTIPLICATION SIGN}4", "12"),
    (r"6 \div 4", "1.5"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"e^{i\pi}", "-1"),
    (r"\sqrt{-4}", "2i"),
    ("i^2", "-1"),
    (r"\ln e^2", "2"),
    (r"\log_2 8", "3"),
    ("log2(8)", "3"),
    (r"\log_{10} 100", "2"),
    (r"\cos\frac{\pi}{3}", "1/2"),
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"2 \sin x \cos x", r"\sin 2x"),
    (r"\sin^{-1} x", r"\arcsin x"),
    ("|\N{MINUS SIGN}3|", "3"),
    (r"\lfloor 2.7 \rfloor", "2"),
    # variables
    ("2x+2", "2(x+1)"),
    ("2x + 2", r"2\left(x+1\right)"),
    ("(x+1)^2", "x^2+2x+1"),
    ("(x-1)(x+1)", "x^2-1"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("ab+ac", "a(b+c)"),
    ("2ab", "2ba"),
    (r"\sqrt{x^2}", "|x|"),
    (r"\sqrt{x}\sqrt{y}", r"\sqrt{xy}"),
    (r"\alpha + \beta", "β + \N{GREEK SMALL LETTER ALPHA}"),
    ("x_1 + x_2", "x_{2} + x_{1}"),
    ("a^2-b^2", "(a+b)(a-b)"),
    ("e^x e^y", "e^{x+y}"),
    ("n!", r"n \cdot (n-1)!"),
    # equations, inequalities
    ("x = 5", "5"),
    ("5 = x", "x=5"),
    ("x = 5 cm", "5"),
    ("f(x) = 2x + 1", "1 + 2x"),
    ("2 + 3 = 5", "5"),
    ("y = 2x + 1", "2x - y + 1 = 0"),
    ("x^2+y^2=1", "2x^2+2y^2=2"),
    ("x = 1, y = 2", "y = 2, x = 1"),
    ("x > 5", "5 < x"),
    ("2x > 10", "x > 5"),
    ("x > 5", r"(5, \infty)"),
    (r"0 \le x < 1", "[0,1)"),
    (r"x \in [0,1)", "[0, 1)"),
    (r"x \neq 0", r"(-\infty,0) \cup (0,\infty)"),
    ("x < 1 or x > 3", r"(-\infty,1)\cup(3,\infty)"),
    # sets, lists, tuples, intervals
    ("{1,2}", "{2,1}"),
    (r"\{1,2\}", "{2, 1, 1}"),
    (r"\{1,2\}", "1, 2"),
    (r"\{5\}", "5"),
    (r"\{\frac12, 3\}", "{3, 0.5}"),
    (r"\emptyset", r"\{\}"),
    ("1, 2, 3", "3, 2, 1"),
    ("1 and 2", "2, 1"),
    ("1, 2, and 3", "1, 2, 3"),
    ("(1,2)", "(1, 2)"),
    ("(1,2)", "1,2"),
    (r"\left(\frac12, 3\right)", "(0.5, 3)"),
    ("(1,200)", "(1, 200)"),
    ("[0,1)", "[0, 1)"),
    (r"(-\infty, 3]", "(-∞,3]"),
    (r"[0,1] \cup [1,2]", "[0,2]"),
    ("(1,2)U(3,4)", r"(3,4) \cup (1,2)"),
    (r"\{1\} \cup (0,-\infty)", r"\{1\}"),
    (r"\mathbb{R}", r"(-\infty,\infty)"),
    (r"\mathbb{R} \setminus \{0\}", r"(-\infty,0)\cup(0,\infty)"),
    (r"\pm 5", "{5, -5}"),
    (r"x = \pm 5", "5, -5"),
    (r"2 \pm \sqrt{3}", r"\{2+\sqrt{3}, 2-\sqrt{3}\}"),
    (r"\pm 2 \mp 1", "1, -1"),
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\begin{bmatrix}1&2\\3&\frac{8}{2}\end{bmatrix}",
    ),
    # infinity
    (r"\infty", "infinity"),
    (r"-\infty", "-∞"),
    # letters and words
    ("(A)", "A"),
    (r"\text{(B)}", "B."),
    ("(c)", "C"),
    ("No solution.", "no solution"),
    (r"\text{Yes}", "yes"),
    ("Paris (France)", "paris france"),
    (r"\text{east}", "East"),
    ("101_{2}", "101_2"),
    ("3 : 2", "3:2"),
    # beyond every limit, but written alike
    ("9^{9^{9^9}}", "9^{9^{9^{9}}}"),
    (r"10^{10^{10}} ", r"10^{10^{10}}"),
]

UNEQUAL = [
    ("12", "21"),
    ("1/2", "0.55"),
    ("-5", "5"),
    ("1.5", "15"),
    ("1,234", "1.234"),
    ("1 2", "12"),
    ("5!", "5"),
    ("3 million", "3"),
    ("2 thirds", "2"),
    ("5 more than x", "5"),
    # decimals are exact unless nothing else can be written
    ("0.33", "1/3"),
    ("0.334", "1/3"),
    ("0.666", "2/3"),
    ("0.3", "1/3"),
    ("3.1", r"\pi"),
    ("3.15", r"\pi"),
    ("0.13", "1/8"),
    ("0.0156", "1/64"),
    ("3.14", "3.14159"),
    ("100.0", "99.96"),
    ("333", "1000/3"),
    ("0.333x", "x/3"),
    # percent, units
    ("50%", "5000%"),
    ("50%", "0.05"),
    ("50%", "5"),
    ("50%", "50°"),
    ("30%", "40"),
    ("5 km", "5 meters"),
    ("5 cm^2", "5 cm"),
    ("$12", "12 cents"),
    ("$5", "€5"),
    ("5x", "5"),
    ("12 apples", "13"),
    ("30°", "60°"),
    ("25°C", "25°F"),
    # powers, roots
    (r"\sqrt{2}", r"\sqrt{3}"),
    (r"\sqrt{2}", "2"),
    ("2^10", "210"),
    ("-2^2", "(-2)^2 + 1"),
    (r"\sqrt[3]{8}", r"3\sqrt{8}"),
    (r"e^{\pi\sqrt{163}}", "262537412640768744"),
    ("2^{100}", "2^{100}+1"),
    ("2^{5000}", "2^{5000}+1"),
    (r"10^{400}\sqrt{2}", r"10^{400}\sqrt{2}+1"),
    (r"\frac{1}{0}", r"\frac{2}{0}"),
    (r"\frac{1}{\sqrt2\sqrt2-2}", r"\frac{1}{\sqrt2\sqrt2-2}+1"),
    (r"\lfloor \sqrt2\sqrt2 \rfloor", "1"),
    # variables
    ("x+1", "x-1"),
    ("x", "y"),
    ("2x", "x^2"),
    ("xy", "x+y"),
    ("x", "-x"),
    (r"\sqrt{x^2}", "x"),
    ("x_1", "x_2"),
    ("\N{GREEK SMALL LETTER ALPHA}", "a"),
    ("\N{CYRILLIC SMALL LETTER A}", "a"),
    ("2\N{CYRILLIC SMALL LETTER A}", "2a"),
    (r"\sin x", r"\cos x"),
    (r"\sin 2x", r"2 \sin x"),
    ("1/2x", "1/(2x)"),
    ("x+1", "1"),
    # equations, inequalities
    ("x = 5", "x = 6"),
    ("x = 5", "y = 5"),
    ("x = 5", "6"),
    ("2x = 10", "10"),
    ("y = 2x + 1", "y = 2x - 1"),
    ("x > 5", "x < 5"),
    ("x > 5", r"x \ge 5"),
    ("x > 5", "-x > -5"),
    ("x > 5", "[5, \\infty)"),
    ("x > 5", "5"),
    (r"x \neq 0", "x = 0"),
    ("x < 1 or x > 3", "x < 1 or y > 3"),
    ("x > 1 and x < 3", "x > 1 or x < 3"),
    ("x > 3 and x < 1", "x < 1 or x > 3"),
    # sets, lists, tuples, intervals
    ("{1,2}", "{1,3}"),
    ("{1,2}", "{1,2,3}"),
    ("{1,2}", "(1,2)"),
    ("1, 1, 2", "1, 2, 2"),
    ("1, 2", "1, 2, 3"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "2,1"),
    ("(1,2)", "(1,2,3)"),
    ("[0,1)", "(0,1)"),
    ("[0,1]", "[0,1)"),
    ("[0,1]", "0"),
    (r"[0,1) \cup (1,2]", "[0,2]"),
    (r"[0,1] \cap [1,2]", r"[0,1] \cup [1,2]"),
    (r"\mathbb{R}", r"(0,\infty)"),
    (r"\emptyset", "0"),
    (r"\pm 5", "5"),
    (r"\pm 5", r"\{5, -6\}"),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{pmatrix}1&3\\2&4\end{pmatrix}",
    ),
    (r"\infty", r"-\infty"),
    (r"\infty", "10^9"),
    # letters and words
    ("(A)", "(B)"),
    ("A", "AB"),
    ("no", "on"),
    ("(no)", "(on)"),
    ("yes", "no"),
    ("a cat b", "b cat a"),
    ("2 am", "2 pm"),
    ("[a,b)", "(a,b]"),
    ("no solution", "5"),
    ("", "0"),
    ("", "no"),
    ("101_2", "101_3"),
    ("3:2", "2:3"),
    ("1 23 foo?", "12 3 foo?"),
    ("Jan 1, 2020", "Jan 2, 2020"),
    ("9^{9^{9^9}}", "9^{9^{9^8}}"),
]


@pytest.mark.parametrize(("answer", "expected"), EQUAL)
def test_answers_that_mean_the_same_are_equivalent_in_both_directions(
    answer: str, expected: str
) -> None:
    assert compare(answer, expected).difference == ""
    assert is_equivalent(answer, expected)
    assert is_equivalent(expected, answer)


@pytest.mark.parametrize(("answer", "expected"), UNEQUAL)
def test_answers_that_mean_something_else_are_not_equivalent_in_either_direction(
    answer: str, expected: str
) -> None:
    assert not is_equivalent(answer, expected)
    assert not is_equivalent(expected, answer)


NORMALISED = [
    ("The Eiffel Tower!", "eiffel tower"),
    ("U.S.A.", "usa"),
    ("don't", "dont"),
    ("well-known", "well known"),
    ("a,b,c", "a b c"),
    ("STRASSE", "strasse"),
    ("Straße", "strasse"),
    ("\N{FULLWIDTH LATIN CAPITAL LETTER A}B", "ab"),
    ("  two \n words ", "two words"),
    ("-5", "-5"),
    ("1.5", "1.5"),
    ("1,234", "1,234"),
    ("3:30", "3:30"),
    ("1/2", "1/2"),
    ("5%", "5%"),
    ("12.", "12"),
    ("x + y = $3", "x + y = $3"),
    ("A, B", "a b"),
    ("A", "a"),
    ("the", "the"),
    ("a the cat", "cat"),
    ("...", "..."),
    ("", ""),
]


@pytest.mark.parametrize(("text", "normalised"), NORMALISED)
def test_normalising_drops_case_punctuation_articles_and_space_but_no_part_of_a_number(
    text: str, normalised: str
) -> None:
    assert normalize_text(text) == normalised


def test_normalised_match_does_not_take_a_sign_or_a_decimal_point_for_punctuation() -> None:
    metric = normalized_match()
    example = dspy.Example(answer="15")
    assert [metric(example, dspy.Prediction(answer=given)).score for given in ("-15", "1.5")] == [
        0.0,
        0.0,
    ]
    assert metric(example, dspy.Prediction(answer=" 15. ")).score == 1.0


def test_exact_match_ignores_white_space_around_the_answer_and_nothing_else() -> None:
    metric = exact_match()
    example = dspy.Example(answer="Paris")
    scores = {
        text: metric(example, dspy.Prediction(answer=text)).score
        for text in ("Paris", " Paris\n", "paris", "Paris.")
    }
    assert scores == {"Paris": 1.0, " Paris\n": 1.0, "paris": 0.0, "Paris.": 0.0}


def test_values_that_are_no_text_are_compared_by_their_str() -> None:
    assert exact_match()(dspy.Example(answer=42), dspy.Prediction(answer="42")).score == 1.0
    assert exact_match()(dspy.Example(answer=True), dspy.Prediction(answer="True")).score == 1.0
    assert math_equivalent()(dspy.Example(answer=0.5), dspy.Prediction(answer="1/2")).score == 1.0


FEEDBACK = [
    (exact_match(), "Rome", "Paris", "Expected 'Paris', given 'Rome': they are not the same text."),
    (
        normalized_match(),
        "The Rome!",
        "Paris",
        "Expected 'Paris', given 'The Rome!': compared as 'paris' and 'rome'.",
    ),
    (
        math_equivalent(),
        "21",
        "12",
        "Expected '12', given '21': the given value is too large by 9.",
    ),
    (
        math_equivalent(),
        "0.55",
        "1/2",
        "Expected '1/2', given '0.55': the given value is too large by 0.05.",
    ),
    (
        math_equivalent(),
        "x-1",
        "x+1",
        "Expected 'x+1', given 'x-1': at x = 5/29 the given is -24/29, expected 34/29.",
    ),
    (
        math_equivalent(),
        "{1,3}",
        "{1,2}",
        "Expected '{1,2}', given '{1,3}': 1 expected elements are missing, "
        "1 given ones are not expected.",
    ),
    (
        math_equivalent(),
        "(1,3)",
        "(1,2)",
        "Expected '(1,2)', given '(1,3)': element 2 differs: the given value is too large by 1.",
    ),
    (
        math_equivalent(),
        "(0,1]",
        "[0,1]",
        "Expected '[0,1]', given '(0,1]': expected the brackets [], given (].",
    ),
    (
        math_equivalent(),
        "5",
        "(1,2)",
        "Expected '(1,2)', given '5': expected a tuple of 2, given a single value.",
    ),
    (
        math_equivalent(),
        "5 km",
        "5 meters",
        "Expected '5 meters', given '5 km': expected the unit meters, given km.",
    ),
    (math_equivalent(), "Rome", "12", "Expected '12', given 'Rome': the texts differ."),
    (math_equivalent(), "", "12", "Expected '12', given '': the answer is empty."),
    (math_equivalent(), "12.0", "12", "'12.0' is right."),
]


@pytest.mark.parametrize(("metric", "answer", "label", "feedback"), FEEDBACK)
def test_the_feedback_says_what_was_expected_what_was_given_and_what_differs(
    metric: object, answer: str, label: str, feedback: str
) -> None:
    assert callable(metric)
    assert metric(dspy.Example(answer=label), dspy.Prediction(answer=answer)).feedback == feedback


def test_the_feedback_quotes_a_long_answer_shortened_and_on_one_line() -> None:
    result = exact_match()(dspy.Example(answer="12"), dspy.Prediction(answer="so\n" * 500))
    assert len(result.feedback) < 300
    assert "\n" not in result.feedback


def test_a_prediction_without_the_field_scores_zero_and_the_feedback_names_the_field() -> None:
    result = math_equivalent()(dspy.Example(answer="12"), dspy.Prediction(reasoning="6 + 6"))
    assert result.score == 0.0
    assert result.feedback == (
        "Expected '12' in the field 'answer', which the prediction does not have "
        "(it has: reasoning)."
    )


def test_an_example_without_a_label_is_an_error_that_names_the_field_and_the_ones_there_are() -> (
    None
):
    example = dspy.Example(question="6 + 6?", target="12")
    with pytest.raises(MetricError, match=r"no label 'answer' \(it has: question, target\)"):
        math_equivalent()(example, dspy.Prediction(answer="12"))


def test_field_and_label_field_may_have_different_names() -> None:
    metric = math_equivalent(field="result", label_field="target")
    example = dspy.Example(question="6 + 6?", target="12")
    assert metric(example, dspy.Prediction(result="12.0")).score == 1.0
    assert metric(example, dspy.Prediction(result="13")).score == 0.0


def test_one_of_several_accepted_labels_is_enough() -> None:
    example = dspy.Example(answer=["car", "automobile"])
    assert normalized_match()(example, dspy.Prediction(answer="An automobile.")).score == 1.0
    result = normalized_match()(example, dspy.Prediction(answer="bus"))
    assert result.score == 0.0
    assert "'car' or 'automobile'" in result.feedback


def test_a_wrong_answer_is_false_where_dspy_asks_for_yes_or_no() -> None:
    example = dspy.Example(answer="12")
    assert exact_match()(example, dspy.Prediction(answer="12"), trace=[])
    assert not exact_match()(example, dspy.Prediction(answer="21"), trace=[])


def test_dspy_evaluate_averages_the_scores() -> None:
    devset = [dspy.Example(question=text, answer="1/2").with_inputs("question") for text in "ab"]
    answers = {"a": "0.5", "b": "2"}
    evaluate = dspy.Evaluate(devset=devset, metric=math_equivalent(), num_threads=2)
    result = evaluate(lambda question: dspy.Prediction(answer=answers[question]))
    assert result.score == 50.0


@pytest.mark.parametrize("metric", [exact_match(), normalized_match(), math_equivalent()])
def test_a_metric_accepts_the_calls_of_dspy_and_of_gepa(metric: object) -> None:
    assert callable(metric)
    for n_arguments in (2, 3, 5):
        inspect.signature(metric).bind(*[None] * n_arguments)


def test_a_metric_is_a_value_that_can_be_pickled_and_whose_repr_states_its_settings() -> None:
    metric = math_equivalent("result", "target", timeout_s=1.0)
    assert pickle.loads(pickle.dumps(metric)) == metric  # noqa: S301 - our own bytes
    assert metric != math_equivalent("result")
    assert repr(metric) == "MathEquivalent(field='result', label_field='target', timeout_s=1.0)"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_time_limit_that_is_not_positive_is_refused_with_its_value(timeout_s: float) -> None:
    with pytest.raises(SettingsError, match=f"timeout_s={timeout_s}"):
        math_equivalent(timeout_s=timeout_s)
    with pytest.raises(SettingsError, match=f"timeout_s={timeout_s}"):
        is_equivalent("1", "2", timeout_s=timeout_s)


def test_an_empty_field_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="field=''"):
        exact_match("")


POWER_TOWER = "2^{16000}"
HOSTILE = [
    "9**9**9**9",
    "9^{9^{9^9}}",
    "10**10**10",
    "factorial(10**9)",
    "((((5!)!)!)!)!",
    "1e999999999",
    "1e-999999999",
    "1" * 100_000,
    "x+" * 50_000 + "x",
    "(" * 100_000 + "1" + ")" * 100_000,
    "(1+" * 29 + "1" + ")" * 29,
    "{" * 1_000,
    "-" * 1_900 + "1",
    "2^" * 900 + "2",
    "|" * 1_500,
    r"\frac" * 400,
    r"\sqrt" * 400 + "2",
    r"\sin" * 400 + "x",
    r"\boxed{" * 20_000,
    "####" * 20_000,
    "$" * 1_999,
    "½" * 500,
    "a" * 1_000_000,
    "e^{e^{e^{e^{e}}}}",
    r"\sqrt[999]{2}^{999999}",
    "1.0000001^{1000000}",
    r"(\sqrt2)^{1000000}",
    "500!^{3}",
    r"\binom{500}{250}^{30}",
    rf"(\sqrt2)^{{{POWER_TOWER}}}",
    rf"\sin({POWER_TOWER})",
    rf"\sqrt[{POWER_TOWER}]{{2}}",
    rf"({POWER_TOWER}+i)^{{{POWER_TOWER}}}",
    rf"0^{{-1/{POWER_TOWER}}}",
    "+".join(rf"\sqrt{{{n}}}" for n in range(2, 200)),
    "*".join(rf"\sin({n}^{{200}})" for n in range(2, 100)),
    "/".join(f"(x+{n})" for n in range(250)),
    "+".join(f"{10**60 + n}/{10**61 + n}" for n in range(1, 16)),
    r"\pm 1," * 40 + "1",
    r"\cup".join(f"[{n},{n + 1}]" for n in range(150)),
    "__import__('os').system('touch pwned')",
    "exec('open(\\'pwned\\', \\'w\\')')",
    "().__class__.__bases__[0].__subclasses__()",
    "lambda: open('pwned', 'w')",
    "f\"{open('pwned', 'w')}\"",
    "[c for c in ().__class__.__mro__]",
    r"\input{pwned}",
    r"\write18{touch pwned}",
    "\x00",
    "\ud800",
    "\u202e1+1",
    "\N{ARABIC-INDIC DIGIT THREE}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_hostile_text_is_compared_in_time_and_never_executed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_equivalent(text, text + " ")
    for other in ("1", "x", text + "+1", text.replace("1", "2")):
        started_at = time.monotonic()
        verdicts = [is_equivalent(text, other), is_equivalent(other, text)]
        assert time.monotonic() - started_at < 2 * 2.5
        assert verdicts[0] is verdicts[1]
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_that_runs_out_of_time_is_false_and_says_so() -> None:
    functions = [rf"\sin({n}x)" for n in range(50)]
    started_at = time.monotonic()
    verdict = compare(", ".join(functions), ", ".join(functions[::-1]), timeout_s=0.1)
    assert time.monotonic() - started_at < 1
    assert not verdict.is_equal
    assert verdict.difference == "the comparison took longer than 0.1 s"


def test_brackets_deeper_than_the_limit_are_compared_as_text() -> None:
    assert is_equivalent("(" * 29 + "x+x" + ")" * 29, "2x")
    assert compare("(" * 40 + "x+x" + ")" * 40, "2x").difference == "the texts differ"


def test_worker_threads_come_to_the_same_verdicts_as_the_main_thread() -> None:
    pairs = EQUAL + UNEQUAL
    with ThreadPoolExecutor(8) as executor:
        verdicts = list(executor.map(lambda pair: is_equivalent(*pair), pairs))
    assert verdicts == [True] * len(EQUAL) + [False] * len(UNEQUAL)


GARBAGE = st.lists(
    st.sampled_from(
        [
            *"0123456789.,;+-*/^_()[]{}|!%°$=<>~' xyiea\\&:#\"",
            *(r"\frac", r"\sqrt", r"\pi", r"\infty", r"\cup", r"\setminus", r"\pm", r"\sin"),
            *(r"\log", r"\left", r"\right", r"\text{", r"\{", r"\}", r"\binom", r"\boxed{"),
            *(r"\mathbb{R}", "sqrt", "cm", "apples", " and ", "∞", "√", "²", "½", "10^", "1e"),
            *("x = ", "x < ", "9**9", r"\\", r"\begin{pmatrix}", r"\end{pmatrix}", r"\lfloor"),
        ]
    ),
    max_size=20,
).map("".join)
NUMERALS = ("0", "1", "2", "-1", "3.14", "0.333", "10^{400}", "1e900", "1e-900", "500!", "1,234")
LEAVES = st.sampled_from([*NUMERALS, "x", "y", "n!", "e", "i", r"\pi", r"\infty", "50%", "30°"])


def _larger(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    unary = [r"\sqrt{%s}", r"\sin(%s)", r"\tan(%s)", r"\ln(%s)", "(%s)!", "|%s|", "-(%s)"]
    binary = ["%s+%s", "(%s)(%s)", r"\frac{%s}{%s}", "(%s)^{%s}", r"\log_{%s}(%s)", "%s, %s"]
    binary += ["(%s,%s]", r"\{%s,%s\}", "%s=%s", "%s<%s", r"(%s,1)\cup[1,%s]", r"\sqrt[%s]{%s}"]
    return st.one_of(
        st.builds(lambda form, part: form % part, st.sampled_from(unary), parts),
        st.builds(
            lambda form, left, right: form % (left, right), st.sampled_from(binary), parts, parts
        ),
    )


FORMULAS = st.recursive(LEAVES, _larger, max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(GARBAGE | FORMULAS, GARBAGE | FORMULAS)
def test_any_two_texts_are_compared_in_time_with_one_verdict_for_both_directions(
    text: str, other: str
) -> None:
    started_at = time.monotonic()
    assert is_equivalent(text, other) is is_equivalent(other, text)
    assert time.monotonic() - started_at < 5


@settings(max_examples=150, deadline=None)
@given(st.text() | GARBAGE | FORMULAS)
def test_every_text_is_equivalent_to_itself(text: str) -> None:
    assert is_equivalent(text, text)
    assert is_equivalent(text, f" {text}\n")


@settings(max_examples=100, deadline=None)
@given(FORMULAS)
def test_no_expression_is_equivalent_to_itself_and_one_more(formula: str) -> None:
    assert not is_equivalent(f"0+({formula})", f"1+({formula})")


@settings(max_examples=100, deadline=None)
@given(st.integers(-40, 40), st.integers(1, 12), st.integers(-40, 40), st.integers(1, 12))
def test_fractions_are_equivalent_exactly_when_their_values_are(
    a: int, b: int, c: int, d: int
) -> None:
    assert is_equivalent(f"{a}/{b}", rf"\frac{{{c}}}{{{d}}}") is (a * d == b * c)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500).filter(lambda n: n % 7), st.integers(3, 8))
def test_a_decimal_stands_for_sevenths_when_it_is_their_value_rounded(n: int, places: int) -> None:
    rounded = round(Fraction(n, 7), places)
    assert is_equivalent(f"{float(rounded):.{places}f}", f"{n}/7")
    off_by_one = rounded + Fraction(1, 10**places)
    assert not is_equivalent(f"{float(off_by_one):.{places}f}", f"{n}/7")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=4), st.integers(0, 4))
def test_a_polynomial_is_equivalent_to_its_factors_and_to_no_other_polynomial(
    roots: list[int], changed: int
) -> None:
    coefficients = [1]
    for root in roots:
        shifted, scaled = [0, *coefficients], [*(-root * c for c in coefficients), 0]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    factored = "".join(f"(x-({root}))" for root in roots)
    assert is_equivalent(_polynomial(coefficients), factored)
    coefficients[changed % len(coefficients)] += 1
    assert not is_equivalent(_polynomial(coefficients), factored)


def _polynomial(coefficients: list[int]) -> str:
    return " + ".join(f"({c})x^{power}" for power, c in enumerate(coefficients))
