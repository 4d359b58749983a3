"""Resources: what an algorithm tunes and an agent is given, such as a prompt or a model endpoint."""

import logging
import string
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    cast,
)

from pydantic import BaseModel, Field, TypeAdapter

from ..credentials import MASK, is_reference, mask_value, resolved
from ..errors import InvalidInput, LostPlaceholder
from .prompt_format import fill_f_string, fill_jinja, fill_poml, optional

if TYPE_CHECKING:
    from .rollout import AttemptedRollout

__all__ = [
    "LLM",
    "NamedResources",
    "PromptTemplate",
    "ProxyLLM",
    "Resource",
    "ResourceUnion",
    "ResourcesUpdate",
    "mask_models",
    "masked",
    "prompts_watched",
    "refuse_masked",
    "validate_resources",
    "with_keys",
]

_log = logging.getLogger(__name__)


class Resource(BaseModel):
    """Base of all resources; ``resource_type`` tells them apart on the wire."""

    resource_type: Any


class LLM(Resource):
    """A language model behind an OpenAI-compatible endpoint.

    ``api_key`` is stored in the log as it is given. ``env:NAME`` and ``file:/path`` are stored instead of a key: the
    runner reads the variable or the file where it is, and the agent finds the key itself. What is printed of a model
    shows neither a key nor headers nor credentials in the endpoint.
    """

    resource_type: Literal["llm"] = "llm"
    endpoint: str
    model: str
    api_key: str | None = None
    sampling_parameters: dict[str, Any] = Field(default_factory=dict)

    def get_base_url(self, *args: Any, **kwargs: Any) -> str:
        """The endpoint. Rollout and attempt id are taken and ignored, so agents need not ask
        whether they were given a plain model or a proxied one."""
        return self.endpoint

    def __repr_args__(self) -> Generator[tuple[str | None, Any], None, None]:
        # From the fields themselves: reading `endpoint` of a proxy logs a warning.
        for name in type(self).model_fields:
            yield name, mask_value(name, self.__dict__.get(name))

    def with_key(self) -> "LLM":
        """This model, or a copy with the key that ``api_key`` refers to. Raises InvalidInput where it cannot be read."""
        if not is_reference(self.api_key):
            return self
        return self.model_copy(update={"api_key": resolved(str(self.api_key), f"api_key of the model {self.model!r}")})


class ProxyLLM(LLM):
    """A language model behind a proxy that sorts calls by rollout and attempt.

    Reading ``endpoint`` logs a warning: a call sent there cannot be matched to its attempt.
    Use :meth:`get_base_url`.
    """

    resource_type: Literal["proxy_llm"] = "proxy_llm"  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]

    if not TYPE_CHECKING:

        def __getattribute__(self, name: str) -> Any:
            if name == "endpoint":
                _log.warning(
                    "Accessing 'endpoint' of a ProxyLLM directly is discouraged: "
                    "use get_base_url(rollout_id, attempt_id) instead."
                )
            return super().__getattribute__(name)

    def get_base_url(self, *args: Any, **kwargs: Any) -> str:
        """``get_base_url(rollout_id, attempt_id)``: the endpoint for calls of one attempt.

        ``/rollout/<id>/attempt/<id>`` is put before a closing ``/v1``, or at the end where there
        is none. With both ids None the endpoint comes back unchanged; with one of them, or
        another type, ValueError.
        """
        return self._routed(*args, **kwargs)

    def _routed(self, rollout_id: str | None, attempt_id: str | None) -> str:
        endpoint = cast(str, self.__dict__["endpoint"])
        if rollout_id is None and attempt_id is None:
            return endpoint
        if not isinstance(rollout_id, str) or not isinstance(attempt_id, str):
            raise InvalidInput("rollout_id and attempt_id must be strings or all be empty")
        prefix = endpoint[:-1] if endpoint.endswith("/") else endpoint
        has_version = prefix.endswith("/v1")
        if has_version:
            prefix = prefix[: -len("/v1")]
        routed = f"{prefix}/rollout/{rollout_id}/attempt/{attempt_id}"
        return f"{routed}/v1" if has_version else routed

    def with_attempted_rollout(self, rollout: "AttemptedRollout") -> LLM:
        """A plain model whose endpoint is routed to the rollout's current attempt."""
        return LLM(
            endpoint=self._routed(rollout.rollout_id, rollout.attempt.attempt_id),
            model=self.model,
            sampling_parameters=dict(self.sampling_parameters),
            api_key=self.api_key,
        )


class PromptTemplate(Resource):
    """A prompt with placeholders."""

    resource_type: Literal["prompt_template"] = "prompt_template"
    template: str
    engine: Literal["jinja", "f-string", "poml"]

    def format(self, /, **kwargs: Any) -> str:
        """The prompt with its placeholders filled.

        A placeholder without a value raises KeyError with its name. The f-string engine is
        ``str.format``, whose IndexError and ValueError (unbalanced braces) pass through; it reads
        items of mappings and sequences and declared fields of models, and nothing else of an
        object (a ValueError says so). The other engines need their library: OptionalDependencyError
        (an ImportError) names it; "poml" is refused unless the process called :func:`allow_poml`.

        A value that the template has no place for is dropped, as ``str.format`` does; in an attempt it is noted, and
        is a LostPlaceholder (a ValueError) where the agent says ``strict_prompts``: the model would never see it.
        """
        _note_lost(self, kwargs)
        if self.engine == "f-string":
            return fill_f_string(self.template, kwargs, _SECRET)
        if self.engine == "jinja":
            return fill_jinja(self.template, kwargs, _SECRET)
        return fill_poml(self.template, kwargs)


