"""Each hook that this package has in DSPy still fires: one that does not is named."""

from typing import Any

import dspy
import pytest
from dspy import lm15
from scripted import AsyncEngine, ScriptedEngine, chat, scripted_lm

from tfgrpo_dspy import dspy_seam
from tfgrpo_dspy.budget.meter import Meter, metered
from tfgrpo_dspy.dspy_seam import Call

LOST = "DSPy has changed: the hook {} in dspy_seam.py or budget/meter.py does nothing any more"


def asked(lm: Any, **settings: Any) -> Any:
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), **settings):
        return dspy.Predict("question -> answer")(question="Who?")


def lm() -> dspy.LM:
    rules = [("question", lambda _: chat(answer="Ann"))]
    return scripted_lm(rules, async_engine=AsyncEngine(ScriptedEngine(rules)))


class Heard(dspy_seam.BaseCallback):
    def __init__(self) -> None:
        self.history: list[Any] = []
        self.n_begun = self.n_ended = 0
        self.call_ids: set[Any] = set()

    def on_lm_start(self, **_: Any) -> None:
        self.n_begun += 1
        self.call_ids.add(dspy_seam.ACTIVE_CALL_ID.get())

    def on_lm_end(self, **_: Any) -> None:
        self.n_ended += 1


def test_a_watcher_hears_of_each_call_and_gets_its_entry() -> None:
    heard = Heard()
    asked(lm(), **dspy_seam.watching(heard))
    assert (heard.n_begun, heard.n_ended) == (1, 1), LOST.format("callbacks")
    assert len(heard.history) == 1, LOST.format("caller_modules: the history of callers")
    assert len([*dspy_seam.sent(heard.history[0])]) == 2, LOST.format("history: all messages")
    assert None not in heard.call_ids, LOST.format("ACTIVE_CALL_ID")


def test_an_object_with_unheard_callbacks_is_heard_by_its_own_and_the_users_alone() -> None:
    class Modules(dspy_seam.BaseCallback):
        n_heard = 0

        def on_module_start(self, **_: Any) -> None:
            self.n_heard += 1

    class Packages(Modules):
        __module__ = "tfgrpo_dspy.budget.meter"

    own, users, packages = Modules(), Modules(), Packages()
    program = dspy.Predict("question -> answer")
    for callbacks, n_heard in ([own], 1), (dspy_seam.Unheard([own]), 1):
        program.callbacks = callbacks
        with dspy.context(lm=lm(), adapter=dspy.ChatAdapter(), callbacks=[packages, users]):
            program(question="Who?")
        assert packages.n_heard == n_heard, LOST.format("list + callbacks of the instance")
    assert (own.n_heard, users.n_heard) == (2, 2)


def test_a_veto_that_is_no_exception_ends_a_call() -> None:
    class VetoError(BaseException):
        pass

    class Vetoes(Heard):
        def on_lm_start(self, **_: Any) -> None:
            raise VetoError

    own = lm()
    with pytest.raises(VetoError):
        asked(own, **dspy_seam.watching(Vetoes()))
    assert own.engine.n_calls() == 0, LOST.format("on_lm_start: a BaseException is the veto")


@pytest.mark.parametrize("method", ["__call__", "acall"])
def test_a_metered_lm_takes_counts_and_copies_its_calls(method: str) -> None:
    meter = Meter()
    own = metered(lm().copy(), meter)
    if method == "__call__":
        asked(own.copy(rollout_id=1))
    else:
        with dspy.context(lm=own, adapter=dspy.ChatAdapter()):
            dspy.syncify(dspy.Predict("question -> answer"))(question="Who?")
    assert meter.ledger.taken.n_lm_calls == 1, LOST.format(f"{method} of an LM's class")
    assert meter.usage.n_lm_calls == 1, LOST.format("update_history")
    assert own.num_retries == 0, LOST.format("num_retries")
    caller, call = meter.last_call or (None, None)
    assert isinstance(caller, dspy.Predict), LOST.format("caller_modules: the caller of a call")
    assert call is not None
    assert "Who?" in call.prompt, LOST.format("Call.prompt")
    assert "Ann" in call.text, LOST.format("Call.text")
    assert not call.is_cut


def test_a_trace_of_our_own_is_filled() -> None:
    class Trace(list[Any]):
        n_appended = 0

        def append(self, call: Any) -> None:
            self.n_appended += 1
            super().append(call)

    trace = Trace()
    asked(lm(), **dspy_seam.recording(trace))
    assert trace.n_appended == len(trace) == 1, LOST.format("dspy.settings.trace")


