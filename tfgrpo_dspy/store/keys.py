"""The keys of rollouts, answers and runs in the store, made of the identities of their parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from tfgrpo_dspy.experience.programs import copy_program, language_models
from tfgrpo_dspy.gate.protocol import Gate
from tfgrpo_dspy.identity import Identities, digest, without_addresses
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.strategies.base import Strategy

TASK = ("program", "metric", "traces")  # and the examples: what an approval is about
DSPY = ".".join(dspy.__version__.split(".")[:2])  # a minor version may write other prompts


class Keys:
    """The keys of one run ("" without a store); `identities`: what they are made of."""

    def __init__(self, settings: RunSettings) -> None:
        self.is_used = settings.log_dir is not None
        self.identities = Identities()
        self.parts = dict[str, str]()
        """By name, the digest of each part that the result of the run depends on."""
        self._digests: dict[int, str] = {}
        self._lm = self._identity(dspy.settings.lm)
        self._adapter = self._identity(dspy.settings.adapter or dspy.ChatAdapter())
        self._reflection_lm = self._identity(settings.reflection_lm or dspy.settings.lm)
        self._versions = DSPY, settings.version
        self._task = ""  # what answers of a person are about; known by `parts_of_run`

    def _identity(self, value: Any) -> str:
        """The digest of an object that the run holds until its end; looked up once."""
        if id(value) not in self._digests:
            parts = _parts_of(value) if isinstance(value, dspy.Example) else value
            self._digests[id(value)] = digest(self.identities.of(parts))
        return self._digests[id(value)]

    def program(self, program: Any) -> str:
        """The digest of a program with its library."""
        return digest(self.identities.of(program)) if self.is_used else ""

    def rollout(
        self,
        program: str,
        example: Any,
        metric: Any,
        rollout_id: int,
        temperature: float | str | None,
    ) -> str:
        """The key of a rollout: all that its outputs and its score depend on."""
        if not self.is_used:
            return ""
        parts = [program, self._lm, self._adapter, self._identity(example), self._identity(metric)]
        return f"rollout:{digest(*parts, rollout_id, temperature, self._versions)}"

    def reflection(
        self, stage: str, module: Any, rollout_id: int, inputs: Mapping[str, Any]
    ) -> str:
        """The key of an answer: the module, its LM and adapter, all that it is shown."""
        if not self.is_used:
            return ""
        parts = [self._identity(module), self._reflection_lm, self._adapter, dict(inputs)]
        return f"{stage}:{digest(*parts, rollout_id, self._versions)}"

    def approval(self, shown: Any) -> str:
        """The key of a person's answer: program, metric, data, and what was shown."""
        return f"approval:{digest(self._task, shown)}" if self.is_used else ""

    def parts_of_run(
        self, settings: RunSettings, student: Any, sets: Mapping[str, Sequence[Any]], recorded: Any
    ) -> dict[str, str]:
        """By name, the digest of each part that the result of a run depends on; no limits."""
        identity = self._identity
        arguments = settings.identifying
        lms = [identity(lm) for lm in language_models(student)]
        parts: dict[str, Any] = {
            "program": program_digest(student, self.identities),
            "metric": identity(arguments.pop("metric")),
            **{f"{name} examples": [*map(identity, each)] for name, each in sets.items()},
            "traces": recorded and [[each.to_dict() for each in group] for group in recorded],
            "LM": [self._lm, lms],
            "adapter": self._adapter,
            "DSPy": DSPY,
            "reflection LM": self._reflection_lm,
            "reflection modules": [identity(module) for module in settings.reflection.modules],
        }
        modules = {id(module) for module in settings.reflection.modules}
        for name, value in sorted(arguments.items()):
            if value is not None and name != "reflection_lm" and id(value) not in modules:
                parts[name] = _argument_identity(value, self.identities)
        of_task = [parts[name] for name in parts if name in TASK or name.endswith(" examples")]
        self._task = digest(of_task, settings.version)
        self.parts = {name: digest(part) for name, part in parts.items()}
        return self.parts


def program_digest(program: Any, identities: Identities) -> str:
    """The digest of a program with its library, whatever its LMs are."""
    bare = copy_program(program, lambda _lm: None)
    return digest(identities.of(bare))


def _argument_identity(value: Any, identities: Identities) -> Any:
    """The identity of an argument; of a gate and of strategies all that they hold."""
    if isinstance(value, tuple):
        return [_argument_identity(each, identities) for each in value]
    is_whole = isinstance(value, Gate | Strategy)
    return identities.whole(value) if is_whole else identities.of(value)


def _parts_of(example: dspy.Example) -> list[Any]:
    """Inputs, labels, and each field as text: some types' identity is only their name."""
    texts = [f"{name}: {without_addresses(text)}" for name, text in as_fields(example).items()]
    return [dict(example.inputs()), dict(example.labels()), texts]