_SECRET = {LLM: frozenset(("api_key", "sampling_parameters"))}
"""What no prompt may read: parameters may hold headers with credentials."""


class _Watch:
    """What one attempt did with prompts."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.lost: set[str] = set()


_WATCH: ContextVar[_Watch | None] = ContextVar("agentlightning_prompts", default=None)


@contextmanager
def prompts_watched(strict: bool) -> Generator[set[str], None, None]:
    """Collect the names of lost placeholders while the block runs; with ``strict`` each is a LostPlaceholder."""
    watch = _Watch(strict)
    token = _WATCH.set(watch)
    try:
        yield watch.lost
    finally:
        _WATCH.reset(token)


def _note_lost(prompt: PromptTemplate, values: Mapping[str, Any]) -> None:
    watch = _WATCH.get()
    if watch is None or not values:
        return
    used = _placeholders(prompt)
    lost = [] if used is None else [name for name in values if name not in used]
    watch.lost.update(lost)
    if lost and watch.strict:
        raise LostPlaceholder(
            f"The prompt has no placeholder {', '.join(repr(name) for name in lost)}: {prompt.template!r}"
        )


def _placeholders(prompt: PromptTemplate) -> set[str] | None:
    """The names that the template refers to; None where its engine cannot tell."""
    if prompt.engine == "jinja":
        environment = optional("jinja2", "The jinja engine").Environment()
        parsed = environment.parse(prompt.template)
        return set(optional("jinja2.meta", "The jinja engine").find_undeclared_variables(parsed))
    if prompt.engine == "poml":
        return None
    names: set[str] = set()
    left = [prompt.template]
    while left:
        for _, field, spec, _ in string.Formatter().parse(left.pop()):
            if field is not None:
                names.add(field.partition(".")[0].partition("[")[0])
            if spec:
                left.append(spec)
    return names


ResourceUnion = Annotated[LLM | ProxyLLM | PromptTemplate, Field(discriminator="resource_type")]
NamedResources = dict[str, ResourceUnion]


class ResourcesUpdate(BaseModel):
    """One version of a named set of resources. Times are Unix seconds.

    ``version`` counts from 1 and rises by one with every update of the same ``resources_id``;
    an update replaces ``resources`` as a whole.
    """

    resources_id: str
    create_time: float
    update_time: float
    version: int
    resources: NamedResources


_named_resources: TypeAdapter[NamedResources] = TypeAdapter(NamedResources)


def validate_resources(resources: Mapping[str, Any]) -> NamedResources:
    """Check and complete what a caller wants to store; the result shares nothing with it.

    A bare ``str`` becomes a prompt template with the f-string engine, a dict is read by its
    ``resource_type``. Raises pydantic's ValidationError (a ValueError) for anything else.
    """
    coerced: Any = resources
    if isinstance(resources, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        coerced = {key: _coerced(value) for key, value in resources.items()}
    return _named_resources.validate_python(coerced)


def refuse_masked(resources: NamedResources) -> None:
    """Raise InvalidInput for a model whose key was masked: it was read where only masked keys are shown."""
    for name, one in resources.items():
        if isinstance(one, LLM) and one.api_key == MASK:
            raise InvalidInput(
                f"the api_key of {name!r} is masked: a key is shown by get_resources_by_id and get_latest_resources only; "
                "publish the key itself, or env:NAME with the name of a variable of the runner"
            )


def with_keys(resources: NamedResources) -> NamedResources:
    """The resources as an agent gets them: keys are read where they are only referred to. Raises InvalidInput."""
    return {name: one.with_key() if isinstance(one, LLM) else one for name, one in resources.items()}


def masked(resources: NamedResources) -> NamedResources:
    """The resources as people may see them: without literal keys and headers, and without credentials in endpoints."""
    return {
        name: one.model_copy(update={field: mask_value(field, value) for field, value in one.__dict__.items()})
        if isinstance(one, LLM)
        else one
        for name, one in resources.items()
    }


def mask_models(value: Any) -> Any:
    """A copy of decoded data in which every model, at any depth, is masked as `masked` does."""
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        if cast("Mapping[Any, Any]", value).get("resource_type") in ("llm", "proxy_llm"):
            return {key: mask_value(str(key), one) for key, one in items}
        return {key: mask_models(one) for key, one in items}
    if isinstance(value, list):
        return [mask_models(one) for one in cast("list[Any]", value)]
    return value


def _coerced(value: Any) -> Any:
    if isinstance(value, str):
        return PromptTemplate(template=value, engine="f-string")
    if isinstance(value, Resource):
        return value.model_copy(deep=True)
    return value