def test_an_adapter_that_replays_gives_its_outputs_without_a_call() -> None:
    class Recorded:
        def outputs(self, _signature: Any, inputs: Any) -> Any:
            return [{"answer": "Bob"}] if "Who" in str(inputs) else None

    own = lm()
    adapter = dspy_seam.replaying_adapter(dspy.ChatAdapter(), Recorded())
    with dspy.context(lm=own, adapter=adapter):
        answer = dspy.Predict("question -> answer")(question="Who?").answer
        assert (answer, own.engine.n_calls()) == ("Bob", 0), LOST.format("Adapter.__call__")
        dspy.Predict("question -> answer")(question="Where?")
    assert own.engine.n_calls() == 1, LOST.format("Adapter.__call__")


def test_a_listed_model_has_a_price_and_an_engine_of_ones_own_has_none() -> None:
    listed = dspy_seam.prices_of(dspy.LM("openai/gpt-4o-mini", api_key="k"))
    assert listed.get("input_cost_per_token"), LOST.format("capabilities.resolve and model_info")
    assert dspy_seam.abilities_of(dspy.LM("openai/gpt-4o", api_key="k")).get("supports_vision")


def test_types_values_and_streams_are_told_apart() -> None:
    found = dspy_seam.custom_types_in(list[dspy.Image])
    assert found == [dspy.Image], LOST.format("Type.extract_custom_type_from_annotation")
    can_be_saved = [dspy_seam.can_be_saved(value) for value in ([1], dspy.Code(code="1"), {1})]
    assert can_be_saved == [True, True, False], LOST.format("serialize_object")
    with dspy.context(send_stream=print, stream_listeners=[print]), dspy_seam.unstreamed():
        streams = dspy.settings.send_stream, dspy.settings.stream_listeners
    assert streams == (None, []), LOST.format("send_stream")


def test_the_fields_of_an_example_are_where_they_were() -> None:
    example = dspy.Example({"question": "Who?", 3: "x"})
    assert dspy_seam.stored_in(example) == {"question": "Who?", 3: "x"}, LOST.format("_store")
    assert dspy_seam.stored_in(dspy.Prediction(answer="Ann")) == {"answer": "Ann"}


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")
def test_modules_hold_what_their_inputs_are_known_by() -> None:
    inner = dspy.Predict("question -> answer")
    sampled = {"N": 2, "reward_fn": lambda *_: 1.0, "threshold": 1.0}
    modules = [dspy.ChainOfThought(inner.signature), dspy.ReAct(inner.signature, tools=[])]
    modules += [dspy.ReActV2(inner.signature, tools=[]), dspy.RLM(inner.signature)]
    modules += [dspy.CodeAct(inner.signature, tools=[]), dspy.ProgramOfThought(inner.signature)]
    modules += [dspy.Refine(inner, **sampled), dspy.BestOfN(inner, **sampled)]
    assert {type(each).__name__ for each in modules} == {
        *dspy_seam.BY_SIGNATURE, *dspy_seam.BY_MODULE
    }  # fmt: skip
    for module in modules:
        attribute = dspy_seam.BY_MODULE.get(type(module).__name__, "signature")
        assert hasattr(module, attribute), LOST.format(f"{type(module).__name__}.{attribute}")


ENTRY = {"usage": {}, "response": None, "outputs": [], "messages": [], "prompt": "p"}


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        ({"usage": {"prompt_tokens": 7}}, "prompt_tokens", 7),
        ({"cache_hit": True}, "is_cached", True),
        ({"response": {"usage": {"input_tokens": 3}}}, "is_cached", True),
        ({"response": {"choices": [{"finish_reason": "length"}]}}, "is_cut", True),
        ({"response": {"stop_reason": "max_tokens"}}, "is_cut", True),
        ({"response": {"finish_reason": "FinishReason.MAX_TOKENS"}}, "is_cut", True),
        ({"response": {"finish_reason": "content_filter"}}, "is_filtered", True),
        ({"response": {"stop_reason": "refusal"}}, "is_filtered", True),
        ({"response": {"finish_reason": "FinishReason.PROHIBITED_CONTENT"}}, "is_filtered", True),
        ({"outputs": [""], "response": {"provider_data": {"detail": "No."}}}, "is_empty", True),
        ({"response": {"choices": [{"message": {"refusal": "No."}}]}}, "refusal", "No."),
        ({"response": {"message": {"parts": [lm15.RefusalPart("No.")]}}}, "refusal", "No."),
        ({"outputs": [{"text": "Hi", "logprobs": {}}]}, "text", "Hi"),
        ({"outputs": [{"logprobs": {"content": [{"logprob": -1}]}}]}, "logprobs", (-1,)),
        ({"messages": [{"content": "a"}, {"content": "b"}]}, "prompt", "b"),
        ({"response": ({}, {})}, "n_answers", 2),
    ],
    ids=str,
)
def test_a_call_is_read_from_its_entry(entry: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(Call.of({**ENTRY, **entry}), field) == value
